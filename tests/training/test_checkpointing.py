"""A restored checkpoint equals what was written; otherwise restoring raises a named error."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax import parallel
from diffusion_jax.errors import UserError
from diffusion_jax.training import Checkpointer, CorruptCheckpointError


def a_state(shift=0.0):
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.normal(size=(64, 32)).astype(np.float32)) + shift,
        "zeros": jnp.zeros((16,)),
        "half": jnp.ones((8,), jnp.bfloat16),
        "step": jnp.int32(3),
    }


def abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def test_round_trip_is_bit_exact_onto_any_devices(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    state = a_state()
    checkpointer.save(5, state, {"window": [{"loss": 0.1}]}, {})
    checkpointer.wait()
    mesh = parallel.LAYOUTS.build({"name": "jit", "data": 1, "fsdp": 8}).mesh
    for sharding in (None, NamedSharding(mesh, PartitionSpec())):
        restored, record = checkpointer.restore(5, abstract(state, sharding))
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert record["window"] == [{"loss": 0.1}]


def test_saved_values_are_those_at_the_time_of_saving(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path / "c")
    save, given = checkpointer._manager.save, []
    monkeypatch.setattr(
        checkpointer._manager, "save", lambda *a, args, **k: (given.append(args), save(*a, args=args, **k))
    )
    state = a_state()
    expected = jax.device_get(state)
    window = [{"loss": 0.5}]
    checkpointer.save(1, state, {"window": window}, {})
    window.append({"loss": jnp.float32(0.25)})  # metrics of the next step, while the checkpoint is being written
    assert given[0]["record"].item["window"] == [{"loss": 0.5}], "a slow writer sees what was given"
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)(state)  # the arrays are gone or changed
    checkpointer.wait()
    restored, record = checkpointer.restore(1, abstract(expected))
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert record["window"] == [{"loss": 0.5}]


def test_keeps_the_last_and_the_best(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", keep_last=2, keep_best=1, best_metric="validation_loss")
    for step, loss in enumerate([0.5, 0.2, 0.9, 0.4, 0.3, 0.6], start=1):
        checkpointer.save(step, a_state(), {}, {"validation_loss": loss})
    checkpointer.wait()
    assert checkpointer.steps() == [2, 5, 6]


def test_the_best_is_kept_across_restarts_and_unmeasured_ones_are_not_best(tmp_path):
    def open_again():
        return Checkpointer(tmp_path / "c", keep_last=1, keep_best=1, best_metric="validation_loss")

    for step, metrics in enumerate([{"validation_loss": 0.1}, {"loss": 0.01}, {}, {"validation_loss": 0.5}], start=1):
        checkpointer = open_again()
        checkpointer.save(step, a_state(), {}, metrics)
        checkpointer.close()
    assert open_again().steps() == [1, 4]


def test_reading_leaves_a_write_under_way_alone(tmp_path):
    (tmp_path / "c" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    assert Checkpointer(tmp_path / "c", read_only=True).steps() == []
    assert (tmp_path / "c" / "7.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize("fields", [{"keep_last": 0}, {"best_mode": "lowest"}, {"keep_best": -1}])
def test_impossible_policies_are_refused(tmp_path, fields):
    with pytest.raises(UserError, match="keep_last >= 1"):
        Checkpointer(tmp_path / "c", **fields)


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_no_damage_goes_unnoticed(tmp_path, damage, capfd):
    """After damage to any file, the restored state is the original one, or the error says that it is corrupt."""
    checkpointer = Checkpointer(tmp_path / "c")
    state = a_state()
    checkpointer.save(4, state, {"window": []}, {})
    checkpointer.wait()
    messages = []
    for file in _files(tmp_path / "c" / "4"):
        content = file.read_bytes()
        middle = len(content) // 2
        if damage == "truncate":
            file.write_bytes(content[:middle])
        elif damage == "flip":
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
        else:
            file.unlink()
        try:
            restored, _ = checkpointer.restore(4, abstract(state))
        except CorruptCheckpointError as error:
            messages.append(str(error))
        else:
            jax.tree.map(np.testing.assert_array_equal, restored, state)
        file.write_bytes(content)
    assert len(messages) >= 2
    assert all(f"checkpoint 4 in {tmp_path}/c is corrupt" in message for message in messages)
    assert "Traceback" not in capfd.readouterr().err


def test_a_record_of_another_state_is_noticed(tmp_path):
    """Intact files that belong to another state than the record are detected."""
    first, second = Checkpointer(tmp_path / "a"), Checkpointer(tmp_path / "b")
    first.save(1, a_state(), {}, {})
    second.save(1, a_state(shift=1e-6), {}, {})
    first.wait()
    second.wait()
    (tmp_path / "a" / "1" / "record").rename(tmp_path / "record")
    (tmp_path / "b" / "1" / "record").rename(tmp_path / "a" / "1" / "record")
    with pytest.raises(CorruptCheckpointError, match="1 arrays differ from what was written, the first is kernel"):
        first.restore(1, abstract(a_state()))


def test_a_changed_record_is_noticed(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    checkpointer.save(1, a_state(), {"window": [], "branch": None}, {})
    checkpointer.wait()
    file = tmp_path / "c" / "1" / "record" / "metadata"
    file.write_text(file.read_text().replace('"window": []', '"window": [{"loss": 1.0}]'))
    for read in (checkpointer.read_record, lambda step: checkpointer.restore(step, abstract(a_state()))):
        with pytest.raises(CorruptCheckpointError, match="its record differs from what was written"):
            read(1)


@pytest.mark.parametrize("content", [b"{bad", b"[1]", b'{"validation_loss": "x"}', b'{"validation_loss": NaN}', b""])
@pytest.mark.parametrize("read_only", [False, True])
def test_damaged_metrics_cost_a_rank_and_nothing_else(tmp_path, content, read_only, capsys):
    fields = {"keep_last": 2, "keep_best": 1, "best_metric": "validation_loss"}
    checkpointer = Checkpointer(tmp_path / "c", **fields)
    for step, loss in enumerate([0.1, 0.5, 0.6], start=1):
        checkpointer.save(step, a_state(), {}, {"validation_loss": loss})
    checkpointer.close()
    (tmp_path / "c" / "1" / "metrics" / "metrics").write_bytes(content)
    again = Checkpointer(tmp_path / "c", **fields, read_only=read_only)
    assert again.steps() == [1, 2, 3]
    for step in again.steps():
        again.restore(step, abstract(a_state()))
    assert "metrics of checkpoint 1" in capsys.readouterr().out
    if not read_only:
        again.save(4, a_state(), {}, {"validation_loss": 0.7})
        again.wait()
        assert again.steps() == [2, 3, 4], "2 is the best of those that are known"


def test_newer_checkpoints_are_set_aside_not_deleted(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", keep_last=3)
    for step in (1, 2, 3):
        checkpointer.save(step, a_state(step), {}, {})
    checkpointer.wait()
    moved = checkpointer.set_aside_after(1)
    assert [path.name for path in moved] == ["3", "2"]
    assert all((path / "state").is_dir() for path in moved)
    checkpointer.save(2, a_state(9), {}, {})
    checkpointer.wait()
    assert checkpointer.steps() == [1, 2]
    restored, _ = checkpointer.restore(2, abstract(a_state()))
    np.testing.assert_array_equal(restored["kernel"], a_state(9)["kernel"])


def test_a_checkpoint_deleted_while_a_reader_lists_them_is_passed_over(tmp_path, monkeypatch):
    """A reader skips checkpoints that a trainer deletes during the listing."""
    directory = tmp_path / "c"
    writer = Checkpointer(directory, keep_last=9)
    for step in (1, 2, 3):
        writer.save(step, a_state(), {}, {})
    writer.close()
    stamp, gone = ocp.path.step.Metadata.commit_timestamp.fget, []

    def deleted_first(self):
        if self.step == 1 + len(gone) and len(gone) < 2:
            gone.append(self.step)
            shutil.rmtree(self.path)
        return stamp(self)

    monkeypatch.setattr(ocp.path.step.Metadata, "commit_timestamp", property(deleted_first))
    reader = Checkpointer(directory, read_only=True)
    assert reader.steps() == [3]
    assert gone == [1, 2]
    reader.close()
