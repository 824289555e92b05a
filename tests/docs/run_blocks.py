"""Run each Python block of a page as a separate module in a separate process, so that its registrations and JAX
settings do not affect other tests.

    python tests/docs/run_blocks.py docs/extending.md --names=NAME,NAME
    python tests/docs/run_blocks.py README.md --block=0

With names, print the conformance tests that cover these names, and run them.
"""

import argparse
import os
import re
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROOMS = tuple(f"tests/{room}" for room in ("schedulers", "samplers", "objectives", "models", "metrics"))


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(line number, source) of every fenced Python block."""
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return [(text[: block.start(1)].count("\n"), block[1]) for block in blocks]


def run(page: Path, only: int | None) -> None:
    """Execute the blocks in order; a traceback names the page and its line."""
    blocks = python_blocks(page.read_text())
    for line, source in blocks if only is None else [blocks[only]]:
        module = types.ModuleType(f"{page.stem}_line_{line}")
        sys.modules[module.__name__] = module
        exec(compile("\n" * line + source, str(page), "exec"), module.__dict__)


class Collected:
    """A pytest plugin that prints the collected tests."""

    def pytest_collection_finish(self, session):
        for item in session.items:
            print("collected", item.nodeid)


def conformance(names: list[str]) -> int:
    """Run the tests whose ids contain one of `names`; returns pytest's exit code."""
    import pytest

    os.chdir(ROOT)
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--durations=0", "-k", " or ".join(names)]
    return int(pytest.main([*options, *ROOMS], plugins=[Collected()]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("--block", type=int)
    parser.add_argument("--names", type=lambda text: text.split(","))
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # as in tests/conftest.py, which is loaded too late here
    sys.path.insert(0, str(ROOT))
    run(arguments.page, arguments.block)
    sys.exit(conformance(arguments.names) if arguments.names else 0)
