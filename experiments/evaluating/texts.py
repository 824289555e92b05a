"""Samples of text, as readable files."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from diffusion_jax.data import Tokenizer
from diffusion_jax.files import replace_file

MOST_SHOWN = 20  # samples in final.txt


def save_texts(tokens: Int[np.ndarray, "n ..."], tokenizer: Tokenizer, path: Path, *, make_folder: bool = True) -> None:
    """Write the samples one below the other, each under a line with its number."""
    texts = [tokenizer.decode(sample.reshape(-1)) for sample in tokens]
    content = "\n".join(f"--- sample {i} ---\n{text}\n" for i, text in enumerate(texts))
    replace_file(path, content.encode(), make_folder=make_folder)
