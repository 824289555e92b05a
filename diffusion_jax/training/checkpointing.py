"""Checkpoints: written asynchronously by Orbax, verified on reading, never silently replaced by another.

A checkpoint holds the canonical training state, and a JSON record of what else a bit-exact resume needs (the position
in the data, the metrics not yet logged) with a fingerprint of every array. A restore computes the fingerprints again,
so it detects a file that lost a chunk, which the array store would read back as zeros.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from diffusion_jax.errors import RunError, UserError
from diffusion_jax.parallel import any_process, is_primary, wait_for_all
from diffusion_jax.parallel.rules import path_name
from diffusion_jax.training.storage import one_line, quiet_threads, storage_errors

_COMPLETE = "commit_success.txt"  # the last file that Orbax writes for a checkpoint in a bucket
_LOOKS = 20  # attempts to list a directory from which another process deletes


LAYOUT = 2
"""Layout of the parameters in a checkpoint: 1, the network's; 2, groups, with the network's under "network"."""


class CorruptCheckpointError(UserError):
    """A checkpoint that cannot be read back as it was written."""


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as uint32, flattened in an arbitrary order."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


@jax.jit
def fingerprints(state: Any) -> dict[str, jax.Array]:
    """One uint32 per leaf: a position-weighted sum of its bits modulo 2^32, independent of its sharding."""

    def fingerprint(x):
        words = _words(x)
        position = jnp.zeros(words.shape, jnp.uint32)
        for axis, length in enumerate(words.shape):
            position = position * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        return jnp.sum(words * (2 * position + 1), dtype=jnp.uint32)

    return {path_name(path): fingerprint(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _while_deleted(look: Callable[[], Any]) -> Any:
    """Look at a directory while a running trainer may be deleting a checkpoint in it."""
    for _ in range(_LOOKS - 1):
        with contextlib.suppress(FileNotFoundError):
            return look()
    return look()


def _move(source: epath.Path, target: epath.Path) -> None:
    """Move a directory. In a bucket, where nothing can be renamed, its files are copied and then removed.

    The file by which Orbax recognises a complete checkpoint is copied last and removed first, so that after a kill
    half-way neither half counts as a checkpoint.
    """
    if not _in_bucket(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    for file in sorted(_files(source), key=lambda file: file == source / _COMPLETE):
        (target / file.relative_to(source)).write_bytes(file.read_bytes())
    (source / _COMPLETE).unlink(missing_ok=True)
    source.rmtree()


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _in_bucket(path: str | Path | epath.Path) -> bool:
    return "://" in str(path)


def _open_bucket(directory: str | Path, *, write: bool) -> None:
    """Look for the library that accesses such a bucket, and write there once, to fail now rather than at the first
    save.

    It lists what is there now, without a cache: other hosts and TensorStore write there too.
    """
    scheme = str(directory).partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise UserError(f"checkpoints cannot be kept in {directory}: {one_line(error)}") from error
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    if write and is_primary():
        try:
            probe = epath.Path(directory) / "may_be_written"
            probe.write_text("")
            probe.unlink()
        except Exception as error:  # the store's own exception type
            raise UserError(
                f"cannot write to {directory}: {one_line(error)}; does the bucket exist, and may this machine write "
                "there?"
            ) from error


def record_digest(record: Mapping[str, Any]) -> str:
    """A hash of a record without the hash itself."""
    fields = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which reads the metrics of all checkpoints when it opens a directory; damaged ones are skipped.

    A checkpoint whose metrics are damaged loses its rank as one of the best, and nothing else.
    """

    def metrics(self, step: int) -> dict[str, float] | None:
        try:
            found = super().metrics(step)
            whole = found is None or all(math.isfinite(value) for value in found.values())
        except (ValueError, TypeError, AttributeError):  # no JSON, or not numbers by name
            whole = False
        if whole:
            return found
        print(
            f"the metrics of checkpoint {step} in {self.directory} are damaged: it cannot be one of the best",
            flush=True,
        )
        return None


class Checkpointer:
    """The checkpoints of one run, under `directory`.

    Args:
      directory: directory of the checkpoints, created if it is missing.
      keep_last: number of newest checkpoints that are kept.
      keep_best: number of best checkpoints by `best_metric` that are also kept.
      best_metric: name of a metric given to `save`; a checkpoint saved without it is never the best.
      best_mode: "min" or "max".
      read_only: for looking at the checkpoints of a run that may be under way; nothing is changed or removed.

    Raises:
      UserError: no checkpoint would be kept, `best_mode` is neither, or nothing can be written there.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        best_metric: str = "loss",
        best_mode: str = "min",
        read_only: bool = False,
    ):
        if keep_last < 1 or keep_best < 0 or best_mode not in ("min", "max"):
            raise UserError(
                "checkpoint needs keep_last >= 1, keep_best >= 0 and best_mode min or max, "
                f"got {keep_last}, {keep_best}, {best_mode!r}"
            )
        if _in_bucket(directory):
            _open_bucket(directory, write=not read_only)
        self.directory = epath.Path(directory) if _in_bucket(directory) else epath.Path(directory).absolute()
        worst = math.inf if best_mode == "min" else -math.inf

        def quality(metrics: Mapping[str, float]) -> float:
            return metrics.get(best_metric, worst)

        policies = [preservation_policy.LatestN(keep_last)]
        if keep_best:
            best = preservation_policy.BestN(
                get_metric_fn=quality,
                reverse=best_mode == "min",
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            policies.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=quality,  # without it Orbax does not read the metrics of earlier checkpoints
            best_mode=best_mode,
            cleanup_tmp_directories=True,
        )
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        with storage_errors(self.directory):
            self._manager = _while_deleted(lambda: _Manager(self.directory, options=options))

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first; none if the directory was removed."""
        try:
            _while_deleted(self._manager.reload)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(self._manager.all_steps())

    def prepare(self, state: Any) -> None:
        """Compile what `save` needs for a state of this form, so that the first save does not wait for it."""
        jax.block_until_ready(fingerprints(state))

    def save(self, step: int, state: Any, record: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Start to write a checkpoint; it holds the present values even if the state is donated afterwards.

        Raises:
          RunError: this or the previous write failed, for example because the disk is full.
        """
        with storage_errors(self.directory):
            self._require_space(step, state)
        prints = {name: int(value) for name, value in jax.device_get(fingerprints(state)).items()}
        # A copy, because Orbax writes it later, when the caller may have added to its lists.
        frozen = json.loads(json.dumps({**record, "step": step, "fingerprints": prints, "layout": LAYOUT}))
        frozen["digest"] = record_digest(frozen)
        with storage_errors(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    record=ocp.args.JsonSave(frozen),
                ),
                metrics=dict(metrics) or None,
                force=True,
            )

    def _require_space(self, step: int, state: Any) -> None:
        """Refuse to start a write that cannot succeed: Orbax would leave a torn directory and a page of tracebacks."""
        if _in_bucket(self.directory):
            return
        needed = int(1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))) + 2**20
        self._manager.wait_until_finished()  # the write under way takes space too
        free = shutil.disk_usage(self.directory).free
        if any_process(free < needed):  # the answer may change a moment later, but all processes must decide alike
            raise RunError(
                f"no space left for checkpoint {step} in {self.directory}: it needs {needed / 2**20:.0f} MB, "
                f"{free / 2**20:.0f} MB are free; the last complete checkpoint is intact: free some space and run the "
                "same command again"
            )

    def wait(self) -> None:
        """Wait for the write under way; raises RunError if it failed."""
        with storage_errors(self.directory):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def abandon(self) -> None:
        """Undo the write under way, in a directory that was removed meanwhile and so came back in part."""
        with contextlib.suppress(Exception):  # whatever Orbax raises
            self._manager.wait_until_finished()
        if _in_bucket(self.directory):
            return
        for half in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(half, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty, or missing
            os.rmdir(self.directory)
            os.rmdir(self.directory.parent)

    def read_record(self, step: int) -> dict[str, Any]:
        """Read only the record; the errors are those of `restore`."""
        try:
            with quiet_threads():
                record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
        except Exception as error:  # as in `restore`
            raise CorruptCheckpointError(
                f"checkpoint {step} in {self.directory} is corrupt: {one_line(error)}"
            ) from error
        self._check_record(step, record)
        return record

    def _check_record(self, step: int, record: Any) -> None:
        where = f"checkpoint {step} in {self.directory}"
        if not isinstance(record, dict) or record.get("step") != step:
            raise CorruptCheckpointError(f"{where} is corrupt: its record belongs to another step")
        layout = record.get("layout", 1)
        if layout != LAYOUT:
            raise UserError(
                f"{where} has layout {layout} of the parameters, this version reads {LAYOUT}: continue with the "
                "version that wrote it (its commit is in environment.json), or train again"
            )
        if record.get("digest") != record_digest(record):
            raise CorruptCheckpointError(f"{where} is corrupt: its record differs from what was written")

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """Read a checkpoint back and verify it.

        Args:
          step: one of `steps()`.
          abstract_state: tree of ShapeDtypeStruct with shardings: the wanted form of the state.

        Returns:
          The state and the record given to `save`.

        Raises:
          CorruptCheckpointError: it cannot be read, or is not what was written.
          UserError: an older version of this code wrote it.
        """
        self.read_record(step)  # raises a clearer error for a checkpoint of another layout
        try:
            with quiet_threads():
                read = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state), record=ocp.args.JsonRestore()
                    ),
                )
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
            raise CorruptCheckpointError(
                f"checkpoint {step} in {self.directory} is corrupt: {one_line(error)}"
            ) from error
        record = read.record
        self._check_fingerprints(step, read.state, record)
        return read.state, record

    def restore_params(self, step: int, average: str = "") -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Read only the parameters, to this process's first device: neither moments nor other averages are read.

        Args:
          step: one of `steps()`.
          average: which average; "" for the first, or the parameters if there is none; "params" for the parameters.

        Returns:
          The name of what was read, the trained groups, and the record given to `save`.

        Raises:
          CorruptCheckpointError: it cannot be read, or is not what was written.
          UserError: there is no such average, or an older version of this code wrote it.
        """
        record = self.read_record(step)
        path = self.directory / str(step) / "state"
        try:
            with quiet_threads():
                tree = ocp.PyTreeCheckpointer().metadata(path).item_metadata.tree
                averages = tree.get("ema") or {}
                name = average or next(iter(averages), "params")
                if name != "params" and name not in averages:
                    known = ", ".join([*averages, "params"])
                    raise UserError(f"{self.directory} keeps no average {name!r} of the parameters; it has: {known}")
                wanted = {"params": tree["params"]} if name == "params" else {"ema": {name: averages[name]}}
                shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
                here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
                arguments = ocp.checkpoint_utils.construct_restore_args(shapes, jax.tree.map(lambda _: here, shapes))
                read = ocp.PyTreeCheckpointer().restore(
                    path, args=ocp.args.PyTreeRestore(item=shapes, restore_args=arguments, partial_restore=True)
                )
        except UserError:
            raise
        except Exception as error:  # as in `restore`
            raise CorruptCheckpointError(
                f"checkpoint {step} in {self.directory} is corrupt: {one_line(error)}"
            ) from error
        self._check_fingerprints(step, read, record)
        return name, read["params"] if name == "params" else read["ema"][name], record

    def _check_fingerprints(self, step: int, read: Any, record: Mapping[str, Any]) -> None:
        now = jax.device_get(fingerprints(read))
        wrong = [name for name, value in now.items() if int(value) != record["fingerprints"].get(name)]
        if wrong:
            raise CorruptCheckpointError(
                f"checkpoint {step} in {self.directory} is corrupt: {len(wrong)} arrays differ from what was written, "
                f"the first is {wrong[0]}"
            )

    def set_aside_after(self, step: int) -> list[epath.Path]:
        """Move the checkpoints newer than `step` aside; returns where they went. Every process must call this."""
        newer = [s for s in reversed(self.steps()) if s > step]  # the newest first: killed half-way, the rest is older
        moved = [epath.Path(f"{self.directory}.set_aside") / str(s) for s in newer]
        wait_for_all("set aside: all have looked")
        for number, target in zip(newer, moved, strict=True):
            if is_primary():
                if target.exists():
                    target.rmtree()
                _move(self.directory / str(number), target)
        wait_for_all("set aside: done")
        self._manager.reload()
        return moved

    def close(self) -> None:
        """Wait for the write under way and release the directory."""
        with storage_errors(self.directory):
            self._manager.close()
