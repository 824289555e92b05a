"""Several processes as one program: joining, who writes, and stopping together."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError


def initialize_hosts(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes of this run; must precede any other use of JAX.

    With all three arguments None, the cluster (Cloud TPU, Slurm, GKE) is detected by JAX itself.

    Raises:
      UserError: only some of the three are given, or the others did not answer.
    """
    given = [value is not None for value in (coordinator_address, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError("give all of --coordinator_address, --num_processes and --process_id, or none of them")
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"could not join the other processes: {error}") from error


def is_primary() -> bool:
    """Whether this process is the one that writes logs, pictures and reports."""
    return jax.process_index() == 0


def agree_to_stop(wanted_here: bool) -> bool:
    """Whether any process wants to stop; every process gets the same answer at the same step."""
    if jax.process_count() == 1:
        return wanted_here
    return bool(np.any(multihost_utils.process_allgather(np.asarray(wanted_here))))
