"""One call of a pipeline: from the arguments to latents, and from latents to the numbers of pictures.

prompts    -> conditions of each evaluation of the network
scheduler  -> the walk, and the part of it that is run
pictures   -> latents to start from, to keep, or to use as a condition
drawing.draw, on all devices
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders.autoencoder import SCALE, SHIFT
from diffusion_jax.models.conditional_encoder import IMAGE_PROMPT
from diffusion_jax.pipelines import checks, pictures
from diffusion_jax.pipelines.devices import batch_mesh, over, replicated
from diffusion_jax.pipelines.drawing import Control, Given, Plan, draw
from diffusion_jax.pipelines.facts import Draws, Facts
from diffusion_jax.pipelines.families import Family
from diffusion_jax.pipelines.image_prompts import ImagePrompts
from diffusion_jax.pipelines.levels import logit_normal_sigmas
from diffusion_jax.pipelines.parts import Parts
from diffusion_jax.pipelines.prompts import Asked, Reader, Told
from diffusion_jax.pipelines.scheduling import Walk
from diffusion_jax.samplers.guidance import Rule
from diffusion_jax.specs import DataSpec


class Call:
    """A call that is checked against its model; `latents` runs it."""

    def __init__(self, parts: Parts, family: Family, asked: Mapping[str, Any], draws: Draws,
                 defaults: Mapping[str, Any], image_prompts: ImagePrompts):  # fmt: skip
        self.parts, self.family, self.draws, self.image_prompts = parts, family, draws, image_prompts
        self.asked, self.reader = SimpleNamespace(**asked), Reader(parts)
        self.facts = Facts(parts, family, has_image_prompts=bool(image_prompts.adapters))
        a, facts = self.asked, self.facts
        if facts.controls and a.control_image is None:
            a.control_image, a.image = a.image, None
        checks.unread(a, defaults, checks.needs_of(a, family, facts))
        checks.shares(a)
        if a.prompt is None:
            raise UserError("give a prompt; an empty one, '', asks for nothing")
        self.prompts = self._listed(a.prompt)
        self.rows = len(self.prompts) * a.num_images_per_prompt
        self.index = a.first_image + np.arange(self.rows) % a.num_images_per_prompt
        self.box, self.originals = None, None
        self._require_pictures()
        self.height, self.width = self._size()
        self.small = (self.height // facts.factor, self.width // facts.factor)
        self.steps = family.steps if a.num_inference_steps is None else a.num_inference_steps
        self.scale = family.guidance if a.guidance_scale is None else float(a.guidance_scale)

    # The arguments, checked.

    def _listed(self, texts: str | Sequence[str]) -> list[str]:
        found = [texts] if isinstance(texts, str) else list(texts)
        if not found or not all(isinstance(text, str) for text in found):
            raise UserError(f"a prompt is a text or a list of texts, got {texts!r}")
        return found

    def _require_pictures(self) -> None:
        a, facts = self.asked, self.facts
        if a.image is None and (facts.told or self.family.edits == "reference"):
            raise UserError("this model works on a picture: give image=...")
        if facts.is_filler and a.mask_image is None:
            raise UserError("this model fills the white part of a mask: give mask_image=... beside image=...")
        if a.mask_image is not None and facts.edits:
            raise UserError("mask_image is for inpainting, but this model edits whole pictures: leave it out")
        if facts.controls and a.control_image is None:
            raise UserError("a ControlNet needs its picture: give control_image=...")
        if facts.has_image_prompts and a.ip_adapter_image is None:
            raise UserError(
                "an IP-Adapter is loaded but has no picture: give ip_adapter_image=..., or call unload_ip_adapter"
            )
        if a.mask_image is not None:
            for image, mask in zip(*map(self._images, ("image", "mask_image")), strict=False):
                if image.size != mask.size:
                    raise UserError(f"mask_image is {mask.width} x {mask.height} pixels, and image {image.width} x "
                                    f"{image.height}: they must have the same size")  # fmt: skip

    @property
    def _gives_latents(self) -> bool:
        """Whether `image` is latents of another model."""
        image = self.asked.image
        if isinstance(image, Image.Image | list | tuple | None) or np.asarray(image).dtype.kind != "f":
            return False
        return np.ndim(image) == 4 and np.shape(image)[-1] == self.facts.channels

    def _images(self, name: str) -> list[Image.Image]:
        found = getattr(self.asked, name)
        return [] if found is None else pictures.listed(found, name)

    def _size(self) -> tuple[int, int]:
        a, facts = self.asked, self.facts
        multiple = facts.factor * self.family.patch
        height, width = a.height, a.width
        if self.family.edits == "reference":
            ratio = (width or 1024) / (height or 1024)
            width = round((a.max_area * ratio) ** 0.5) // multiple * multiple
            height = round((a.max_area / ratio) ** 0.5) // multiple * multiple
        elif facts.is_upscaler:
            image = self._images("image")[0]
            height, width = (side * facts.factor for side in (image.height, image.width))
        elif a.image is not None and not (height and width):
            if self._gives_latents:
                own_height, own_width = (side * facts.factor for side in np.shape(a.image)[1:3])
            else:
                image = self._images("image")[0]
                own_height, own_width = (side // multiple * multiple for side in (image.height, image.width))
            height, width = height or own_height, width or own_width
        return checks.size_of(height or facts.side, width or facts.side, multiple)

    # The walk.

    @functools.cached_property
    def walk(self) -> Walk:
        """Sampler and noise levels for the part of the walk that is run."""
        patch, sigmas = self.family.patch, None
        if self.facts.has_unconditional:
            sigmas = logit_normal_sigmas(self.steps, self.height, self.width, self.asked.mu, self.asked.std)
        elif self.family.embeds_guidance:
            sigmas = np.linspace(1.0, 1.0 / self.steps, self.steps)
        tokens = self.small[0] // patch * (self.small[1] // patch)
        return self.parts.scheduler.walk(self.steps, part=self._part, eta=self.asked.eta, tokens=tokens, sigmas=sigmas)

    @property
    def strength(self) -> float:
        """The fraction of the walk by which a start picture is noised."""
        given = self.asked.strength
        return self.family.strength[self.asked.mask_image is not None] if given is None else given

    def _part(self, told: np.ndarray) -> tuple[int, int]:
        a, total = self.asked, self.parts.scheduler.fields["num_train_timesteps"]
        first, end = 0, len(told)
        if a.denoising_end is not None:
            end = int((told >= round(total * (1.0 - a.denoising_end))).sum())
        if a.denoising_start is not None:
            first = len(told) - int((told < round(total * (1.0 - a.denoising_start))).sum())
        elif a.image is not None and not self.facts.edits:
            kept = min(self.steps * self.strength, self.steps)
            first = int(max(self.steps - (int(kept) if self.family.rounds_kept else kept), 0))
        if first >= end:
            raise UserError(f"none of the {self.steps} steps is left to run: give more steps, or more strength")
        return first, end

    # The network's conditions.

    def _texts(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Prompts for each text encoder, one per row."""
        found: list[tuple[str, ...]] = []
        for number in range(1, self.family.encoders + 1):
            given = getattr(self.asked, f"{kind}{f'_{number}' if number > 1 else ''}")
            if given is None:
                found.append(found[0] if found else ("",) * len(self.prompts))
                continue
            texts = self._listed(given)
            texts = texts * len(self.prompts) if len(texts) == 1 else texts
            if len(texts) != len(self.prompts):
                raise UserError(
                    f"there are {len(self.prompts)} prompts, but {len(texts)} of {kind}: give one or as many"
                )
            found.append(tuple(texts))
        return tuple(found)

    def _encoded(self, kind: str) -> Told:
        a = self.asked
        skip = a.clip_skip if kind == "prompt" else None
        length = a.max_sequence_length or self.family.length
        told = self.family.encode(self.reader, Asked(self._texts(kind), skip, length))
        repeat = a.num_images_per_prompt
        return {name: jnp.repeat(jnp.asarray(value), repeat, axis=0) for name, value in told.items()}

    def rows_told(self) -> tuple[dict[str, Array], ...]:
        """The conditions of each evaluation of the network, texts and numbers."""
        a, facts, takes = self.asked, self.facts, self.facts.takes
        positive = self._encoded("prompt")
        if facts.has_unconditional:
            nothing = jnp.zeros((self.rows, 0, positive["context"].shape[-1]), jnp.float32)
            return positive, {"context": nothing}
        if "guidance" in takes:
            told = self.scale if self.family.embeds_guidance else self.scale - 1.0
            positive["guidance"] = jnp.full((self.rows,), told, jnp.float32)
        if "noise_level" in takes:
            positive["noise_level"] = jnp.full((self.rows,), a.noise_level, jnp.int32)
        found = [positive]
        if self.leans:
            found.append({**positive, **self._negative(positive)})
        if "sizes" in takes:
            found = [{**told, "sizes": self._sizes(negative=number > 0)} for number, told in enumerate(found)]
        if facts.has_image_prompts:
            shown = self.image_prompts.told(a.ip_adapter_image, self.rows)
            found = [{**told, IMAGE_PROMPT: shown[min(number, 1)]} for number, told in enumerate(found)]
        return tuple(found)

    @property
    def leans(self) -> bool:
        """Whether guidance uses a negative prompt."""
        if self.family.embeds_guidance:
            return self.asked.true_cfg_scale > 1 and self.asked.negative_prompt is not None
        return self.scale > 1 and "guidance" not in self.facts.takes

    def _negative(self, positive: Told) -> Told:
        zero = self.family.gives_zero_negative and self.parts.index.get("force_zeros_for_empty_prompt", True)
        if zero and self.asked.negative_prompt is None:
            return {name: jnp.zeros_like(positive[name]) for name in ("context", "pooled")}
        return self._encoded("negative_prompt")

    def _sizes(self, *, negative: bool) -> Array:
        a, whole = self.asked, (self.height, self.width)
        size, corner, target = a.original_size or whole, a.crops_coords_top_left, a.target_size or whole
        other = a.negative_original_size is not None and a.negative_target_size is not None
        if negative and other:
            size, corner, target = a.negative_original_size, a.negative_crops_coords_top_left, a.negative_target_size
        if self.facts.scores_beauty:
            target = (a.negative_aesthetic_score if negative else a.aesthetic_score,)
            size = (a.negative_original_size or size) if negative else size
        numbers = (*size, *corner, *target)
        return jnp.broadcast_to(jnp.array(numbers, jnp.float32), (self.rows, len(numbers)))

    # Pictures as latents.

    def _pixels(self, images: list[Image.Image], *, box: bool = True) -> np.ndarray:
        return pictures.pixels(images, self.height, self.width, self.box if box else None)

    def _spread(self, values: Any, what: str) -> Array:
        """One row for each picture; the value has one row for all, one per prompt, or one per picture."""
        count, values = len(values), jnp.asarray(values)
        if count == self.rows:
            return values
        if count not in (1, len(self.prompts)):
            raise UserError(f"{count} of {what} for {len(self.prompts)} prompts: give one, or one for each")
        return jnp.repeat(values, self.rows // count, axis=0)

    def _posterior(self, x: np.ndarray | Array, *, unscaled: bool = False) -> tuple[Array, Array]:
        params = self.parts.models["vae"].params
        if unscaled:
            params = {**params, SHIFT: jnp.zeros_like(params[SHIFT]), SCALE: jnp.ones_like(params[SCALE])}
        return _encode(self.facts.codec, params, jnp.asarray(x, jnp.float32))

    def _sampled(self, x: np.ndarray | Array, what: str, name: str) -> Array:
        mean, std = (self._spread(part, what) for part in self._posterior(x))
        return mean + std * self.draws.get(name, self.index, mean.shape[1:])

    def _noise(self) -> Array:
        """Unit noise to start from."""
        shape = (*self.small, self.facts.channels)
        if self.asked.latents is None:
            return self.draws.get("latents", self.index, shape)
        found = jnp.asarray(self.asked.latents, jnp.float32)
        if found.shape != (self.rows, *shape):
            raise UserError(f"latents must be [n, height, width, channels] = {[self.rows, *shape]}, "
                            f"they are {list(found.shape)}")  # fmt: skip
        return found

    def _begun(self) -> tuple[Array, Given]:
        """The state at the start of the walk, and the inputs of the program; `rows` come from the texts."""
        a, facts, grid = self.asked, self.facts, self.walk.grid
        rows, images = self.rows_told(), [] if self._gives_latents else self._images("image")
        given: dict[str, Any] = {}
        if self._gives_latents:
            z = self._spread(np.asarray(a.image, np.float32), "image")
            if a.denoising_start is None:
                return grid.alphas[0] * z + grid.sigmas[0] * self._noise(), Given(rows=rows, numbers={})
            return z * (grid.alphas[0] if self.walk.unscaled else 1.0), Given(rows=rows, numbers={})
        mask = None
        if a.mask_image is not None:
            masks = self._images("mask_image")
            if a.padding_mask_crop is not None:
                self.box = pictures.crop_box(masks[0], self.height, self.width, a.padding_mask_crop)
                self.originals = images[0], masks[0]
            mask = self._spread(pictures.masks(masks, self.height, self.width, self.box), "mask_image")
        if facts.told or self.family.edits == "reference":
            rows = self._with_pictures(rows, images, mask)
        noise = self._noise()
        if facts.controls:
            given["pictures"] = self._control_pictures()
        if a.image is None or facts.edits or (mask is not None and self.strength == 1.0):
            start = self.walk.start * noise
        else:
            start = None
        if start is None or (mask is not None and not facts.told):
            z = self._sampled(self._pixels(images), "image", "encode")
            start = grid.alphas[0] * z + grid.sigmas[0] * noise if start is None else start
            if mask is not None and not facts.told:
                step = self.facts.factor
                given |= {"mask": mask[:, ::step, ::step], "source": z, "source_noise": noise}
        return start, Given(rows=rows, numbers={}, **given)

    def _with_pictures(self, rows: tuple, images: list[Image.Image], mask: Array | None) -> tuple:
        """The conditions, with pictures beside the texts."""
        facts, (small, narrow) = self.facts, self.small
        if self.family.edits == "reference":
            multiple = facts.factor * self.family.patch
            image = images[0]
            height, width = (side // multiple * multiple for side in (image.height, image.width))
            mean = self._posterior(pictures.pixels(images, height, width))[0]
            return tuple({**told, "reference": self._spread(mean, "image")} for told in rows)
        if facts.is_upscaler:
            low = self._spread(pictures.pixels(images, small, narrow), "image")
            low = self._noised_low(low)
            return tuple({**told, "image": low} for told in rows)
        if facts.is_edit:
            mean = self._spread(self._posterior(self._pixels(images), unscaled=True)[0], "image")
            with_image = [{**told, "image": mean} for told in rows]
            nothing = {**with_image[-1], "image": jnp.zeros_like(mean)}
            return (*with_image, nothing) if len(rows) > 1 else tuple(with_image)
        x = jnp.asarray(self._pixels(images))
        kept = self._spread(x, "image") * (1.0 - mask)  # constant where the picture is drawn
        masked = self._sampled(kept, "image", "masked")
        step = facts.factor
        if facts.told == facts.channels + 1:
            told_image = jnp.concatenate([mask[:, ::step, ::step], masked], axis=-1)
        else:  # every pixel of a cell is a channel
            cells = mask.reshape(len(mask), small, step, narrow, step).transpose(0, 1, 3, 2, 4)
            told_image = jnp.concatenate([masked, cells.reshape(len(mask), small, narrow, step * step)], axis=-1)
        return tuple({**told, "image": told_image} for told in rows)

    def _noised_low(self, low: Array) -> Array:
        """The upscaler's small picture with noise from the chain that the upscaler was trained with."""
        alpha = self.parts.low_alpha(self.asked.noise_level)
        noise = self.draws.get("low", self.index, low.shape[1:])
        return alpha * low + math.sqrt(1.0 - alpha**2) * noise

    def _control_pictures(self) -> tuple[Array, ...]:
        count, given = len(self.facts.controls), self.asked.control_image
        several = given if count > 1 else [given]
        if count > 1 and (not isinstance(given, list | tuple) or len(given) != count):
            raise UserError(f"there are {count} ControlNets: give control_image as a list of {count} pictures")
        return tuple(
            self._spread(0.5 * self._pixels(pictures.listed(one, "control_image"), box=False) + 0.5, "control_image")
            for one in several
        )

    # Numbers by step, and the plan.

    def _numbers(self) -> dict[str, np.ndarray]:
        a, steps = self.asked, self.walk.grid.num_steps
        scale = a.true_cfg_scale if self.family.embeds_guidance else self.scale
        found = {"scale": np.full(steps, scale), "image_scale": np.full(steps, a.image_guidance_scale)}
        if a.guidance_rescale:
            found["rescale"] = np.full(steps, a.guidance_rescale)
        if self.facts.has_unconditional and a.guidance_scale is None:
            found["scale"] = self._guidance_schedule(steps)
        index = np.arange(steps)
        if a.skip_guidance_layers:
            inside = (index > steps * a.skip_layer_guidance_start) & (index < steps * a.skip_layer_guidance_stop)
            found["skip_scale"] = np.where(inside, a.skip_layer_guidance_scale, 0.0)
        scales, starts, ends = (
            checks.by_control(name, getattr(a, name), len(self.facts.controls))
            for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
        )
        for number, (scale, start, end) in enumerate(zip(scales, starts, ends, strict=True)):
            off = (index / steps < start) | ((index + 1) / steps > end)
            found[f"control_{number}"] = np.where(off, 0.0, scale)
        return {name: values.astype(np.float32) for name, values in found.items()}

    def _guidance_schedule(self, steps: int) -> np.ndarray:
        given = self.asked.guidance_schedule
        found = [7.0] * max(steps - 3, 0) + [3.0] * min(3, steps) if given is None else list(given)
        if len(found) != steps:
            raise UserError(f"guidance_schedule has {len(found)} scales for {steps} steps: give one for each")
        return np.array(found, np.float64)

    def plan(self, given: Given) -> Plan:
        """The plan of the compiled program."""
        a, facts, count = self.asked, self.facts, len(given.rows)
        steered = (True, *(not a.guess_mode,) * (count - 1))
        skipped = tuple(a.skip_guidance_layers)
        return Plan(
            network=facts.network,
            walk=self.walk,
            guidance=self._rule(given),
            unconditional=self.parts.models["unconditional_transformer"].module if facts.has_unconditional else None,
            skipping=facts.network.clone(skipped_blocks=skipped) if skipped else None,
            controls=tuple(
                Control(network=net, evaluations=steered, guess_mode=a.guess_mode) for net in facts.controls
            ),
            fills=given.mask is not None,
            time_unit=facts.time_unit,
            reversed_flow=facts.has_unconditional,
            trajectory=a.return_trajectory,
            on_step=a.on_step,
        )

    def _rule(self, given: Given) -> Rule | None:
        a, scale = self.asked, self.asked.true_cfg_scale if self.family.embeds_guidance else self.asked.guidance_scale
        data, count = DataSpec(kind="latents", shape=(*self.small, self.facts.channels)), len(given.rows)
        rule = checks.rule_of(a.guidance, scale, self.family.guidance, given.rows[0], count, data)
        if rule is not None:
            rule.check_sampler(self.walk.sampler, self.walk.grid)
        return rule

    def latents(self) -> tuple[Array, Array | None]:
        """The latents of all pictures, padded to a multiple of the devices, and their states if requested."""
        start, given = self._begun()
        given = dataclasses.replace(given, numbers=self._numbers())
        models = self.parts.models
        params = {"network": models[self.parts.network].params}
        if self.facts.controls:
            params["controlnet"] = tuple(models[name].params for name in self.parts.controlnets)
        if self.facts.has_unconditional:
            params["unconditional"] = models["unconditional_transformer"].params
        key = self.draws.steps(self.index)
        if self._mesh is not None:
            start, given, key = over(self._mesh, self.rows, start, given, key)
        return draw(self.plan(given), self._replicated("network", params), given, start, key)

    @functools.cached_property
    def _mesh(self) -> Mesh | None:
        return batch_mesh(self.parts.models[self.parts.network].params, self.rows)

    def _replicated(self, name: str, params: Any) -> Any:
        return params if self._mesh is None else replicated(self._mesh, name, params, self.parts.placed)

    def decoded(self, z: Array) -> np.ndarray:
        """Pictures in [0, 1]."""
        params = self._replicated("vae", self.parts.models["vae"].params)
        if self.family.inpaints_unshifted and self.asked.mask_image is not None:
            z = z - params[SHIFT] * params[SCALE]
        if self.family.latent_scale:
            params = {**params, SCALE: jnp.full_like(params[SCALE], self.family.latent_scale)}
        if self.family.pixels_first:
            order = np.arange(z.shape[-1]).reshape(2, 2, -1).transpose(2, 0, 1).reshape(-1)
            ordered = {n: v[order] for n, v in params.items() if n.startswith("frozen_") and v.shape == order.shape}
            params = {**params, **ordered}
            z = z[..., order]
        return np.asarray(_decode(self.facts.codec, params, z))


@functools.partial(jax.jit, static_argnames=("codec",))
def _encode(codec: Any, params: Any, x: Array) -> tuple[Array, Array]:
    return codec.posterior(params, x)


@functools.partial(jax.jit, static_argnames=("codec",))
def _decode(codec: Any, params: Any, z: Array) -> Array:
    return jnp.clip(0.5 * codec.decode(params, z) + 0.5, 0.0, 1.0)
