"""The numbers of a run on disk are exact, without clock values, complete after any kill, and need no TensorFlow."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from diffusion_jax.errors import RunError, UserError
from experiments.ground import writers
from experiments.ground.writers import create_writer, read_metrics


def _events(workdir):
    """All events of all event files, in the order of the files."""
    events = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def _train(workdir, steps, start=0):
    writer = create_writer(workdir)
    writer.resume(start)
    for step in range(start + 1, steps + 1):
        writer.write_scalars(step, {"loss": np.float32(1 / step), "learning_rate": 0.1 * step})
        writer.write_timings(step, {"images_per_second": 1000.0 + start})
        if step % 5 == 0:
            writer.write_scalars(step, {"validation/loss": math.pi / step})
    writer.close()


def test_a_row_is_sorted_and_its_floats_round_trip(tmp_path):
    writer = create_writer(tmp_path)
    loss = np.float32(0.1)
    writer.write_scalars(7, {"zeta": 1 / 3, "loss": loss, "count": np.int64(2**60), "alpha": jnp.float32(1e-30)})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text)
    assert list(row) == ["step", "alpha", "count", "loss", "zeta"]
    assert text.count("\n") == 1
    assert row["zeta"] == 1 / 3
    assert row["count"] == 2**60
    assert np.float32(row["loss"]) == loss
    assert row["step"] == 7


def test_calls_for_one_step_make_one_row(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"loss": 2.0})
    writer.write_scalars(1, {"grad_norm": 3.0})
    writer.write_scalars(2, {"loss": 1.0})
    writer.flush()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "grad_norm": 3.0, "loss": 2.0}',
        '{"step": 2, "loss": 1.0}',
    ]


def test_rows_of_one_step_are_merged_on_reading(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"loss": 2.0})
    writer.flush()
    writer.write_scalars(1, {"late": 3.0})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0, "late": 3.0}]


def test_clock_values_stay_out_of_the_metrics(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"loss": 1.0, "steps_per_sec": 5.0})
    writer.write_timings(1, {"sampling_seconds": 2.5})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    assert read_metrics(tmp_path / "timings.jsonl") == [{"step": 1, "sampling_seconds": 2.5, "steps_per_sec": 5.0}]


def test_not_a_number_is_kept(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"loss": float("nan"), "norm": float("inf")})
    writer.close()
    row = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert math.isnan(row["loss"])
    assert row["norm"] == math.inf


def test_what_is_no_scalar_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'loss' is not a scalar"):
        create_writer(tmp_path).write_scalars(1, {"loss": np.zeros(3)})


def test_a_killed_and_resumed_run_writes_the_same_bytes(tmp_path):
    _train(tmp_path / "whole", 20)
    _train(tmp_path / "killed", 13)
    path = tmp_path / "killed" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # the last row is only half written
    _train(tmp_path / "killed", 20, start=10)
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    timings = read_metrics(tmp_path / "killed" / "timings.jsonl")
    assert [row["step"] for row in timings] == list(range(1, 21))
    assert [row["images_per_second"] for row in timings] == [1000.0] * 10 + [1010.0] * 10
    assert not list((tmp_path / "killed").glob(".*"))


def test_resuming_at_zero_begins_afresh(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_scalars(0, {"loss": 9.0})
    writer.close()
    _train(tmp_path, 3)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_appending_after_a_half_line_drops_it_first(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    writer = create_writer(tmp_path)
    writer.write_scalars(3, {"loss": 0.5})
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_the_reader_tolerates_only_a_truncated_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "los')
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}]
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "los\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)
    for line in ("[1]", "[" * 100_000, f'{{"step": {"9" * 5000}}}'):
        path.write_text(f"{line}\n")
        with pytest.raises(UserError, match="line 1"):
            read_metrics(path)
    with pytest.raises(UserError, match="no such file"):
        read_metrics(tmp_path / "none.jsonl")


def test_other_hosts_write_nothing(tmp_path):
    writer = create_writer(tmp_path, primary=False)
    writer.resume(5)
    writer.write_hparams({"batch_size": 8})
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_timings(1, {"uptime": 1.0})
    writer.write_images(1, {"samples": np.zeros((2, 8, 8, 1), np.uint8)})
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir())


def test_a_bucket_is_refused():
    with pytest.raises(UserError, match="mount the bucket"):
        create_writer("gs://bucket/run")


def test_a_full_disk_is_one_clear_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    with pytest.raises(RunError, match=r"could not write .*metrics\.jsonl.*safe"):
        writer.flush()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_does_not_hang_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: open("/dev/full", "wb"))  # noqa: SIM115
    writer = writers.TensorboardWriter(tmp_path)
    for step in range(50):
        writer.write_scalars(step, {"loss": 1.0})
    with pytest.raises(RunError, match="No space left"):
        writer.flush()


def test_tensorboard_gets_scalars_images_and_hyperparameters(tmp_path):
    writer = create_writer(tmp_path)
    writer.write_hparams({"batch_size": 8, "model": "unet", "betas": (0.9, 0.99)})
    writer.write_scalars(3, {"loss": 0.25})
    writer.write_images(3, {"samples": np.zeros((2, 8, 8, 1), np.uint8), "grid": np.zeros((4, 4, 3))})
    writer.close()
    tags = {(e.step, v.tag) for e in _events(tmp_path) for v in e.summary.value}
    assert {(3, "loss"), (3, "grid")} <= tags
    assert any("samples" in tag for _, tag in tags)
    assert any("hparams" in tag for _, tag in tags)


def test_tensorboard_is_told_to_purge_on_resume(tmp_path):
    _train(tmp_path, 8)
    _train(tmp_path, 10, start=5)
    starts = [e.step for e in _events(tmp_path) if e.HasField("session_log")]
    assert starts == [1, 6]
    losses = [e.step for e in _events(tmp_path) for v in e.summary.value if v.tag == "loss"]
    assert losses == [*range(1, 9), *range(6, 11)]


def test_tensorflow_is_not_needed(tmp_path):
    """The writers work in a fresh process in which TensorFlow cannot be imported."""
    code = f"""
import sys
sys.modules["tensorflow"] = None
from experiments.ground.writers import create_writer, read_metrics
writer = create_writer({str(tmp_path)!r})
writer.write_scalars(1, {{"loss": 1.0}})
writer.close()
assert read_metrics({str(tmp_path / "metrics.jsonl")!r}) == [{{"step": 1, "loss": 1.0}}]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert list(tmp_path.glob("events*"))


def test_a_profile_is_written_only_when_asked_for(tmp_path):
    with writers.profile(tmp_path / "off") as profile_step:
        for step in range(3):
            profile_step(step)
    with writers.profile(tmp_path / "other", num_steps=2, first_step=1, primary=False) as profile_step:
        profile_step(1)
    assert not list(tmp_path.iterdir())
    square = jax.jit(lambda x: x * x)
    with writers.profile(tmp_path / "on", num_steps=50, first_step=1) as profile_step:
        for step in range(3):  # ends while the profile is open
            square(jnp.ones(4)).block_until_ready()
            profile_step(step)
    assert list((tmp_path / "on").rglob("*.xplane.pb"))
