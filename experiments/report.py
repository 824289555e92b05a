"""Write the report of a run again, or serve it to a browser while the run continues.

    python -m experiments.report --workdir=runs/digits
    python -m experiments.report --workdir=runs/digits --serve=8000        # then open http://127.0.0.1:8000

A run writes its report itself, as soon as there are pictures. This command writes the report of a run that was killed,
or of one that an earlier version trained. When served, the page is made anew at every visit. Only reports are served,
and only to this machine: `ssh -L 8000:127.0.0.1:8000 MACHINE` forwards another machine's report, and `--host=0.0.0.0`
serves it to the whole network. The workdir of an ablation has a report too, written by `experiments.ablate`.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
WORKDIR = FLAGS.path("workdir", None, "directory of the run, or of an ablation")
SERVE = FLAGS.integer("serve", None, "port to serve the page at; 0: any free port", lower=0, upper=2**16 - 1)
HOST = FLAGS.string("host", "127.0.0.1", "address to serve at")
cli.begin(FLAGS)

import errno
import http.server
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from diffusion_jax.errors import UserError
from experiments.reports.report import is_run, render, write_report

_PAGES = re.compile(r"/(?:(trainings/\w[\w.+-]*)/)?(?:report\.html)?")


def main(argv: Sequence[str]) -> None:
    if not WORKDIR.value:
        raise UserError("give --workdir=..., the directory of a run or of an ablation")
    directory = Path(WORKDIR.value)
    if not directory.is_dir():
        raise UserError(f"no such workdir: {directory}")
    if not is_run(directory) and not (directory / "report.html").is_file():
        raise UserError(f"{directory} is not a workdir of a run: it has neither config.json nor metrics.jsonl")
    if SERVE.value is not None:
        return serve(directory, HOST.value, SERVE.value)
    path = write_report(directory) if is_run(directory) else directory / "report.html"
    print(f"report: {path}")


def serve(directory: Path, host: str, port: int) -> None:
    """Serve until stopped.

    Raises:
      UserError: the port is in use or not allowed, or the address does not belong to this machine.
    """
    try:
        server = http.server.ThreadingHTTPServer((host, port), _handler(directory))
    except OSError as error:
        raise UserError(f"--serve={port}: {_why(error, host)}") from error
    with server:
        shown = "127.0.0.1" if host == "0.0.0.0" else host
        print(f"serving the report of {directory} at http://{shown}:{server.server_port} until Ctrl-C", flush=True)
        server.serve_forever()


def _why(error: OSError, host: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is in use: give another one, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return "the port needs more rights: give one from 1024 on"
    return f"cannot serve at --host={host}: {error.strerror}"


def _handler(directory: Path) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """The report at /, a training of an ablation at /trainings/NAME/report.html, and nothing else."""

        server_version, sys_version = "diffusion_jax", ""

        def do_GET(self) -> None:
            found = page_at(directory, self.path)
            if found is None:
                return self.send_error(404, "there is no report here")
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(found)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(found)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:  # visits are not logged
            pass

    return Handler


def page_at(directory: Path, url: str) -> bytes | None:
    """The page for the path of a URL; None if there is none."""
    match = _PAGES.fullmatch(unquote(urlsplit(url).path))
    if match is None:
        return None
    home = directory / (match[1] or "")
    if is_run(home):
        return render(home).encode()
    written = home / "report.html"
    return written.read_bytes() if written.is_file() else None


if __name__ == "__main__":
    cli.run(main)
