"""Merge several trained models of one form: linear, slerp, TIES, DARE, or adding to one what another has learned.

    python -m experiments.merge --models=runs/a,runs/b --method=slerp --share=0.3 --out=runs/merged
    python -m experiments.merge --models=runs/a,runs/b --base=runs/base --method=ties --density=0.3 --out=runs/merged

Models are folders of models, or workdirs of runs, whose default average for sampling is taken. The result is a folder
that `diffusion_jax.load_model` reads. Options that the method does not have are refused.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
MODELS = FLAGS.strings("models", None, "workdirs or folders of the models", allowed="paths with commas between them")
METHOD = FLAGS.string("method", "linear", "method of merging: linear, slerp, ties, dare, add_difference")
BASE = FLAGS.path("base", None, "model that the others were trained from, for ties and dare; by default the first")
WEIGHTS = FLAGS.strings(
    "weights",
    None,
    "weights of the models, for linear and dare",
    check=cli.weight,
    allowed="numbers with commas between them",
)
SHARE = FLAGS.number("share", None, "share of the second model, for slerp", lower=0, upper=1)
DENSITY = FLAGS.number("density", None, "share of the changes that ties keeps", lower=0, upper=1)
DROP = FLAGS.number("drop", None, "share of the changes that dare drops", lower=0, upper=1)
SCALE = FLAGS.number("scale", None, "scale of the change, for ties and add_difference", lower=0, upper=1e6)
SEED = FLAGS.integer("seed", None, "seed of what dare drops", upper=cli.MOST_SEED)
OUT = FLAGS.path("out", None, "folder to write")
cli.begin(FLAGS)

from collections.abc import Sequence

from diffusion_jax.adapters import MERGINGS, merge_models
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded
from diffusion_jax.loading import load_model
from diffusion_jax.systems import describe, save_model


def main(argv: Sequence[str]) -> None:
    """Read the models, merge them, write the result."""
    if not MODELS.value or not OUT.value:
        raise UserError("give --models=A,B, the models, and --out=..., the folder to write")
    options = {
        "weights": WEIGHTS.value and tuple(WEIGHTS.value),
        "share": SHARE.value,
        "density": DENSITY.value,
        "drop": DROP.value,
        "scale": SCALE.value,
        "seed": SEED.value,
    }
    given = {name: value for name, value in options.items() if value is not None}
    method = MERGINGS.build({"name": METHOD.value, **given})
    method.check(len(MODELS.value))
    if BASE.value and not method.of_changes:
        raise UserError(f"--base is for ties and dare; {METHOD.value} reads none: leave it out")
    out = expanded(OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file, not a folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out={out} is there already, with something in it: give a new folder")
    loaded = [load_model(path) for path in MODELS.value]
    model = loaded[0][0]
    for path, (other, _) in zip(MODELS.value[1:], loaded[1:], strict=True):
        if describe(other) != describe(model):
            raise UserError(f"{path} is not like the model {MODELS.value[0]}: their parts or their sizes differ")
    base = None
    if method.of_changes:
        if not BASE.value:
            print(f"no --base is given: changes are counted from the first model, {MODELS.value[0]}")
        base = load_model(BASE.value)[1] if BASE.value else loaded[0][1]
    merged = merge_models(method, [params for _, params in loaded], base)
    save_model(out, model, merged)
    print(f"{len(loaded)} models merged by {METHOD.value}: {out}")


if __name__ == "__main__":
    cli.run(main)
