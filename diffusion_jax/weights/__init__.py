"""Reading and writing published weights: files are read without running code in them, by complete maps of names."""

from diffusion_jax.weights import published
from diffusion_jax.weights.components import COMPONENTS, Component, class_name, read_component
from diffusion_jax.weights.diffusers_config import describe, network_spec, unknown_fields
from diffusion_jax.weights.diffusers_schedulers import ASSUMED, Sampling, describe_sampling, read_sampling
from diffusion_jax.weights.encoders import CLIP_SOURCE, DINOV2_SOURCE, Clip, read_clip, read_dinov2
from diffusion_jax.weights.folders import STEMS, locate, read_config
from diffusion_jax.weights.formats import FORMATS, find_format, fitted, load_params, weight_map
from diffusion_jax.weights.inception import SOURCE as INCEPTION_SOURCE
from diffusion_jax.weights.inception import inception_map, inception_shapes, nvidia_inception_map, read_inception
from diffusion_jax.weights.lpips import LPIPS_SOURCE, VGG_SOURCE, lpips_map, lpips_shapes, read_lpips, require_lpips
from diffusion_jax.weights.names import WeightMap
from diffusion_jax.weights.reading import read_state, read_weights, write_state
from diffusion_jax.weights.texts import bert_map, read_text_encoder
from diffusion_jax.weights.torch_files import read_torch_file

FOLDER_STEM = STEMS[0]  # the file name of weights in a folder of diffusers

__all__ = [
    "ASSUMED",
    "CLIP_SOURCE",
    "COMPONENTS",
    "DINOV2_SOURCE",
    "FOLDER_STEM",
    "FORMATS",
    "INCEPTION_SOURCE",
    "LPIPS_SOURCE",
    "VGG_SOURCE",
    "Clip",
    "Component",
    "Sampling",
    "WeightMap",
    "bert_map",
    "class_name",
    "describe",
    "describe_sampling",
    "find_format",
    "fitted",
    "inception_map",
    "inception_shapes",
    "load_params",
    "locate",
    "lpips_map",
    "lpips_shapes",
    "network_spec",
    "nvidia_inception_map",
    "published",
    "read_clip",
    "read_component",
    "read_config",
    "read_dinov2",
    "read_inception",
    "read_lpips",
    "read_sampling",
    "read_state",
    "read_text_encoder",
    "read_torch_file",
    "read_weights",
    "require_lpips",
    "unknown_fields",
    "weight_map",
    "write_state",
]
