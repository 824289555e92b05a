"""What samples are asked for: a class, a text, or both, of every sample."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json_rows, read_text
from experiments.building.wiring import Experiment
from experiments.evaluating.pictures import balanced_labels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What the samples of one drawing are asked for.

    Attributes:
      fields: raw fields of a batch by name, [n, ...]; sample i is asked for row i mod n.
      texts: what was said, for people, where something was.
    """

    fields: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: "Asked | np.ndarray | None") -> "Asked":
        """Classes alone, or nothing at all, as what is asked."""
        if isinstance(asked, Asked):
            return asked
        return cls() if asked is None else cls(fields={"label": np.asarray(asked, np.int32)})

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        """The classes, where classes are asked for."""
        return self.fields.get("label")

    def rows(self, index: Int[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """The raw fields of the samples with these numbers."""
        return {name: values[index % len(values)] for name, values in self.fields.items()}

    def first(self, count: int) -> "Asked":
        """What the first samples are asked for."""
        index = np.arange(count)
        texts = tuple(self.texts[i % len(self.texts)] for i in index) if self.texts else ()
        return Asked(fields=self.rows(index), texts=texts)

    @property
    def digest(self) -> str:
        """A hash of what is said in words; "" where nothing is: classes follow from the network and their number."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest() if self.texts else ""


def asked_in_words(experiment: Experiment, texts: Sequence[str], labels: np.ndarray | None = None) -> Asked:
    """These texts, in turn, and classes where the network is told them.

    Raises:
      UserError: the network is told no text.
    """
    if experiment.text is None:
        told = "classes: give --labels" if experiment.num_classes else "nothing"
        raise UserError(f"a prompt needs a network that is told texts; this one is told {told}")
    fields = {**experiment.text.prepare({"text": list(texts)}), **shown_pictures(experiment, len(texts))}
    if labels is not None:
        fields["label"] = np.asarray(labels, np.int32)
    return Asked(fields=fields, texts=tuple(texts))


def shown_pictures(experiment: Experiment, count: int) -> dict[str, np.ndarray]:
    """Raw fields of the pictures that the network is told, of held-out examples where there are some, evenly spread.

    They are of the examples whose captions `asked_for` takes.
    """
    if not experiment.told_pictures:
        return {}
    pipeline = experiment.validation_pipeline or experiment.pipeline
    total = pipeline.info.num_examples
    examples = pipeline.examples(np.arange(min(count, total)) * total // min(count, total))
    found: dict[str, np.ndarray] = {}
    for part in experiment.told_pictures:
        found |= part.prepare({name: [example[name] for example in examples] for name in part.prepares})
    return found


def asked_for(experiment: Experiment, num_samples: int, *, prompts: bool = False) -> Asked:
    """What to ask for by default: balanced classes; captions of held-out data, evenly spread over the split.

    `prompts` takes the data's own prompts instead of captions; for each of them it is known what it requires.
    Where nothing is held out the captions are those of the training data; of a subject and its class the two of them,
    in turns. Where captions and classes are told, both are of the same examples.

    Raises:
      UserError: there are no data to take captions from.
    """
    classes = experiment.num_classes
    if experiment.told_text is None:
        return Asked.of(balanced_labels(num_samples, classes) if classes else None)
    if prompts:
        known = experiment.pictures.prompts
        return asked_in_words(experiment, [known[i].text for i in range(min(num_samples, len(known)))])
    if experiment.info.num_prior:
        return asked_in_words(experiment, [experiment.config.data[f"{side}_prompt"] for side in ("instance", "class")])
    split = experiment.config.data.validation_split or experiment.config.data.split
    texts = experiment.pipeline.texts(split, max_examples=num_samples)
    labels = experiment.pipeline.arrays(split, max_examples=num_samples)[1] if classes else None
    return asked_in_words(experiment, texts, labels)


def read_prompts(prompt: str | None, file: str | None) -> list[str] | None:
    """The prompts that are given; None where none are.

    Raises:
      UserError: both flags, no prompt in the file, or a line of it that is none.
    """
    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompts are two answers to one question: give one of them")
    if file is None:
        return None if prompt is None else [prompt]
    if file.endswith(".jsonl"):
        rows = [(number, row.get("text")) for number, row in read_json_rows(file)]
        for number, found in rows:
            if not isinstance(found, str):
                raise UserError(f'line {number} of {file} has no "text" that is a string')
        prompts = [found for _, found in rows]
    else:
        prompts = read_text(file).splitlines()
    if not prompts:
        raise UserError(f"{file} holds no prompt")
    return prompts
