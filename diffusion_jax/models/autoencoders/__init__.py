"""First stages (autoencoders): from data to what is diffused, and back."""

from diffusion_jax.models.autoencoders.autoencoder import SCALE, SHIFT, Autoencoder
from diffusion_jax.models.autoencoders.codec import CODECS, Codec, Identity, Values, drawn, from_tokens, to_tokens
from diffusion_jax.models.autoencoders.coder import Discriminator
from diffusion_jax.models.autoencoders.deep_compression import DeepCodec, DeepLevel
from diffusion_jax.models.autoencoders.kl import KL
from diffusion_jax.models.autoencoders.learned import SIZES, LearnedCodec, Reconstruction
from diffusion_jax.models.autoencoders.published import BatchNormKL, PublishedKL, PublishedVQ
from diffusion_jax.models.autoencoders.stored import StoredLatents
from diffusion_jax.models.autoencoders.tiny import TinyCodec
from diffusion_jax.models.autoencoders.vq import VQ

__all__ = [
    "CODECS",
    "KL",
    "SCALE",
    "SHIFT",
    "SIZES",
    "VQ",
    "Autoencoder",
    "BatchNormKL",
    "Codec",
    "DeepCodec",
    "DeepLevel",
    "Discriminator",
    "Identity",
    "LearnedCodec",
    "PublishedKL",
    "PublishedVQ",
    "Reconstruction",
    "StoredLatents",
    "TinyCodec",
    "Values",
    "drawn",
    "from_tokens",
    "to_tokens",
]
