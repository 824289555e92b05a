"""Data: named sources (TFDS, digits, folders of images, Parquet, Arrow and tar files, text, scenes, glyphs, synthetic
latents), transforms, and a resumable pipeline."""

from diffusion_jax.data import arrow as _arrow  # noqa: F401  registers "parquet" and "arrow"
from diffusion_jax.data import folder as _folder  # noqa: F401  registers "folder"
from diffusion_jax.data import latents as _latents  # noqa: F401  registers "latents"
from diffusion_jax.data import subject as _subject  # noqa: F401  registers "subject"
from diffusion_jax.data import text as _text  # noqa: F401  registers "text"
from diffusion_jax.data import webdataset as _webdataset  # noqa: F401  registers "webdataset"
from diffusion_jax.data.glyphs import source as _glyphs  # noqa: F401  registers "glyphs"
from diffusion_jax.data.pipeline import BatchReader, Pipeline
from diffusion_jax.data.scenes import edits as _edits  # noqa: F401  registers "scene_edits"
from diffusion_jax.data.scenes import source as _scenes  # noqa: F401  registers "scenes"
from diffusion_jax.data.sources import (
    AT_A_PATH,
    ArraySource,
    Dataset,
    DatasetInfo,
    Source,
    SyntheticLatents,
    Tokenizer,
    datasets,
    default_data_dir,
    open_dataset,
)
from diffusion_jax.data.transforms import as_stored, crops, to_uint8, to_unit_range

__all__ = [
    "AT_A_PATH",
    "ArraySource",
    "BatchReader",
    "Dataset",
    "DatasetInfo",
    "Pipeline",
    "Source",
    "SyntheticLatents",
    "Tokenizer",
    "as_stored",
    "crops",
    "datasets",
    "default_data_dir",
    "open_dataset",
    "to_uint8",
    "to_unit_range",
]
