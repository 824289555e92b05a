"""A trained first stage as files: what a latent model needs of it, without the details of its training.

<folder>/first_stage.safetensors   the codec's parameters, with the measured shift and scale of its latents
         first_stage.json          the codec, its pictures, its fingerprint and its measurements

A run writes them into its workdir when it has finished, the .json last: without it there is no first stage.

A published first stage is a folder of diffusers, with config.json and a file of tensors; in a folder with a whole
pipeline it is the part `vae` (or `vqvae`). Its config has shift and scale, but does not say which pictures it was
trained on.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree, UInt8

from diffusion_jax import weights
from diffusion_jax.data import DatasetInfo, to_uint8
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json, replace_file
from diffusion_jax.models.autoencoders import CODECS, Autoencoder, LearnedCodec
from diffusion_jax.systems.groups import fingerprint
from diffusion_jax.weights import read_state, write_state

WEIGHTS, ABOUT = "first_stage.safetensors", "first_stage.json"
PIPELINE, CONFIG = "model_index.json", "config.json"
_BATCH = 64  # pictures per batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStageFolder:
    """A first stage in a folder.

    Attributes:
      path: the folder.
      codec: the codec.
      info: the pictures that it was trained on; None if its folder does not say.
      fingerprint: hash of its parameters; stored latents are only useful with the same hash.
      about: the whole content of first_stage.json.
    """

    path: Path
    codec: Autoencoder
    info: DatasetInfo | None
    fingerprint: str
    about: Mapping[str, Any]

    def read_params(self) -> PyTree:
        """The codec's parameters, on the host.

        Raises:
          UserError: the file is missing, damaged, or not the one that first_stage.json describes.
        """
        file = self.path / WEIGHTS
        state = read_state(file)
        shapes = jax.eval_shape(self.codec.init_params, jax.random.key(0))
        names, structure = _names(shapes)
        if set(names) != set(state) or any(state[n].shape != s.shape for n, s in names.items()):
            raise UserError(f"{file} does not hold the parameters of the codec that {ABOUT} names: train it again")
        params = jax.tree_util.tree_unflatten(structure, [state[name] for name in names])
        if fingerprint(params) != self.fingerprint:
            raise UserError(f"{file} is not the file that {ABOUT} beside it was written for: train it again")
        return params

    def round_trip(self, images: UInt8[np.ndarray, "n height width channels"]) -> UInt8[np.ndarray, "n h w c"]:
        """Pictures encoded and decoded, using the means of their latents."""
        params = jax.device_put(self.read_params())

        @jax.jit
        def run(params: PyTree, x: Array) -> Array:
            return self.codec.decode(params, self.codec.encode(params, x.astype(jnp.float32) / 127.5 - 1.0))

        found = []
        for first in range(0, len(images), _BATCH):
            rows = np.arange(first, first + _BATCH) % len(images)  # filled up, so that one program serves all batches
            found.append(np.asarray(run(params, images[rows]))[: len(images) - first])
        return to_uint8(np.concatenate(found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedFirstStage(FirstStageFolder):
    """A first stage in a folder of diffusers."""

    def read_params(self) -> PyTree:
        _, params = weights.read_component(self.path)
        if fingerprint(params) != self.fingerprint:
            raise UserError(f"the first stage in {self.path} has changed since it was first read")
        return params


def save_first_stage(
    folder: Path | str, codec: LearnedCodec, spec: Mapping[str, Any], params: PyTree, info: DatasetInfo, **about: Any
) -> FirstStageFolder:
    """Write both files; `spec` is the codec as a config names it, `about` are further entries for the record.

    Raises:
      RunError: the disk is full or not writable.
    """
    folder = Path(folder)
    params = jax.tree.map(lambda x: np.asarray(jax.device_get(x), np.float32), params)
    names, _ = _names(params)
    write_state(folder / WEIGHTS, names)
    content = {
        "codec": dict(spec),
        "data": dataclasses.asdict(info),
        "latents": list(codec.spec(info.spec).shape),
        "fingerprint": fingerprint(params),
        **about,
    }
    replace_file(folder / ABOUT, (json.dumps(content, indent=2) + "\n").encode())
    return load_first_stage(folder)


def _published(path: Path, dtype: DTypeLike) -> PublishedFirstStage | None:
    """The first stage in a folder of diffusers; None if it is no such folder.

    Raises:
      UserError: its class is unknown, or no first stage.
    """
    if os.path.lexists(path / PIPELINE):
        parts = [path / name for name in ("vae", "vqvae") if (path / name).is_dir()]
        if not parts:
            raise UserError(f"the pipeline in {path} has no first stage: neither vae nor vqvae")
        path = parts[0]
    if not os.path.lexists(path / CONFIG):
        return None
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or not weights.class_name(config):
        return None
    codec, params = weights.read_component(path, dtype)
    if not isinstance(codec, Autoencoder):
        raise UserError(f"{path} holds {weights.class_name(config)}, which is not a first stage")
    return PublishedFirstStage(path=path, codec=codec, info=None, fingerprint=fingerprint(params), about=config)


def load_first_stage(folder: Path | str, *, dtype: DTypeLike = jnp.float32) -> FirstStageFolder:
    """The first stage that first_stage.json in a folder describes; its parameters are read on request.

    Args:
      folder: the workdir of a finished training of a first stage, or a published one, a folder of diffusers.
      dtype: type in which its activations are computed.

    Raises:
      UserError: there is no such folder, the training is not finished or of something else, or a file is damaged.
    """
    path = expanded(folder)
    about = path / ABOUT
    if not path.is_dir():
        raise UserError(f"there is no first stage in {path}: no such folder")
    if not os.path.lexists(about):
        if published := _published(path, dtype):
            return published
        trained = (path / "config.json").is_file()
        mend = "finish its training" if trained else "train one, --config=configs/digits_autoencoder.py"
        raise UserError(f"there is no first stage in {path}, it has no {ABOUT}: {mend}")
    found = read_json(about)
    try:
        info = DatasetInfo.from_json(found["data"])
        codec = CODECS.build(dict(found["codec"]), data_channels=info.spec.shape[-1], dtype=dtype)
        made = FirstStageFolder(path=path, codec=codec, info=info, fingerprint=str(found["fingerprint"]), about=found)
        same = codec.learned and list(codec.spec(info.spec).shape) == found["latents"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{about} is damaged: {error}") from error
    if not same:
        raise UserError(f"{about} is damaged: the codec and the shape of its latents do not fit")
    return made


def _names(tree: PyTree) -> tuple[dict[str, Any], Any]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}, structure
