"""configs/distill/: students inherit settings from a teacher run, train against it, and sample in few steps."""

import dataclasses
import json
import runpy

import jax
import pytest
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.objectives import OBJECTIVES
from experiments.building.kinds import inherited, open_experiment
from experiments.building.wiring import Experiment
from experiments.ground import workdir
from experiments.ground.config_files import load_config
from experiments.sweeps.ablation import Ablation
from tests.captions import make_folder, write_config
from tests.processes import ROOT

CONFIGS = sorted((ROOT / "configs" / "distill").glob("*.py"))
FAST = ("lcm", "dmd")  # the other students differ in objective and sampler
OF_RUNS = [
    path if path.stem in FAST else pytest.param(path, marks=pytest.mark.slow)
    for path in CONFIGS
    if path.stem != "lcm_lora"
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The config of a small caption-conditioned flow model."""
    root = tmp_path_factory.mktemp("captions")
    file = write_config(root / "config.py", make_folder(root / "folder"))
    lines = """
    config.model.update(base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(8,))
    config.process = type(config)(dict(name="gaussian", schedule=dict(name="rectified_flow")))
    config.process.update(prediction=dict(name="velocity"), time_input=dict(name="scaled_t", scale=1000.0))
    config.objective = type(config)(dict(name="flow_matching"))
    config.time_sampler = type(config)(dict(name="uniform"))
    config.sampling.update(sampler=dict(name="flow_euler"), steps=2, batch_size=8)
    config.evaluation.num_samples = 8
    return config"""
    file.write_text(file.read_text().replace("\n    return config", lines))
    return file


@pytest.fixture(scope="module")
def teacher(told, tmp_path_factory):
    """The description of a teacher run without weights."""
    folder, config = tmp_path_factory.mktemp("teacher"), load_config(str(told))
    (folder / "config.json").write_text(json.dumps(workdir.to_json(config)))
    (folder / "data.json").write_text(json.dumps(dataclasses.asdict(Experiment(config).info)))
    return folder


def student(teacher, name="lcm", **fields):
    config = load_config(f"configs/distill/{name}.py")
    config.teacher.workdir = str(teacher)
    with config.unlocked():
        for field, value in fields.items():
            group, _, inner = field.rpartition("__")
            part = config
            for one in filter(None, group.split("__")):
                part = part[one]
            part[inner] = value
    return config


@pytest.mark.parametrize("path", OF_RUNS, ids=lambda path: path.stem)
def test_a_student_takes_what_it_needs_from_its_teacher(path, teacher, told):
    """The student's parts fit together, its train step uses the guided teacher and keeps the structure of the state."""
    config, theirs = student(teacher, path.stem), load_config(str(told))
    experiment = open_experiment(config)
    experiment.check()
    mine = experiment.config
    assert mine.data.dataset == theirs.data.dataset
    assert mine.model.base_channels == 8
    assert mine.process.to_dict() == theirs.process.to_dict()
    assert mine.conditioning.text.length == 8
    assert not mine.teacher.inherit
    assert mine.train.steps == config.train.steps
    assert experiment.model.embeds_guidance
    assert experiment.trainable.guidance == (2.0, 5.0)
    if path.stem in ("lcm", "meanflow"):  # the others differ only in the objective, which has its own tests
        state, batch = jax.eval_shape(experiment.init_state), experiment.abstract_batch(8)
        assert "guidance" in state.params["network"]
        assert "guidance" not in state.teacher["network"]
        after, _ = jax.eval_shape(experiment.train_step(), state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state)


def test_what_a_student_states_counts(teacher):
    config = student(teacher, data__num_workers=2, model__dropout=0.25, process={"schedule": {"name": "cosine"}})
    config = inherited(config)
    assert (config.data.num_workers, config.model.dropout, config.model.base_channels) == (2, 0.25, 8)
    assert config.process.schedule.to_dict() == {"name": "cosine"}
    assert config.process.prediction.name == "velocity"
    assert inherited(student(teacher)).to_json_best_effort() == inherited(student(teacher)).to_json_best_effort()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher__workdir": ""}, r"name it with --config\.teacher\.workdir=RUN"),
        ({"teacher__workdir": "/nowhere/run"}, r"no config\.json in /nowhere/run"),
        ({"teacher__guidance_scale": (5.0, 2.0)}, r"one scale, or \(low, high\)"),
        ({"teacher__guidance_scale": ()}, "is told the guidance scale, but its teacher has none"),
        ({"model__guidance_channels": 0}, "is not told which: give one scale"),
        (
            {"data__image_size": 16, "model__attention_resolutions": (16,)},
            r"the teacher diffuses pixels \[8, 8, 3\], the student pixels \[16, 16, 3\]",
        ),
        ({"conditioning": {"text": {"length": 5}}}, "reads captions by another tokenizer, word list or length"),
        (
            {
                "objective": {"name": "flow_matching"},
                "time_sampler": {"name": "uniform"},
                "sampling__sampler": {"name": "ddim"},
            },
            "learns from none: leave it out",
        ),
        ({"sampling__guidance__scale": 7.0}, "scale 7 is not among those that the network was taught, 2 to 5"),
        ({"sampling__steps": 51}, "51 steps are more than objective lcm trains for, which are 50"),
        ({"sampling__guidance__rescale": 0.7}, "classifier_free is more than a scale"),
    ],
)
def test_what_does_not_fit_is_one_line(teacher, fields, message):
    fields = {name: ConfigDict(value) if isinstance(value, dict) else value for name, value in fields.items()}
    with pytest.raises(UserError, match=message):
        open_experiment(student(teacher, **fields)).check()


def test_a_config_of_a_student_needs_its_teacher_by_every_command():
    with pytest.raises(UserError, match=r"name a run with --config\.teacher\.workdir=RUN"):
        Experiment(load_config("configs/distill/lcm.py"))


def test_the_ablation_teaches_all_students_of_a_seed_from_one_training():
    ablation = Ablation.read(ROOT / "configs" / "ablations" / "few_step_text.py")
    trainings = ablation.trainings()
    teachers = {cell.taught_by for cell in ablation.cells} - {""}
    assert len(teachers) == len(ablation.seeds)
    for name, cells in trainings.items():
        is_teacher = cells[0].values["student"] == "teacher"
        assert is_teacher == (name in teachers)
        assert {cell.taught_by for cell in cells} <= ({""} if is_teacher else teachers)
        assert {cell.values["steps"] for cell in cells} >= {"1", "2", "4", "8"}
    other = Ablation.read(ROOT / "configs" / "ablations" / "few_step_text.py", ["train.batch_size=16"])
    assert not set(other.trainings()) & set(trainings), "students of another teacher are others"


def test_a_teacher_of_an_ablation_must_be_one_training(tmp_path):
    text = (ROOT / "configs" / "ablations" / "few_step_text.py").read_text()
    for old, new, message in (
        ('TEACHER = {"student": "teacher"}', 'TEACHER = {"student": "teachr"}', "must name one value of one axis"),
        ('TEACHER = {"student": "teacher"}', 'TEACHER = {"steps": "1"}', "belong to several trainings"),
    ):
        (tmp_path / "file.py").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=message):
            Ablation.read(tmp_path / "file.py")


def test_shipped_students_read_their_times_and_nothing_else():
    for path in CONFIGS:
        config = runpy.run_path(str(path))["get_config"]()
        assert ("time_sampler" in config) == ("time_sampler" in OBJECTIVES.example(config.objective.name).reads)


@pytest.mark.slow
def test_a_student_from_the_command_line(command, told, tmp_path):
    """A student is trained from a run, also as an adapter, and is sampled in few steps only."""
    short = ("--config.train.steps=4", "--config.checkpoint.every=4", "--config.log.sample_every=0")
    command.run("train", *command.train_arguments(tmp_path / "run", *short, config=told))
    for name, named in (("lcm", "teacher.workdir"), ("lcm_lora", "init.folder")):
        place = tmp_path / name
        arguments = (*short, "--config.log.validate_every=0", "--config.train.batch_size=8")
        text, _ = command.run(
            "train", f"--config=configs/distill/{name}.py", f"--config.{named}={tmp_path / 'run'}",
            f"--workdir={place}", *arguments,
        )  # fmt: skip
        assert name == "lcm_lora" or "has no network/guidance/kernel: these start as in a fresh network" in text
        drawn = ("--num_samples=2", "--prompt=a red square", f"--out={tmp_path / 'drawn.npz'}")
        for steps in (1, 8):
            said, _ = command.run("sample", f"--workdir={place}", f"--steps={steps}", *drawn)
            assert f"{steps} network evaluations each" in said
        assert "51 steps are more than" in command.fails("sample", f"--workdir={place}", "--steps=51", *drawn)
