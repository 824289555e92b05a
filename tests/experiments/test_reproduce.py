"""The scorecard counts a claim as met only if this code has measured it, and every recipe fits together."""

import dataclasses
import importlib
import json
import math

import jax
import pytest

from diffusion_jax.errors import UserError
from experiments import reproduce
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation
from experiments.ground import workdir
from experiments.papers import scorecard, smoke
from experiments.papers.scorecard import CHECKS, DIFFERS, MET, NOT_MET, NOT_RUN, Paper
from tests.processes import ROOT

PAPERS = sorted((ROOT / "configs" / "papers").glob("*.py"))
SHOWN = json.loads((ROOT / "docs" / "scorecard.json").read_text())


SLOW = {"repa_sit_xl2_imagenet256"}  # the largest networks to count


@pytest.fixture
def ddpm():
    return Paper.read(ROOT / "configs" / "papers" / "ddpm_cifar10.py")


def with_claim(paper, kind, value):
    return dataclasses.replace(paper, claims={**paper.claims, kind: value})


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem in SLOW)) for p in PAPERS]
)
def test_scorecard_is_true_today(path):
    """Every claim of a config, measured again, agrees with docs/scorecard.json, and none is wrong."""
    found = scorecard.score(Paper.read(path))
    assert found.keys() == CHECKS.keys()
    for kind, checks in found.items():
        assert all(check.status != NOT_MET for check in checks), kind
        kept = [(check["name"], check["status"], check["note"]) for check in SHOWN[path.stem]["checks"][kind]]
        assert [(check.name, check.status, check.note) for check in checks] == kept, (
            "run `python -m experiments.reproduce --workdir=docs`"
        )
    assert all(check.source for checks in found.values() for check in checks if check.claimed is not None)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_recipe_reduced_to_the_digits_fits_together(path, data_dir, tmp_path):
    """The recipe of `--scale=smoke` has the paper's process, objective and sampler on 8x8 images."""
    paper = Paper.read(path)
    config = smoke.reduced(paper, 100)
    config.data.data_dir = str(data_dir)
    if "align_depth" in config.model:
        config.data.features = str(smoke.write_features(config, tmp_path))
    experiment = Experiment(config)
    experiment.check()
    assert set(config.process) == set(paper.config.process)
    for field, value in config.process.items():
        assert field in ("num_tokens", "num_steps") or value == paper.config.process[field]
    assert config.objective.name == paper.config.objective.name
    assert config.sampling.sampler == paper.config.sampling.sampler
    assert math.prod(experiment.info.spec.shape) == 64


@pytest.mark.parametrize(
    ("name", "argument", "nfe"),
    [
        ("consistency_cifar10", "distillation", 1),
        ("consistency_cifar10", "squared", 1),
        ("consistency_cifar10", "distillation,squared", 1),
        ("progressive_distillation_cifar10", "steps=4", 4),
        ("scm_cifar10", "distillation", 2),
        ("scm_cifar10", "diffusion", 18),
    ],
)
def test_the_other_recipes_of_a_config_fit_together(name, argument, nfe):
    """Recipes chosen by the config's argument have a matching network, objective and sampler."""
    config = importlib.import_module(f"configs.papers.{name}").get_config(argument)
    experiment = Experiment.planned(config)
    assert experiment.objective.num_times == experiment.network.num_times
    assert experiment.sampler().denoiser_kind == experiment.objective.makes
    experiment.sampler().constants(experiment.grid())
    assert evaluation.generator(experiment).network_evaluations == nfe


@pytest.mark.parametrize(
    ("kind", "claim", "measured"),
    [
        ("parameters", {"value": 35_746_306, "source": "wrong by one"}, 35_746_307),
        (
            "schedule",
            [{"quantity": "log_snr", "t": 1.0, "value": -10.11767, "tolerance": 1e-10, "source": "rounded"}],
            pytest.approx(-10.1176731833),
        ),
        ("loss", [{"noise_to_signal": 2.0, "value": 0.26, "source": "wrong"}], pytest.approx(0.25)),
        ("sampler", {"nfe": 999, "source": "wrong by one"}, 1000),
    ],
)
def test_a_wrong_claim_is_not_met(ddpm, kind, claim, measured):
    paper = with_claim(ddpm, kind, claim)
    (check,) = CHECKS[kind](paper, Experiment.planned(paper.config))
    assert (check.status, check.measured) == (NOT_MET, measured)
    excused = {**(claim[0] if isinstance(claim, list) else claim), "differs": "a reason"}
    paper = with_claim(ddpm, kind, [excused] if isinstance(claim, list) else excused)
    (check,) = CHECKS[kind](paper, Experiment.planned(paper.config))
    assert (check.status, check.note) == (DIFFERS, "a reason")


def test_a_wrong_variance_is_not_met(ddpm):
    claim = {**ddpm.claims["sampler"], "variance": 0.2461252114}  # belongs to the smaller variance
    _, check = scorecard.sampler(with_claim(ddpm, "sampler", claim), Experiment.planned(ddpm.config))
    assert check.status == NOT_MET
    assert check.measured == pytest.approx(0.2507520750)


def test_weights_of_another_network_are_not_readable(ddpm):
    with pytest.raises(UserError, match="format"):
        list(scorecard.readable(with_claim(ddpm, "weights", "dit"), Experiment.planned(ddpm.config)))


def guidance(scale):
    return {"name": "classifier_free", "scale": scale, "interval": [], "rescale": 0.0}


def finished(directory, paper, *, fid, **settings):
    """Write the workdir of a finished and evaluated run without weights."""
    directory.mkdir()
    experiment = Experiment.planned(paper.config)
    workdir.claim(directory, paper.config, experiment.info)
    workdir.write_environment(directory, num_parameters=35_746_307)
    (directory / workdir.FINISHED).write_text("{}")
    common = {"num_samples": 50_000, "seed": 0, "sampler": str(experiment.sampler()), "network_evaluations": 1000}
    common |= {"grid": {"name": "uniform"}, "step": paper.config.train.steps}
    evaluation = {
        "fid": {"fid": fid, "num_samples": 50_000},
        "settings": {**common, "guidance": guidance(1.0), **settings},
    }
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    return directory


@pytest.mark.parametrize(
    ("fid", "settings", "status"),
    [
        (3.2, {}, MET),
        (4.0, {}, NOT_MET),
        (3.2, {"num_samples": 10_000}, NOT_RUN),
        (3.2, {"network_evaluations": 50}, NOT_RUN),
        (3.2, {"sampler": "DDIM(eta=0.0)"}, NOT_RUN),
        (3.2, {"guidance": guidance(2.0)}, NOT_RUN),
        (3.2, {"grid": {"name": "quadratic"}}, NOT_RUN),
    ],
)
def test_a_result_is_met_only_by_a_run_that_was_measured_in_the_same_way(
    ddpm, tmp_path, monkeypatch, fid, settings, status
):
    monkeypatch.setattr(scorecard, "RESULTS", tmp_path / "results")
    path = scorecard.record(finished(tmp_path / "run", ddpm, fid=fid, **settings))
    kept = json.loads(path.read_text())
    assert "ddpm_cifar10" in kept["papers"]
    assert kept["provenance"]["devices"] == f"{jax.device_count()} x cpu"
    assert {"commit", "command"} <= kept["provenance"].keys()
    check, other = scorecard.trained(ddpm, Experiment.planned(ddpm.config))
    assert (check.claimed, check.status) == (3.17, status)
    assert check.measured == (None if status == NOT_RUN else fid)
    assert other.status == NOT_RUN


@pytest.mark.parametrize("fid", [3.0, 4.0])
def test_a_result_of_another_recipe_is_neither_met_nor_wrong(ddpm, tmp_path, monkeypatch, fid):
    monkeypatch.setattr(scorecard, "RESULTS", tmp_path / "results")
    scorecard.record(finished(tmp_path / "run", ddpm, fid=fid))
    paper = with_claim(ddpm, "results", [{**ddpm.claims["results"][0], "differs": "a reason"}])
    (check,) = scorecard.trained(paper, Experiment.planned(paper.config))
    assert (check.status, check.measured, check.note) == (DIFFERS, fid, "a reason")


def test_only_runs_of_a_paper_are_recorded(ddpm, tmp_path, monkeypatch):
    monkeypatch.setattr(scorecard, "RESULTS", tmp_path / "results")
    other = ddpm.config.copy_and_resolve_references()
    other.optimizer.learning_rate = 1e-3
    with pytest.raises(UserError, match="belongs to no paper"):
        scorecard.record(finished(tmp_path / "other", dataclasses.replace(ddpm, config=other), fid=3.0))
    with pytest.raises(UserError, match="is of step 100 of 800000"):
        scorecard.record(finished(tmp_path / "early", ddpm, fid=3.0, step=100))
    run = finished(tmp_path / "run", ddpm, fid=3.0)
    (run / workdir.FINISHED).unlink()
    with pytest.raises(UserError, match="train to the end"):
        scorecard.record(run)


@pytest.mark.parametrize("fid", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_recorded(ddpm, tmp_path, monkeypatch, fid):
    monkeypatch.setattr(scorecard, "RESULTS", tmp_path / "results")
    with pytest.raises(UserError, match="not finite"):
        scorecard.record(finished(tmp_path / "run", ddpm, fid=fid))
    assert scorecard.records() == []


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"fid": {"fid": 3.0}, "settings": 3}'])
def test_a_damaged_evaluation_is_one_line(ddpm, tmp_path, monkeypatch, content):
    monkeypatch.setattr(scorecard, "RESULTS", tmp_path / "results")
    run = finished(tmp_path / "run", ddpm, fid=3.0)
    (run / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match=r"evaluation\.json"):
        scorecard.record(run)


@pytest.mark.parametrize(
    ("metric", "measured", "published", "good"),
    [
        ("fid", 3.2, 3.17, True), ("fid", 3.4, 3.17, False), ("fid", 1.0, 3.17, True),
        ("inception_score", 9.8, 9.89, True), ("inception_score", 9.0, 9.89, False),
        ("bits_per_dim", 2.7, 2.65, True), ("perplexity", 30.0, 23.0, False),
        ("nearest_neighbours", 1.04, 1.0, True), ("nearest_neighbours", 0.5, 1.0, False),
        ("nearest_neighbours", 1.5, 1.0, False),
    ],
)  # fmt: skip
def test_a_measured_number_is_held_against_the_published_one_in_its_own_direction(metric, measured, published, good):
    assert scorecard._as_good(metric, measured, published) is good


def test_where_and_how_a_run_is_looked_at_is_not_its_training(ddpm):
    other = ddpm.config.copy_and_resolve_references()
    other.seed, other.log.every, other.sampling.steps, other.parallel.fsdp = 7, 1, 50, -1
    assert dataclasses.replace(ddpm, config=other).digest == ddpm.digest
    other.train.batch_size = 64
    assert dataclasses.replace(ddpm, config=other).digest != ddpm.digest


def test_page_is_that_of_the_numbers():
    page = (ROOT / "docs" / "scorecard.md").read_text()
    for name, paper in SHOWN.items():
        assert f"| {name} |" in page
        for checks in paper["checks"].values():
            for check in checks:
                assert f"| {check['name']} | {check['status']} |" in page


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("edm_cifar10", ["edm_cifar10"]),
        ("edm", ["edm_cifar10"]),  # not edm2_s_imagenet512
        ("ddim,vdm_cifar10", ["ddim_cifar10", "vdm_cifar10"]),
        ("min_snr", ["min_snr_vit_xl_imagenet256"]),
    ],
)
def test_a_paper_is_named_by_its_name_or_its_first_words(words, names):
    assert [paper.name for paper in scorecard.read_papers(words)] == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("imagen", "no paper has 'imagen'"),
        ("imagenet256", "no paper has 'imagenet256'.*dit_xl2_imagenet256"),
        ("meanflow", "beginning of several names: meanflow_b4_imagenet256, meanflow_cifar10;"),
        ("ed", "no paper has 'ed'.*edm_cifar10"),
        ("edm_cifar", "no paper has 'edm_cifar'.*edm_cifar10"),
        ("edm,", "no paper has ''"),
        ("EDM", "no paper has 'EDM'"),
        ("../edm", r"no paper has '\.\./edm'"),
        ("*", r"no paper has '\*'"),
    ],
)
def test_a_name_that_is_none_or_several_names_near_ones(words, message):
    with pytest.raises(UserError, match=message) as caught:
        scorecard.read_papers(words)
    assert "\n" not in str(caught.value)


def test_an_unknown_paper_names_those_there_are():
    with pytest.raises(UserError, match=r"no paper has 'vdn'.*vdm_cifar10"):
        scorecard.read_papers("vdn")


def test_a_claim_of_an_unknown_kind_is_refused(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text("CLAIMS = {'paper': 'x', 'parametres': {}}\n")
    with pytest.raises(UserError, match="did you mean 'parameters'"):
        Paper.read(path)


def test_command_line(command, tmp_path):
    out, _ = command.run("reproduce", "--paper=ddim", f"--workdir={tmp_path}/out")
    assert "35,746,307" in out
    assert reproduce.LEGEND.partition(";")[0] in (tmp_path / "out" / "scorecard-ddim.md").read_text()


@pytest.mark.slow
def test_every_recipe_learns(command, tmp_path):
    out, _ = command.run("reproduce", "--scale=smoke", "--jobs=2", f"--workdir={tmp_path}/out", timeout=2400)
    assert f"all {len(PAPERS)} recipes run and learn" in out
