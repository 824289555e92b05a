"""A run survives every fault: it continues to the same bits, or stops with the cause. Real processes, real signals."""

import signal

import pytest

from tests.faults.faults import FAULTS, NotPossibleHere, Trial, signals

# All other faults are slow tests. test_two_processes.py tests lost hosts.
FAST = {"arrays_bit_rot", "record_truncated"}


@pytest.fixture(scope="module")
def trial(command, tmp_path_factory):
    """The trial in which the faults of this file happen."""
    return Trial(command, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_survived(trial, name):
    try:
        outcome = FAULTS[name](trial)
    except NotPossibleHere as reason:
        pytest.skip(str(reason))
    assert outcome.survived


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=lambda number: number.name
)
def test_signals_at_random_moments_and_while_saving(trial, number):
    outcomes = list(signals(trial, 4, number))
    assert len(outcomes) == 4
    assert any("writing a checkpoint" in outcome.done for outcome in outcomes)
