"""The data set `unreliable`: the digits, read one by one from a storage whose faults the variable FAULT chooses.

slow:S     every read of a batch takes S seconds longer
flaky:N    every N-th read of a batch fails with EIO, and the next try succeeds
dead:N     after N reads of a batch, all reads fail with EIO
"""

import dataclasses
import errno
import os
import threading
import time
from collections.abc import Sequence

from diffusion_jax.data import datasets
from diffusion_jax.data.sources import Dataset, Example, Source, open_dataset

_LOCK = threading.Lock()  # not in the source, because that is sent to worker processes


@dataclasses.dataclass(eq=False)
class UnreliableSource:
    """A source whose storage fails as `fault` says."""

    source: Source
    fault: str
    reads: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        with _LOCK:
            self.reads += 1
            count = self.reads
        kind, _, number = self.fault.partition(":")
        if kind == "slow":
            time.sleep(float(number))
        if (kind == "flaky" and count % int(number) == 0) or (kind == "dead" and count > int(number)):
            raise OSError(errno.EIO, os.strerror(errno.EIO), "a disk of this test")
        return [self.source[int(i)] for i in indices]


@datasets.register("unreliable")
def open_unreliable(*, split: str = "train", data_dir: str | None = None) -> Dataset:
    """Open the digits on a storage that fails as the environment variable FAULT says."""
    opened = open_dataset("digits", split=split, data_dir=data_dir)
    return dataclasses.replace(opened, source=UnreliableSource(opened.source, os.environ.get("FAULT", "")))
