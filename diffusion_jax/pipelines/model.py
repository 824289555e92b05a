"""A published folder as a `Model`, the form that the runner trains and that other functions here take."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.conditioning import Conditioning
from diffusion_jax.conditioning.guidance import GuidanceScale
from diffusion_jax.conditioning.published import PublishedText
from diffusion_jax.conditioning.told import Sizes
from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.checks import size_of
from diffusion_jax.pipelines.facts import Facts
from diffusion_jax.pipelines.families import Family, family_of
from diffusion_jax.pipelines.parts import Parts, Source, read_parts
from diffusion_jax.schedulers import Parameterization
from diffusion_jax.specs import ConditionSpec, DataSpec
from diffusion_jax.systems import CODEC, CONDITIONING, NETWORK, Model, Params, Recipe

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_BEAUTY = 6.0
_LENGTH = 77  # tokens of CLIP, if its tokenizer does not say


def read_model(
    folder: Source, dtype: DTypeLike = jnp.float32, *, image_size: int | None = None
) -> tuple[Model, Params]:
    """The model of a published pipeline, and its parameters by group, float32.

    Args:
      folder: the pipeline's folder.
      dtype: type of activations.
      image_size: side of the pictures in pixels, where the network's config names no size (Flux).

    Raises:
      UserError: a part is unsupported, the network needs an input that no data has, or the size is not a multiple of
        the model's unit.
    """
    return model_of(read_parts(folder, dtype=dtype, held_in=jnp.float32), image_size=image_size)


def save_as(folder: Source, params: Params, target: Source) -> None:
    """Write a copy of a published folder with other parameters for its model."""
    parts = read_parts(folder)
    names = [name for name in _ENCODERS if name in parts.models]
    text = params[f"{CONDITIONING}/context"]
    own = {parts.network: params[NETWORK], "vae": params[CODEC]}
    own |= {name: text[f"encoder_{i}"] for i, name in enumerate(names)}
    models = {**parts.models, **{n: dataclasses.replace(parts.models[n], params=tree) for n, tree in own.items()}}
    dataclasses.replace(parts, models=models).save(target)


def model_of(parts: Parts, *, image_size: int | None = None) -> tuple[Model, Params]:
    """The model and its parameters from parts that are already read."""
    name = str(parts.index.get("_class_name"))
    family = family_of(name)
    facts = Facts(parts, family)
    side, network = facts.side, facts.network
    if image_size is not None and not facts.names_size:
        side, _ = size_of(image_size, image_size, facts.factor * family.patch)
        network = network.clone(image_size=side // facts.factor)
    names = [name for name in _ENCODERS if name in parts.models]
    takes = facts.takes
    filled = {"context", "pooled", "sizes", "guidance"}
    rest = sorted(set(takes) - filled)
    if family.reading is None or rest:
        what = f"its network is told {', '.join(rest)}" if rest else "its prompts are packed with the picture"
        raise UserError(f"{name} is not supported as a Model: {what}; draw with diffusion_jax.Pipeline")
    conditioners: list[Any] = [_text(parts, family, names, takes)]
    if "sizes" in takes:
        conditioners.append(_sizes(takes["sizes"], float(side)))
    if "guidance" in takes:
        conditioners.append(GuidanceScale(scale=family.guidance, origin=0.0 if family.embeds_guidance else 1.0))
    groups: dict[str, Any] = {
        NETWORK: parts.models[parts.network].params,
        CODEC: parts.models["vae"].params,
        f"{CONDITIONING}/context": {f"encoder_{i}": parts.models[name].params for i, name in enumerate(names)},
    }
    model = Model(
        data=DataSpec(kind="pixels", shape=(side, side, 3)),
        network=network,
        process=Parameterization.build(**parts.scheduler.process(facts.time_unit)),
        conditioning=Conditioning(parts=tuple(conditioners)),
        codec=facts.codec,
        sampling=_sampling(family),
    )
    return model, groups


def _sampling(family: Family) -> Recipe:
    """The defaults of a call of the pipeline, with the sampler that all families share."""
    guidance = {"name": "classifier_free", "scale": family.guidance}
    return Recipe(sampler="ddim", steps=family.steps, guidance=guidance)


def _sizes(spec: ConditionSpec, side: float) -> Sizes:
    """SDXL's numbers for a picture: its original size, the crop, and its present size, which the refiner's five numbers
    replace by an aesthetic score. If a batch lacks them, the picture is uncropped and has the score that the pipeline
    asks for."""
    now = (side, side) if spec.shape[0] == 6 else (_BEAUTY,)
    return Sizes(count=spec.shape[0], role=spec.role, unsaid=(side, side, 0.0, 0.0, *now))


def _text(parts: Parts, family: Family, names: list[str], takes: Any) -> PublishedText:
    lengths = [parts.tokenizers[name.replace("text_encoder", "tokenizer")].max_length or _LENGTH for name in names]
    if family.length > _LENGTH and len(names) == family.encoders:
        lengths[-1] = min(lengths[-1], family.length) if lengths[-1] > _LENGTH else family.length
    return PublishedText(
        reading=family.reading,
        encoders=tuple(parts.models[name].module for name in names),
        tokenizers=tuple(parts.tokenizers[name.replace("text_encoder", "tokenizer")] for name in names),
        lengths=tuple(lengths),
        width=takes["context"].shape[-1],
        pooled=takes["pooled"].shape[0] if "pooled" in takes else 0,
        zero_null=family.gives_zero_negative and bool(parts.index.get("force_zeros_for_empty_prompt", True)),
        without_long=family.length if family.reading == "sd3" and len(names) < family.encoders else 0,
    )
