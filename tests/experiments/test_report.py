"""The report is complete for a complete run, sensible for a partial one, and safe for any file content."""

import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import RunError, UserError
from experiments.evaluating.pictures import save_grid, save_neighbours
from experiments.ground.writers import create_writer
from experiments.reports import charts
from experiments.reports.charts import Chart, Series, format_number, save_charts, smooth, thin
from experiments.reports.metrics import headline, read_groups
from experiments.reports.report import write_report

_VOID = {"meta", "img", "input", "br", "line", "path", "circle", "rect"}


def line_chart(title, series):
    return Chart(title=title, series=series).html()


class Page(html.parser.HTMLParser):
    """A parser that checks the nesting of elements and collects attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.ids = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data + " "


def read(path):
    return Page(path.read_text())


@pytest.fixture
def workdir(tmp_path):
    """The workdir of a finished run that was resumed once."""
    directory = tmp_path / "runs" / "digits"
    writer = create_writer(directory)
    for step in range(10, 2001, 10):
        writer.write_scalars(step, {"loss": 5.0 / step + 0.01 * (step % 3), "learning_rate": 1e-4})
        writer.write_timings(step, {"images_per_second": 1000.0})
        if step % 500 == 0:
            writer.write_scalars(step, {"validation_loss": 6.0 / step})
    writer.write_timings(2000, {"compile_seconds": 3.0})
    writer.close()
    images = np.zeros((4, 8, 8, 1), np.uint8)
    for step in (500, 1000, 2000):
        save_grid(images, directory / "samples" / f"step_{step:07d}.png")
    save_grid(images, directory / "samples" / "final.png")
    save_neighbours(images, images, directory / "neighbours.png", distances=np.arange(4.0))
    evaluation = {
        "class_accuracy": {
            "accuracy": 0.97, "accuracy_low": 0.91, "accuracy_high": 0.99, "class_0": 1.0, "class_1": 0.94,
            "num_samples": 1000,
        },
        "nearest_neighbours": {"distance_ratio": 1.02, "exact_copies": 0},
        "settings": {"sampler": "ddim", "network_evaluations": 50},
    }  # fmt: skip
    config = {"model": {"name": "unet"}, "data": {"dataset": "digits"}, "train": {"steps": 2000, "batch_size": 100}}
    environment = {"python": "3.11.7", "jax": "0.10.2", "commit": None, "command": "python -m experiments.train --x=1"}
    for name, content in (("evaluation", evaluation), ("config", config), ("environment", environment)):
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_a_whole_run(workdir):
    path = write_report(workdir)
    assert path == workdir / "report.html"
    page = read(path)
    for text in (
        "unet on digits", "trained for 2,000 steps", "97.0%", "91.0% to 99.0%", "1.02×", "no exact copies", "log scale",
        "validation", "network evaluations", "python -m experiments.train --x=1", "0.10.2", "batch_size",
        "time in training steps", "3 min 20 s", "From 1,000 samples",
    ):  # fmt: skip
        assert text in page.text, text
    assert "None" not in page.text
    assert "null" not in page.text
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(images) == 5  # three steps, the final samples, the neighbours
    assert sorted(p.name for p in workdir.iterdir() if p.name.startswith(".")) == []


def test_the_page_refers_to_nothing_outside_itself(workdir):
    text = write_report(workdir).read_text()
    page = Page(text)
    for _, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"@import|<link|src=.http|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    anchors = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert set(anchors) <= set(page.ids)


def test_the_same_workdir_gives_the_same_page(workdir):
    first = write_report(workdir).read_bytes()
    assert write_report(workdir).read_bytes() == first


def test_an_empty_workdir(tmp_path):
    assert "Nothing has been logged" in read(write_report(tmp_path)).text


@pytest.mark.parametrize(
    "missing",
    ["config.json", "metrics.jsonl", "timings.jsonl", "samples/final.png", "evaluation.json", "neighbours.png",
     "environment.json", "samples/step_0000500.png"],
)  # fmt: skip
def test_whatever_is_missing_is_left_out(workdir, missing):
    (workdir / missing).unlink()
    read(write_report(workdir))


def test_a_run_that_is_under_way_says_so(workdir):
    config = json.loads((workdir / "config.json").read_text())
    config["train"]["steps"] = 5000
    (workdir / "config.json").write_text(json.dumps(config))
    assert "so far trained for 2,000 of 5,000 steps" in read(write_report(workdir)).text


def test_a_damaged_file_is_named_and_the_rest_is_shown(workdir):
    (workdir / "config.json").write_text('{"model": ')
    (workdir / "evaluation.json").write_text("[1, 2]")
    (workdir / "timings.jsonl").write_text('what\n{"step": 1}\n')
    (workdir / "environment.json").write_text("[" * 100_000)
    text = read(write_report(workdir)).text
    assert "environment.json could not be read" in text
    assert "config.json could not be read" in text
    assert "evaluation.json holds no object" in text
    assert "timings.jsonl, line 1" in text
    assert "validation" in text


def test_unexpected_types_do_no_harm(workdir):
    (workdir / "config.json").write_text(json.dumps({"train": "much", "model": 3, "data": {}, "x": [None, {}]}))
    (workdir / "environment.json").write_text(json.dumps({"command": 7, "devices": {"kind": "TPU v5", "count": 4}}))
    (workdir / "evaluation.json").write_text(json.dumps({"a": {"b": {"c": 1}}, "fid/value": 3.5, "note": None}))
    text = read(write_report(workdir)).text
    assert "devices.kind" in text
    assert "3.5" in text


def test_text_from_files_is_escaped(workdir):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    (workdir / "config.json").write_text(json.dumps({evil: evil, "group": {evil: evil}, "model": {"name": evil}}))
    (workdir / "environment.json").write_text(json.dumps({evil: evil, "command": evil}))
    (workdir / "evaluation.json").write_text(json.dumps({evil: {evil: 1.0}, "settings": {evil: evil}}))
    writer = create_writer(workdir)
    for step in (3000, 3010):
        writer.write_scalars(step, {evil: 1.0, f"{evil}/loss": float("nan"), f"validation_{evil}": 2.0})
        writer.write_timings(step, {evil: 1.0})
    writer.close()
    text = write_report(workdir).read_text()
    assert text.count("<script>") == 1  # the script of the report itself
    assert "<img src=x" not in text
    assert "<script>alert" not in text
    read(workdir / "report.html")


def test_a_workdir_with_a_blank_is_quoted_in_commands(tmp_path):
    directory = tmp_path / "my runs"
    directory.mkdir()
    assert f"--workdir='{directory}'" in read(write_report(directory)).text


def test_no_workdir_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such workdir"):
        write_report(tmp_path / "none")


def test_a_report_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match="could not write"):
        write_report(tmp_path)


def test_many_pictures_are_thinned_with_the_last_kept(tmp_path):
    for step in range(1, 61):
        save_grid(np.zeros((1, 8, 8, 1), np.uint8), tmp_path / "samples" / f"step_{step:07d}.png", scale=1)
    page = read(write_report(tmp_path))
    titles = [value for tag, name, value in page.attributes if (tag, name) == ("button", "title")]
    assert len(titles) == 24
    assert (titles[0], titles[-1]) == ("Step 1", "Step 60")
    assert "24 of 60 pictures" in page.text


def test_evaluations_flat_and_nested_read_alike():
    nested = {"class_accuracy": {"accuracy": 0.9}, "sampler": "ddim"}
    flat = {"class_accuracy/accuracy": 0.9, "sampler": "ddim"}
    wrapped = {"metrics": {"class_accuracy": {"accuracy": 0.9}}, "settings": {"sampler": "ddim"}}
    expected = ({"class_accuracy": {"accuracy": 0.9}}, {"sampler": "ddim"})
    assert read_groups(nested) == read_groups(flat) == read_groups(wrapped) == expected


def test_a_chart_of_nothing_is_nothing():
    assert line_chart("loss", []) == ""
    assert line_chart("loss", [Series(name="a", steps=[1, 2], values=[float("nan"), float("inf")])]) == ""


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-1.0, 2.0], [1e-30, 1e30], [5.0, float("nan"), 4.0], [1e-300, 1e-299, 1.0]]
)
def test_a_chart_of_anything_has_finite_coordinates(values):
    chart = line_chart("loss", [Series(name="training", steps=range(len(values)), values=values)])
    Page(chart)
    assert not re.search(r"nan|inf\b|-?\d{5,}\.\d", re.sub(r">[^<]*<", "><", chart))


def test_a_log_axis_where_the_curve_falls_early_and_only_there():
    steps = np.arange(1, 200)
    assert "log scale" in line_chart("a", [Series(name="loss", steps=steps, values=1 / steps)])
    assert "log scale" not in line_chart("b", [Series(name="loss", steps=steps, values=1.5 + 1 / steps)])
    assert "log scale" not in line_chart("c", [Series(name="rate", steps=steps, values=np.cos(steps / 127.5) + 1e-9)])
    assert "log scale" not in line_chart("d", [Series(name="loss", steps=steps, values=1 / steps - 0.5)])


def test_the_chart_puts_points_where_they_belong():
    axis = charts._Axis(1.0, 100.0, 0.0, 200.0, True)
    np.testing.assert_allclose(axis(np.array([1.0, 10.0, 100.0])), [0.0, 100.0, 200.0])
    axis = charts._Axis(0.0, 4.0, 300.0, 100.0)
    np.testing.assert_allclose(axis(np.array([0.0, 1.0, 4.0])), [300.0, 250.0, 100.0])


def data_of(chart):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', chart)[1])


def test_error_bars_and_a_log_axis_of_evaluations():
    """On a log axis four powers of two are equally spaced; an unknown error counts as zero."""
    one = Series(name="heun", steps=[4, 8, 16, 32], values=[4.0, 2.0, 1.0, 0.5], errors=[1, 0.5, float("nan"), 0.9],
                 sparse=True)  # fmt: skip
    chart = Chart(title="fd", series=[one], axis="NFE", log_x=True, log_y=True).html()
    Page(chart)
    places = [float(value) for value in re.findall(r'<circle class="dot s0" cx="([\d.]+)"', chart)]
    np.testing.assert_allclose(np.diff(places), np.diff(places)[0], atol=0.11)
    assert chart.count('class="bar s0"') == 4
    data = data_of(chart)
    assert (data["log"], data["logX"], data["series"][0]["errors"]) == (True, True, [1, 0.5, 0, 0.9])
    assert data["y"][0] > 0, "a bar that reaches below zero is cut off"
    assert "over NFE" in chart


def test_a_log_axis_is_refused_by_values_that_are_not_positive():
    one = Series(name="a", steps=[1, 2, 4], values=[1.0, 0.0, 3.0])
    assert "log scale" not in Chart(title="a", series=[one], log_y=True).html()


def test_a_log_axis_of_less_than_a_decade_has_ticks():
    chart = Chart(title="a", series=[Series(name="a", steps=[1, 2, 3], values=[0.52, 0.61, 0.74])], log_y=True).html()
    assert len(re.findall('class="grid"', chart)) >= 3


def test_curves_of_one_name_share_a_legend_and_a_colour():
    series = [Series(name=name, steps=[1, 2], values=[1.0, i], color=i // 2) for i, name in enumerate("aabb")]
    chart = Chart(title="t", series=series).html()
    assert chart.count('class="legend"') == 2
    assert [one["color"] for one in data_of(chart)["series"]] == [0, 0, 1, 1]


def test_names_of_places():
    one = Series(name="a", steps=[0, 1], values=[1.0, 2.0], joined=False, sparse=True)
    chart = Chart(title="t", series=[one], axis="sampler", places=("<heun>", "euler")).html()
    assert "&lt;heun&gt;" in chart
    assert 'class="line' not in chart


def test_a_picture_of_charts(tmp_path):
    one = Series(name="a", steps=[1, 2, 4], values=[1.0, 0.5, 3.0], errors=[0.1, float("nan"), 0.2], sparse=True)
    charts = [Chart(title="t", series=[one], axis="NFE", log_x=True), Chart(title="u", series=[one], places="xyzuv")]
    save_charts(charts, tmp_path / "two.png", columns=2, panel=(2, 2))
    image = np.asarray(Image.open(tmp_path / "two.png"))
    assert image.shape[1] > 1.5 * image.shape[0]
    assert image.std() > 0


def test_what_repeats_the_loss_is_not_drawn_again(tmp_path):
    writer = create_writer(tmp_path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"loss": 1 / step, "mse": 1 / step, "prior": 1 / step + (step == 20)})
    writer.close()
    page = read(write_report(tmp_path))
    assert "Equal to the loss and not drawn again: mse." in page.text
    titles = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert titles == ["Training loss by step", "prior"]


def test_smoothing_keeps_a_constant_and_reduces_noise_without_lag():
    np.testing.assert_allclose(smooth(np.full(100, 3.0)), 3.0)
    rng = np.random.default_rng(0)
    line = np.linspace(1.0, 0.0, 1000)
    smoothed = smooth(line + 0.1 * rng.normal(size=1000))
    middle = slice(100, 900)
    assert np.abs(smoothed - line)[middle].mean() < 0.03
    assert abs((smoothed - line)[middle].mean()) < 0.01


def test_only_noisy_curves_are_smoothed():
    steps = np.arange(200)
    rng = np.random.default_rng(0)
    assert "smoothed" in line_chart("loss", [Series(name="a", steps=steps, values=rng.normal(size=200))])
    assert "smoothed" not in line_chart("rate", [Series(name="a", steps=steps, values=np.cos(steps / 100))])


def test_thinning_keeps_the_extremes_and_the_ends():
    values = np.random.default_rng(0).normal(size=10_000)
    values[1234], values[8765] = 50.0, -50.0
    steps, kept = thin(np.arange(10_000), values)
    assert len(kept) <= 510
    assert kept.max() == 50.0
    assert kept.min() == -50.0
    assert (steps[0], steps[-1]) == (0, 9999)
    np.testing.assert_array_equal(kept, values[steps])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1_234_567, "1,234,567"), (2.0, "2"), (0.048412, "0.04841"), (1234.56, "1,235"), (2e-4, "2e-4"),
     (1.2e-7, "1.2e-7"), (float("nan"), "nan"), (float("inf"), "inf"), (True, "True"), ("x", "x")],
)  # fmt: skip
def test_numbers_for_people(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_missing_is_shown_as_missing(workdir, bad):
    content = {
        "proxy_fd": {"proxy_fd": bad, "held_out": 0.5, "num_samples": bad},
        "class_accuracy": {"accuracy": 0.9, "accuracy_low": bad, "accuracy_high": 1.0, "classifier_test_accuracy": bad,
                           "class_0": bad, "class_1": 0.5},
        "settings": {"feature_spaces": 3, "unavailable": ["x"]},
    }  # fmt: skip
    (workdir / "evaluation.json").write_text(json.dumps(content))
    page = read(write_report(workdir))
    assert "–" in page.text
    assert not re.search(r"\b(nan|inf|NaN|None)\b", page.text)


def test_cards_are_those_of_the_metrics_facts():
    groups = {
        "kid": {"kid": 0.25, "held_out": 0.125},
        "nearest_neighbours": {"distance_ratio": 1.5, "exact_copies": 2},
        "precision_recall": {"precision": 0.5, "recall": 0.75},
        "of_old": {"of_old": 3.0},
        "class_accuracy": {"num_samples": 3},
    }
    assert headline(groups) == [
        ("KID", "0.25", "0.125 for held-out images"),
        ("Distance to the training images", "1.50×", "that of held-out images; 2 exact copies"),
        ("Precision and recall", "50.0%", ""),
    ]


def test_a_loss_that_is_not_finite_is_never_the_lowest(workdir):
    writer = create_writer(workdir)
    writer.write_scalars(2010, {"loss": float("nan"), "validation_loss": float("nan")})
    writer.close()
    page = read(write_report(workdir))
    assert "not finite at step 2,010" in page.text
    assert "lowest" not in page.text
