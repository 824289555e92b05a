"""How well a run edits by instruction: held-out pairs are edited, for one or several turns, and judged."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from diffusion_jax import tasks
from diffusion_jax.data.scenes.edits import EDITS, Edit
from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import proportion
from diffusion_jax.metrics.edits import Motion, done, kept, moved, untouched
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation, requests
from experiments.evaluating.asked import asked_in_words

Pictures = UInt8[np.ndarray, "n height width 3"]
COLUMNS = 12  # pictures in a row of the picture: four edits, each before, after and true
SHOWN = 24  # edits shown in the picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of many sessions at once.

    Attributes:
      first: the pictures that the sessions started from.
      before, after: the pictures of this turn.
      true: the first pictures after true edits up to this turn.
      edits: the requested edits.
      where: the pixels that no true edit has changed so far.
    """

    first: Pictures
    before: Pictures
    after: Pictures
    true: Pictures
    edits: Sequence[Edit]
    where: Bool[np.ndarray, "n height width"]


def judge(
    experiment: Experiment, params: Any, count: int, *, turns: int = 1, seed: int = 0, **sampling: Any
) -> tuple[dict[str, Any], Pictures]:
    """Numbers for held-out sessions, and pictures of their first turn: before, after and true, side by side.

    Controls without a network are reported beside the numbers of the run: true edits, unchanged pictures, and the run's
      own
    pictures judged by the instructions of other sessions.

    Args:
      experiment: a run that edits, whose data knows its edits.
      params: its parameters.
      count: sessions from the held-out split.
      turns: edits of each, one after the other.
      seed: seed of the random numbers.
      **sampling: `sampler` and `steps`, as in `evaluation.generator`.

    Raises:
      UserError: the data does not know its edits, or nothing is held out.
    """
    held_out = experiment.validation_pipeline
    known = None if held_out is None else held_out.edits
    if known is None:
        raise UserError("--judge needs held-out pairs whose edits are known: data.dataset=scene_edits with its splits")
    first, sessions = known.sessions(np.arange(min(count, len(known))), turns)
    size = min(experiment.config.sampling.batch_size, len(first))
    make = evaluation.generator(experiment, batch_size=size, task=tasks.Instruct(), **sampling)
    found, before, true, where = [], first, first, np.ones(first.shape[:3], bool)
    for number, (edits, after_true) in enumerate(sessions):
        where = where & untouched(true, after_true)
        asked = asked_in_words(experiment, [edit.instruction for edit in edits])
        given = {"image": requests.in_unit_range(before)}
        after = evaluation.draw(make, params, asked, len(first), seed + number, given)
        found.append(Turn(first=first, before=before, after=after, true=after_true, edits=edits, where=where))
        before, true = after, after_true
    one = found[0]
    trios = np.stack([one.first, one.after, one.true], axis=1)[:SHOWN].reshape(-1, *one.first.shape[1:])
    numbers = {"num_samples": len(first), "turns": [_numbers(turn) for turn in found], "controls": _controls(one)}
    return numbers, trios


def _numbers(turn: Turn) -> dict[str, Any]:
    """The numbers of one turn."""
    hits, stayed = done(turn.after, turn.edits), kept(turn.after, turn.first, turn.where)
    motions = [moved(*row) for row in zip(turn.after, turn.first, turn.where, strict=True)]
    kinds = np.array([edit.kind for edit in turn.edits])
    by_kind = {kind: proportion("done", hits[kinds == kind]) for kind in EDITS if (kinds == kind).any()}
    return {**proportion("done", hits), **_stayed(stayed), **_motion(motions), "by_kind": by_kind}


def _stayed(ratios: np.ndarray) -> dict[str, float]:
    return {"kept_db": float(np.nanmedian(ratios)), "kept_db_tenth": float(np.nanquantile(ratios, 0.1))}


def _motion(motions: Sequence[Motion]) -> dict[str, float]:
    """The median and the 90% quantile of the shift, and the median change of size, where they can be measured."""
    offsets = np.array([one.offset for one in motions])
    zooms = np.array([abs(one.zoom - 1) for one in motions])
    if np.isnan(offsets).all():
        return {}
    return {
        "offset_pixels": float(np.nanmedian(offsets)),
        "offset_pixels_ninetieth": float(np.nanquantile(offsets, 0.9)),
        "zoom_error": float(np.nanmedian(zooms)),
    }


def _controls(turn: Turn) -> dict[str, dict[str, float]]:
    """The scores of true edits, unchanged pictures, and pictures of other sessions."""
    rows = {"true": turn.true, "unchanged": turn.first, "shuffled": np.roll(turn.after, 1, axis=0)}
    return {
        name: {**proportion("done", done(images, turn.edits)), **_stayed(kept(images, turn.first, turn.where))}
        for name, images in rows.items()
    }


def in_words(found: dict[str, Any]) -> str:
    """A table of turns and controls."""
    lines = [f"{'':12}{'done':>8}{'95% interval':>16}{'kept, dB':>10}{'offset, px':>12}"]
    rows = {f"turn {i}": row for i, row in enumerate(found["turns"], start=1)} | found["controls"]
    for name, row in rows.items():
        interval = f"{row['done_low']:.1%}-{row['done_high']:.1%}"
        offset = f"{row['offset_pixels']:.2f}" if "offset_pixels" in row else ""
        lines.append(f"{name:12}{row['done']:>8.1%}{interval:>16}{row['kept_db']:>10.1f}{offset:>12}")
    return "\n".join(lines)
