"""The claims of a paper, and which of them this code confirms.

A config of a paper has a block `CLAIMS` beside `get_config()`:

    paper        the paper
    parameters   their number in the network and the loss
    schedule     values of the noise schedule: `quantity` (alpha, sigma, log_snr or noise_to_signal) at `t`
    loss         the loss of a network whose x0 is wrong by 1 in every dimension, at `t` or at a `noise_to_signal`
    sampler      its network evaluations `nfe`, including guidance's; optionally the `variance` of its output with a
                 perfect denoiser of N(0, 0.5^2), starting from the schedule's prior
    weights      the format in which the authors' weights are read
    results      what was measured after training: `metric`, `value`, `sampler`, `nfe`, `num_samples`, `reference`

Every claim has a `source`. `differs` says how this code deviates from the paper; `checked: False` marks a figure that
was not looked up again. A claim counts as met only if this code has measured it.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from diffusion_jax import models, weights
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json, replace_file
from diffusion_jax.likelihood import METRICS
from diffusion_jax.parallel.topology import CHIPS
from diffusion_jax.registry import unknown_name
from diffusion_jax.samplers import GUIDANCE, SAMPLERS
from diffusion_jax.schedulers import Prediction
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation
from experiments.ground import workdir
from experiments.ground.config_files import call_get_config, load_config_module
from experiments.papers.perfect import gaussian_variance
from experiments.running import planning

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / "configs" / "papers"
PLANS = ROOT / "docs" / "tpu_plans.json"
RESULTS = ROOT / "docs" / "results"

MET, DIFFERS, NOT_MET, NOT_RUN, NOT_STATED = "met", "differs", "not met", "not run", "not stated"
"""Confirmed here; different from the paper, for a reason that the config states; measured and wrong; not measured yet;
no claim in the config."""
SMOKE_PARTS = ("model", "keeps", "objective", "sampling", "times_the_steps")
"""The block `SMOKE`: the fields of the network, those of the recipe's own that stay (all but its size), other fields of
two groups, and a factor on the number of steps."""
TOLERANCE = 0.05
"""How far a measured result may be on the worse side of the published one, as a share."""
_NOT_OF_TRAINING = ("seed", "sampling.", "evaluation.", "log.", "checkpoint.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One claim and its status; `claimed` and `measured` are numbers, or words if there is no number."""

    name: str
    status: str
    claimed: Any = None
    measured: Any = None
    source: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    """A config of a paper with its claims."""

    path: Path
    config: ConfigDict
    claims: Mapping[str, Any]
    smoke: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.stem

    @property
    def digest(self) -> str:
        """A hash of everything that training depends on."""
        return workdir.digest(self.config, without=_NOT_OF_TRAINING)

    @classmethod
    def read(cls, path: Path) -> "Paper":
        """Read a file; raises UserError if it has no claims, or a claim of an unknown kind."""
        module = load_config_module(path)
        claims = module.get("CLAIMS")
        if claims is None:
            raise UserError(f"{path} has no CLAIMS; experiments/papers/scorecard.py says what they are")
        for kind in claims:
            if kind not in ("paper", *CHECKS):
                raise UserError(f"{path}: {unknown_name('kind of claim', kind, list(CHECKS))}")
        return cls(path=path, config=call_get_config(module, path), claims=claims, smoke=_smoke(module, path))


def _smoke(module: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The block `SMOKE` of a paper; raises UserError if there is none, or if it has an unknown part."""
    smoke = module.get("SMOKE")
    if not isinstance(smoke, Mapping) or not isinstance(smoke.get("model"), Mapping):
        raise UserError(f'{path} has no SMOKE = {{"model": ...}}; experiments/papers/smoke.py says what it is')
    for part in smoke:
        if part not in SMOKE_PARTS:
            raise UserError(f"{path}: {unknown_name('part of SMOKE', part, list(SMOKE_PARTS))}")
    return smoke


def read_papers(words: str = "") -> list[Paper]:
    """The papers with these names (`paper_named`), separated by commas; by default all.

    Raises:
      UserError: a name belongs to no paper, or to several.
    """
    there = {path.stem: path for path in sorted(PAPERS.glob("*.py"))}
    chosen = {paper_named(name.strip(), list(there)) for name in words.split(",")} if words else set(there)
    return [Paper.read(path) for name, path in there.items() if name in chosen]


def paper_named(name: str, known: Sequence[str]) -> str:
    """The paper with this name, or the only one whose name begins with it and continues with "_".

    Raises:
      UserError: there is none, or there are several.
    """
    longer = [name] if name in known else [one for one in known if name and one.startswith(f"{name}_")]
    if len(longer) == 1:
        return longer[0]
    if longer:
        raise UserError(f"--paper={name} is the beginning of several names: {', '.join(longer)}; give one of them")
    first = {one.partition("_")[0]: one for one in known}
    near = [one for one in known if name and (name in one.split("_") or one.startswith(name))]
    near += [first[word] for word in difflib.get_close_matches(name, first, n=2, cutoff=0.5)]
    near += difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(list(dict.fromkeys(near))[:5])}?" if near else f"there are: {', '.join(known)}"
    raise UserError(f"no paper has {name!r} as its name, or as the first words of its name; {hint}")


def score(paper: Paper) -> dict[str, list[Check]]:
    """All checks of a paper, by the kinds in `CHECKS`."""
    experiment = Experiment.planned(paper.config)
    return {kind: list(examine(paper, experiment)) for kind, examine in CHECKS.items()}


def parameters(paper: Paper, experiment: Experiment) -> Iterator[Check]:
    """The number of parameters, counted without creating them."""
    claim = paper.claims.get("parameters")
    if claim is None:
        yield Check(name="parameters", status=NOT_STATED)
        return
    own = jax.eval_shape(experiment.objective.init_params, jax.random.key(0))
    count = models.count_parameters(experiment.network) + sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(own))
    yield _compared("parameters", claim, count, count == claim["value"])


def schedule(paper: Paper, experiment: Experiment) -> Iterator[Check]:
    """The schedule's values, in float64."""
    if not paper.claims.get("schedule"):
        yield Check(name="schedule", status=NOT_STATED)
    for claim in paper.claims.get("schedule", ()):
        found = _quantity(experiment.process.schedule, claim["quantity"], claim["t"])
        same = math.isclose(found, claim["value"], rel_tol=claim["tolerance"], abs_tol=claim["tolerance"])
        yield _compared(f"{claim['quantity']} at t = {claim['t']:.6g}", claim, found, same)


def loss(paper: Paper, experiment: Experiment) -> Iterator[Check]:
    """The loss for a known error, in float64."""
    if not paper.claims.get("loss"):
        yield Check(name="loss", status=NOT_STATED, note="tests/objectives compare it with the paper's equations")
    for claim in paper.claims.get("loss", ()):
        found = loss_of_unit_error(experiment, claim)
        where = f"sigma/alpha = {claim['noise_to_signal']:g}" if "noise_to_signal" in claim else f"t = {claim['t']:g}"
        same = math.isclose(found, claim["value"], rel_tol=1e-6)
        yield _compared(f"loss of a unit error at {where}", claim, found, same)


def loss_of_unit_error(experiment: Experiment, claim: Mapping[str, Any]) -> float:
    """The loss if x0 is wrong by 1 in every dimension, without a learned uncertainty; for L_hybrid the first part."""
    objective = experiment.objective.squared_error
    if objective is None:
        raise UserError(
            f"a `loss` can be claimed for denoising objectives, not for {type(experiment.objective).__name__}"
        )
    noise_schedule = objective.schedule
    with jax.enable_x64(True):
        log_snr = -2 * math.log(claim.get("noise_to_signal", 1.0))
        t = claim["t"] if "t" in claim else float(noise_schedule.time_of_log_snr(np.float64(log_snr)))
        x0 = jnp.zeros((1, 2, 2, 1), jnp.float64)
        times = jnp.full((1,), t, jnp.float64)
        terms, _ = objective.terms(lambda xt, t: Prediction.from_x0(noise_schedule, x0 + 1.0, xt, t), x0, x0, times)
        return float(terms[0])


def sampler(paper: Paper, experiment: Experiment) -> Iterator[Check]:
    """Network evaluations, and the exact variance of the output for Gaussian data."""
    claim = paper.claims.get("sampler")
    if claim is None:
        yield Check(name="sampler", status=NOT_STATED)
        return
    make = evaluation.generator(experiment, stand_in=True)
    nfe = make.network_evaluations
    yield _compared("network evaluations", {**claim, "value": claim["nfe"]}, nfe, nfe == claim["nfe"])
    if "variance" in claim:
        found = gaussian_variance(make.sampler, make.grid)
        same = math.isclose(found, claim["variance"], rel_tol=1e-6)
        yield _compared("variance for N(0, 0.5^2)", {**claim, "value": claim["variance"]}, found, same)


def readable(paper: Paper, experiment: Experiment) -> Iterator[Check]:
    """Whether the format has a name for every parameter of the network, and for nothing else."""
    form = paper.claims.get("weights")
    if form is None:
        yield Check(name="weights", status=NOT_STATED)
        return
    there = set(flatten_dict(models.parameter_shapes(experiment.network)))
    table = weights.weight_map(form, experiment.network)
    total = set(table.entries) == there
    yield Check(
        name="weights",
        status=MET if total else NOT_MET,
        measured=f"{form}: {len(table.names())} tensors for {len(there)} parameters",
        note="the names are total; a file of the authors was not read here",
    )


def fits(paper: Paper, experiment: Experiment) -> Iterator[Check]:
    """The TPU compiler's result for the train step, from docs/tpu_plans.json."""
    plan = _plan(paper)
    if plan is None:
        ask = f"python -m benchmarks.tpu_plans --only={_relative(paper.path)}"
        yield Check(name="fits a TPU slice", status=NOT_RUN, note=f"not compiled as it is now: {ask}")
        return
    peak, limit = plan["memory"]["peak"] / 1e9, plan["limit"] / 1e9
    yield Check(
        name="fits a TPU slice",
        status=MET if plan["fits"] else NOT_MET,
        claimed=f"{limit:.0f} GB",
        measured=f"{peak:.2f} GB on each device of {plan['topology']}",
        source="docs/tpu_plans.json",
    )


def trained(paper: Paper, experiment: Experiment) -> Iterator[Check]:
    """The published results beside those that were measured and recorded with exactly this training."""
    needs = f"needs at least {_needed(paper, experiment)}"
    for claim in paper.claims.get("results", ()):
        name = f"{claim['metric']} ({claim['sampler']}, {claim['nfe']} evaluations)"
        notes = [claim.get("differs", ""), "" if claim.get("checked", True) else "the figure was not looked up again"]
        found = [record for record in records() if _answers(record, paper, experiment, claim)]
        if not found:
            status, measured = NOT_RUN, None
            notes.insert(0, needs)
        else:
            measured = _measured(found[-1], claim["metric"])
            met = _as_good(claim["metric"], measured, claim["value"])
            status = DIFFERS if claim.get("differs") else MET if met else NOT_MET
        yield Check(
            name=name,
            status=status,
            claimed=claim["value"],
            measured=measured,
            source=claim["source"],
            note="; ".join(filter(None, notes)),
        )


def records() -> list[dict[str, Any]]:
    """The measured numbers, as `record` wrote them."""
    return [read_json(path) for path in sorted(RESULTS.glob("*.json"))]


def record(directory: Path) -> Path:
    """Store the numbers of a finished and evaluated run of a paper's config, with their origin.

    Raises:
      UserError: the run is not finished, or its config is not a paper's.
    """
    config = workdir.read_config(directory)
    for name in (workdir.FINISHED, "evaluation.json", "environment.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory} has no {name}: train to the end and evaluate it first")
    digest = workdir.digest(config, without=_NOT_OF_TRAINING)
    papers = [paper for paper in read_papers() if paper.digest == digest]
    if not papers:
        raise UserError(
            f"the config of {directory} belongs to no paper: its training differs from all of {_relative(PAPERS)}"
        )
    found = read_json(directory / "evaluation.json")
    settings = found.pop("settings", None)
    if not isinstance(settings, dict) or not {"step", "network_evaluations"} <= set(settings):
        raise UserError(f"{directory}/evaluation.json does not say how it was made: evaluate the run again")
    if settings["step"] != config.train.steps:
        raise UserError(
            f"{directory}/evaluation.json is of step {settings['step']} of {config.train.steps}: evaluate the last one"
        )
    kept = {
        "papers": [paper.name for paper in papers],
        "training": digest,
        "results": found,
        "settings": settings,
        "provenance": read_json(directory / "environment.json"),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    how = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    path = RESULTS / f"{papers[0].name}-{settings['network_evaluations']}-{how}.json"
    try:
        text = json.dumps(kept, indent=2, allow_nan=False)
    except ValueError as error:
        raise UserError(
            f"{directory}/evaluation.json has numbers that are not finite: evaluate the run again"
        ) from error
    replace_file(path, (text + "\n").encode())
    return path


CHECKS: dict[str, Callable[[Paper, Experiment], Iterator[Check]]] = {
    "parameters": parameters,
    "schedule": schedule,
    "loss": loss,
    "sampler": sampler,
    "weights": readable,
    "fits": fits,
    "results": trained,
}


def summary(checks: list[Check]) -> str:
    """The worst status of several checks of one kind."""
    for status in (NOT_MET, NOT_RUN, DIFFERS, NOT_STATED):
        if any(check.status == status for check in checks):
            return status
    return MET


def _compared(name: str, claim: Mapping[str, Any], measured: Any, same: bool) -> Check:
    differs = claim.get("differs", "")
    status = MET if same else DIFFERS if differs else NOT_MET
    return Check(
        name=name,
        status=status,
        claimed=claim["value"],
        measured=measured,
        source=claim["source"],
        note="" if same else differs,
    )


def _quantity(noise_schedule: Any, name: str, t: float) -> float:
    if name == "noise_to_signal":
        return float(noise_schedule.sigma(np.float64(t)) / noise_schedule.alpha(np.float64(t)))
    if name not in ("alpha", "sigma", "log_snr"):
        raise UserError(unknown_name("quantity", name, ["alpha", "sigma", "log_snr", "noise_to_signal"]))
    return float(getattr(noise_schedule, name)(np.float64(t)))


def _answers(found: Mapping[str, Any], paper: Paper, experiment: Experiment, claim: Mapping[str, Any]) -> bool:
    settings = found["settings"]
    if claim["sampler"] not in SAMPLERS:
        return False
    return (
        found["training"] == paper.digest
        and _measured(found, claim["metric"]) is not None
        and settings["network_evaluations"] == claim["nfe"]
        and settings["num_samples"] == claim["num_samples"]
        and _guided_as(settings, claim)
        and settings["grid"] == dict(paper.config.sampling.grid)
        and settings["sampler"] == str(_sampler(experiment, claim["sampler"]))
    )


def _guided_as(settings: Mapping[str, Any], claim: Mapping[str, Any]) -> bool:
    """Whether samples were guided by a linear rule as a claim says; an evaluation without a rule does not count."""
    if settings.get("guidance") is None:
        return False
    rule = GUIDANCE.build(settings["guidance"])
    others = ("worse",) if claim.get("guide", False) else ()
    return (
        rule.scale == claim.get("guidance_scale", 1.0)
        and rule.interval == tuple(claim.get("guidance_interval", ()))
        and rule.linear
        and (rule.neutral or (rule.others == others and not rule.negative))
    )


def _sampler(experiment: Experiment, name: str) -> Any:
    """The config's own sampler with its options, if it has this name; otherwise the one of this name with defaults."""
    return experiment.sampler(None if experiment.config.sampling.sampler.name == name else name)


def _as_good(metric: str, measured: float, published: float) -> bool:
    facts = METRICS.facts(metric)
    number, slack = facts.number(facts.headline), TOLERANCE * abs(published)
    return number.badness(measured) <= number.badness(published) + slack


def _measured(found: Mapping[str, Any], metric: str) -> float | None:
    """The number in a record that a claim about a metric is about; None if there is none, or if it is not finite."""
    numbers = found["results"].get(metric)
    value = numbers.get(METRICS.facts(metric).headline) if isinstance(numbers, Mapping) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _needed(paper: Paper, experiment: Experiment) -> str:
    """The least chip-hours of the full schedule: from the compiled plan, or from the network's operations alone."""
    plan = _plan(paper)
    if plan is not None:
        return f"{_rounded(plan['chip_hours'])} chip-hours at the roofline of {plan['topology']}"
    train = paper.config.train
    operations = 3 * planning.network_flops(experiment) * train.steps * train.batch_size
    return f"{_rounded(operations / CHIPS['v5e'].flops / 3600)} chip-hours at the peak of a v5e, of operations alone"


def _rounded(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}"


def _plan(paper: Paper) -> dict[str, Any] | None:
    """The plan of the train step; None if the config was never compiled, or has changed since."""
    plans = json.loads(PLANS.read_text()) if PLANS.is_file() else {"configs": {}, "digests": {}}
    name = _relative(paper.path)
    if plans["digests"].get(name) != planning.digest(paper.config):
        return None
    return plans["configs"][name][0]


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
