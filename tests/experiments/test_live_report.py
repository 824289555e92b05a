"""The report of a running training: its contents, its state after a kill, and how it is served and compared."""

import http.client
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from diffusion_jax.errors import RunError, UserError
from experiments import compare
from experiments import report as command_report
from experiments.evaluating.pictures import save_grid
from experiments.ground.writers import create_writer
from experiments.reports.comparison import noise, run_names, write_comparison
from experiments.reports.live import LivePage, live_page
from experiments.reports.report import write_report
from experiments.reports.run import STATUS_FILE, Run
from experiments.reports.summary import next_commands, summary_table
from tests.experiments.test_report import read


def make_run(directory, *, rate=1e-3, rows=5, seed=0):
    writer = create_writer(directory)
    for step in range(10, 10 * rows + 1, 10):
        writer.write_scalars(
            step, {"loss": 1000 * rate / step, "mse": 1000 * rate / step, "validation_loss": 2.0 / step}
        )
        writer.write_timings(step, {"images_per_second": 500.0})
    writer.close()
    config = {
        "optimizer": {"learning_rate": rate},
        "train": {"steps": 100, "batch_size": 10},
        "data": {"dataset": "digits"},
    }
    (directory / "config.json").write_text(json.dumps(config))
    metric = {"accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.94, "class_0": 1.0, "num_samples": 20}
    evaluation = {"class_accuracy": metric, "settings": {"seed": seed}}
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    save_grid(np.zeros((4, 8, 8, 1), np.uint8), directory / "samples" / "final.png")
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    return make_run(home / "slow"), make_run(home / "fast", rate=2e-3, rows=9)


@pytest.fixture
def workdir(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "run")


def refresh(page):
    return [value for tag, name, value in page.attributes if (tag, name) == ("body", "data-refresh")]


def test_the_page_comes_with_the_first_pictures_and_says_how_long(workdir):
    live = LivePage(workdir, steps=100)
    live(10)
    assert not (workdir / "report.html").exists()
    live(20, drawn=True)
    page = read(workdir / "report.html")
    assert "Training at step 20 of 100" in page.text
    assert ", about" in page.text
    assert "left" in page.text
    assert refresh(page) == ["15"]
    live.state("evaluating")
    assert "the samples are being drawn and judged" in read(workdir / "report.html").text
    live.state("finished")
    page = read(workdir / "report.html")
    assert "Training at step" not in page.text
    assert refresh(page) == []


def test_the_page_is_written_now_and_then_not_at_every_row(workdir):
    live = LivePage(workdir, steps=100)
    live(10, drawn=True)
    before = (workdir / "report.html").stat().st_mtime_ns
    live(20)
    assert (workdir / "report.html").stat().st_mtime_ns == before
    live._next = 0.0
    live(30)
    assert "Training at step 30" in read(workdir / "report.html").text


def test_an_error_that_ends_the_run_is_on_the_page(workdir):
    with pytest.raises(RunError), live_page(workdir, steps=100, start=40, primary=True):
        raise RunError("loss is not finite at step 41: <lower> the rate")
    page = read(workdir / "report.html")
    assert "Stopped by an error at step 40 of 100." in page.text
    assert "loss is not finite at step 41: <lower> the rate" in page.text
    assert refresh(page) == []
    with pytest.raises(KeyboardInterrupt), live_page(workdir, steps=100, start=40, primary=True):
        raise KeyboardInterrupt
    assert "Stopped at step 40 of 100." in read(workdir / "report.html").text


def test_a_process_that_is_not_the_first_writes_nothing(workdir):
    with live_page(workdir, steps=100, start=0, primary=False) as live:
        live(10, drawn=True)
        live.state("failed", "x")
    assert not (workdir / "report.html").exists()
    assert not (workdir / STATUS_FILE).exists()


def test_the_page_of_a_killed_run_is_there_and_says_so_when_it_is_written_again(workdir):
    """The page says that the run ended without a message if the process in the status file no longer exists."""
    LivePage(workdir, steps=100)(20, drawn=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    status = json.loads((workdir / STATUS_FILE).read_text())
    (workdir / STATUS_FILE).write_text(json.dumps({**status, "process": ended.pid}))
    page = read(write_report(workdir))
    assert "Ended at step 20 of 100 without a word, as by a kill." in page.text
    assert refresh(page) == []
    (workdir / STATUS_FILE).write_text(json.dumps({**status, "process": ended.pid, "host": "another"}))
    assert refresh(read(write_report(workdir))) == ["15"]


@pytest.mark.parametrize("status", ["{", "[]", '{"state": 3}', '{"state": "training", "written": "<b>", "step": "x"}'])
def test_a_damaged_status_does_no_harm(workdir, status):
    (workdir / STATUS_FILE).write_text(status)
    assert "<b>" not in read(write_report(workdir)).text


def test_a_workdir_that_was_removed_is_not_brought_back(workdir):
    live = LivePage(workdir, steps=100)
    shutil.rmtree(workdir)
    live(10, drawn=True)
    live.state("failed", "gone")
    assert not workdir.exists()
    workdir.mkdir()
    live.state("failed", "gone")
    assert list(workdir.iterdir()) == []


def test_a_page_that_cannot_be_written_is_said_once_and_the_run_goes_on(workdir, capsys):
    (workdir / "report.html").mkdir()
    live = LivePage(workdir, steps=100)
    live(10, drawn=True)
    live(20, drawn=True)
    assert capsys.readouterr().out.count("the run goes on without its page") == 1


def test_only_reports_are_served(workdir, tmp_path):
    (tmp_path / "report.html").write_text("another")
    training = make_run(workdir / "trainings" / "seed_0-abc")
    assert b"Class accuracy" in command_report.page_at(workdir, "/")
    assert b"Class accuracy" in command_report.page_at(workdir, "/report.html?x=1")
    assert b"seed_0-abc" in command_report.page_at(workdir, f"/trainings/{training.name}/report.html")
    for url in ("/config.json", "/../report.html", "/%2e%2e/report.html", "/trainings/../../report.html",
                "/trainings/%2e%2e/report.html", "//etc/passwd", "/trainings/none/report.html", "x"):  # fmt: skip
        assert command_report.page_at(workdir, url) is None, url


def test_the_served_page_is_made_anew_at_every_visit(workdir):
    server = command_report.http.server.ThreadingHTTPServer(("127.0.0.1", 0), command_report._handler(workdir))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for loss in ("0.5", "0.25"):
            (workdir / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {loss}}}\n')
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
            connection.request("GET", "/")
            found = connection.getresponse()
            assert (found.status, found.headers["Cache-Control"]) == (200, "no-store")
            assert f">{loss}<" in found.read().decode()
            connection.request("GET", "/config.json")
            assert connection.getresponse().status == 404
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_in_use(workdir):
    server = command_report.http.server.ThreadingHTTPServer(("127.0.0.1", 0), command_report._handler(workdir))
    with server, pytest.raises(UserError, match="the port is in use: give another one"):
        command_report.serve(workdir, "127.0.0.1", server.server_port)


def test_the_small_table_and_what_to_do_next(made):
    lines = summary_table(made[0]).markdown()
    assert lines[0].startswith("| slow |")
    assert any(line.startswith("| Class accuracy | 90.0% |") for line in lines)
    commands = next_commands(made[0])
    assert f"--workdir={made[0]}" in commands["Draw more samples"]
    assert "Resume the run" not in commands


def test_two_runs_on_one_page(made, tmp_path):
    page = read(write_comparison(made, tmp_path / "both.html"))
    for text in ("slow and fast", "optimizer.learning_rate", "0.001", "0.002", "90.0% (85.0% to 94.0%)",
                 "Drawn from the same noise, of seed 0", "fast, validation"):  # fmt: skip
        assert text in page.text, text
    assert "train.steps" not in page.text, "what is the same is not listed"
    titles = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert titles == ["loss"], "mse repeats the loss in both"
    assert sum((tag, name) == ("img", "src") for tag, name, _ in page.attributes) == 2


def test_a_run_with_fields_of_former_names_differs_in_nothing(made, tmp_path):
    today, former = (shutil.copytree(made[0], tmp_path / name) for name in ("today", "former"))
    config = json.loads((today / "config.json").read_text())
    parts = {"schedule": {"name": "edm"}, "prediction": {"name": "edm"}, "time_input": {"name": "t"}}
    (former / "config.json").write_text(json.dumps({**config, **parts}))
    process = {"process": {"name": "gaussian", **parts}, "init": {"folder": ""}}
    (today / "config.json").write_text(json.dumps({**config, **process}))
    page = read(write_comparison([today, former], tmp_path / "both.html"))
    assert "The configs are the same" in page.text
    assert "edm prediction, edm schedule" in read(write_report(former)).text


def test_samples_of_another_seed_are_not_of_the_same_noise(made, tmp_path):
    other = make_run(tmp_path / "b" / "slow", seed=7)
    runs = [Run(made[0]), Run(other)]
    assert "different noise, as the runs differ in seed" in noise(runs)
    assert len(set(run_names(runs))) == 2
    assert run_names(runs)[1] == "b/slow"


def test_compare_by_command(command, made, tmp_path):
    out, _ = command.run("compare", *made, f"--out={tmp_path}/c.html")
    assert f"comparison: {tmp_path}/c.html" in out
    assert "Class accuracy" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "give 2 to 8 workdirs"),
        (["{0}", "{0}"], "given twice"),
        (["{0}", "/nowhere"], "no such workdir: /nowhere"),
        (["{0}", "{1}/samples"], "not a workdir of a run"),
    ],
)
def test_what_cannot_be_compared(made, arguments, message, monkeypatch):
    monkeypatch.setattr(compare.FLAGS, "arguments", [text.format(*made) for text in arguments])
    with pytest.raises(UserError, match=message):
        compare.main([])
