"""Weights in and out by commands, and the table of parameters."""

import json

import numpy as np
from safetensors.numpy import load_file

from tests.processes import ROOT

GOLDEN = ROOT / "tests" / "golden" / "dit"


def test_a_folder_becomes_a_run_and_a_file_again(command, tmp_path):
    run, back = tmp_path / "run", tmp_path / "back.safetensors"
    out, _ = command.run("convert", f"--source={GOLDEN}", f"--target={run}")
    assert "60,800 parameters" in out
    out, _ = command.run("sample", f"--workdir={run}", "--num_samples=4", "--steps=4")
    assert "4 samples of step 0" in out
    images = np.load(run / "samples" / "samples.npz")["images"]
    assert images.shape == (4, 8, 8, 4)
    assert np.isfinite(images).all()

    command.run("convert", f"--source={run}", f"--target={back}", "--format=diffusers_dit")
    theirs, ours = load_file(GOLDEN / "diffusion_pytorch_model.safetensors"), load_file(back)
    assert all(np.array_equal(ours[name], value) for name, value in theirs.items())

    error = command.fails("convert", f"--source={GOLDEN}", f"--target={run}")
    assert "has a run already" in error


def test_bad_conversions_are_one_line_and_leave_nothing(command, tmp_path):
    target = tmp_path / "run"
    assert "no file or folder" in command.fails("convert", "--source=/nowhere.pt", f"--target={target}")
    assert "no format 'dti'" in command.fails("convert", f"--source={GOLDEN}", f"--target={target}", "--format=dti")
    weights = GOLDEN / "diffusion_pytorch_model.safetensors"
    assert "give --config" in command.fails("convert", f"--source={weights}", f"--target={target}")
    config = f"--config={ROOT}/configs/papers/dit_xl2_imagenet256.py"
    error = command.fails("convert", f"--source={weights}", f"--target={target}", config)
    assert "names of no format of a DiT" in error
    assert not target.exists()


def test_table_of_parameters(command):
    config = f"--config={ROOT}/configs/papers/dit_xl2_imagenet256.py"
    out, _ = command.run("params", config)
    assert "674,834,720 trainable parameters" in out
    assert "118.62 G multiplications" in out
    assert "669,344,256" in out  # 28 blocks of 23,905,152
    out, _ = command.run("params", config, "--json")
    assert json.loads(out)["trainable"] == 674_834_720
    out, _ = command.run("params", config, "--depth=0")
    assert "28x1152x3456" in out
