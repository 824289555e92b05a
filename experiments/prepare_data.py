"""Prepare a data set once, as array_record files that are read without TensorFlow.

    python -m experiments.prepare_data --dataset=fashion_mnist --data_dir=data
    python -m experiments.prepare_data --dataset=mnist --idx_dir=/path/to/idx/files
    python -m experiments.prepare_data --dataset=imagenet2012 --manual_dir=/path/to/archives

Any name of TensorFlow Datasets, or "digits". "scenes", which needs no file, can be written to files as "scenes/32" (24,
48, 64), with its captions and graphs, for other programs. Running the command again finds the data and changes nothing;
if several run at once, one prepares the data, and the others wait for it.

"emoji" (three styles, captions in English; "emoji/64_de" at 64 pixels in German) and "glyphs" (the fonts for drawing
words) are made from packages of the npm registry, which are fetched once and checked by their hash; where that does not
work, --package_dir names a folder with their archives:

    python -m experiments.prepare_data --dataset=emoji
    python -m experiments.prepare_data --dataset=glyphs --package_dir=/path/to/archives

Text becomes tokens. Each file is one document, or with the ending .jsonl has a document in each line's "text"; either
may be gzipped. Without a tokenizer's file, tokens are bytes:

    python -m experiments.prepare_data --dataset=text --corpus=openwebtext --text=owt.jsonl.gz --held_out=100000 \\
        --tokenizer=gpt2/tokenizer.json --begin='<|endoftext|>' --end='<|endoftext|>'
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
DATASET = FLAGS.string("dataset", None, "name in TFDS, with its config (lsun/bedroom), or digits, emoji, glyphs, text")
DATA_DIR = FLAGS.path("data_dir", None, "directory of TFDS; by default $TFDS_DATA_DIR, else ./data")
IDX_DIR = FLAGS.path("idx_dir", None, "directory of local idx .gz files, for mnist, fashion_mnist, kmnist")
CORPUS = FLAGS.string("corpus", None, "for text: its name, used as data.options.corpus")
TEXT = FLAGS.paths("text", [], "for text: its files")
TEST_TEXT = FLAGS.paths("test_text", [], "for text: held-out files")
HELD_OUT = FLAGS.integer("held_out", 0, "for text: number of documents held out at the end")
TOKENIZER = FLAGS.path("tokenizer", "bytes", "for text: bytes, or a tokenizer.json of Hugging Face's library")
BEGIN = FLAGS.string(
    "begin",
    None,
    "for text: the token that begins an example, such as <|endoftext|>",
    allowed="a token of the tokenizer",
)
END = FLAGS.string(
    "end",
    None,
    "for text: the token that ends a document, and with --begin an example",
    allowed="a token of the tokenizer",
)
MANUAL_DIR = FLAGS.path("manual_dir", None, "directory of archives that TFDS cannot download by itself")
PACKAGE_DIR = FLAGS.path("package_dir", None, "folder with the packages' archives, for emoji and glyphs")
cli.begin(FLAGS)

from collections.abc import Iterable

from diffusion_jax import data
from diffusion_jax.data import emoji, glyphs, text
from diffusion_jax.data.packages import Package
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded

OF_PACKAGES = ("emoji", "glyphs")


def main(argv: list[str]) -> None:
    """Prepare the data set and print where it is."""
    if not DATASET.value:
        raise UserError("--dataset is missing: a TFDS name such as fashion_mnist or cifar10, or digits, or text")
    data_dir = str(expanded(DATA_DIR.value or data.default_data_dir()))
    is_text = DATASET.value == "text"
    for flag in (IDX_DIR, MANUAL_DIR) if is_text else (CORPUS, TEXT, TEST_TEXT, HELD_OUT, TOKENIZER, BEGIN, END):
        if flag.present:
            what = "is not of a text" if is_text else "is of --dataset=text only"
            raise UserError(f"--{flag.name} {what}: leave it out")
    base = DATASET.value.split("/")[0]
    if PACKAGE_DIR.present and base not in OF_PACKAGES:
        raise UserError(f"--package_dir is only for --dataset={' and '.join(OF_PACKAGES)}: leave it out")
    if is_text:
        return prepare_text(data_dir)
    if base == "glyphs":
        return prepare_glyphs(data_dir)
    at_a_path = DATASET.value.partition(":")[0] in data.AT_A_PATH
    if at_a_path or DATASET.value in ("scenes", "synthetic_latents"):
        files = "; as files for other programs it is scenes/24, scenes/32, scenes/48 or scenes/64"
        raise UserError(f"dataset {DATASET.value!r} needs no preparation{files if DATASET.value == 'scenes' else ''}")
    from diffusion_jax.data import builders  # imports TFDS

    directories = {"idx_dir": IDX_DIR.value, "manual_dir": MANUAL_DIR.value, "package_dir": PACKAGE_DIR.value}
    prepared = builders.prepare(DATASET.value, data_dir, **directories)
    splits = ", ".join(f"{split}: {number} examples" for split, number in prepared.num_examples.items())
    print(f"{DATASET.value} {'is already' if prepared.was_there else 'is now'} in {prepared.directory} ({splits})")
    if base == "emoji":
        print(licences(emoji.PACKAGES))


def prepare_glyphs(data_dir: str) -> None:
    """Prepare the fonts of the data set "glyphs", whose pictures are drawn on access."""
    if DATASET.value != "glyphs":
        raise UserError(
            f"dataset {DATASET.value!r} has no configs: prepare 'glyphs'; data.options.size belongs to a run"
        )
    for flag in (IDX_DIR, MANUAL_DIR):
        if flag.present:
            raise UserError(f"--{flag.name} is not for glyphs: leave it out")
    prepared = glyphs.prepare_fonts(data_dir, PACKAGE_DIR.value)
    held_out = sum(family.held_out for family in glyphs.FETCHED)
    families = f"{len(glyphs.FETCHED)} font families, {held_out} of them held out"
    print(f"glyphs {'is already' if prepared.was_there else 'is now'} in {prepared.directory} ({families})")
    print(licences(prepared.packages))


def licences(packages: Iterable[Package]) -> str:
    """One line on the origin and the licences of the data."""
    return f"made of {', '.join(f'{package} ({package.licence})' for package in packages)}"


def prepare_text(data_dir: str) -> None:
    """Prepare a text."""
    if not CORPUS.value:
        raise UserError("--corpus is missing: give a name for the text, which data.options.corpus will use")
    prepared = text.prepare_text(
        CORPUS.value,
        TEXT.value,
        data_dir,
        test_files=TEST_TEXT.value,
        held_out=HELD_OUT.value,
        tokenizer=TOKENIZER.value,
        begin=BEGIN.value,
        end=END.value,
    )
    splits = ", ".join(f"{split}: {number:,} tokens" for split, number in prepared.tokens.items())
    print(f"{CORPUS.value} {'is already' if prepared.was_there else 'is now'} in {prepared.directory} ({splits})")


if __name__ == "__main__":
    cli.run(main)
