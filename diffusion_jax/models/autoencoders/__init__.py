"""First stages: from data to what is diffused, and back."""

from diffusion_jax.models.autoencoders.codec import CODECS, Codec, Identity, Values, from_tokens, to_tokens

__all__ = ["CODECS", "Codec", "Identity", "Values", "from_tokens", "to_tokens"]
