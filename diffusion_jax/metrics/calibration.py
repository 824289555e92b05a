"""Calibration of judges: the result of a metric that reads prompts on pictures whose quality is known.

    truth       true pictures of the prompts: the ceiling
    shuffled    the true pictures of other prompts: the score by chance
    blank       uniformly grey pictures, which show nothing
    blur        Gaussian, by its standard deviation in pixels
    noise       Gaussian, by its standard deviation of 255
    round trip  true pictures through an autoencoder: an upper bound for samples of its latents

Trust a judge if truth is near its best value, if shuffled and blank are near its worst, and if worse pictures score
worse.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import scipy.ndimage
from jaxtyping import UInt8

from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import METRICS, ImageSet, Metric, checked_result

Pictures = UInt8[np.ndarray, "n height width channels"]
BLURS = (0.5, 1.0, 1.5)
NOISES = (15, 30, 60)


class Prompts(Protocol):
    """Prompts whose true pictures are known."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def pictures(self, indices: Any) -> Pictures:
        """A true picture for each of these prompts."""


def blurred(images: Pictures, std: float) -> Pictures:
    """Gaussian blur within each picture and channel."""
    return np.rint(scipy.ndimage.gaussian_filter(images.astype(np.float32), (0, std, std, 0))).astype(np.uint8)


def noisy(images: Pictures, std: float, seed: int = 0) -> Pictures:
    """The pictures with Gaussian noise, clipped to 0..255."""
    noise = np.random.default_rng(seed).normal(0.0, std, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def conditions(true: Pictures, round_trip: Callable[[Pictures], Pictures] | None = None) -> dict[str, Pictures]:
    """The pictures of each condition, by name."""
    return {
        "truth": true,
        "shuffled": np.roll(true, len(true) // 2, axis=0),
        "blank": np.full_like(true, 128),
        **{f"blur {std:g} px": blurred(true, std) for std in BLURS},
        **{f"noise {std:g}": noisy(true, std) for std in NOISES},
        **({"round trip": round_trip(true)} if round_trip else {}),
    }


def calibrate(
    metrics: Mapping[str, Metric],
    prompts: Prompts,
    count: int,
    round_trip: Callable[[Pictures], Pictures] | None = None,
) -> dict[str, Any]:
    """The results of these metrics: {metric: {condition: {number: value}}}, and the engines that judged.

    Args:
      metrics: metrics that read prompts, by name.
      prompts: prompts of the data that they judge.
      count: how many prompts are judged, from the first.
      round_trip: sends pictures through an autoencoder, if there is one.

    Raises:
      UserError: fewer than two prompts, or one of the metrics reads none.
    """
    count = min(count, len(prompts))
    if count < 2:
        raise UserError(f"a calibration needs two prompts or more, not {count}")
    without = [name for name in metrics if "prompts" not in METRICS.facts(name).reads]
    if without:
        raise UserError(f"{', '.join(without)}: reads no prompts, so there are no true pictures to calibrate with")
    true, texts = prompts.pictures(range(count)), tuple(prompts[i].text for i in range(count))
    reference, pictures = ImageSet(images=true, texts=texts), conditions(true, round_trip)
    cards: dict[str, Any] = {}
    for name, metric in metrics.items():
        cards[name] = {
            condition: checked_result(
                name, metric, metric(ImageSet(images=images, texts=texts), train=reference, test=reference)
            )
            for condition, images in pictures.items()
        }
    judges = {name: list(metric.judges) for name, metric in metrics.items() if METRICS.facts(name).modules}
    return {"cards": cards, "num_prompts": count, **({"judges": judges} if judges else {})}


def table(found: Mapping[str, Any]) -> str:
    """The results as one Markdown table: a row for each condition, the headline of each metric with its interval."""
    cards = found["cards"]
    keys = {}
    for name, card in cards.items():
        facts = METRICS.facts(name)
        seconds = [f"second_{facts.headline}"] if f"second_{facts.headline}" in card["truth"] else []
        for key in (facts.headline, *seconds):
            label = f"{facts.title} {facts.number(facts.headline).arrow}"
            keys[name, key] = label if key == facts.headline else f"{label}, second reader"
    rows = [f"| pictures | {' | '.join(keys.values())} |", f"|---{'|---:' * len(keys)}|"]
    first = next(iter(cards.values()))
    for condition in first:
        cells = [_cell(cards[name][condition], key) for name, key in keys]
        rows.append(f"| {condition} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _cell(result: Mapping[str, float], key: str) -> str:
    low, high = (result.get(f"{key}_{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{result[key]:.3f}{interval}"
