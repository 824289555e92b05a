"""Published models by name, described as in their folders: for planning and for single files without a folder.

The fields are those of the config.json files that the models were published with, as far as they differ from the
defaults of their classes here. Sizes follow from them: `parts_of` gives shapes instead of parameters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from diffusion_jax.data.prompts import PromptTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.parts import Parts
from diffusion_jax.pipelines.scheduling import Scheduler
from diffusion_jax.registry import unknown_name
from diffusion_jax.weights.components import COMPONENTS, Part, class_name

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published model.

    Attributes:
      pipeline: diffusers' class.
      models: config.json of its networks, by the name of the part.
      scheduler: scheduler_config.json.
      lengths: tokens that its tokenizers take, by the name of the part.
      index: further fields of model_index.json.
    """

    pipeline: str
    models: Mapping[str, Config]
    scheduler: Config
    lengths: Mapping[str, int]
    index: Config = dataclasses.field(default_factory=dict)


def _clip(kind: str, width: int, depth: int, heads: int, act: str, projection: int) -> Config:
    return {
        "architectures": [kind],
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "hidden_act": act,
        "projection_dim": projection,
        "vocab_size": 49_408,
        "max_position_embeddings": 77,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "model_type": "clip_text_model",
    }


_LARGE = _clip("CLIPTextModel", 768, 12, 12, "quick_gelu", 768)
_LARGE_PROJECTED = {**_LARGE, "architectures": ["CLIPTextModelWithProjection"]}
_HUGE = _clip("CLIPTextModel", 1024, 23, 16, "gelu", 512)
_BIG_G = _clip("CLIPTextModelWithProjection", 1280, 32, 20, "gelu", 1280)
_T5_XXL: Config = {
    "architectures": ["T5EncoderModel"],
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10_240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32_128,
    "feed_forward_proj": "gated-gelu",
    "model_type": "t5",
}


def _vae(channels: int, scale: float, shift: float | None = None, **own: Any) -> Config:
    levels = 4
    found = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": channels,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "scaling_factor": scale,
    }
    return {**found, **({} if shift is None else {"shift_factor": shift}), **own}


_NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
_SD_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
}
_SD2_UNET = {**_SD_UNET, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
             "use_linear_projection": True}  # fmt: skip
_XL_SIZES = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
_XL_UNET = {
    **_SD_UNET,
    **_XL_SIZES,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "projection_class_embeddings_input_dim": 2816,
}
_REFINER_UNET = {
    **_SD_UNET,
    **_XL_SIZES,
    "sample_size": 128,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}
_SD3: Config = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_SD35_LARGE = {**_SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
               "qk_norm": "rms_norm"}  # fmt: skip
_SD35_MEDIUM = {**_SD3, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))}
_FLUX: Config = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
_CHAIN: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_PNDM = {**_CHAIN, "_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
_DDIM_V = {**_CHAIN, "_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False,
           "prediction_type": "v_prediction"}  # fmt: skip
_EULER = {**_CHAIN, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_DYNAMIC = {**_FLOW, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
            "base_image_seq_len": 256, "max_image_seq_len": 4096}  # fmt: skip


def _sd(unet: Config, text: Config, scheduler: Config, pipeline: str = "StableDiffusionPipeline") -> Published:
    models = {"unet": unet, "vae": _vae(4, 0.18215), "text_encoder": text}
    return Published(pipeline=pipeline, models=models, scheduler=scheduler, lengths={"tokenizer": 77})


def _sd3(transformer: Config) -> Published:
    return Published(
        pipeline="StableDiffusion3Pipeline",
        models={
            "transformer": transformer,
            "vae": _vae(16, 1.5305, 0.0609, **_NO_QUANT),
            "text_encoder": _LARGE_PROJECTED,
            "text_encoder_2": _BIG_G,
            "text_encoder_3": _T5_XXL,
        },
        scheduler=_FLOW,
        lengths={"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 512},
    )


def _flux(transformer: Config, scheduler: Config) -> Published:
    return Published(
        pipeline="FluxPipeline",
        models={
            "transformer": transformer,
            "vae": _vae(16, 0.3611, 0.1159, **_NO_QUANT),
            "text_encoder": _LARGE,
            "text_encoder_2": _T5_XXL,
        },
        scheduler=scheduler,
        lengths={"tokenizer": 77, "tokenizer_2": 512},
    )


PUBLISHED: Mapping[str, Published] = {
    "sd15": _sd(_SD_UNET, _LARGE, _PNDM),
    "sd15_inpainting": _sd({**_SD_UNET, "in_channels": 9}, _LARGE, _PNDM, "StableDiffusionInpaintPipeline"),
    "sd2_base": _sd(_SD2_UNET, _HUGE, _PNDM),
    "sd2": _sd({**_SD2_UNET, "sample_size": 96}, _HUGE, _DDIM_V),
    "sdxl": Published(
        pipeline="StableDiffusionXLPipeline",
        models={"unet": _XL_UNET, "vae": _vae(4, 0.13025), "text_encoder": _LARGE, "text_encoder_2": _BIG_G},
        scheduler=_EULER,
        lengths={"tokenizer": 77, "tokenizer_2": 77},
        index={"force_zeros_for_empty_prompt": True},
    ),
    "sdxl_refiner": Published(
        pipeline="StableDiffusionXLImg2ImgPipeline",
        models={"unet": _REFINER_UNET, "vae": _vae(4, 0.13025), "text_encoder_2": _BIG_G},
        scheduler=_EULER,
        lengths={"tokenizer_2": 77},
        index={"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
    "sd3_medium": _sd3(_SD3),
    "sd35_medium": _sd3(_SD35_MEDIUM),
    "sd35_large": _sd3(_SD35_LARGE),
    "flux_dev": _flux(_FLUX, _DYNAMIC),
    "flux_schnell": _flux({**_FLUX, "guidance_embeds": False}, {**_FLOW, "shift": 1.0}),
}
"""Published models by this project's names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnreadTokenizer(PromptTokenizer):
    """A stand-in for a tokenizer without files: rows have their length, and every text is empty.

    Attributes:
      max_length: tokens of a text.
    """

    max_length: int

    @property
    def size(self) -> int:
        return 1

    @property
    def pad(self) -> int:
        return 0

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (), ()

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " tokens"]]:
        return [np.zeros(0, np.int32) for _ in texts]


def published(name: str) -> Published:
    """A published model.

    Raises:
      UserError: no model has that name.
    """
    if name not in PUBLISHED:
        raise UserError(unknown_name("published model", name, list(PUBLISHED)))
    return PUBLISHED[name]


def parts_of(name: str, dtype: DTypeLike = jnp.float32) -> Parts:
    """The parts of a published model with float32 shapes instead of parameters, for planning and counting.

    Args:
      name: name of `PUBLISHED`.
      dtype: type of activations.

    Raises:
      UserError: no model has that name.
    """
    model = published(name)
    models = {}
    for part, config in model.models.items():
        component = COMPONENTS.build(class_name(config))
        module = component.build(config, dtype)
        models[part] = Part(module=module, params=component.shapes(module), config=config, dtypes={})
    return Parts(
        index={"_class_name": model.pipeline, **model.index},
        folders={},
        models=models,
        tokenizers={part: UnreadTokenizer(max_length=length) for part, length in model.lengths.items()},
        scheduler=Scheduler.read(model.scheduler, origin=f"the scheduler of {name}"),
    )
