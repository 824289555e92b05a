"""experiments.generate writes PNG files with their settings for prompts, and a grid."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.files import locked
from experiments import generate

MODEL, SD15 = "tests/golden/pipelines/sdxl", "tests/golden/pipelines/sd15"
ADAPTERS, DIGIT = "tests/golden/pipelines/adapters", "tests/golden/digit.png"
IP_ADAPTER, ENCODER = f"{ADAPTERS}/ip-adapter.safetensors", f"{ADAPTERS}/ip_image_encoder"


def test_pictures_a_grid_and_their_settings(command, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square\n" + "a very old city " * 30 + "\n")
    flags = ["--steps=2", "--height=16", "--width=16", "--seed=3", "--negative_prompt=blurry"]
    out, err = command.run(
        "generate", f"--model={MODEL}", f"--prompts={prompts}", "--num_images=2", *flags, f"--out={tmp_path / 'out'}"
    )
    assert "4 pictures in 2 steps" in out
    assert "is cut" in err
    with Image.open(tmp_path / "out" / "00001.png") as image:
        assert image.size == (16, 16)
        said = image.text["parameters"].split("\n")
    assert said[:2] == ["a red square", "Negative prompt: blurry"]
    assert "Steps: 2, Sampler: EulerDiscreteScheduler, CFG scale: 5, Seed: 3, Size: 16x16, Model: sdxl" in said[2]
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size == (36, 36)
    first, second = (np.asarray(Image.open(tmp_path / "out" / f"0000{i}.png")) for i in (0, 1))
    assert np.abs(first.astype(int) - second).max() > 0


def test_a_folder_is_written_by_one_command_at_a_time(command, tmp_path):
    flags = ["--prompt=a", "--num_images=2", "--steps=1", "--height=16", "--width=16"]
    with locked(tmp_path / ".lock", ""):
        process = command.start("generate", f"--model={SD15}", *flags, f"--out={tmp_path}")
        said = next((line for line in process.stderr if line.startswith("waiting: ")), "")
        assert f"process {os.getpid()} writes pictures into {tmp_path}" in said
        assert not list(tmp_path.glob("*.png"))
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "2 pictures" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give --model"),
        ((f"--model={MODEL}",), "give --prompt"),
        ((f"--model={MODEL}", "--prompt=a", "--sampler=dpmpp_9z"), "dpmpp_9z"),
        (("--model=tests/golden", "--prompt=a"), "model_index.json"),
        ((f"--model={MODEL}", "--prompt=a", "--image=README.md"), "--image=README.md"),
        ((f"--model={MODEL}", "--instruction=a"), "--instruction needs a picture"),
        ((f"--model={MODEL}", "--instruction=a", "--prompt=a"), "give one of them"),
        ((f"--model={MODEL}", "--instruction=a", "--image=tests/golden/digit.png"), "does not edit by instruction"),
        ((f"--model={MODEL}", "--prompt=a", "--expand=1,1,1,1"), "--expand is for a run"),
        ((f"--model={SD15}", "--prompt=a", "--guidance=apgg"), "did you mean 'apg'"),
        ((f"--model={SD15}", "--prompt=a", "--guidance=apg", "--guidance_scale=1"), "has no effect"),
        ((f"--model={SD15}", "--prompt=a", "--set=guidance.eta=0.5"), "give --guidance too"),
        ((f"--model={SD15}", "--prompt=a", "--guide=runs/worse"), "--guide is for a run"),
        (
            (f"--model={SD15}", "--prompt=a", "--guidance=apg", "--set=guidance.eta=0", "--set=guidance.eta=1"),
            "--set=guidance.eta=... is given 2 times",
        ),
        ((f"--model={SD15}", "--prompt=a", f"--ip_adapter={IP_ADAPTER}"), "each IP-Adapter has one picture"),
        ((f"--model={SD15}", "--prompt=a", "--reference=tests/golden/digit.png"), "each IP-Adapter has one picture"),
        ((f"--model={SD15}", "--prompt=a", f"--image_encoder={ENCODER}"), "--image_encoder belongs to --ip_adapter"),
        ((f"--model={SD15}", "--prompt=a", f"--ip_adapter={IP_ADAPTER}", "--reference=none.png:0.5"), "none.png"),
        ((f"--model={SD15}", "--prompt=a", f"--ip_adapter={IP_ADAPTER}", f"--reference={DIGIT}"), "image encoder"),
        (
            (f"--model={MODEL}", "--prompt=a", f"--ip_adapter={IP_ADAPTER}", f"--reference={DIGIT}"),
            "it is for another base: its tokens have 32 channels",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(command, flags, message, tmp_path):
    assert message in command.fails("generate", *flags, f"--out={tmp_path}")


@pytest.mark.slow  # tests/pipelines tests the same without a command
def test_a_controlnet_and_its_picture(command, tmp_path):
    net = "tests/golden/pipelines/adapters/controlnet_a"
    flags = [f"--control={net}:tests/golden/digit.png", "--steps=2", "--height=16", "--width=16", "--sampler=euler"]
    command.run("generate", "--model=tests/golden/pipelines/sd15", "--prompt=a", *flags, f"--out={tmp_path}")
    assert (tmp_path / "00000.png").is_file()


def test_outside_the_mask_of_a_published_model_the_bytes_are_those_of_the_picture(command, tmp_path):
    given = np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8)
    mask = np.zeros((20, 28), np.uint8)
    mask[5:12, 6:20] = 255
    for name, array in (("in", given), ("mask", mask), ("black", mask * 0), ("other", mask[:8])):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    flags = ["--model=tests/golden/pipelines/sd15", "--prompt=a hat", f"--image={tmp_path / 'in.png'}", "--steps=2"]
    command.run("generate", *flags, f"--mask={tmp_path / 'mask.png'}", f"--out={tmp_path / 'out.png'}")
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    np.testing.assert_array_equal(drawn[mask == 0], given[mask == 0])
    assert (drawn[mask > 0] != given[mask > 0]).any()
    for name, message in (("black", "is all black"), ("other", "they must have the same size")):
        assert message in command.fails("generate", *flags, f"--mask={tmp_path / name}.png", f"--out={tmp_path}")


def test_pictures_are_read_as_they_are_seen(tmp_path):
    """By the one reader of pictures: named formats, turned, laid on white, one frame of 8 bits, and no decoder's error
    passes by."""
    layered = np.zeros((4, 6, 4), np.uint8)
    layered[:2] = (200, 10, 10, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(layered).save(tmp_path / "a.png", exif=exif)
    seen = np.asarray(generate.opened(str(tmp_path / "a.png"), "image"))
    assert seen.shape == (6, 4, 3)
    np.testing.assert_array_equal(seen[:, 2:], np.full((6, 2, 3), (200, 10, 10)))
    np.testing.assert_array_equal(seen[:, :2], np.full((6, 2, 3), 255))
    assert generate.opened(str(tmp_path / "a.png"), "mask").mode == "L"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")
    header = struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0)
    huge = struct.pack(">I4s13sI", 13, b"IHDR", header, zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + huge + struct.pack(">I4sI", 0, b"IEND", 0xAE426082))
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("deep.png", "moving.gif", "program.png", "bomb.png", "pipe.png"):
        with pytest.raises(UserError, match=name):
            generate.opened(str(tmp_path / name), "image")


def test_pictures_of_others_are_not_written_over(tmp_path):
    generate.require_own_pictures(tmp_path)
    for name in ("00000.png", "grid.png"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        Image.new("RGB", (4, 4)).save(folder / name)
        with pytest.raises(UserError, match=f"{name} there was not drawn by this command"):
            generate.require_own_pictures(folder)
        generate.save_png(Image.new("RGB", (4, 4)), folder / "00000.png", "a prompt")
        generate.require_own_pictures(folder)


def test_the_rule_of_guidance_is_that_of_the_flags(command, tmp_path):
    flags = [f"--model={SD15}", "--prompt=a", "--steps=2", "--height=16", "--width=16", "--sampler=euler"]
    drawn = {}
    for eta in (0.0, 1.0):
        rule, out = ["--guidance=apg", f"--set=guidance.eta={eta}"], tmp_path / f"{eta}.png"
        command.run("generate", *flags, *rule, "--guidance_scale=30", f"--out={out}")
        with Image.open(out) as image:
            drawn[eta] = np.asarray(image).astype(int)
            assert f"Guidance: apg guidance.eta={eta}" in image.text["parameters"]
    assert np.abs(drawn[0.0] - drawn[1.0]).max() > 0


@pytest.mark.slow  # tests/pipelines/test_image_prompts.py tests the same without a command
def test_a_picture_as_a_prompt(command, tmp_path):
    flags = ["--steps=2", "--height=16", "--width=16", "--sampler=euler", f"--image_encoder={ENCODER}"]
    drawn = {}
    for scale in (0, 1):
        reference, out = f"--reference={DIGIT}:{scale}", tmp_path / str(scale)
        command.run(
            "generate", f"--model={SD15}", "--prompt=a", f"--ip_adapter={IP_ADAPTER}", reference, *flags, f"--out={out}"
        )
        with Image.open(out / "00000.png") as image:
            assert f"IP-Adapter: digit.png:{scale}" in image.text["parameters"]
            drawn[scale] = np.asarray(image).astype(int)
    assert np.abs(drawn[0] - drawn[1]).max() > 1


def test_batches_hold_every_picture_once():
    for prompts, each, most in ((3, 2, 4), (1, 9, 4), (5, 1, 2), (2, 4, 4)):
        found = generate.divided(prompts, each, most)
        drawn = [(row, first + k) for rows, first, count in found for row in rows for k in range(count)]
        assert drawn == [(row, k) for row in range(prompts) for k in range(each)]
        assert all(len(rows) * count <= most for rows, _, count in found)
