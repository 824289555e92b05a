"""Encoders: networks that turn texts into what another network is told."""

from diffusion_jax.models.encoders.bert import Bert
from diffusion_jax.models.encoders.text import TEXT_ENCODERS, Encoder, TextEncoder, encode, init_encoder

__all__ = ["TEXT_ENCODERS", "Bert", "Encoder", "TextEncoder", "encode", "init_encoder"]
