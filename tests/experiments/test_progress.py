"""The progress display gives readable logs, never waits for the device, and is silent on other hosts."""

import io

import pytest
from rich import progress as rich_progress

from experiments.ground import progress
from experiments.ground.progress import ProgressBar, format_seconds


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Pending:
    """An array that the device has not computed yet."""

    def is_ready(self):
        return False

    def __float__(self):
        raise AssertionError("waited for the device")


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_every_few_seconds(clock):
    stream = io.StringIO()
    with ProgressBar(total=100, stream=stream, every_seconds=10) as bar:
        for step in range(1, 101):
            clock.now += 1.0
            bar.update(step, loss=1.0 / step, images_per_second=1234.4)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train 1/100 (1%)  loss 1  1,234 images/s"
    assert lines[1] == "train 11/100 (11%)  loss 0.09091  1,234 images/s  ETA 1 min 29 s"
    assert lines[-1].startswith("train 100/100 (100%)")
    assert len(lines) == 11


def test_a_resumed_run_estimates_from_its_own_steps(clock):
    stream = io.StringIO()
    with ProgressBar(total=1000, start=900, stream=stream, every_seconds=10) as bar:
        for step in range(901, 912):
            clock.now += 2.0
            bar.update(step)
    assert "train 906/1000 (91%)  ETA 3 min 08 s" in stream.getvalue()


def test_a_value_that_is_not_ready_is_not_waited_for(clock):
    stream = io.StringIO()
    with ProgressBar(total=10, stream=stream, every_seconds=0) as bar:
        bar.update(1, loss=0.5)
        bar.update(2, loss=Pending(), images_per_second=Pending())
    assert "train 2/10 (20%)  loss 0.5" in stream.getvalue()


def test_other_hosts_are_silent():
    for stream in (io.StringIO(), Terminal()):
        with ProgressBar(total=10, stream=stream, every_seconds=0, primary=False) as bar:
            bar.update(10, loss=Pending())
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with ProgressBar(total=10, start=5, stream=stream) as bar:
        assert isinstance(bar._bar, rich_progress.Progress)
        bar.update(10, loss=0.25, images_per_second=10_000)
    assert "10/10" in stream.getvalue()
    assert "loss 0.25" in stream.getvalue()
    assert "10,000 images/s" in stream.getvalue()


def test_a_message_is_a_line_of_its_own(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for stream in (io.StringIO(), Terminal()):
        with ProgressBar(total=10, stream=stream) as bar:
            bar.message("saved [step 3]")
        assert "saved [step 3]\n" in stream.getvalue()
    with ProgressBar(total=10, stream=stream, primary=False) as bar:
        bar.message("never shown")
    assert "never" not in stream.getvalue()


def test_nothing_is_claimed_to_be_done_after_an_error(clock):
    stream = io.StringIO()

    def interrupted():
        with ProgressBar(total=10, stream=stream) as bar:
            bar.update(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.21, "8.2 s"), (59.96, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
