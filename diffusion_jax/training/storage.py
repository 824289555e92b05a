"""Storage errors in one line each (full, removed, not ours), and suppressed output while damaged files are read."""

import contextlib
import errno
import gc
import io
import logging
import sys
import time
from collections.abc import Iterator

from etils import epath

from diffusion_jax.errors import RunError, UserError


def one_line(error: BaseException) -> str:
    """The first line of an error's message, shortened to a line or two of a terminal."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its chain of causes."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


@contextlib.contextmanager
def storage_errors(directory: epath.Path) -> Iterator[None]:
    """Turn the many ways in which storage says "full" or "not yours" into one line each."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RunError):
            raise
        for cause in _chain(error):
            number = getattr(cause, "errno", None)
            if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(cause):
                raise RunError(
                    f"no space left for checkpoints in {directory}; the last complete checkpoint is intact: free some "
                    "space and run the same command again"
                ) from error
            if number in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST) and not directory.is_dir():
                raise RunError(
                    f"{directory} was removed or replaced while a checkpoint was written there: restore it, and the "
                    "same command continues from the newest checkpoint in it"
                ) from error
            if number in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise UserError(f"cannot write to {directory}: {one_line(cause)}") from error
        raise


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Suppress what Orbax's own threads print while it fails: a traceback for every array of a damaged checkpoint.

    The error itself still reaches the caller.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    level = logger.level
    sys.unraisablehook = lambda _: None
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                yield
            except BaseException:
                time.sleep(0.5)  # the other reads fail in their own threads, and print there
                gc.collect()  # abandoned coroutines print when they are collected: make it happen now
                level = logging.CRITICAL  # abandoned tasks do so whenever they are, also at exit: asyncio stays quiet
                raise
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)
