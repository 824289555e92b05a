"""The data pipeline: batches addressed by position, read by Grain.

Example k of the global batch for step s has the global position p = s * batch_size + k. Everything about it follows
from (seed, p) alone:

    epoch, place = divmod(p, num_examples)
    example      = permutation(seed, epoch)[place]          (1)
    random bits  = Philox(seed, stream)[p]                  (2)

so the batch at step s does not depend on how many processes, worker processes or threads read it, nor on where the run
was last resumed. Host h of H reads the rows h * batch_size / H ... (h + 1) * batch_size / H of every global batch.

(1) sorts random words of a counter-based generator, which gives the same numbers in all versions of numpy (numpy does
not promise this for `Generator.permutation`). It is computed once per epoch; Grain's index_shuffle would cost 15 us per
example. If some examples show a subject and the others its class (`DatasetInfo.num_prior`), they alternate: even
positions have the subject, odd ones the class, and p // 2 replaces p in (1) for each of the two.

Grain sees a random-access source whose elements are whole batches: it prefetches them in threads or worker processes
while the accelerator computes, at a cost per batch rather than per example.

Pictures of several shapes go into `buckets`: p counts within a bucket then, and the batches of all take turns.
"""

import dataclasses
import functools
import hashlib
import math
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from diffusion_jax.data import latents, transforms
from diffusion_jax.data.augmentation import Augmentation, augmentations
from diffusion_jax.data.batch_reader import BatchReader, open_features
from diffusion_jax.data.buckets import BucketReader, bucket_seed, bucketed, cover_of, sides_of
from diffusion_jax.data.holes import Holes, holes
from diffusion_jax.data.order import spread
from diffusion_jax.data.reading import Preparation, TransformedSource, held, read_all
from diffusion_jax.data.shuffled import shuffled_captions
from diffusion_jax.data.sources import (
    ArraySource,
    Batch,
    Dataset,
    DatasetInfo,
    Example,
    Tokenizer,
    describe_dataset,
    open_dataset,
    resolved,
)
from diffusion_jax.data.trigger import with_trigger
from diffusion_jax.errors import UserError
from diffusion_jax.files import sampled_digest
from diffusion_jax.registry import unknown_name

_NO_NAMES = str.maketrans(dict.fromkeys("/[]:%+", "_"))  # characters of splits that are replaced in file names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A data pipeline; its fields are its configuration.

    Attributes:
      dataset: name of the data set (see `sources.open_dataset`).
      split: split, or slice of one in TFDS notation.
      batch_size: size of the GLOBAL batch.
      image_size: side of the square output images; None leaves images as they are.
      crop: name in `transforms.crops`: none, adm, edm, pad.
      buckets: heights and widths such as "192x320": a picture goes to the one nearest in shape, is cut to it, and a
        batch is of one of them (see `buckets`); () for squares of image_size. What is drawn and judged is square still.
      flip: mirror each image with probability 1/2; the network does not receive this.
      augmentation: name in `augmentation.augmentations`, or a mapping {"name": ..., **arguments}; a batch then has
        "augment", the augmentation's parameters.
      holes: name in `holes.holes`, or a mapping {"name": ..., **arguments}; a batch then has "mask", 1 in the hole.
      augment: False leaves images as they are, neither flipped nor augmented ("augment" is zero).
      shuffle: use a new order in every epoch; otherwise always the order of the source.
      shuffle_captions: give every example the caption of another example of its split (see `shuffled`).
      trigger: a word that is put before captions that lack it (see `trigger`); "" for none.
      seed: seed of order and flips.
      channels: 1 or 3 to convert images to grey or RGB; None leaves them.
      options: arguments of the data set's opener, a mapping.
      data_dir: TFDS directory; None takes `sources.default_data_dir()`.
      features: a file .npy [examples, tokens, channels] with another network's features for the examples of this split,
        in the order of the source (`experiments.prepare_features`), computed from images that are neither flipped nor
        augmented. "" for none.
      num_workers: worker processes; 0 reads in threads of this one.
      prefetch: batches kept ready (by each worker).
      prepare: turns raw fields such as "text" into arrays for batches; without it they are dropped.
      memory_limit: bytes; a split that takes no more, decoded, is kept in memory. 0 always reads from disk.
    """

    dataset: str
    split: str = "train"
    batch_size: int
    image_size: int | None = None
    crop: str = "none"
    buckets: tuple[str, ...] = ()
    flip: bool = False
    augmentation: str | Mapping[str, Any] | tuple[tuple[str, Any], ...] = "none"
    holes: str | Mapping[str, Any] | tuple[tuple[str, Any], ...] = "none"
    augment: bool = True
    shuffle: bool = True
    shuffle_captions: bool = False
    trigger: str = ""
    seed: int = 0
    channels: int | None = None
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    data_dir: str | None = None
    features: str = ""
    num_workers: int = 0
    prefetch: int = 4
    memory_limit: int = 2**30
    prepare: Preparation | None = None

    def __post_init__(self):
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in dict(self.options).items()}
        object.__setattr__(self, "options", tuple(sorted(options.items())))
        for name in ("augmentation", "holes"):
            if not isinstance(getattr(self, name), str):
                object.__setattr__(self, name, tuple(sorted(dict(getattr(self, name)).items())))
        for name, least in [("batch_size", 1), ("image_size", 1), ("seed", 0), ("num_workers", 0), ("prefetch", 0)]:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise UserError(f"data.{name} must be an integer of at least {least}, not {value!r}")
        if self.seed >= 2**64:
            raise UserError(f"data.seed must be below 2**64, not {self.seed}")
        if self.channels not in (None, 1, 3):
            raise UserError(f"data.channels must be 1, 3 or None, not {self.channels!r}")
        if self.crop != "none" and self.image_size is None:
            raise UserError(f"data.crop={self.crop!r} needs data.image_size")
        object.__setattr__(self, "buckets", tuple(self.buckets))  # of JSON it is a list
        if self.buckets:
            self._check_buckets()
        if self.features and (self.flip or self._augmentation.num_labels):
            raise UserError(
                "data.features describe unchanged images: set data.flip=False and data.augmentation to none"
            )
        _ = (self._crop, self._augmentation, self.drawn_holes)

    def _check_buckets(self) -> None:
        _ = self._sides
        if self.image_size is None:
            raise UserError("data.buckets needs data.image_size, the side of the squares that are drawn and judged")
        if self.crop != "none":
            raise UserError(
                f"data.crop={self.crop!r} cuts squares, but data.buckets cut other shapes: leave data.crop out"
            )
        if self.features:
            raise UserError("data.features describe squares: leave out data.features, or data.buckets")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Pipeline":
        """Build from a mapping of fields, such as `config.data.to_dict()`.

        Raises:
          UserError: an unknown field (the message names the nearest), a missing one, a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in config:
            if key not in known:
                raise UserError(unknown_name("field of data", key, known))
        for key in ("dataset", "batch_size"):
            if key not in config:
                raise UserError(f"data.{key} is missing")
        return cls(**config)

    @functools.cached_property
    def info(self) -> DatasetInfo:
        """The description of the split after the pipeline; opens the data set, reads no example.

        Its fingerprint covers the data set and, if there are `features`, their file.
        """
        info = self._transformed(self._opened.info)
        if not self.features:
            return info
        open_features(self.features)  # raises errors that name the field
        of = f"{info.fingerprint} {sampled_digest(self.features)}"
        return dataclasses.replace(info, fingerprint=hashlib.sha256(of.encode()).hexdigest())

    def prepared_by(self, prepare: Preparation) -> "Pipeline":
        """The same pipeline with prepared raw fields; a data set that is open is not opened again."""
        other = dataclasses.replace(self, prepare=prepare)
        if "_opened" in self.__dict__:
            other.__dict__["_opened"] = self._opened
        return other

    @property
    def pictures(self) -> "Pipeline":
        """For prepared latents the pipeline of the pictures that were encoded; otherwise this pipeline.

        Raises:
          UserError: the latents are not there.
        """
        name, _, options = resolved(self.dataset, self.data_dir, dict(self.options))
        if name != "latents":
            return self
        about = latents.read_about(options["path"])
        fields = {**about["of"]["data"], "data_dir": self.data_dir or about.get("data_dir")}
        kept = {"split": self.split, "batch_size": self.batch_size, "memory_limit": self.memory_limit}
        return Pipeline.from_config({**fields, **kept})

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of text data; None for other data."""
        return self._opened.tokenizer

    @property
    def remarks(self) -> tuple[str, ...]:
        """Notes on the data, to be printed before training."""
        return self._opened.remarks

    @property
    def prompts(self) -> Sequence[Any]:
        """Prompts for samples, each with what a picture must show; () if the data has none."""
        return self._opened.prompts

    @property
    def edits(self) -> Any:
        """The edits of pairs; None if the data has none."""
        return self._opened.edits

    def described(self) -> DatasetInfo:
        """`info` as far as it is known without the data; `num_examples` may be 0."""
        return self._transformed(
            describe_dataset(self.dataset, split=self.split, data_dir=self.data_dir, **dict(self.options))
        )

    def _transformed(self, info: DatasetInfo) -> DatasetInfo:
        height, width, channels = info.spec.shape
        if info.spec.kind == "latents" and self.image_size not in (None, height):
            raise UserError(
                f"data.image_size={self.image_size}, but the latents of {self.dataset} are {height}x{width}: set it to "
                f"{height}"
            )
        if self.image_size is not None:
            height = width = self.image_size
        if height is None or width is None:
            raise UserError(
                f"the images of dataset {self.dataset!r} differ in size: "
                "set data.image_size and data.crop ('adm' or 'edm')"
            )
        spec = dataclasses.replace(info.spec, shape=(height, width, self.channels or channels))
        return dataclasses.replace(info, spec=spec)

    def batches(
        self, start_step: int = 0, *, process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """Training batches from step `start_step` on, without end.

        Args:
          start_step: the first step; the batches from there on equal those of an uninterrupted run.
          process_index: this host.
          process_count: number of hosts; must divide batch_size.

        Returns:
          An iterator of {"data": float32 [local_batch, height, width, channels] in [-1, 1], "label": int32
          [local_batch], "augment": float32 [local_batch, augment_labels]}; data without classes has no "label", a
          pipeline without augmentation no "augment", one without holes no "mask". The outputs of `prepare` are added
          under their names, and with `features` "features", float32 [local_batch, tokens, channels]. If some examples
          show a class, "prior", float32 [local_batch], is 1 for these and 0 for those of the subject. Text is int32
          [local_batch, length, 1, 1].

        Raises:
          UserError: batch_size does not divide among the hosts; also the errors of opening and decoding the data.
        """
        if start_step < 0:
            raise UserError(f"start_step must not be negative, it is {start_step}")
        return self._iterate(self.reader(process_index, process_count), start_step)

    def arrays(
        self, split: str | None = None, *, max_examples: int | None = None, spill: Path | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Decoded examples: images uint8 [n, height, width, channels] and labels int32 [n], or None without classes.

        They are cropped as in training and not flipped. `split` may name another split of the same data. With
        `max_examples` they are spread evenly over the split, so that a split sorted by class gives all classes. If the
        images together exceed `memory_limit`, they are written to a file in the directory `spill`, if given, and read
        from there.
        """
        if split not in (None, self.split):
            return dataclasses.replace(self, split=split).arrays(max_examples=max_examples, spill=spill)
        total = self.info.num_examples
        indices = spread(total, max_examples)
        count = len(indices)
        source = self._source if count == total else self.__dict__.get("_source", self._cropped)
        spec = self.info.spec
        too_large = count * math.prod(spec.shape) * spec.stored_dtype.itemsize > self.memory_limit
        file = spill / f"{self.split.translate(_NO_NAMES)}.npy" if spill and too_large else None
        batch = read_all(source, indices, file=file)
        return batch["image"], batch.get("label")

    def kinds(self, split: str | None = None, *, max_examples: int | None = None) -> np.ndarray | None:
        """What the examples that `arrays` gives show, int32 [n], for judges of data without classes; None if the data
        does not say."""
        if split not in (None, self.split):
            return dataclasses.replace(self, split=split).kinds(max_examples=max_examples)
        of = self._opened.kinds
        return of and of(spread(self.info.num_examples, max_examples))

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """Examples with every field of the data set, in the order of the source, cropped as in training."""
        return self._cropped.read_whole(indices)

    def texts(self, split: str | None = None, *, max_examples: int | None = None) -> list[str]:
        """Captions of this split or another one of the same data, for the examples that `arrays` gives.

        Raises:
          UserError: the data has no captions.
        """
        if split not in (None, self.split):
            return dataclasses.replace(self, split=split).texts(max_examples=max_examples)
        if "text" not in self.info.fields:
            raise UserError(f"the data set {self.dataset!r} has no captions")
        return self._cropped.texts(spread(self.info.num_examples, max_examples))

    def reader(self, process_index: int = 0, process_count: int = 1) -> BatchReader | BucketReader:
        """Random access to this host's part of the batches: `reader[step]` is the batch of that step."""
        whole = self._reader(self.batch_size, process_index, process_count)
        if not self.buckets:
            return whole
        sources = self._bucket_sources
        return BucketReader(
            tuple(
                dataclasses.replace(whole, source=one, num_examples=len(one), seed=bucket_seed(self.seed, sides))
                for sides, one in sources.items()
            )
        )

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the pictures of a batch: of those buckets that have any; else the one that all have."""
        return tuple(self._bucket_sources) if self.buckets else (self.info.spec.shape[:2],)

    def _reader(self, batch_size: int, process_index: int, process_count: int) -> BatchReader:
        if not 0 <= process_index < process_count:
            raise UserError(f"process_index {process_index} is not in 0..{process_count - 1}")
        if batch_size % process_count:
            raise UserError(f"data.batch_size={batch_size} is not divisible by the {process_count} processes")
        local = batch_size // process_count
        if self.features and open_features(self.features).shape[0] != self.info.num_examples:
            raise UserError(
                f"data.features={self.features} has {open_features(self.features).shape[0]} examples, the split "
                f"{self.split!r} of {self.dataset} has {self.info.num_examples}"
            )
        return BatchReader(
            source=self._cropped if self.buckets else self._source,
            num_examples=self.info.num_examples,
            batch_size=batch_size,
            first_row=process_index * local,
            num_rows=local,
            seed=self.seed,
            shuffle=self.shuffle,
            flip=self.flip,
            augmentation=self._augmentation,
            augment=self.augment,
            features=self.features,
            holes=self.drawn_holes,
            num_prior=self.info.num_prior,
        )

    @property
    def features_shape(self) -> tuple[int, ...] | None:
        """The shape of "features" for one example; None if batches have none."""
        return open_features(self.features).shape[1:] if self.features else None

    @property
    def augment_labels(self) -> int:
        """The length of "augment" for an example; 0 if batches have none."""
        return self._augmentation.num_labels

    @functools.cached_property
    def _augmentation(self) -> Augmentation:
        spec = self.augmentation
        return augmentations.build(spec if isinstance(spec, str) else dict(spec))

    @functools.cached_property
    def drawn_holes(self) -> Holes:
        """The holes of a batch."""
        return holes.build(self.holes if isinstance(self.holes, str) else dict(self.holes))

    @functools.cached_property
    def _opened(self) -> Dataset:
        opened = open_dataset(self.dataset, split=self.split, data_dir=self.data_dir, **dict(self.options))
        if opened.info.num_examples == 0:
            raise UserError(f"split {self.split!r} of dataset {self.dataset!r} has no examples")
        opened = with_trigger(opened, self.trigger) if self.trigger else opened
        return shuffled_captions(opened, self.seed) if self.shuffle_captions else opened

    @property
    def _sides(self) -> tuple[tuple[int, int], ...]:
        return sides_of(self.buckets, "data.buckets")

    @functools.cached_property
    def _bucket_sources(self) -> dict[tuple[int, int], ArraySource | TransformedSource]:
        """The examples of each bucket that has any, cut to its shape; from memory if all of them fit."""
        found = bucketed(self._opened, self.info, self._sides, self.prepare)
        if sum(len(one) * math.prod(one.shape) for one in found.values()) > self.memory_limit:
            return found
        return {sides: held(one) for sides, one in found.items()}

    @functools.cached_property
    def _crop(self) -> transforms.Crop:
        if self.buckets:
            return cover_of((self.image_size, self.image_size))
        return transforms.crops.build(self.crop, size=self.image_size)

    @property
    def _cropped(self) -> TransformedSource:
        """Cropped examples, decoded on access."""
        spec = self.info.spec
        return TransformedSource(self._opened.source, self._crop, spec.shape, spec.stored_dtype, self.prepare)

    @functools.cached_property
    def _source(self) -> ArraySource | TransformedSource:
        """Cropped examples, from memory if they fit."""
        info, source = self.info, self._cropped
        size = math.prod(info.spec.shape) * source.dtype.itemsize
        if self.prepare is not None and info.num_examples * size <= self.memory_limit:  # the prepared pictures fit, too
            size = sum(values.nbytes for values in source.read([0]).values())
        if info.num_examples * size > self.memory_limit:
            return source
        return held(source)

    def _iterate(self, reader: BatchReader | BucketReader, start_step: int) -> Iterator[Batch]:
        """Pass the reader to Grain: start at the step and read ahead."""
        import grain  # takes 1 s, and planning does not need it

        threads = 0 if reader.in_memory else min(self.prefetch, os.cpu_count() or 1, 16)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self.prefetch if threads else 0)
        batches = grain.MapDataset.source(reader)[start_step:].to_iter_dataset(options)
        if self.num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, even without absl.app
            workers = grain.MultiprocessingOptions(
                num_workers=self.num_workers, per_worker_buffer_size=max(self.prefetch, 1)
            )
            batches = batches.mp_prefetch(workers)
        iterator = iter(batches)
        stream = (batch for batch in iterator)
        weakref.finalize(stream, iterator.close)  # ends threads and workers, also at exit
        return stream
