"""Commands as processes that start at once: forked from one that has imported what all commands import.

Such a process is one of its own, with its own devices, programs, signals and exit code; what it does not repeat is four
seconds of imports. The server compiles nothing and has a single thread, so that a fork of it is safe; where an import
starts threads it says so, and commands are started anew. Forks of one server share the seed of Python's hashes; what is
started with `Command.start`, as all that is killed, has another one.

    python -m tests.forking FD        # the server; FD is a socket to the process that asks
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

ROOT = Path(__file__).parent.parent
POSSIBLE = sys.platform == "linux"


class ForkServer:
    """Runs commands; ends with the process that made it."""

    def __init__(self, environment: dict[str, str]):
        self.environment = dict(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = [sys.executable, "-m", "tests.forking", str(theirs.fileno())]
        process = subprocess.Popen(program, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        weakref.finalize(self, _end, self._socket, process)
        self.works = self._socket.recv(1) == b"y"
        """Whether the server may fork."""

    def run(self, module: str, arguments: list[str], timeout: float) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of `python -m module arguments`; the code of a signal is negative.

        Raises:
          subprocess.TimeoutExpired: it ran longer, and has been killed.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, ours:
            with theirs:
                files = [out.fileno(), err.fileno(), theirs.fileno()]
                socket.send_fds(self._socket, [json.dumps([module, *arguments]).encode()], files)
            pid = int(ours.recv(20))
            ours.settimeout(timeout)
            try:
                code = int(ours.recv(20))
            except TimeoutError as error:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired([module, *arguments], timeout) from error
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return code, *texts


def _end(ours: socket.socket, process: subprocess.Popen) -> None:
    ours.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(asking: socket.socket) -> None:
    """Answer until the other side is gone; returns only in a child, which is then the command."""
    preload()
    gc.collect()
    gc.freeze()  # no collection in a fork goes through what was imported
    asking.send(b"y" if len(os.listdir("/proc/self/task")) == 1 else b"n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then leave
    while True:
        request, files, _, _ = socket.recv_fds(asking, 2**20, 3)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            return keep(*json.loads(request), files=files, asking=asking)
        for file in files:
            os.close(file)


def keep(module: str, *arguments: str, files: list[int], asking: socket.socket) -> None:
    """Start the command and tell its number, then its exit code; returns in the command alone."""
    asking.close()
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
    out, err, reply = files
    pid = os.fork()
    if pid:
        answer = socket.socket(fileno=reply)
        answer.send(str(pid).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # who asked has given up
            answer.send(str(code).encode())
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for file in files:
        os.close(file)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def preload() -> None:
    """Import what the commands import, but not them: each is to be run from its first line."""
    import experiments

    for path in sorted((ROOT / "experiments").glob("[a-z]*.py")):
        importlib.import_module(f"experiments.{path.stem}")
        del sys.modules[f"experiments.{path.stem}"]
        delattr(experiments, path.stem)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
