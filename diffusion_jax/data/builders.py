"""TFDS builders that need neither a network nor TensorFlow, and the preparation of any data set as array_record.

`Digits`: the 1797 real 8x8 pictures of handwritten digits that come with scikit-learn. `Scenes`: generated pictures
with captions, for programs that read files. `Emoji`: captioned pictures from fetched packages. `idx_builder`: TFDS's
own `mnist`, `fashion_mnist` and `kmnist` from local files in LeCun's idx format.
"""

import contextlib
import dataclasses
import gzip
import importlib.util
import io
import json
import logging
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from diffusion_jax.data import scenes, tfds_source
from diffusion_jax.data.emoji_builder import Emoji
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, locked, private_directory, regular_file

FASHION_MNIST_DIR = "/usr/share/datasets/fashion-mnist"
"""The folder into which Debian's package dataset-fashion-mnist installs the idx files."""

IDX_NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
IDX_LIMIT = 2**30  # bytes of one file, unpacked; the largest published has 47 million
IDX_STEMS = {"train": "train", "test": "t10k"}


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's digits: 8x8 grey, values 0..16 scaled to 0..255.

    Within each class every fifth picture is for test: 1437 for training, 360 for test.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 43 people, 8x8 grey (UCI Optical Recognition, via scikit-learn).",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "index": tfds.features.Scalar(np.int64),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        from sklearn.datasets import load_digits  # slow to import, and needed once

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        is_test = np.zeros(len(images), bool)
        is_test[np.argsort(digits.target, kind="stable")[1::5]] = True
        for i in np.flatnonzero(is_test == (split == "test")):
            yield (
                int(i),
                {"image": PIL.Image.fromarray(images[i]), "label": int(digits.target[i]), "index": int(i)},
            )


class Scenes(tfds.core.GeneratorBasedBuilder):
    """The data of data.dataset="scenes" as files: image, caption, and the graph of the scene as JSON.

    There is a config for each size, "scenes/32"; the other options have their defaults.
    """

    VERSION = tfds.core.Version(f"{scenes.VERSION}.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=str(size), description=f"Pictures of {size}x{size}.") for size in (32, 24, 48, 64)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = int(self.builder_config.name)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Coloured shapes on grey grounds, with captions and graphs.",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "text": tfds.features.Text(),
                    "graph": tfds.features.Text(),
                    "index": tfds.features.Scalar(np.int64),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in scenes.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        source = scenes.SceneSource(scenes.SceneOptions(size=int(self.builder_config.name)), split)
        for start in range(0, len(source), 256):
            indices = range(start, min(start + 256, len(source)))
            examples = zip(indices, source.__getitems__(indices), source.described(indices), strict=True)
            for i, example, (scene, _, _) in examples:
                graph = json.dumps(dataclasses.asdict(scene))
                yield i, {**example, "image": PIL.Image.fromarray(example["image"]), "graph": graph, "index": i}


def idx_builder(name: str, idx_dir: str, data_dir: str) -> tfds.core.GeneratorBasedBuilder:
    """TFDS's own builder of an idx data set, changed to read `idx_dir` instead of downloading.

    It writes what TFDS's builder would write, so the unchanged `tfds.data_source(name)` reads it.
    """
    from tensorflow_datasets.image_classification import mnist

    with tfds.core.registered.skip_registration():

        class IdxBuilder(getattr(mnist, IDX_NAMES[name])):
            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(stem) for split, stem in IDX_STEMS.items()}

            def _generate_examples(self, stem):
                images, labels = _read_pair(Path(idx_dir), stem)
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield i, {"image": PIL.Image.fromarray(image), "label": int(label)}

    IdxBuilder.name = name
    return IdxBuilder(data_dir=data_dir, file_format="array_record")


def _read_pair(directory: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] and labels [n] of one split."""
    image_file, label_file = (directory / file for file in _idx_files(stem))
    images, labels = read_idx(image_file, ndim=3), read_idx(label_file, ndim=1)
    if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max(initial=0) > 9:
        raise UserError(
            f"{image_file} (shape {images.shape}) and {label_file} (shape {labels.shape}, largest "
            f"{labels.max(initial=0)}) are not 28x28 images with as many labels 0..9"
        )
    return images, labels


def _idx_files(stem: str) -> tuple[str, str]:
    return f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"


def read_idx(path: Path, ndim: int) -> UInt8[np.ndarray, "..."]:
    """Read one gzipped idx file of bytes: 0 0 8 ndim, the dimensions as big-endian int32, then the values.

    Raises:
      UserError: the file cannot be read, or is not of this form.
    """
    path = regular_file(path)
    try:
        with gzip.open(path) as file:
            header = file.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
                raise UserError(f"{path} is not an idx file of {ndim}-dimensional unsigned bytes")
            shape = struct.unpack(f">{ndim}i", header[4:])
            count = math.prod(shape)
            if min(shape) < 0 or count > IDX_LIMIT:
                raise UserError(f"{path} is not an idx file of pictures: its header says {shape}")
            content = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read the idx file {path}: {error}") from error
    if len(content) != count:
        raise UserError(f"{path} is cut short or too long: its header says {shape}, it has {len(content)} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The result of a preparation: the directory, the examples of each split, whether it existed before."""

    directory: str
    num_examples: dict[str, int]
    was_there: bool


def prepare(
    name: str,
    data_dir: str,
    *,
    idx_dir: str | None = None,
    manual_dir: str | None = None,
    package_dir: str | None = None,
    progress: bool = True,
) -> Prepared:
    """Prepare a TFDS data set in `data_dir` as array_record files, unless it is there already.

    Any number of processes may call this at once: one prepares the data, the others wait.

    Args:
      name: any TFDS name, "digits", "scenes/32" (or 24, 48, 64), or "emoji/32" (or 64, 128; "emoji/32_de").
      data_dir: TFDS directory.
      idx_dir: for mnist, fashion_mnist and kmnist, the directory with the four local idx .gz files.
      manual_dir: for data that TFDS cannot download (imagenet2012), the directory with the archives.
      package_dir: for emoji, a folder with the archives of its packages, which are then not fetched.
      progress: whether to show TFDS's progress bars.

    Raises:
      UserError: unknown name, no network, no files, no TensorFlow where the stock builder needs it, disk trouble.
    """
    data_dir = str(expanded(data_dir))
    builder = tfds_source.get_builder(name, data_dir)
    was_there = tfds_source.is_prepared(builder)
    if not was_there:
        with _errors_for_users(data_dir, name), _alone(builder.name, data_dir):
            builder = tfds_source.get_builder(name, data_dir)  # another process may have prepared it meanwhile
            was_there = tfds_source.is_prepared(builder)
            if not was_there:
                _bring(builder.name, name, data_dir, idx_dir, manual_dir, package_dir, progress)
    builder = tfds_source.get_builder(name, data_dir)
    tfds_source.require_prepared(name, builder, data_dir)
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    return Prepared(str(builder.data_dir), splits, was_there)


def _bring(
    base: str,
    name: str,
    data_dir: str,
    idx_dir: str | None,
    manual_dir: str | None,
    package_dir: str | None,
    progress: bool,
) -> None:
    """Prepare a missing data set in the way that suits it."""
    if base == "digits":
        prepare_atomically(lambda staging: Digits(data_dir=staging, file_format="array_record"), data_dir, progress)
    elif base == "scenes":
        config = tfds_source.get_builder(name, data_dir).builder_config.name
        arguments = {"config": config, "file_format": "array_record"}
        prepare_atomically(lambda staging: Scenes(data_dir=staging, **arguments), data_dir, progress)
    elif base == "emoji":
        config = tfds_source.get_builder(name, data_dir).builder_config.name
        arguments = {"config": config, "file_format": "array_record", "package_dir": package_dir}
        prepare_atomically(lambda staging: Emoji(data_dir=staging, **arguments), data_dir, progress)
    elif base in IDX_NAMES and (idx_dir or not _has_tensorflow()):
        found = find_idx_dir(base, idx_dir)
        prepare_atomically(lambda staging: idx_builder(base, found, staging), data_dir, progress)
    else:
        _prepare_stock(name, data_dir, str(expanded(manual_dir)) if manual_dir else None, progress)


def _alone(base: str, data_dir: str) -> contextlib.AbstractContextManager:
    """Let one process at a time prepare a data set; two at once would make TFDS fail."""
    return locked(Path(data_dir) / f".{base}.lock", "process {holder} prepares it", wait=True)


def find_idx_dir(name: str, idx_dir: str | None) -> str:
    """The directory with the four idx files of `name`, after a check that they exist."""
    directory = expanded(idx_dir or (FASHION_MNIST_DIR if name == "fashion_mnist" else ""))
    files = [file for stem in IDX_STEMS.values() for file in _idx_files(stem)]
    missing = [file for file in files if not (directory / file).is_file()]
    if not missing and (idx_dir or name == "fashion_mnist"):
        return str(directory)
    if idx_dir:
        raise UserError(f"{directory} has no {missing[0]}; --idx_dir must hold {', '.join(files)}")
    mend = "`apt install dataset-fashion-mnist`, or " if name == "fashion_mnist" else ""
    raise UserError(
        f"no idx files for {name}: {mend}give --idx_dir=DIRECTORY with {', '.join(files)}; "
        "downloading them needs TensorFlow (`pip install .[tf]`)"
    )


def prepare_atomically(
    make_builder: Callable[[str], tfds.core.DatasetBuilder], data_dir: str, progress: bool = False
) -> None:
    """Prepare in a private directory and rename it into place, so that any number of processes may do so at once.

    The first to finish wins, and the others delete theirs. A process that is killed leaves no incomplete data set; the
    next one removes what it leaves.
    """
    with _errors_for_users(data_dir), private_directory(Path(data_dir), ".preparing-") as staging:
        builder = make_builder(str(staging))
        with _quiet(progress):
            builder.download_and_prepare()
        made = Path(builder.data_dir)
        target = Path(data_dir) / made.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.rename(target)
        except OSError:
            if not (target / "dataset_info.json").exists():
                raise


def _prepare_stock(name: str, data_dir: str, manual_dir: str | None, progress: bool) -> None:
    """Let TFDS download and prepare the data; it writes to a temporary directory and renames that itself."""
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    with _errors_for_users(data_dir, name):
        builder = tfds_source.get_builder(name, data_dir, file_format="array_record")
        with _quiet(progress), _patient_for_seconds():
            builder.download_and_prepare(download_config=config)


@contextlib.contextmanager
def _patient_for_seconds() -> Iterator[None]:
    """Make three attempts at a download instead of TFDS's ten, which take minutes without a network."""
    from tensorflow_datasets.core.download import downloader

    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 3
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Suppress TFDS's log lines and announcements; show progress bars (on standard error) if wanted."""
    log = logging.getLogger("urllib3")
    level = log.level
    log.setLevel(logging.ERROR)
    tfds.display_progress_bar(progress)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _errors_for_users(data_dir: str, name: str = "") -> Iterator[None]:
    """Turn the errors of a preparation into one line with the remedy."""
    import requests
    from tensorflow_datasets.core.download import download_manager, extractor, util

    needs_tensorflow = f"TFDS's builder of {name!r} needs TensorFlow to prepare it: `pip install .[tf]`"
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        if "tensorflow" not in str(error):
            raise UserError(f"preparing {name!r} needs a package that is missing: {error}") from error
        raise UserError(needs_tensorflow) from error
    except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
        url = getattr(getattr(error, "request", None), "url", None)
        raise UserError(f"cannot download {name!r}{f' from {url}' if url else ''}: no network?") from error
    except (util.DownloadError, extractor.ExtractError, download_manager.NonMatchingChecksumError) as error:
        if "tensorflow" in str(error):
            raise UserError(needs_tensorflow) from error
        raise UserError(f"preparing {name!r}: {' '.join(str(error).split())}") from error
    except AssertionError as error:  # TFDS demands files that must be downloaded by hand
        raise UserError(f"preparing {name!r}: {' '.join(str(error).split())}; see --manual_dir") from error
    except OSError as error:
        raise UserError(f"cannot write the data set to {os.path.abspath(data_dir)}: {error}") from error


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None
