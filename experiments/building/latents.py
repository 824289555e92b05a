"""Latents and the first stage that made them: whether they fit, and their form after decoding."""

import dataclasses

from ml_collections import ConfigDict

from diffusion_jax.data import DatasetInfo
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import LearnedCodec, StoredLatents
from diffusion_jax.systems import FirstStageFolder


def pictures_of(latents: DatasetInfo, codec: LearnedCodec) -> DatasetInfo:
    """What prepared latents are when they are decoded; the classes are the same."""
    return dataclasses.replace(latents, spec=StoredLatents(first_stage=codec).shown(latents.spec))


def check_first_stage(config: ConfigDict, info: DatasetInfo, stage: FirstStageFolder | None) -> None:
    """Check that the data, and its settings, fit the first stage.

    Raises:
      UserError: they do not; the message names both and the remedy.
    """
    made_by, data = info.first_stage, config.data
    if stage is None:
        if made_by:
            raise UserError(f"{data.dataset} holds latents of a first stage: name its folder, first_stage.path")
        return
    online = config.first_stage.online
    if online and made_by:
        raise UserError("first_stage.online encodes pictures, but the data is latents: set it to False")
    if not online and not made_by:
        raise UserError(
            f"first_stage.online is False, and {data.dataset} holds no prepared latents: make them with "
            f"python -m experiments.prepare_latents --first_stage={stage.path}, or set first_stage.online=True"
        )
    if made_by and made_by != stage.fingerprint:
        raise UserError(
            f"the latents in {data.dataset} were made by another first stage ({made_by[:12]}) than that in "
            f"{stage.path} ({stage.fingerprint[:12]}): name the one that made them, or prepare them again"
        )
    if made_by and (data.flip or dict(data.augmentation) != {"name": "none"}):
        raise UserError(
            "data.flip and data.augmentation need pictures, but the data is latents: the latent of a mirrored picture "
            "is not a mirrored latent; leave them out, or set first_stage.online=True"
        )
    if config.sampling.clip_x0:
        raise UserError("sampling.clip_x0 is for pixels in [-1, 1]; latents have no such bounds: set it to False")
