"""Compute DINOv2's features of the training images once, patch by patch, for representation alignment (REPA).

    python -m experiments.prepare_features --config=configs/digits_unet.py:objective=repa \\
        --dinov2=dinov2_vitb14_pretrain.pth --out=data/features.npy
    python -m experiments.train --config=configs/digits_unet.py:objective=repa --workdir=runs/repa \\
        --config.data.features=data/features.npy

The features have as many patches as the config's network has tokens, in the order of the data set, cropped as in
training and not flipped; float16 [examples, tokens, channels]. After an interruption the same command continues where
it was. A hidden file beside the features describes them: running the command again finds them and changes nothing. If
several run at once, one computes the features, and the others wait for it.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
DINOV2 = FLAGS.path("dinov2", None, "weights of DINOv2 without registers, as published on torch hub")
OUT = FLAGS.path("out", None, "file to write", suffix=".npy")
BATCH_SIZE = FLAGS.integer("batch_size", 64, "images at once", lower=1, upper=2**16)
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from diffusion_jax import weights
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, locked, read_json, read_npy, replace_file, sampled_digest
from diffusion_jax.metrics import NetworkFeatures, dinov2_patches
from diffusion_jax.specs import FEATURES
from experiments.building.wiring import Experiment
from experiments.ground.progress import ProgressBar


def main(argv: Sequence[str]) -> None:
    """Write the features and print what they are."""
    if not OUT.value or not OUT.value.endswith(".npy"):
        raise UserError("give --out=..., where to write, ending in .npy")
    if not DINOV2.value:
        raise UserError(f"give --dinov2=..., the weights of DINOv2; they are published at {weights.DINOV2_SOURCE}")
    out = expanded(OUT.value)
    cli.writable_file(out)
    if CONFIG.value is None:
        raise UserError("give --config=..., the config of the training that will learn from the features")
    experiment = Experiment(CONFIG.value)
    if FEATURES not in experiment.network.sows:
        raise UserError("the config's network aligns nothing: set model.align_depth of a dit")
    if experiment.info.spec.kind != "pixels":
        raise UserError(f"DINOv2 wants images; {experiment.config.data.dataset} holds none")
    tokens, channels = experiment.network.sows[FEATURES]
    network, params, digest = weights.read_dinov2(str(expanded(DINOV2.value)))
    if network.width != channels:
        raise UserError(
            f"{DINOV2.value} has {network.width} channels, the network aligns {channels}: "
            f"set --config.model.align_channels={network.width}"
        )
    encode = dinov2_patches(network, params, fingerprint=digest, grid=round(tokens**0.5), batch_size=BATCH_SIZE.value)
    count = write_features(experiment, encode, out, (tokens, channels), BATCH_SIZE.value)
    print(f"{count} x {tokens} x {channels} features of {encode.settings['features']}: {out}")


def write_features(
    experiment: Experiment, encode: NetworkFeatures, out: Path, shape: tuple[int, int], size: int = 64
) -> int:
    """Write features of every example of the training split by `encode`, batch by batch; returns the number of
    examples.

    Partial results are kept in hidden files beside `out` until all of it is done; then the file gets its name. If `out`
    exists and its record describes the same features, nothing is done.

    Raises:
      UserError: `out` or its directory cannot be written.
    """
    source, count = dataclasses.replace(experiment.pipeline, features="").reader().source, experiment.info.num_examples
    data = {name: value for name, value in experiment.config.data.items() if name != "features"}
    of = {"encoder": dict(encode.settings), "data": data, "shape": (count, *shape)}
    of |= {"fingerprint": dataclasses.replace(experiment.pipeline, features="").info.fingerprint}
    of = json.loads(json.dumps(of, default=str))
    record = out.with_name(f".{out.name}.json")
    with locked(out.with_name(f".{out.name}.lock"), "process {holder} makes them", wait=True):
        if _kept(record) == {"of": of, "features": sampled_digest(out) if out.is_file() else ""}:
            return count
        if out.exists() and not record.exists():
            raise UserError(f"{out} is in the way, and this program did not make it: give another --out")
        partial, progress_file = (out.with_name(f".{out.name}.partial{kind}") for kind in ("", ".json"))
        features, done = _begun(partial, _kept(progress_file), of)
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
        replace_file(record, json.dumps({"of": of, "features": sampled_digest(out)}, indent=2).encode())
        progress_file.unlink(missing_ok=True)
    return count


def _kept(path: Path) -> dict[str, Any]:
    """The content of a record; empty if there is none or it is damaged."""
    try:
        return read_json(path)
    except UserError:
        return {}


def _begun(partial: Path, kept: dict[str, Any], of: dict[str, Any]) -> tuple[np.memmap, int]:
    """The file that is being filled, and the number of finished examples."""
    done, shape = kept.get("done"), tuple(of["shape"])
    if kept.get("of") == of and isinstance(done, int) and 0 < done <= shape[0]:
        try:
            begun = read_npy(partial, mmap=True)
            if (begun.shape, begun.dtype) == (shape, np.float16):
                return np.lib.format.open_memmap(partial, mode="r+"), done
        except UserError as error:
            logging.warning("the unfinished features cannot be continued: %s", error)
    return np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape), 0


if __name__ == "__main__":
    cli.run(main)
