"""Encoders: networks that turn texts and pictures into another network's conditions, or into features of a metric."""

from diffusion_jax.models.encoders.bert import Bert
from diffusion_jax.models.encoders.clip import ClipText, TextStates
from diffusion_jax.models.encoders.qwen3 import DecoderStates, Qwen3
from diffusion_jax.models.encoders.t5 import T5Encoder
from diffusion_jax.models.encoders.text import TEXT_ENCODERS, Encoder, TextEncoder, encode, init_encoder
from diffusion_jax.models.encoders.vision import VisionStates, VisionTransformer, bicubic_matrix

__all__ = [
    "TEXT_ENCODERS",
    "Bert",
    "ClipText",
    "DecoderStates",
    "Encoder",
    "Qwen3",
    "T5Encoder",
    "TextEncoder",
    "TextStates",
    "VisionStates",
    "VisionTransformer",
    "bicubic_matrix",
    "encode",
    "init_encoder",
]
