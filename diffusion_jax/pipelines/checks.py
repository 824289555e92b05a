"""Checks of a call against the model: every argument that has no effect is an error."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.families import Family
from diffusion_jax.samplers.guidance import GUIDANCE, Rule
from diffusion_jax.specs import DataSpec

# Arguments that need something else: their names, whether it is there, and its description.
Need = tuple[tuple[str, ...], bool, str]


def unread(asked: SimpleNamespace, defaults: Mapping[str, Any], needs: list[Need]) -> None:
    """Refuse arguments that the model does not use.

    Raises:
      UserError: an argument was given that nothing reads.
    """
    for names, there, what in needs:
        if there:
            continue
        for name in names:
            given, default = getattr(asked, name), defaults[name]
            if given is not None and (default is None or given != default):
                raise UserError(f"{name} is {what}: leave it out")


def needs_of(asked: SimpleNamespace, family: Family, model: Any) -> list[Need]:
    """The needs of every argument.

    Args:
      asked: the call.
      family: the model's family.
      model: `call.Facts`.
    """
    steered = bool(model.controls)
    return [
        (("prompt_2", "negative_prompt_2"), family.encoders > 1, "for models with two text encoders"),
        (("prompt_3", "negative_prompt_3"), family.encoders > 2, "for models with three text encoders"),
        (
            ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end", "guess_mode",
             "control_image"),
            steered,
            "for a pipeline with a ControlNet (from_pretrained(..., controlnet=...))",
        ),
        (("ip_adapter_image",), model.has_image_prompts, "for a pipeline with an IP-Adapter (load_ip_adapter)"),
        (("strength",), asked.image is not None and not model.edits, "for a picture to begin with (image=...)"),
        (("mask_image", "denoising_start"), asked.image is not None, "for a call with image=..."),
        (("padding_mask_crop",), asked.mask_image is not None, "for inpainting (mask_image=...)"),
        (
            ("image_guidance_scale",),
            model.is_edit and asked.guidance is None,
            "for InstructPix2Pix without guidance=..., whose rule two_scales has an image_scale",
        ),
        (
            ("guidance",),
            not model.has_unconditional and not asked.skip_guidance_layers,
            "for models with one network, without skip_guidance_layers",
        ),
        (("noise_level",), "noise_level" in model.takes, "for the upscaler"),
        (
            ("original_size", "crops_coords_top_left", "target_size", "negative_original_size",
             "negative_crops_coords_top_left", "negative_target_size", "denoising_end"),
            family.has_sizes,
            "for SDXL",
        ),
        (("aesthetic_score", "negative_aesthetic_score"), model.scores_beauty, "for SDXL's refiner"),
        (("true_cfg_scale",), family.embeds_guidance, "for Flux"),
        (
            ("skip_guidance_layers",),
            hasattr(model.network, "skipped_blocks") and not family.embeds_guidance,
            "for Stable Diffusion 3.5",
        ),
        (
            ("skip_layer_guidance_scale", "skip_layer_guidance_start", "skip_layer_guidance_stop"),
            bool(asked.skip_guidance_layers),
            "for skip-layer guidance (skip_guidance_layers=...)",
        ),
        (("guidance_schedule", "mu", "std"), model.has_unconditional, "for Ideogram 4"),
        (("clip_skip",), not family.embeds_guidance and not model.has_unconditional, "for models that read CLIP"),
        (("max_sequence_length",), family.length > 77, "for models with a long text encoder"),
        (("max_area",), family.edits == "reference", "for Kontext"),
        (
            ("guidance_rescale",),
            not family.embeds_guidance and not model.has_unconditional and asked.guidance is None,
            "of no use to this model, or to guidance=..., whose rules have a rescale",
        ),
        (
            ("negative_prompt", "negative_prompt_2", "negative_prompt_3"),
            not model.has_unconditional and (not family.embeds_guidance or asked.true_cfg_scale > 1),
            "for guidance away from a prompt (with Flux true_cfg_scale > 1)",
        ),
    ]  # fmt: skip


def shares(asked: SimpleNamespace) -> None:
    """Refuse numbers outside of their bounds.

    Raises:
      UserError: a number is out of bounds; the message names it.
    """
    for name in ("strength", "denoising_start", "denoising_end", "guidance_rescale"):
        value = getattr(asked, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name}={value} must lie between 0 and 1")
    both = asked.denoising_start is not None and asked.denoising_end is not None
    if both and asked.denoising_start >= asked.denoising_end:
        raise UserError(f"denoising_start={asked.denoising_start} must lie below denoising_end={asked.denoising_end}")
    if asked.num_images_per_prompt < 1:
        raise UserError(f"num_images_per_prompt={asked.num_images_per_prompt} must be at least 1")
    for name in ("original_size", "target_size", "negative_original_size", "negative_target_size"):
        value = getattr(asked, name)
        if value is not None and len(value) != 2:
            raise UserError(f"{name}={value} must be two numbers, height and width")


def by_control(name: str, value: float | Sequence[float], count: int) -> list[float]:
    """The value of `name` for each of `count` ControlNets, given once for all or once for each.

    Raises:
      UserError: the number of values is neither 1 nor `count`.
    """
    found = [value] * count if isinstance(value, int | float) else list(value)
    if len(found) != count:
        raise UserError(f"{name} has {len(found)} numbers for {count} ControlNets: give one for each")
    return found


def rule_of(
    guidance: str | Mapping[str, Any] | None, scale: float | None, default: float, slots: Sequence[str],
    evaluations: int, data: DataSpec,
) -> Rule | None:  # fmt: skip
    """The rule of GUIDANCE that a call asks for, checked against its model; None if it asks for none.

    Args:
      guidance: its name, or its name and fields.
      scale: the call's own scale; None if it gives none.
      default: the scale if neither gives one.
      slots: the conditions that the network takes.
      evaluations: the network's evaluations per step; 1 without guidance.
      data: the form of the latents.

    Raises:
      UserError: the rule needs something that a published model lacks, the scale is given twice, or guidance would do
        nothing.
    """
    if guidance is None:
        return None
    spec = {"name": guidance} if isinstance(guidance, str) else dict(guidance)
    if "scale" in spec and scale not in (None, 1.0, spec["scale"]):
        raise UserError(f"guidance has the scale {spec['scale']}, but the call gives {scale}: give only one of them")
    rule = GUIDANCE.build({"scale": default if scale is None else scale, **spec})
    name = spec.get("name")
    if rule.others:
        raise UserError(f"guidance {name} needs another network ({', '.join(rule.others)}): use classifier_free or apg")
    if rule.negative != "":
        raise UserError(f"guidance {name} takes negative_prompt=... here, not its field negative")
    if rule.neutral or evaluations == 1:
        raise UserError(
            f"guidance {name} has no effect in a call with one evaluation a step: give a scale above 1 (for Flux a "
            "true_cfg_scale and a negative_prompt), or leave it out"
        )
    rule.check(tuple(slots), data)
    return rule


def size_of(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Height and width.

    Raises:
      UserError: they do not divide by the factor of network and autoencoder together.
    """
    for name, side in (("height", height), ("width", width)):
        if side < multiple or side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise UserError(f"{name}={side} must be divisible by {multiple}: {near} is the nearest")
    return height, width
