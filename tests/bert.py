"""A small BERT in its published file format, and a float64 reference implementation written from the paper."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.special import erf

CONFIG = {
    "model_type": "bert", "hidden_act": "gelu", "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}  # fmt: skip


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under their published names."""
    draw = np.random.default_rng(seed)
    width, hidden = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], width),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        there = f"encoder.layer.{i}"
        layers = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        layers |= {"attention.output.dense": (width, width), "intermediate.dense": (hidden, width)}
        layers |= {"output.dense": (width, hidden)}
        for name, shape in layers.items():
            shapes |= {f"{there}.{name}.weight": shape, f"{there}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{there}.{name}.weight": (width,), f"{there}.{name}.bias": (width,)}
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def bert_folder(root: Path, *, state: dict[str, np.ndarray] | None = None, **config) -> Path:
    """Write a folder with config.json and model.safetensors."""
    (root / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(tensors() if state is None else state, root / "model.safetensors")
    return root


def reference(state: dict[str, np.ndarray], tokens: np.ndarray, heads: int, eps: float) -> np.ndarray:
    """The output vectors for one text without padding, [length, width], in float64."""
    p = {name: np.float64(value) for name, value in state.items()}

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = p["embeddings.word_embeddings.weight"][tokens] + p["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + p["embeddings.position_embeddings.weight"][: len(tokens)], "embeddings.LayerNorm")
    layers = len({name.split(".")[2] for name in p if name.startswith("encoder.layer.")})
    for i in range(layers):
        there = f"encoder.layer.{i}"
        query, key, value = (
            np.stack(np.split(linear(x, f"{there}.attention.self.{name}"), heads, axis=-1))
            for name in ("query", "key", "value")
        )
        logits = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        attended = (weights / weights.sum(-1, keepdims=True)) @ value
        h = linear(np.concatenate(list(attended), axis=-1), f"{there}.attention.output.dense")
        x = norm(x + h, f"{there}.attention.output.LayerNorm")
        h = linear(x, f"{there}.intermediate.dense")
        h = linear(h * 0.5 * (1 + erf(h / np.sqrt(2))), f"{there}.output.dense")
        x = norm(x + h, f"{there}.output.LayerNorm")
    return x
