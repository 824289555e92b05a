"""experiments.edit: the folder of a session, and requests that are refused before a network is read."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from experiments import edit
from tests.fresh_runs import called


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def test_a_session_keeps_its_history(tmp_path):
    session = edit.Session.read(tmp_path).added(picture(0), image="a.png").added(picture(1), instruction="make it red")
    again = edit.Session.read(tmp_path)
    assert again == session
    np.testing.assert_array_equal(np.asarray(Image.open(again.last)), picture(1))
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [
        {"picture": "000.png", "image": "a.png"},
        {"picture": "001.png", "instruction": "make it red"},
    ]
    again.show()
    assert Image.open(tmp_path / "session.png").size[0] > Image.open(tmp_path / "session.png").size[1]


def test_a_turn_is_taken_back_and_what_is_not_in_the_history_does_not_count(tmp_path, capsys):
    session = edit.Session(folder=tmp_path).added(picture(0)).added(picture(1), instruction="a")
    (tmp_path / "002.png").write_bytes(b"killed on the way")
    assert edit.Session.read(tmp_path).rows == session.rows
    called(edit, f"--out={tmp_path}", "--undo")
    assert "one turn back" in capsys.readouterr().out
    assert [path.name for path in sorted(tmp_path.glob("0*.png"))] == ["000.png", "002.png"]
    with pytest.raises(UserError, match="there is no turn to take back"):
        called(edit, f"--out={tmp_path}", "--undo")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give --workdir"),
        (("--workdir=runs/edits",), "give --instruction"),
        (("--workdir=runs/edits", "--instruction=make it red"), "--instruction needs a picture: give --image"),
        (("--undo", "--instruction=make it red"), "--undo takes the last turn back"),
        (("--workdir=runs/edits", "--judge=4", "--image=a.png"), "leave --image and --instruction out"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(flags, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        called(edit, *flags, f"--out={tmp_path / 'session'}")
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "holiday.png")
    with pytest.raises(UserError, match=r"holds pictures but no history\.jsonl"):
        called(edit, "--workdir=run", "--instruction=make it red", f"--out={tmp_path}")
    (tmp_path / "history.jsonl").write_text('{"picture": "7.png"}\n')
    with pytest.raises(UserError, match="is damaged"):
        called(edit, "--workdir=run", "--instruction=make it red", f"--out={tmp_path}")
