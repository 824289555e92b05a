"""From a prompt to a picture with a published model, with the names of diffusers.

    pipe = Pipeline.from_pretrained("stable-diffusion-xl-base-1.0", dtype=jnp.bfloat16)
    pipe(prompt="a red square", num_inference_steps=30, seed=0).images[0].save("square.png")

Latents are [n, height, width, channels] everywhere. Picture k of a prompt depends on the seed and on k, not on the
other prompts of a call or on the number of devices.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array
from PIL import Image

from diffusion_jax.adapters import Weights
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.files import expanded
from diffusion_jax.pipelines import pictures
from diffusion_jax.pipelines.adapting import Adapted, lora_file
from diffusion_jax.pipelines.call import Call, Draws
from diffusion_jax.pipelines.embeddings import with_word
from diffusion_jax.pipelines.facts import Facts
from diffusion_jax.pipelines.families import Family, family_of
from diffusion_jax.pipelines.image_prompts import ENCODER_FOLDER, BlockScales, ImagePrompts, files_of, load
from diffusion_jax.pipelines.parts import Parts, Source, read_parts
from diffusion_jax.pipelines.scheduling import Scheduler
from diffusion_jax.pipelines.single_file import read_single_file, write_single_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """The result of a call.

    Attributes:
      images: PIL images, an array [n, height, width, 3] in [0, 1], or latents, as `output_type` says.
      notes: remarks on the call: prompts that were cut.
      trajectory: all states of the latents [steps + 1, n, h, w, c], if requested.
    """

    images: Any
    notes: tuple[str, ...] = ()
    trajectory: np.ndarray | None = None


class Pipeline:
    """A published text-to-image model.

    Attributes:
      adapted: networks, text encoders, tokenizers, first stage and scheduler, and adapters.
      image_prompts: IP-Adapters.
      family: how prompts become conditions, and the defaults of a call.
    """

    def __init__(self, parts: Parts, *, pipeline_class: str | None = None):
        self.adapted, self._fused, self.image_prompts = Adapted(base=parts), None, ImagePrompts()
        self.family: Family = family_of(pipeline_class or str(parts.index.get("_class_name")))
        self._check()

    @classmethod
    def from_pretrained(
        cls,
        folder: Source,
        *,
        dtype: DTypeLike = jnp.float32,
        controlnet: Source | Sequence[Source] | None = None,
        scheduler: Scheduler | Mapping[str, Any] | str | None = None,
        pipeline_class: str | None = None,
        place: Callable[[str, tuple[str, ...], np.ndarray], Any] | None = None,
        **parts: Any,
    ) -> "Pipeline":
        """The pipeline of a folder, read one tensor at a time.

        Args:
          folder: the folder with model_index.json.
          dtype: type of activations and of stored parameters.
          controlnet: folders of ControlNets.
          scheduler: a sampler by name, such as "dpmpp_2m", or a scheduler's config, instead of the folder's own.
          pipeline_class: the class to use instead of the one in model_index.json.
          place: (part, path, parameter) -> the parameter on its devices; by default on the first one.
          parts: for any part, a folder to use instead, as `unet=...`; None leaves it out.

        Raises:
          UserError: a part is missing, damaged or unknown here; then nothing is loaded.
        """
        found = read_parts(folder, dtype=dtype, controlnet=controlnet, scheduler=scheduler, place=place, **parts)
        return cls(found, pipeline_class=pipeline_class)

    @classmethod
    def from_single_file(
        cls,
        file: Source,
        *,
        config: Source | None = None,
        dtype: DTypeLike = jnp.float32,
        scheduler: Scheduler | Mapping[str, Any] | str | None = None,
        pipeline_class: str | None = None,
        place: Callable[[str, tuple[str, ...], np.ndarray], Any] | None = None,
        **parts: Any,
    ) -> "Pipeline":
        """The pipeline of a file in its authors' key layout (Stable Diffusion 1, 2, XL, 3, Flux), with a warning that
        says which sizes and which scheduler are assumed.

        Args:
          file: .safetensors, or what PyTorch writes.
          config: a folder of the same model, for sizes, scheduler, tokenizers and parts that the file lacks; by default
            the folder in which the file lies, or the published model with these names.
          dtype, scheduler, pipeline_class, place: as in `from_pretrained`.
          parts: folders of parts, as `tokenizer=...`.

        Raises:
          UserError: the file has another layout, or a part is missing; then nothing is loaded.
        """
        found, notes = read_single_file(file, config=config, dtype=dtype, scheduler=scheduler, place=place, **parts)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        return cls(found, pipeline_class=pipeline_class)

    def save_pretrained(self, folder: Source) -> None:
        """Write the model as a folder that the reference library reads."""
        self.parts.save(folder)

    def save_single_file(self, file: Source) -> None:
        """Write the model as one .safetensors file in its authors' key layout."""
        write_single_file(self.parts, file)

    @property
    def parts(self) -> Parts:
        """The parts as a call uses them, with the active adapters."""
        return self._fused or self.adapted.in_force

    @property
    def follows_instructions(self) -> bool:
        """Whether the model edits a picture by instructions (InstructPix2Pix, Kontext)."""
        return self.family.edits == "reference" or Facts(self.parts, self.family).is_edit

    def load_lora_weights(self, path: Source, *, adapter_name: str = "", weight: Weights = 1.0) -> None:
        """Activate the adapter of a file, beside those that are active already.

        Files of LoRA and its variants are read as diffusers, PEFT, kohya's programs and LyCORIS write them.

        Args:
          path: the file, or a folder with pytorch_lora_weights.safetensors.
          adapter_name: by default the name of the file.
          weight: the adapter's weight: a number, or one for each pattern of paths.

        Raises:
          UserError: the file is damaged or for another model; the message names what does not fit.
        """
        file = lora_file(path)
        self._adapt(self.adapted.with_file(file, adapter_name or file.stem, weight))

    def set_adapters(self, adapter_names: str | Sequence[str], weights: Weights | Sequence[Weights] = 1.0) -> None:
        """Use only these of the loaded adapters."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        each = list(weights) if isinstance(weights, list | tuple) else [weights] * len(names)
        self._adapt(self.adapted.weighted(names, each))

    def unload_lora_weights(self) -> None:
        """Drop all adapters."""
        self._adapt(self.adapted.without())

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Drop these adapters."""
        self._adapt(self.adapted.without([adapter_names] if isinstance(adapter_names, str) else adapter_names))

    def fuse_lora(self, lora_scale: float = 1.0) -> None:
        """Add the active adapters, times `lora_scale`, to the parameters, for calls without their cost. The base is
        kept."""
        self._fused = self.adapted.parts(scale=lora_scale, fused=True)

    def unfuse_lora(self) -> None:
        """Undo `fuse_lora`, bit for bit."""
        self._fused = None

    def save_lora_weights(self, path: Source, *, adapter_name: str = "", kohya: bool = False) -> None:
        """Write a loaded adapter, by default the only one, under PEFT's names or kohya's."""
        names = list(self.adapted.loaded)
        if not adapter_name and len(names) != 1:
            raise UserError(f"adapter_name must say which adapter is written; loaded are: {', '.join(names) or 'none'}")
        self.adapted.write(path, adapter_name or names[0], kohya=kohya)

    def load_textual_inversion(self, path: Source, *, token: str = "") -> str:
        """Teach the text encoders a word from a file of textual inversion; returns the word.

        Args:
          path: path of the file, as diffusers, A1111 or SDXL's trainers write it.
          token: the word; by default its name in the file, or the file's name.

        Raises:
          UserError: the file is damaged, no text encoder has vectors of this width, or the word exists already.
        """
        base, word = with_word(self.adapted.base, expanded(path), token)
        self._adapt(dataclasses.replace(self.adapted, base=base))
        return word

    def load_ip_adapter(
        self,
        path: Source | Sequence[Source],
        subfolder: str = "",
        weight_name: str | Sequence[str] = "",
        image_encoder_folder: Source | None = None,
        *,
        scale: BlockScales | Sequence[BlockScales] = 1.0,
    ) -> None:
        """Load the IP-Adapter of a file, with which pictures are prompts (`ip_adapter_image`); earlier ones are
        dropped.

        Args:
          path: the file, or a folder that holds it; several are a list.
          subfolder: a subfolder of the folder, such as "models".
          weight_name: the file in the folder, if there are several; a list loads several adapters from one folder.
          image_encoder_folder: by default the pipeline's own image encoder, or else the folder "image_encoder" beside
            the file.
          scale: see `set_ip_adapter_scale`.

        Raises:
          UserError: a file is damaged, of another kind or for another base, or no image encoder fits it.
        """
        folders = [path] if isinstance(path, str | Path) else list(path)
        names = [weight_name] if isinstance(weight_name, str) else list(weight_name)
        folders = folders * len(names) if len(folders) == 1 else folders
        names = names * len(folders) if len(names) == 1 else names
        if len(names) != len(folders) or not folders:
            raise UserError(f"load_ip_adapter: {len(folders)} folders and {len(names)} files: give one name for each")
        found = [files_of(folder, subfolder, name) for folder, name in zip(folders, names, strict=True)]
        beside = found[0][1] / ENCODER_FOLDER
        encoder = image_encoder_folder or self.parts.image_encoder or (beside if beside.is_dir() else None)
        if image_encoder_folder and not expanded(image_encoder_folder).is_dir():
            encoder = found[0][1] / str(image_encoder_folder)
        network = self.adapted.base.models[self.adapted.base.network].module
        prompts = load([file for file, _ in found], network, encoder)
        self.image_prompts = prompts.scaled(scale, network)

    def set_ip_adapter_scale(self, scale: BlockScales | Sequence[BlockScales]) -> None:
        """Set the weight of pictures: a number, or one per block; a list for several adapters. At 0 they have no
        effect.

            pipe.set_ip_adapter_scale({"up": {"block_0": [0.0, 1.0, 0.0]}})     one block; the others have 0
            pipe.set_ip_adapter_scale({"style": 1.0})                           the same for SDXL, by its meaning

        Raises:
          UserError: there is no adapter, a block does not exist, or there is not one scale per adapter.
        """
        network = self.adapted.base.models[self.adapted.base.network].module
        self.image_prompts = self.image_prompts.scaled(scale, network)

    def unload_ip_adapter(self) -> None:
        """Drop all IP-Adapters."""
        self.image_prompts = ImagePrompts()

    def _adapt(self, adapted: Adapted) -> None:
        if self._fused is not None:
            raise UserError("adapters are fused into the parameters: call unfuse_lora first")
        self.adapted = adapted

    def with_scheduler(self, scheduler: str | Mapping[str, Any]) -> "Pipeline":
        """The same model with another sampler, by name, or by a scheduler's config."""
        found = (
            Scheduler.read(scheduler)
            if isinstance(scheduler, Mapping)
            else self.adapted.base.scheduler.replaced(scheduler)
        )
        other = Pipeline.__new__(Pipeline)
        other.family = self.family
        other.adapted = dataclasses.replace(self.adapted, base=dataclasses.replace(self.adapted.base, scheduler=found))
        other._fused = self._fused and dataclasses.replace(self._fused, scheduler=found)
        other.image_prompts = self.image_prompts
        return other

    def _check(self) -> None:
        """Raise UserError if the family needs a part that is missing."""
        models = self.parts.models
        names = [f"text_encoder{f'_{number}' if number > 1 else ''}" for number in range(1, self.family.encoders + 1)]
        optional = set(names[:1]) if self.family.has_sizes else set(names[2:])
        for name in names:
            tokenizer = name.replace("text_encoder", "tokenizer")
            if name in models and tokenizer not in self.parts.tokenizers:
                raise UserError(f"the model has {name} but no {tokenizer}, which reads prompts for it")
            if name not in models and name not in optional:
                raise UserError(f"the model lacks {name}, which {self.parts.index.get('_class_name')} needs")

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        prompt_2: str | Sequence[str] | None = None,
        prompt_3: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        negative_prompt_3: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_schedule: Sequence[float] | None = None,
        true_cfg_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance: str | Mapping[str, Any] | None = None,
        image_guidance_scale: float = 1.5,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        first_image: int = 0,
        latents: Array | None = None,
        eta: float | None = None,
        clip_skip: int | None = None,
        max_sequence_length: int | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float | None = None,
        padding_mask_crop: int | None = None,
        ip_adapter_image: Any = None,
        control_image: Any = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        guess_mode: bool = False,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        skip_guidance_layers: Sequence[int] = (),
        skip_layer_guidance_scale: float = 2.8,
        skip_layer_guidance_start: float = 0.01,
        skip_layer_guidance_stop: float = 0.2,
        max_area: int = 1024**2,
        noise_level: int = 20,
        mu: float = 0.0,
        std: float = 1.5,
        cross_attention_kwargs: Mapping[str, float] | None = None,
        output_type: str = "pil",
        seed: int = 0,
        draws: Mapping[str, Array] | None = None,
        return_trajectory: bool = False,
        on_step: Callable[[int], None] | None = None,
    ) -> Pictures:
        """Draw pictures for prompts; those of prompt i start at number i * num_images_per_prompt.

        Arguments have the same names and meanings as in diffusers. Their defaults are those of the model's family.

        Args:
          prompt: what to draw; `prompt_2` and `prompt_3` for the other text encoders, by default the same.
          first_image: the number of the first picture of each prompt, for calls that continue another call.
          latents: unit noise to start from; with `denoising_start`, latents of another model, which `image` may hold
            too.
          guidance: a rule of `samplers.guidance.GUIDANCE` by its name, or {"name": ..., its fields}, instead of
            classifier-free guidance of the network's outputs; its scale is guidance_scale.
          image: a picture to start from, to edit, or to redraw under a mask.
          ip_adapter_image: with an IP-Adapter the picture that is a prompt beside the text; with several adapters a
            list, one for each. An entry of a list may be a list of pictures, which are used together.
          control_image: the pictures for ControlNets; a ControlNet pipeline also takes them as `image`.
          seed: seed of all random numbers.
          draws: Gaussian draws instead of the seed: "latents", and "encode" and "masked" for the autoencoder, each [n,
            h, w, c]; "low" for the small picture; "steps", [steps, n, h, w, c].
          cross_attention_kwargs: {"scale": s}, a factor on the weights of adapters in this call.
          output_type: "pil", "np" or "latent".
          on_step: called with the number of each finished step.

        Raises:
          UserError: an argument has no effect on this model, or does not fit it.
          RunError: a picture is not finite.
        """
        asked = {name: value for name, value in locals().items() if name not in ("self", "draws", "seed")}
        call = self._called(asked, Draws(seed, dict(draws or {})))
        found, trajectory = call.latents()
        notes = tuple(call.reader.remarks)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        states = None if trajectory is None else np.asarray(trajectory)[:, : call.rows]
        if output_type == "latent":
            return Pictures(images=np.asarray(found)[: call.rows], notes=notes, trajectory=states)
        made = call.decoded(found)[: call.rows]
        if not np.isfinite(made).all():
            raise RunError("a picture is not finite: try another seed, or dtype=float32")
        if output_type == "np":
            return Pictures(images=made, notes=notes, trajectory=states)
        return Pictures(images=self._composed(call, pictures.as_images(made)), notes=notes, trajectory=states)

    def prepared(self, *arguments: Any, **named: Any) -> Call:
        """The call with these arguments, checked; nothing is computed yet."""
        bound = inspect.signature(self.__call__).bind(*arguments, **named)
        bound.apply_defaults()
        asked = dict(bound.arguments)
        seed, draws = asked.pop("seed"), asked.pop("draws")
        return self._called(asked, Draws(seed, dict(draws or {})))

    def _called(self, asked: Mapping[str, Any], draws: Draws) -> Call:
        if asked["output_type"] not in ("pil", "np", "latent"):
            raise UserError(f"output_type is 'pil', 'np' or 'latent', got {asked['output_type']!r}")
        parts = self._scaled(asked.pop("cross_attention_kwargs"))
        defaults = {name: about.default for name, about in inspect.signature(self.__call__).parameters.items()}
        return Call(parts, self.family, asked, draws, defaults, self.image_prompts)

    def _scaled(self, options: Mapping[str, float] | None) -> Parts:
        if not options:
            return self.parts
        if set(options) != {"scale"} or not isinstance(options["scale"], int | float):
            raise UserError(f"cross_attention_kwargs may say {{'scale': s}}, a number, it is {dict(options)}")
        if self._fused is not None or not self.adapted.weights:
            raise UserError("cross_attention_kwargs scales adapters, but none is active and unfused")
        return self.adapted.parts(scale=float(options["scale"]))

    def _composed(self, call: Call, images: list[Image.Image]) -> list[Image.Image]:
        """The pictures; a part that was cut out of an original is put back into it."""
        if call.box is None:
            return images
        original, mask = call.originals
        return [pictures.overlaid(image, original, mask, call.box) for image in images]
