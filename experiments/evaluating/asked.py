"""The requests for samples: a class, a text, or both, for every sample."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from diffusion_jax.data.prompts import checked
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json_rows, read_text
from experiments.building.wiring import Experiment
from experiments.evaluating.pictures import balanced_labels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """The requests for the samples of one drawing.

    Attributes:
      fields: raw fields of a batch by name, [n, ...]; sample i uses row i mod n.
      texts: the requests as text for people, if there are any.
    """

    fields: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: "Asked | np.ndarray | None") -> "Asked":
        """Turn an array of classes, or None, into requests."""
        if isinstance(asked, Asked):
            return asked
        return cls() if asked is None else cls(fields={"label": np.asarray(asked, np.int32)})

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        """The classes, if classes are requested."""
        return self.fields.get("label")

    def rows(self, index: Int[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """The raw fields for the samples with these numbers."""
        return {name: values[index % len(values)] for name, values in self.fields.items()}

    def first(self, count: int) -> "Asked":
        """The requests for the first samples."""
        index = np.arange(count)
        texts = tuple(self.texts[i % len(self.texts)] for i in index) if self.texts else ()
        return Asked(fields=self.rows(index), texts=texts)

    @property
    def digest(self) -> str:
        """A hash of the texts; "" if there are none: classes follow from the network and the number of samples."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest() if self.texts else ""


def asked_in_words(experiment: Experiment, texts: Sequence[str], labels: np.ndarray | None = None) -> Asked:
    """Requests for these texts, in turn, and for classes if the network has them as a condition.

    Raises:
      UserError: the network has no text condition.
    """
    if experiment.text is None:
        told = "classes: give --labels" if experiment.num_classes else "nothing"
        raise UserError(f"a prompt needs a network that is told texts; this one is told {told}")
    fields = {**experiment.text.prepare({"text": list(texts)}), **shown_pictures(experiment, len(texts))}
    if labels is not None:
        fields["label"] = np.asarray(labels, np.int32)
    return Asked(fields=fields, texts=tuple(texts))


def shown_pictures(experiment: Experiment, count: int) -> dict[str, np.ndarray]:
    """Raw fields of the pictures that are conditions of the network, from held-out examples if there are any.

    They come from the examples whose captions `asked_for` takes, evenly spread.
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
    """The default requests: balanced classes, and captions of held-out data, evenly spread over the split.

    `prompts` takes the data's own prompts instead of captions; these come with what they require. Without held-out data
    the captions are those of the training data; for a subject and its class the two captions alternate. If the network
    has both captions and classes, both come from the same examples.

    Raises:
      UserError: there is no data to take captions from.
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
    """The given prompts; None if there are none.

    Raises:
      UserError: both flags are given, the file has no prompt, or a line of it is none.
    """
    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompts both say what to draw: give one of them")
    if file is None:
        return None if prompt is None else [prompt]
    if file.endswith(".jsonl"):
        rows = [(number, row.get("text")) for number, row in read_json_rows(file)]
        for number, found in rows:
            if not isinstance(found, str):
                raise UserError(f'line {number} of {file} has no "text" that is a string')
        prompts = [found for _, found in rows]
    else:
        prompts = [line.removesuffix("\r") for line in read_text(file).split("\n")]
        prompts = prompts if prompts[-1] else prompts[:-1]
    if not prompts:
        raise UserError(f"{file} holds no prompt")
    for number, text in enumerate(prompts, start=1):
        try:
            checked(text)
        except UserError as error:
            raise UserError(f"prompt {number} of {file}: {error}") from error
    return prompts
