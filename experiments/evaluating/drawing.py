"""Samples on disk while they are drawn, so that an interrupted evaluation continues where it was.

    evaluation-<digest>/samples.npy   samples in the order of drawing, [num_samples, ...]
                        drawn         the number of finished samples
                        <split>.npy   real images, if they are too many for memory

The digest covers everything that the samples depend on. The directory is removed when the evaluation is done. Metrics
read the samples from the file, so that a set larger than memory can be drawn.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax import parallel
from diffusion_jax.data import as_stored
from diffusion_jax.errors import RunError
from diffusion_jax.files import replace_file
from experiments.evaluating.asked import Asked
from experiments.evaluating.generation import Generator
from experiments.ground.progress import ProgressBar
from experiments.ground.workdir import Place

_FILE, _COUNT = "samples.npy", "drawn"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """Samples that are being drawn.

    Attributes:
      directory: directory in which they are kept.
      num_samples: their final number.
      place: the workdir.
    """

    directory: Path
    num_samples: int
    place: Place

    @classmethod
    def of(
        cls, home: Path, make: Generator, num_samples: int, seed: int, source: Mapping[str, Any], said: str = ""
    ) -> "Drawing":
        """The drawing for one network, sampler settings, seed and requests (`Asked.digest`) in a workdir."""
        depends_on = {
            "sampler": repr(make.sampler),
            "times": make.grid.times.tolist(),
            "guidance": repr(make.guidance),
            "guide": make.guide and make.guide.source,
            "clip": make.experiment.config.sampling.clip_x0,
            "batch_size": make.batch_size,
            "num_samples": num_samples,
            "seed": seed,
            "source": dict(source),
            **({"said": said} if said else {}),
        }
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()
        return cls(directory=home / f"evaluation-{digest[:16]}", num_samples=num_samples, place=Place.of(home))

    def draw(self, make: Generator, params: Any, asked: Asked | np.ndarray | None, seed: int) -> np.ndarray:
        """The samples; missing ones are drawn. Every process must call this; only the first one gets the samples.

        Returns:
          uint8 [num_samples, height, width, channels] (float32 if the data is not images), read from the disk.

        Raises:
          RunError: the workdir, or the samples drawn, were removed meanwhile; or a sample is not finite.
        """
        try:
            return self._draw(make, params, asked, seed)
        except FileNotFoundError as error:
            self.place.require("while samples were drawn")
            raise RunError(
                f"{self.directory} was removed while samples were drawn; the same command draws them again"
            ) from error

    def _draw(self, make: Generator, params: Any, asked: Asked | np.ndarray | None, seed: int) -> np.ndarray:
        primary = parallel.is_primary()
        done = self._drawn() if primary else 0
        if jax.process_count() > 1:
            done = int(multihost_utils.broadcast_one_to_all(np.int32(done)))
        with ProgressBar(total=self.num_samples, description="sample", primary=primary) as progress:
            if done and primary:
                progress.update(done)
            first = done - done % make.batch_size
            for part in make.batches(params, asked, self.num_samples, seed, start=first):
                if primary:
                    self._keep(first, as_stored(make.experiment.shown.spec, part))
                first += len(part)
                progress.update(first)
        if not primary:
            return np.zeros((0, *make.experiment.shown.spec.shape), np.uint8)
        return np.load(self.directory / _FILE, mmap_mode="r")

    def forget(self) -> None:
        """Remove the stored samples."""
        if parallel.is_primary():
            shutil.rmtree(self.directory, ignore_errors=True)

    def _drawn(self) -> int:
        try:
            count = int((self.directory / _COUNT).read_text())
            kept = np.load(self.directory / _FILE, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # nothing yet, or incomplete: begin again
            return 0
        return count if len(kept) == self.num_samples else 0

    def _keep(self, first: int, part: np.ndarray) -> None:
        self.place.require("while samples were drawn")
        self.directory.mkdir(parents=True, exist_ok=True)
        shape = (self.num_samples, *part.shape[1:])
        how = {"mode": "r+"} if first else {"mode": "w+", "dtype": part.dtype, "shape": shape}
        kept = np.lib.format.open_memmap(self.directory / _FILE, **how)
        kept[first : first + len(part)] = part
        kept.flush()
        replace_file(self.directory / _COUNT, str(first + len(part)).encode())
