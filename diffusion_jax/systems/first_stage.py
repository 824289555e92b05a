"""A trained first stage as files: what a latent model needs of it, and nothing of how it was trained.

<folder>/first_stage.safetensors   the codec's parameters, with the measured shift and scale of its latents
         first_stage.json          the codec, its pictures, its fingerprint and its measurements

A run writes them into its workdir when it is finished, the .json last: while it is missing there is no first stage.
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
from jaxtyping import PyTree

from diffusion_jax.data import DatasetInfo
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json, replace_file
from diffusion_jax.models.autoencoders import CODECS, LearnedCodec
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems.groups import fingerprint
from diffusion_jax.weights import read_state, write_state

WEIGHTS, ABOUT = "first_stage.safetensors", "first_stage.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStageFolder:
    """A first stage that lies in a folder.

    Attributes:
      path: the folder.
      codec: the codec.
      info: the pictures that it was trained on.
      fingerprint: of its parameters; what is kept of its latents is only of use with these.
      about: all of first_stage.json.
    """

    path: Path
    codec: LearnedCodec
    info: DatasetInfo
    fingerprint: str
    about: Mapping[str, Any]

    @property
    def latents(self) -> DataSpec:
        """The form of its latents, of pictures like those it was trained on."""
        return self.codec.spec(self.info.spec)

    def read_params(self) -> PyTree:
        """The codec's parameters, on the host.

        Raises:
          UserError: the file is missing, damaged, or not the one that first_stage.json is of.
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


def save_first_stage(
    folder: Path | str, codec: LearnedCodec, spec: Mapping[str, Any], params: PyTree, info: DatasetInfo, **about: Any
) -> FirstStageFolder:
    """Write both files; `spec` is the codec as a config names it, `about` what else shall be recorded.

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


def load_first_stage(folder: Path | str, *, dtype: DTypeLike = jnp.float32) -> FirstStageFolder:
    """What first_stage.json in a folder says; its parameters are read when asked for.

    Args:
      folder: the workdir of a finished training of a first stage.
      dtype: what its activations shall be computed in.

    Raises:
      UserError: no such folder, a training that is not finished or of something else, or a damaged file.
    """
    path = expanded(folder)
    about = path / ABOUT
    if not path.is_dir():
        raise UserError(f"there is no first stage in {path}: no such folder")
    if not os.path.lexists(about):
        trained = (path / "config.json").is_file()
        mend = "finish its training" if trained else "train one, --config=configs/digits_autoencoder.py"
        raise UserError(f"there is no first stage in {path}, it has no {ABOUT}: {mend}")
    found = read_json(about)
    try:
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in found["data"].items()}
        info = DatasetInfo(**fields)
        codec = CODECS.build(dict(found["codec"]), data_channels=info.image_shape[-1], dtype=dtype)
        made = FirstStageFolder(path=path, codec=codec, info=info, fingerprint=str(found["fingerprint"]), about=found)
        same = codec.learned and list(made.latents.shape) == found["latents"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{about} is damaged: {error}") from error
    if not same:
        raise UserError(f"{about} is damaged: the codec and the shape of its latents do not fit")
    return made


def _names(tree: PyTree) -> tuple[dict[str, Any], Any]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}, structure
