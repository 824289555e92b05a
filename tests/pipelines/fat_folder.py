"""Write a large random text encoder, read it in two types, and print the weights and peak memory in MiB."""

import json
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.weights.components import COMPONENTS, class_name, read_part
from diffusion_jax.weights.reading import write_state

ROOT = Path(__file__).parent.parent / "golden" / "pipelines" / "sd15" / "text_encoder"


def resident() -> float:
    """The resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def write(folder: Path) -> None:
    config = json.loads((ROOT / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
               "vocab_size": 20_000}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    component = COMPONENTS.build(class_name(config))
    module = component.build(config, jnp.float32)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), component.shapes(module))
    names = component.weight_map(module, ()).names()
    write_state(folder / "model.safetensors", component.weight_map(module, names).state(params))


def read(folder: Path, dtype) -> tuple[float, float]:
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    part = read_part(folder, dtype, held_in=dtype, place=lambda _, leaf: jax.block_until_ready(jax.device_put(leaf)))
    done.set()
    watcher.join()
    return sum(leaf.nbytes for leaf in jax.tree.leaves(part.params)) / 2**20, peak[0]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not (folder / "config.json").exists():
        write(folder)
        import subprocess

        for kind in ("float32", "bfloat16"):
            subprocess.run([sys.executable, __file__, folder, kind], check=True)
        sys.exit()
    jnp.zeros(1).block_until_ready()
    config = json.loads((folder / "config.json").read_text())
    component = COMPONENTS.build(class_name(config))
    component.shapes(component.build(config, jnp.dtype(sys.argv[2])))  # so that memory for tracing is not counted
    print(sys.argv[2], *read(folder, jnp.dtype(sys.argv[2])), flush=True)
