"""Edit a picture by instructions, one after the other: a session in a folder, which can be continued.

    python -m experiments.edit --workdir=runs/edits --image=scene.png --instruction="make the star green" --out=session
    python -m experiments.edit --workdir=runs/edits --instruction="move the star to the left" --out=session   # goes on
    python -m experiments.edit --out=session --undo                                                   # one turn back
    python -m experiments.edit --workdir=runs/edits --judge=200 --out=judged                          # how good it is

The folder holds 000.png, the first picture, then one picture for each turn, 001.png and so on, history.jsonl, which
says how each was made, and session.png, all of them in a row. The result depends on the seed, the turn, and the picture
before it. --judge edits held-out pairs of the run's data and writes edits.json: instructions done, what stayed, motion.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
WORKDIR = FLAGS.path("workdir", None, "directory of a run that edits by instruction (configs/edits.py)")
IMAGE = FLAGS.path("image", None, "first picture of a new session")
INSTRUCTION = FLAGS.string("instruction", None, "edit of the session's last picture, in words", allowed="a text")
OUT = FLAGS.path("out", "session", "folder of the session; an existing one is continued")
UNDO = FLAGS.boolean("undo", False, "undo the last turn and draw nothing")
JUDGE = FLAGS.integer("judge", None, "held-out pairs to edit and judge, instead of a session", lower=1, upper=10**5)
TURNS = FLAGS.integer("turns", 5, "edits of each picture, one after the other, in --judge", lower=1, upper=20)
STEPS = FLAGS.integer(
    "steps", None, "steps of the sampler; by default those of the config", lower=1, upper=cli.MOST_STEPS
)
SCALE = FLAGS.number("guidance_scale", None, "guidance scale towards the instruction", lower=0, upper=1000)
IMAGE_SCALE = FLAGS.number(
    "image_scale", None, "guidance scale towards the picture before the edit", lower=0, upper=1000
)
SAMPLER = FLAGS.string("sampler", None, "name of a sampler such as flow_heun; by default that of the config")
SEED = FLAGS.integer("seed", 0, "seed of the pictures", upper=cli.MOST_SEED)
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffusion_jax import parallel
from diffusion_jax.data.canvas import resized
from diffusion_jax.data.pictures import read_image
from diffusion_jax.errors import UserError
from diffusion_jax.files import locked, read_json_rows, replace_file
from experiments.building.checks import check_sampler
from experiments.building.restoring import restore_params
from experiments.building.wiring import Experiment
from experiments.evaluating import editing, prompted, requests
from experiments.evaluating.pictures import save_grid
from experiments.ground import workdir

HISTORY, SHOWN = "history.jsonl", "session.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """A folder of pictures and their history.

    Attributes:
      folder: the folder.
      rows: rows of history.jsonl, one for each current picture, including the first.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Session":
        """Read the session in a folder; an empty one if there is none.

        Raises:
          UserError: the folder holds something else, or the session is damaged.
        """
        if not (folder / HISTORY).is_file():
            others = {one.name for one in folder.glob("*.png")} - {
                _name(0)
            }  # which may be all that a killed call wrote
            if others:
                raise UserError(f"{folder} holds pictures but no {HISTORY}: give another --out")
            return cls(folder=folder)
        rows = tuple(row for _, row in read_json_rows(str(folder / HISTORY)))
        names = [row.get("picture") for row in rows]
        if not rows or names != [_name(turn) for turn in range(len(rows))]:
            raise UserError(f"{folder / HISTORY} is damaged: it should name {_name(0)}, {_name(1)} and so on, in turn")
        return cls(folder=folder, rows=rows)

    @property
    def last(self) -> str:
        """The path of the newest picture."""
        return str(self.folder / self.rows[-1]["picture"])

    def added(self, picture: np.ndarray, **how: Any) -> "Session":
        """The session with one more picture, which is written before the history names it."""
        name = _name(len(self.rows))
        buffer = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, format="PNG")
        replace_file(self.folder / name, buffer.getvalue())
        return self._kept((*self.rows, {"picture": name, **how}))

    def undone(self) -> "Session":
        """The session without its last turn.

        Raises:
          UserError: there is no turn to undo.
        """
        if len(self.rows) < 2:
            raise UserError(f"there is no turn to take back in {self.folder}")
        gone = self.folder / self.rows[-1]["picture"]
        session = self._kept(self.rows[:-1])
        gone.unlink(missing_ok=True)
        return session

    def _kept(self, rows: tuple[dict[str, Any], ...]) -> "Session":
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace_file(self.folder / HISTORY, lines.encode())
        return dataclasses.replace(self, rows=rows)

    def show(self) -> None:
        """Write all pictures side by side."""
        pictures = [read_image(str(self.folder / row["picture"])) for row in self.rows]
        save_grid(np.stack(pictures), self.folder / SHOWN, columns=len(pictures))


def _name(turn: int) -> str:
    return f"{turn:03d}.png"


def main(argv: Sequence[str]) -> None:
    require_flags()
    folder = cli.writable_directory(OUT.value)
    if JUDGE.value:
        return judge(folder)
    with locked(folder / ".lock", f"process {{holder}} edits in {folder}", wait=True):
        session = Session.read(folder)
        if UNDO.value:
            session = session.undone()
            session.show()
            print(f"one turn back: the last picture is {session.last}")
            return
        turn(session)


def require_flags() -> None:
    """Refuse flags that do not go together, and missing flags."""
    if UNDO.value and (INSTRUCTION.value or IMAGE.value or JUDGE.value):
        raise UserError("--undo takes the last turn back and draws nothing: leave the other flags out")
    if JUDGE.value and (INSTRUCTION.value or IMAGE.value):
        raise UserError("--judge edits held-out pairs of the run's data: leave --image and --instruction out")
    if not UNDO.value and not WORKDIR.value:
        raise UserError("give --workdir=..., the directory of a run that edits by instruction (configs/edits.py)")
    if not (UNDO.value or JUDGE.value or INSTRUCTION.value):
        raise UserError('give --instruction="...", what to do with the picture')


def opened() -> tuple[Experiment, Any]:
    """The run, with the guidance that the flags ask for, and its parameters."""
    workdir.read_config(WORKDIR.value)  # which registers the run's own parts
    if SAMPLER.value:
        check_sampler(SAMPLER.value)
    experiment, params, _ = restore_params(WORKDIR.value)
    prompted.require_editor(experiment)
    sampling = experiment.config.sampling
    given = {"scale": SCALE.value, "image_scale": IMAGE_SCALE.value}
    given = {name: value for name, value in given.items() if value is not None}
    if IMAGE_SCALE.value is not None and "image_scale" not in sampling.guidance:
        scale = sampling.guidance.scale
        sampling.guidance = ConfigDict({"name": "two_scales", "scale": scale, "image_scale": 1.0})
    with sampling.guidance.ignore_type(), sampling.guidance.unlocked():
        sampling.guidance.update(given)
    return experiment, params


def turn(session: Session) -> None:
    """Carry out one instruction."""
    if not session.rows and not IMAGE.value:
        raise UserError(f"--instruction needs a picture: give --image=..., there is no session in {session.folder} yet")
    experiment, params = opened()
    begun = first_picture(experiment, session)
    if not session.rows:
        session = session.added(begun, image=Path(IMAGE.value).name)
    number = len(session.rows)
    if parallel.is_primary():
        for remark in experiment.text.remarks([INSTRUCTION.value], "instructions"):
            print(f"note: {remark}", file=sys.stderr, flush=True)
    (drawn,), make = prompted.draw(
        experiment,
        params,
        [INSTRUCTION.value],
        first=number,
        begun=prompted.Begun(image=begun),
        seed=SEED.value,
        sampler=SAMPLER.value,
        steps=STEPS.value,
    )
    if not parallel.is_primary():
        return
    how = {"seed": SEED.value, "steps": make.grid.num_steps, "guidance": repr(make.guidance), "workdir": WORKDIR.value}
    session = session.added(drawn, instruction=INSTRUCTION.value, of=session.rows[-1]["picture"], **how)
    session.show()
    print(f"turn {number}, {make.network_evaluations} network evaluations: {session.last}")
    print(f"picture: {session.folder / SHOWN}")


def first_picture(experiment: Experiment, session: Session) -> np.ndarray:
    """The picture that this turn starts from, resized to the run's pictures.

    Raises:
      UserError: there is no picture, or not the one that the session started from.
    """
    height, width, channels = experiment.shown.spec.shape
    if IMAGE.value:
        given = read_image(requests.regular(IMAGE.value, "image"), channels=channels)
        if given.shape[:2] != (height, width):
            own = f"{given.shape[1]}x{given.shape[0]}"
            print(f"note: the picture is {own} pixels, and is resized to {width}x{height}", file=sys.stderr, flush=True)
        given = resized(given, height, width)
        if not session.rows:
            return given
        if not np.array_equal(given, read_image(str(session.folder / _name(0)), channels=channels)):
            raise UserError(
                f"the session in {session.folder} began with another picture: leave --image out, or give another --out"
            )
    return resized(read_image(session.last, channels=channels), height, width)


def judge(folder: Path) -> None:
    """Edit held-out pairs and report how well it went."""
    experiment, params = opened()
    found, pictures = editing.judge(
        experiment, params, JUDGE.value, turns=TURNS.value, seed=SEED.value, sampler=SAMPLER.value, steps=STEPS.value
    )
    if not parallel.is_primary():
        return
    replace_file(folder / "edits.json", (json.dumps(found, indent=2) + "\n").encode())
    save_grid(pictures, folder / "edits.png", columns=editing.COLUMNS)
    print(editing.in_words(found))
    print(f"numbers: {folder / 'edits.json'}\npicture: {folder / 'edits.png'}, before, after and true, side by side")


if __name__ == "__main__":
    cli.run(main)
