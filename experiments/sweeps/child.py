"""Become another program that ends with the process that started it, and is restricted to some CPUs.

    python experiments/sweeps/child.py PARENT CPUS PROGRAM ARGUMENTS ...

PARENT is the process number of the starter, CPUS a list with commas, or "" for all. This is a separate program and not
a function between fork and exec, because the starter has threads, whose locks a forked copy would inherit.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, cpus: list[int], command: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # even if the parent is killed
        if cpus:
            os.sched_setaffinity(0, cpus)
    if os.getppid() == parent:
        os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(cpu) for cpu in sys.argv[2].split(",") if cpu], sys.argv[3:])
