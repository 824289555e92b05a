"""The two ways a run can fail. The command line turns each into one line and an exit code."""


class UserError(ValueError):
    """Bad configuration or input; the message names the cause and the remedy. Exit code 2."""


class RunError(RuntimeError):
    """The run could not continue (NaN loss, full disk, ...); the message says what is safe. Exit code 1."""
