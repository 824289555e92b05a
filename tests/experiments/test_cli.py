"""Promise 6 at the command line: bad input gives exit code 2 and one line that names the cause and the remedy."""

import json
import subprocess
import types

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.grids import make_grid
from experiments import sample
from experiments.evaluating.asked import Asked
from experiments.ground import cli


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.stps=3", "the config has no field 'train.stps'; did you mean 'train.steps'?"),
        ("--config.train.steps=many", "wrong type for --config.train.steps"),
        ("--config.model.name=unett", "unknown model 'unett'; did you mean 'unet'?"),
        ("--config.data.dataset=digitz", "digits"),
        ("--config.process.schedule.name=edmm", "unknown noise schedule 'edmm'; did you mean 'edm'?"),
        ("--config.process.prediction.name=eps", "unknown prediction 'eps'"),
        ("--config.sampling.sampler.name=huen", "unknown sampler 'huen'; did you mean 'heun'?"),
        ("--config.objective.name=denoise", "unknown objective 'denoise'; did you mean 'denoising'?"),
        ("--config.optimizer.name=adan", "unknown optimizer 'adan'"),
        ("--config.evaluation.metrics=('fidd',)", "unknown metric 'fidd'; did you mean 'fid'?"),
        ("--config.evaluation.metrics=('fid','kid')", "no fid, kid: it needs the weights of Inception-v3"),
        ("--config.sampling.ema=decay_0.5", "unknown average of the parameters 'decay_0.5'"),
        ("--config.parallel.strategy=pmapp", "unknown parallel strategy 'pmapp'; did you mean 'pmap'?"),
        ("--config.train.dtype=float16", "unknown compute dtype 'float16'"),
        ("--config.train.accumulation=0", "train.accumulation must be a whole number of at least 1"),
        ("--config.train.conditioning_dropout=3", "dropout must be a number of at least 0 and of at most 1"),
        ("--config.data.validation_split=tset", "tset"),
        ("--config.checkpoint.best_metric=fid", "checkpoint.best_metric must be 'loss' or 'validation_loss'"),
        ("--config.log.every=0", "log.every must be a whole number of at least 1"),
        ("--confg=x", "Unknown command line flag 'confg'. Did you mean: config"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_bad_configuration(command, tmp_path, argument, message):
    line = command.fails("train", *command.train_arguments(tmp_path / "run", argument))
    assert message in line
    assert not (tmp_path / "run" / "checkpoints").exists(), "nothing is begun before the config is known to be good"


def test_missing_config_file(command, tmp_path):
    line = command.fails("train", "--config=configs/no_such.py", f"--workdir={tmp_path}")
    assert "cannot read --config=configs/no_such.py: no such file" in line


def test_missing_data_names_the_command_that_prepares_it(command, tmp_path):
    arguments = command.train_arguments(
        tmp_path / "run", "--config.data.dataset=cifar10", "--config.data.image_size=32"
    )
    line = command.fails("train", *arguments)
    assert "python -m experiments.prepare_data --dataset=cifar10" in line


def test_empty_image_in_a_folder_is_named(command, tmp_path):
    folder = tmp_path / "images" / "cats"
    folder.mkdir(parents=True)
    (folder / "empty.png").touch()
    arguments = command.train_arguments(tmp_path / "run", f"--config.data.dataset=folder:{tmp_path / 'images'}")
    assert "empty.png" in command.fails("train", *arguments)


def test_batch_not_divisible_by_devices(command, tmp_path):
    arguments = command.train_arguments(tmp_path / "run", "--config.train.batch_size=12")
    line = command.fails("train", *arguments, JAX_NUM_CPU_DEVICES="8")
    assert "batch size 12 is not divisible by 8 devices; use a multiple of 8" in line


def test_workdir_that_can_not_be_written(command, tmp_path):
    (tmp_path / "file").touch()
    assert "not a directory" in command.fails("train", *command.train_arguments(tmp_path / "file" / "run"))
    assert "cannot" in command.fails("train", *command.train_arguments("/proc/run"))


def test_nan_loss_stops_names_the_step_and_keeps_the_last_good_checkpoint(command, tmp_path):
    """A huge learning rate stops the run at the non-finite step, and the last good checkpoint remains."""
    workdir = tmp_path / "run"
    arguments = command.train_arguments(
        workdir,
        "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate=1e18",
        "--config.optimizer.warmup_steps=0",
        "--config.optimizer.clip_norm=0",
        "--config.checkpoint.every=1",
        "--config.log.validate_every=0",
        "--config.log.sample_every=0",
    )
    # SGD has no betas, so the mismatch of fields is itself one clear error
    assert "unknown argument of optimizer 'sgd'" in command.fails("train", *arguments)
    arguments = [a.replace("optimizer.name=sgd", "optimizer.name=adam") for a in arguments]
    line = command.fails("train", *[a.replace("1e18", "1e38") for a in arguments], code=1)
    assert "loss or gradient is not finite at step" in line
    step = int(line.split("at step ")[1].split(";")[0])
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert kept
    assert max(kept) < step


def test_full_disk_while_saving(command, tmp_path):
    """A checkpoint that does not fit on a file system of 12 MB gives one error line."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        arguments = command.train_arguments(
            disk / "run", "--config.model.base_channels=64", "--config.log.sample_every=0"
        )
        line = command.fails("train", *arguments, code=1)
        assert "no space left" in line
        left = [p for p in (disk / "run" / "checkpoints").iterdir() if p.name.isdigit()]
        assert all((p / "commit_success.txt").exists() for p in left), "no half-written checkpoint looks complete"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_sample_of_nothing(command, tmp_path):
    assert "no config.json" in command.fails("sample", f"--workdir={tmp_path}")
    assert "give --workdir" in command.fails("sample")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--sampler=dpm", "unknown sampler 'dpm'"),
        ("--labels=3,11", "'11' is not a class; classes are 0 to 9"),
        ("--ema=decay_0.1", "unknown average of the parameters"),
        ("--checkpoint=7", "no checkpoint 7"),
        ("--out=/tmp/x.jpg", "--out must end in .png or .npz"),
    ],
)
def test_bad_sample_requests(command, finished, argument, message):
    assert message in command.fails("sample", f"--workdir={finished[0]}", argument)


def test_evaluate_without_the_weights_says_where_they_are(command, finished, tmp_path):
    line = command.fails("evaluate", f"--workdir={finished[0]}", "--metrics=fid", f"--inception={tmp_path / 'no.pth'}")
    assert "there is no file" in line
    assert "SHA-256 6726825d0af5f729" in line


@pytest.mark.slow
def test_evaluate_judges_by_what_it_has_and_records_what_it_lacks(command, finished, tmp_path):
    """Metrics without weights are recorded as unavailable; the proxy's classifier is kept beside the data."""
    out = tmp_path / "numbers.json"
    arguments = (f"--workdir={finished[0]}", f"--out={out}")
    _, err = command.run("evaluate", *arguments, "--metrics=proxy_fd,kid,bits_per_dim", "--num_samples=40")
    assert "no kid: it needs the weights of Inception-v3" in err
    found = json.loads(out.read_text())
    assert found["proxy_fd"]["proxy_fd"] > found["proxy_fd"]["held_out"] > 0  # 60 steps of training are not enough
    assert 0 < found["bits_per_dim"]["bits_per_dim_low"] < found["bits_per_dim"]["bits_per_dim"] < 20
    space = found["settings"]["feature_spaces"]["proxy_fd"]
    assert space["features"] == "proxy_classifier"
    assert space["classifier_test_accuracy"] > 0.9
    assert list(found["settings"]["unavailable"]) == ["kid"]
    kept = list((command.data_dir / "proxy_features").glob("*.safetensors"))
    assert [path.stem for path in kept] == [space["fingerprint"][:16]]
    written = kept[0].stat().st_mtime_ns
    command.run("evaluate", *arguments, "--metrics=proxy_fd", "--num_samples=40")
    assert json.loads(out.read_text())["proxy_fd"] == found["proxy_fd"]
    assert kept[0].stat().st_mtime_ns == written


def test_sample_writes_balanced_classes_and_a_picture(command, finished, tmp_path):
    out = tmp_path / "d.npz"
    command.run("sample", f"--workdir={finished[0]}", "--num_samples=50", "--animate", f"--out={out}")
    with np.load(out) as stored:
        images, labels = stored["images"], stored["labels"]
    assert images.dtype == np.uint8
    assert images.shape == (50, 8, 8, 1)
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 5))
    assert out.with_suffix(".png").stat().st_size > 0
    film = Image.open(out.with_suffix(".webp"))
    assert film.n_frames == 4, "three steps, and the noise before them"
    film.seek(3)
    grid = make_grid(images[:40], labels=labels[:40])
    opaque = grid[..., 3] == 255
    end = np.asarray(film.convert("RGBA")).astype(int)
    assert np.abs(end - grid)[opaque].max() <= 1, "it ends with the samples; rounding at most"
    # a sample depends neither on the batch size nor on the number of samples
    again = tmp_path / "again.npz"
    command.run("sample", f"--workdir={finished[0]}", "--num_samples=20", "--batch_size=7", f"--out={again}")
    with np.load(again) as stored:
        assert np.abs(stored["images"].astype(int) - images[:20]).max() <= 1  # rounding only
    guided = tmp_path / "guided.npz"
    arguments = ("--num_samples=20", "--guidance_scale=2", "--sampler=dpmpp_2m", "--steps=5", "--labels=3")
    text, _ = command.run("sample", f"--workdir={finished[0]}", *arguments, f"--out={guided}")
    assert "10 network evaluations" in text
    with np.load(guided) as stored:
        assert set(stored["labels"]) == {3}


def test_a_picture_alone_is_written_where_one_is_asked_for(tmp_path):
    info = types.SimpleNamespace(spec=types.SimpleNamespace(kind="pixels"), class_names=())
    experiment = types.SimpleNamespace(shown=info, info=info)
    sample.save_samples(experiment, np.zeros((6, 8, 8, 1), np.uint8), Asked.of(None), tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    sample.save_samples(experiment, np.zeros((6, 8, 8, 1), np.uint8), Asked.of(None), tmp_path / "y.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "y.npz", "y.png"]


def test_evaluate_writes_what_it_measured_and_how(command, finished, tmp_path):
    import shutil

    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    command.run("evaluate", f"--workdir={workdir}", "--metrics=nearest_neighbours", "--num_samples=30", "--seed=5")
    stored = json.loads((workdir / "evaluation.json").read_text())
    assert stored["nearest_neighbours"]["num_samples"] == 30
    assert stored["settings"]["seed"] == 5
    assert stored["settings"]["network_evaluations"] == 3
    assert "class_accuracy" not in stored


def test_what_abandoned_arrays_of_a_checkpoint_print_is_passed_over():
    """Follow-up errors of Orbax's threads and coroutines are suppressed; all other errors are printed."""

    async def read_array():
        pass

    printed = []
    hook = cli._without_abandoned_arrays(printed.append)

    def unraisable(error, source=None):
        return types.SimpleNamespace(exc_value=error, object=source)

    ours = read_array()
    theirs = types.FunctionType(read_array.__code__.replace(co_filename="/x/orbax/checkpoint/serialization.py"), {})()
    hook(unraisable(RuntimeError("Event loop is closed")))
    hook(unraisable(Exception("Encountered error while reading array index"), theirs))
    assert not printed
    hook(unraisable(RuntimeError("something else")))
    hook(unraisable(Exception("mine"), ours))
    assert len(printed) == 2
    ours.close()
    theirs.close()
