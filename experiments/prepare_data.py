"""Prepare a data set once, as array_record files that are read without TensorFlow.

    python -m experiments.prepare_data --dataset=fashion_mnist --data_dir=data
    python -m experiments.prepare_data --dataset=mnist --idx_dir=/path/to/idx/files
    python -m experiments.prepare_data --dataset=imagenet2012 --manual_dir=/path/to/archives

Any name of TensorFlow Datasets, or "digits". Running it again finds the data and changes nothing.
"""

from absl import flags

from diffusion_jax import data
from diffusion_jax.errors import UserError
from experiments import cli

DATASET = flags.DEFINE_string("dataset", None, "TFDS name, with config if it has several (lsun/bedroom), or digits.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory; default: $TFDS_DATA_DIR, else ./data.")
IDX_DIR = flags.DEFINE_string("idx_dir", None, "Directory of local idx .gz files, for mnist, fashion_mnist, kmnist.")
MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "Directory of archives that TFDS cannot download by itself.")


def main(argv: list[str]) -> None:
    """Prepare the data set and say what is where."""
    if not DATASET.value:
        raise UserError("--dataset is missing: a TFDS name such as fashion_mnist or cifar10, or digits")
    if DATASET.value in ("folder", "synthetic_latents") or DATASET.value.startswith("folder:"):
        raise UserError(f"dataset {DATASET.value!r} needs no preparation")
    from diffusion_jax.data import builders  # imports TFDS

    prepared = builders.prepare(
        DATASET.value, DATA_DIR.value or data.default_data_dir(), idx_dir=IDX_DIR.value, manual_dir=MANUAL_DIR.value
    )
    splits = ", ".join(f"{split}: {number} examples" for split, number in prepared.num_examples.items())
    print(f"{DATASET.value} {'is already' if prepared.was_there else 'is now'} in {prepared.directory} ({splits})")


if __name__ == "__main__":
    cli.run(main)
