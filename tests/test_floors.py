"""Imports go only from higher to lower layers of subpackages, and subpackages of one layer do not import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("diffusion_jax", "experiments", "configs", "benchmarks")

FLOORS = {
    **dict.fromkeys(("domains", "errors", "files", "registry", "rng", "counter_prng", "ode", "specs", "terms"), 0),
    **dict.fromkeys(("schedulers", "models", "data", "metrics", "parallel"), 1),
    **dict.fromkeys(("likelihood", "conditioning"), 2),
    **dict.fromkeys(("objectives", "samplers", "weights", "adapters"), 3),
    "systems": 4,
    **dict.fromkeys(("training", "tasks", "pipelines"), 5),
    "loading": 6,
    **dict.fromkeys(("console", "__main__"), 11),  # they start the runner's commands and import none of them
    "ground": 6,
    "building": 7,
    "evaluating": 8,
    **dict.fromkeys(("running", "reports", "services"), 9),
    **dict.fromkeys(("sweeps", "papers"), 10),
    **dict.fromkeys(("experiments", "benchmarks"), 11),
    "configs": 12,
}
# Imports allowed between two subpackages of one layer, and the reasons.
SAME_FLOOR = {
    ("registry", "errors"): "an unknown name is a UserError",
    ("registry", "domains"): "arguments are held against their types and bounds",
    ("domains", "errors"): "a value out of bounds is a UserError",
    ("files", "errors"): "a file that cannot be read is a UserError",
    ("rng", "counter_prng"): "the noise of sampler steps is drawn by the cheap generator",
    (
        "models",
        "parallel",
    ): "layers say which axis of an activation is the batch; what that means on a mesh is said there",
    (
        "metrics",
        "data",
    ): "the adherence to prompts is judged by the reader of scenes, which knows their shapes",
    ("metrics", "models"): "the feature spaces of DINOv2 and CLIP are transformers: patches and heads are cut as there",
}
# All other code must not import tests.
COMMAND_LINES = {"benchmarks/faults.py": "the command line of tests/faults"}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def room(module: str) -> str:
    """The subpackage of a dotted name: "diffusion_jax.samplers.ddim" is in "samplers", "experiments.ground.cli" in
    "ground", the command "experiments.train" in "experiments"."""
    package, *parts = module.split(".")
    if package == "diffusion_jax" and parts:
        return parts[0]
    inner = package == "experiments" and parts and (ROOT / package / parts[0]).is_dir()
    return parts[0] if inner else package


def room_of_file(path: Path) -> str:
    return room(".".join(path.relative_to(ROOT).with_suffix("").parts))


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere; `from diffusion_jax import data` counts as diffusion_jax.data."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            in_package = node.module == "diffusion_jax"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if in_package else {node.module}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    here = room_of_file(path)
    if here in ("__init__", "__main__", "diffusion_jax"):
        return
    assert here in FLOORS, f"{here}: give the new room a floor in {__file__}"
    for module in imported(path):
        there = room(module)
        known = str(path.relative_to(ROOT)) in COMMAND_LINES
        assert module.split(".")[0] != "tests" or known, f"{here} imports the tests"
        if module.split(".")[0] not in PACKAGES or there in (here, "__version__"):
            continue
        assert there in FLOORS, f"{there}: give the new room a floor in {__file__}"
        below, same = FLOORS[there] < FLOORS[here], (here, there) in SAME_FLOOR
        assert below or same, f"{here} (floor {FLOORS[here]}) imports {module} (floor {FLOORS[there]})"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda path: path.name)
def test_configs_are_data_only(path):
    others = {module for module in imported(path) if module.startswith("configs.")}
    from_another = others - {"configs.base", "configs.objectives"}
    assert not from_another or path.parent.name in ("ablations", "papers"), "only these start from another config"
    own = {"base.py": {"experiments.ground"}, "from_json.py": {"diffusion_jax.files"}}  # schema, reader
    allowed = {"ml_collections", "collections.abc", "json", "typing", *own.get(path.name, ())}
    assert imported(path) - others <= allowed


def test_exceptions_are_still_needed():
    used = {(room_of_file(path), room(module)) for path in FILES for module in imported(path)}
    assert set(SAME_FLOOR) <= used


# The commands lie directly in experiments/, which is not itself listed as a subpackage.
ROOMS = sorted(path for path in (ROOT / "experiments").rglob("") if path != ROOT / "experiments")


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.name)
def test_a_room_of_the_runner_has_at_most_12_files(path):
    if path.name != "__pycache__":
        assert len(set(path.glob("*.py")) - {path / "__init__.py"}) <= 12


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_above_the_rooms_of_the_runner_there_are_commands_only(path):
    if path.name != "__init__.py":
        text = path.read_text()
        assert "FLAGS = cli.Flags(__name__, __doc__)" in text
        assert 'if __name__ == "__main__":\n    cli.run(main)\n' in text
