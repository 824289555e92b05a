"""A small folder of captioned images, and the config of a network conditioned on the captions."""

import json
from pathlib import Path

import numpy as np
import PIL.Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
CAPTIONS = ("a {} square", "one {} square on the {}", "{} square")
SIDES = ("left", "right")

CONFIG = """
from configs import digits_unet

def get_config():
    config = digits_unet.get_config()
    config.data.dataset = "folder:{folder}"
    config.train.class_conditional = False
    config.evaluation.metrics = ("nearest_neighbours",)
    config.conditioning = type(config)()
    config.conditioning.text = type(config)(dict(
        tokenizer=dict(name="words", most=50), length=8, pooled=True, dropout=0.0,
        encoder=dict(name="transformer", width=16, depth=1, num_heads=2),
    ))
    return config
"""


def make_folder(root: Path, *, count: int = 96, held_out: int = 64) -> Path:
    """Write 8x8 images of a coloured square on the left or right, each with a caption that describes it."""
    draw = np.random.default_rng(0)
    for split, number in (("train", count), ("test", held_out)):
        folder = root / split
        folder.mkdir(parents=True)
        rows = []
        for i in range(number):
            colour, side, form = draw.choice(list(COLOURS)), draw.choice(SIDES), draw.choice(CAPTIONS)
            image = np.full((8, 8, 3), 20, np.uint8)
            columns = slice(0, 4) if side == "left" else slice(4, 8)
            image[2:6, columns] = COLOURS[str(colour)]
            PIL.Image.fromarray(image).save(folder / f"{i:03}.png")
            rows.append({"file_name": f"{i:03}.png", "text": str(form).format(colour, side)})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def write_config(path: Path, folder: Path) -> Path:
    path.write_text(CONFIG.replace("{folder}", str(folder)))
    return path
