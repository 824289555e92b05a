"""Encode a data set once with a trained first stage, for training on its latents.

    python -m experiments.prepare_latents --first_stage=runs/digits_ae --dataset=digits --out=data/digits_latents
    python -m experiments.train --config=configs/digits_unet.py --workdir=runs/digits_latent \\
        --config.data.dataset=latents:data/digits_latents --config.data.image_size=4 \\
        --config.first_stage.path=runs/digits_ae --config.process.prediction.sigma_data=1.0

A published first stage, which is a folder of diffusers (AutoencoderKL and the like, or a pipeline with one), can
replace the workdir. It has no data of its own, so name a data set:

    python -m experiments.prepare_latents --first_stage=models/sd15/vae --dataset=folder:pictures --image_size=512 \\
        --crop=edm --out=data/latents

Mean and standard deviation of every latent are stored in shards, together with the other fields of the data (classes,
captions). Images are prepared like the first stage's own data: with its size, crop and channels and, for the same data
set, its options. After an interruption the same command continues and gives the same bytes; run again, it changes
nothing.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
FIRST_STAGE = FLAGS.path("first_stage", None, "a trained first stage: its workdir, or a folder of diffusers")
DATASET = FLAGS.string("dataset", None, "data set to encode, as in data.dataset; by default the first stage's own")
OUT = FLAGS.path("out", None, "folder to write, used as data.dataset=latents:OUT")
SPLITS = FLAGS.strings("splits", ["train", "test"], "splits of the data")
DATA_DIR = FLAGS.path("data_dir", None, "where prepared data lies; by default $TFDS_DATA_DIR, else ./data")
IMAGE_SIZE = FLAGS.integer(
    "image_size", None, "side of the images; by default that of the first stage's own data", lower=1, upper=2**20
)
CROP = FLAGS.string("crop", None, "crop to squares; by default that of the first stage")
FORMAT = FLAGS.choice("format", "float32", ["float32", "float16"], "type of the stored numbers")
SHARD_SIZE = FLAGS.integer("shard_size", 4096, "examples in a file", lower=1, upper=2**24)
BATCH_SIZE = FLAGS.integer(
    "batch_size", 64, "images at once; it changes latents only by rounding", lower=1, upper=2**16
)
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, systems
from diffusion_jax.data.latents import LatentWriter
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, locked, plain_name
from diffusion_jax.models.autoencoders.stored import stored
from experiments.ground import workdir
from experiments.ground.progress import ProgressBar

Encode = Callable[[np.ndarray], np.ndarray]


def main(argv: Sequence[str]) -> None:
    """Encode the splits and print where they are."""
    if not FIRST_STAGE.value or not OUT.value:
        raise UserError("give --first_stage=..., a trained first stage, and --out=..., where to write")
    stage = systems.load_first_stage(FIRST_STAGE.value)
    own = {} if stage.info is None else workdir.read_config(FIRST_STAGE.value).data.to_dict()
    own = own or {"channels": stage.codec.data_channels}
    pictures, data_dir = picture_fields(own), DATA_DIR.value or own.get("data_dir") or None
    pipelines = {split: opened(pictures, plain_name("--splits: a split", split), data_dir) for split in SPLITS.value}
    for pipeline in pipelines.values():
        stage.codec.spec(pipeline.info.spec)
    infos = {split: pipeline.info for split, pipeline in pipelines.items()}
    writer = LatentWriter(
        folder=cli.writable_directory(expanded(OUT.value).parent) / expanded(OUT.value).name,
        of={
            "data": pictures,
            "splits": {split: info.fingerprint for split, info in infos.items()},
            "first stage": stage.fingerprint,
            "format": FORMAT.value,
            "shard size": SHARD_SIZE.value,
            "batch size": BATCH_SIZE.value,
        },
        shard_size=SHARD_SIZE.value,
        number_format=FORMAT.value,
    )
    lock = writer.folder.with_name(f".{writer.folder.name}.lock")
    with locked(lock, "process {holder} encodes them", wait=True):
        fresh = writer.begin()
        if fresh:
            encode = encoder(stage, BATCH_SIZE.value)
            for split, pipeline in pipelines.items():
                write_split(writer, encode, pipeline, split)
            counts = {split: info.num_examples for split, info in infos.items()}
            first = next(iter(infos.values()))
            writer.finish(first, stage.fingerprint, counts, data_dir=data_dir)
    counted = ", ".join(f"{split}: {info.num_examples:,} examples" for split, info in infos.items())
    state = "are now" if fresh else "are already"
    print(f"latents {state} in {writer.folder} ({counted}): data.dataset=latents:{OUT.value}")


def picture_fields(own: dict[str, Any]) -> dict[str, Any]:
    """Fields of the data that describe the pictures: from the flags, else from the first stage's own data.

    Raises:
      UserError: it is published and has none, and --dataset is missing.
    """
    if not DATASET.value and not own.get("dataset"):
        raise UserError("a published first stage has no data of its own: give --dataset=..., and --image_size=...")
    fields = {name: own.get(name) for name in ("dataset", "image_size", "crop", "channels", "options")}
    if DATASET.value and DATASET.value != own.get("dataset"):
        fields |= {"dataset": DATASET.value, "options": {}}
    if IMAGE_SIZE.value is not None:
        fields["image_size"] = IMAGE_SIZE.value
    if CROP.value is not None:
        fields["crop"] = CROP.value
    return {name: value for name, value in fields.items() if value is not None and value != {}}


def opened(pictures: dict[str, Any], split: str, data_dir: str | None) -> data.Pipeline:
    """One split, whose images are read from the disk in order.

    Raises:
      UserError: there is no such data, or it holds no pictures.
    """
    pipeline = data.Pipeline.from_config(
        {**pictures, "split": split, "batch_size": BATCH_SIZE.value, "data_dir": data_dir, "memory_limit": 0}
    )
    if pipeline.info.spec.kind != "pixels":
        raise UserError(f"a first stage encodes pictures; {pictures['dataset']} holds {pipeline.info.spec.kind}")
    return pipeline


def encoder(stage: systems.FirstStageFolder, batch_size: int) -> Encode:
    """Encodes uint8 pictures into the stored form; every batch is filled up, so that shards may have any size."""
    codec, params = stage.codec, jax.device_put(stage.read_params())

    @jax.jit
    def run(params: Any, images: jax.Array) -> jax.Array:
        return stored(*codec.posterior(params, images.astype(jnp.float32) / 127.5 - 1.0))

    def encode(images: np.ndarray) -> np.ndarray:
        missing = batch_size - len(images)
        filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
        return np.asarray(run(params, filled))[: len(images)]

    return encode


def write_split(writer: LatentWriter, encode: Encode, pipeline: data.Pipeline, split: str) -> None:
    """Write the missing shards of a split."""
    count, source = pipeline.info.num_examples, pipeline.examples
    with ProgressBar(total=count, description=f"latents of {split}", primary=True) as bar:
        for shard, rows in writer.missing(split, count):
            latents, fields = [], {}
            for start in range(rows.start, rows.stop, BATCH_SIZE.value):
                batch = source(range(start, min(start + BATCH_SIZE.value, rows.stop)))
                latents.append(encode(np.stack([example.pop("image") for example in batch])))
                for example in batch:
                    for name, value in example.items():
                        fields.setdefault(name, []).append(value)
                bar.update(start + len(batch))
            writer.write(split, shard, np.concatenate(latents), fields)
        bar.update(count)


if __name__ == "__main__":
    cli.run(main)
