"""Write random weights of DINOv2 and CLIP under their published names, and a tokenizer with a few words."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden" / "metrics"


def random_tensor(name, shape):
    """Random values for the tensor of this name; the reference was computed with the same values."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 0:
        return np.array(0.7 + 0.1 * draw, np.float32)
    if len(shape) == 1:
        return np.float32(float(name.endswith(("weight", "scale"))) + 0.1 * draw)
    return np.float32(draw / math.sqrt(math.prod(shape[1:])))


def written(name, path):
    """Write the random weights for a golden file, and return the golden file."""
    golden = np.load(GOLDEN / f"{name}.npz")
    names = json.loads(str(golden["names"]))
    save_file({key: random_tensor(key, shape) for key, shape in names.items()}, path)
    return golden


def write_tokenizer(folder, *, start=97, end=98):
    """Write a tokenizer.json with CLIP's start and end tokens and a token for each of five words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"a": 1, "photo": 2, "of": 3, "cat": 4, "dog": 5, "?": 6, "<|startoftext|>": start, "<|endoftext|>": end}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
