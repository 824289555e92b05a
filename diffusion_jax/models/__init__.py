"""Networks: Flax modules that map (x, time, conditioning) to an image-shaped output; they know nothing of noise."""

from diffusion_jax.models.attention import attention
from diffusion_jax.models.classifier import NoisyClassifier
from diffusion_jax.models.conditional_unet import ConditionalUNet
from diffusion_jax.models.controlnet import ControlNet, controlnet_params, scaled_control, summed_controls
from diffusion_jax.models.ddit import DDIT_SIZES, DDiT
from diffusion_jax.models.dit import DIT_SIZES, DiT
from diffusion_jax.models.edm2 import EDM2_SIZES, EDM2UNet
from diffusion_jax.models.flops import count_flops
from diffusion_jax.models.jit import JIT_SIZES, JiT
from diffusion_jax.models.joint_transformer import JointTransformer
from diffusion_jax.models.layers import sinusoidal_embedding
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.network import (
    Network,
    count_parameters,
    example_inputs,
    init_params,
    is_frozen,
    parameter_shapes,
)
from diffusion_jax.models.packed_transformer import PackedTransformer
from diffusion_jax.models.registry import MODELS, reading_tokens
from diffusion_jax.models.song_unet import SongUNet
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.unet_sizes import ADM_MULTIPLIERS, LDM_SIZES
from diffusion_jax.models.uvit import UVIT_SIZES, UViT
from diffusion_jax.models.vdm import VDMUNet
from diffusion_jax.models.vit import VIT_SIZES, ViT

__all__ = [
    "ADM_MULTIPLIERS",
    "DDIT_SIZES",
    "DIT_SIZES",
    "EDM2_SIZES",
    "JIT_SIZES",
    "LDM_SIZES",
    "MLP",
    "MODELS",
    "UVIT_SIZES",
    "VIT_SIZES",
    "ConditionalUNet",
    "ControlNet",
    "DDiT",
    "DiT",
    "EDM2UNet",
    "JiT",
    "JointTransformer",
    "Network",
    "NoisyClassifier",
    "PackedTransformer",
    "SongUNet",
    "UNet",
    "UViT",
    "VDMUNet",
    "ViT",
    "attention",
    "controlnet_params",
    "count_flops",
    "count_parameters",
    "example_inputs",
    "init_params",
    "is_frozen",
    "parameter_shapes",
    "reading_tokens",
    "scaled_control",
    "sinusoidal_embedding",
    "summed_controls",
]
