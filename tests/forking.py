"""Start commands quickly by forking them from a server that has already imported what all commands import.

Each command is a process with its own devices, programs, signals and exit code; only the imports, which take four
seconds, are shared. The server compiles nothing and has a single thread, so forking it is safe. If an import starts
threads, the server reports it, and commands are started as fresh processes. All forks of one server share the seed of
Python's hashes. Commands started with `Command.start`, such as those that are killed, have another seed.

    python -m tests.forking FD        # the server; FD is a socket to the requesting process
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
    """A server that runs commands and ends with the process that made it."""

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
        """Return (exit code, stdout, stderr) of `python -m module arguments`; the exit code after a signal is negative.

        Raises:
          subprocess.TimeoutExpired: the command ran longer and has been killed.
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
    """Answer requests until the other side is gone; returns only in a child process, which then becomes the command."""
    preload()
    gc.collect()
    gc.freeze()  # the garbage collector of a fork skips what was imported
    asking.send(b"y" if len(os.listdir("/proc/self/task")) == 1 else b"n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that run `keep`
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test process, which then exits
    while True:
        request, files, _, _ = socket.recv_fds(asking, 2**20, 3)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            return keep(*json.loads(request), files=files, asking=asking)
        for file in files:
            os.close(file)


def keep(module: str, *arguments: str, files: list[int], asking: socket.socket) -> None:
    """Start the command and send its process id, then its exit code; returns only in the process of the command."""
    asking.close()
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
    out, err, reply = files
    pid = os.fork()
    if pid:
        answer = socket.socket(fileno=reply)
        answer.send(str(pid).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # the requesting process has given up
            answer.send(str(code).encode())
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for file in files:
        os.close(file)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def preload() -> None:
    """Import what the commands import, but not the commands: each command must run from its first line."""
    import experiments

    for path in sorted((ROOT / "experiments").glob("[a-z]*.py")):
        importlib.import_module(f"experiments.{path.stem}")
        del sys.modules[f"experiments.{path.stem}"]
        delattr(experiments, path.stem)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
