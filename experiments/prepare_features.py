"""DINOv2's features of the training images, patch by patch, once: what representation alignment (REPA) learns from.

    python -m experiments.prepare_features --config=configs/digits_unet.py:objective=repa \\
        --dinov2=dinov2_vitb14_pretrain.pth --out=data/features.npy
    python -m experiments.train --config=configs/digits_unet.py:objective=repa --workdir=runs/repa \\
        --config.data.features=data/features.npy

As many patches as the config's network has tokens, in the order of the data set, cropped as in training and not
flipped; float16 [examples, tokens, channels]. Stopped, it goes on where it was.
"""

from experiments import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
DINOV2 = FLAGS.path("dinov2", None, "weights of DINOv2 without registers, as torch hub has them")
OUT = FLAGS.path("out", None, "where to write", suffix=".npy")
BATCH_SIZE = FLAGS.integer("batch_size", 64, "images at once", lower=1, upper=2**16)
cli.begin(FLAGS)

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_jax import weights
from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from diffusion_jax.metrics import NetworkFeatures, dinov2_patches
from diffusion_jax.specs import FEATURES
from experiments.progress import ProgressBar
from experiments.wiring import Experiment


def main(argv: Sequence[str]) -> None:
    """Write the features and say what they are of."""
    if not OUT.value or not OUT.value.endswith(".npy"):
        raise UserError("give --out=..., where to write, ending in .npy")
    if not DINOV2.value:
        raise UserError(f"give --dinov2=..., the weights of DINOv2; they are published at {weights.DINOV2_SOURCE}")
    out = Path(OUT.value)
    cli.writable_directory(out.parent)
    if CONFIG.value is None:
        raise UserError("give --config=..., the config of the training that will learn from the features")
    experiment = Experiment(CONFIG.value)
    if FEATURES not in experiment.network.sows:
        raise UserError("the config's network aligns nothing: set model.align_depth of a dit")
    if not experiment.info.is_image:
        raise UserError(f"DINOv2 wants images; {experiment.config.data.dataset} holds none")
    tokens, channels = experiment.network.sows[FEATURES]
    network, params, digest = weights.read_dinov2(DINOV2.value)
    if network.hidden_size != channels:
        raise UserError(
            f"{DINOV2.value} has {network.hidden_size} channels, the network aligns {channels}: "
            f"set --config.model.align_channels={network.hidden_size}"
        )
    encode = dinov2_patches(network, params, fingerprint=digest, grid=round(tokens**0.5), batch_size=BATCH_SIZE.value)
    count = write_features(experiment, encode, out, (tokens, channels), BATCH_SIZE.value)
    print(f"{count} x {tokens} x {channels} features of {encode.settings['features']}: {out}")


def write_features(
    experiment: Experiment, encode: NetworkFeatures, out: Path, shape: tuple[int, int], size: int = 64
) -> int:
    """Features of every example of the training split by `encode`, batch by batch; returns how many examples.

    What is done is kept in files beside `out` until all of it is; then it gets its name.
    """
    source, count = dataclasses.replace(experiment.pipeline, features="").reader().source, experiment.info.num_examples
    partial, progress_file = out.with_suffix(".partial.npy"), out.with_suffix(".partial.json")
    data = {name: value for name, value in experiment.config.data.items() if name != "features"}
    of = json.loads(json.dumps({"encoder": dict(encode.settings), "data": data}, default=str))
    done = 0
    if progress_file.is_file() and partial.is_file():
        kept = json.loads(progress_file.read_text())
        done = kept["done"] if kept["of"] == of else 0
    how = {"mode": "r+"} if done else {"mode": "w+", "dtype": np.float16, "shape": (count, *shape)}
    features = np.lib.format.open_memmap(partial, **how)
    with ProgressBar(total=count, description="features", primary=True) as bar:
        for first in range(done, count, size):
            last = min(first + size, count)
            images = source.read(np.arange(first, last))["image"]
            features[first:last] = encode(images).pooled.reshape(-1, *shape)
            features.flush()
            replace_file(progress_file, json.dumps({"done": last, "of": of}).encode())
            bar.update(last)
    del features
    partial.replace(out)
    progress_file.unlink()
    return count


if __name__ == "__main__":
    cli.run(main)
