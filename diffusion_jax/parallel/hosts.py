"""Several processes as one program: how they join, agree, choose the writer, and end together."""

import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError

HEARTBEAT_SECONDS = 30  # seconds after which a silent process counts as dead and the others end; JAX's default is 100
SHUTDOWN_SECONDS = 30  # seconds that an ending process waits for the others; JAX's default is 300


def initialize_hosts(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes of this run; call this before any other use of JAX.

    If all three arguments are None, JAX detects the cluster (Cloud TPU, Slurm, GKE). The caller handles SIGTERM: JAX's
    own handler, which would take it for a notice of preemption, is not installed.

    Raises:
      UserError: only some of the three are given, there is no such process, or the others did not answer.
    """
    given = [value is not None for value in (coordinator_address, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError("give all of --coordinator_address, --num_processes and --process_id, or none of them")
    if all(given) and process_id >= num_processes:
        raise UserError(f"--process_id={process_id}: the processes are 0 to --num_processes - 1, {num_processes - 1}")
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"could not join the other processes: {error}") from error


def is_primary() -> bool:
    """Whether this process is the one that writes logs, pictures and reports."""
    return jax.process_index() == 0


def any_process(here: bool) -> bool:
    """Whether `here` is true in any process; every process must call this, and gets the same answer."""
    if jax.process_count() == 1:
        return here
    return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def require_same(what: str, text: str) -> None:
    """Raise UserError, in every process, unless `text` is the same in all of them."""
    if jax.process_count() == 1:
        return
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    different = np.flatnonzero(found != found[0])
    if different.size:
        raise UserError(
            f"{what} differs between the processes of this run: process {different[0]} differs from process 0"
        )


def wait_for_all(what: str) -> None:
    """Return when every process has reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
