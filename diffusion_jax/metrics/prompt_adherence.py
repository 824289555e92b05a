"""Are samples what their prompts ask for, to a reader of scenes that makes no mistake on true ones?"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, UInt8

from diffusion_jax.data.scenes import Requirement, Scene, SceneOptions
from diffusion_jax.data.scenes.prompts import CATEGORIES, Prompt, PromptSuite
from diffusion_jax.data.scenes.reading import read
from diffusion_jax.errors import UserError
from diffusion_jax.metrics.base import METRICS, ImageSet, Number, check_same_shape, proportion

_MOST_COMPARED = 50  # other prompts that each picture is held against by chance


def adherence(
    images: UInt8[np.ndarray, "n size size 3"], requirements: Sequence[Requirement]
) -> Bool[np.ndarray, " n"]:
    """Whether each picture is what is required of it.

    Raises:
      UserError: pictures that the reader does not take, or another number of requirements.
    """
    if len(images) != len(requirements):
        raise UserError(f"{len(images)} pictures do not go with {len(requirements)} requirements: give one for each")
    return _met(read(images), requirements)


def by_chance(seen: Sequence[Scene], prompts: Sequence[Prompt]) -> float:
    """How often a picture is what another prompt asks for: the adherence of samples that do not heed theirs."""
    others = sorted({prompt.text: prompt for prompt in prompts}.items())
    step = max(1, len(others) // _MOST_COMPARED)
    hits = [
        other.requirement.holds(scene)
        for scene, prompt in zip(seen, prompts, strict=True)
        for text, other in others[::step]
        if text != prompt.text
    ]
    return float(np.mean(hits)) if hits else 0.0


def _met(seen: Sequence[Scene], requirements: Sequence[Requirement]) -> Bool[np.ndarray, " n"]:
    return np.array([required.holds(scene) for scene, required in zip(seen, requirements, strict=True)], bool)


@METRICS.register(
    "prompt_adherence",
    example={"prompts": PromptSuite(SceneOptions(size=24, max_objects=2), 60), "round_trip": np.asarray},
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptAdherence:
    """Share of samples that are what their prompt asks for: no less and no more, in shape, colour, number and place.

    The judge reads shapes, colours and places from the picture by rules (`data.scenes.reading`) and never sees the
    prompt's words. Strict: one object too many is wrong.

    How to read it: by category as GenEval has them (Ghosh et al. 2023, arXiv:2310.11513); and apart for prompts whose
    pairs of shape and colour the training showed, and for those with one that it never showed. `ceiling` is what true
    scenes for the same prompts score, `shuffled` what these samples score against other samples' prompts: chance. Of a
    model of latents `round_trip` is what the true scenes score once its first stage has encoded and decoded them: no
    sample of the model can be expected to be read better. It says nothing about variety.

    Attributes:
      prompts: with what they require; those of data.dataset=scenes.
      round_trip: pictures through the first stage, where there is one.

    Raises:
      UserError: there are none.
    """

    prompts: PromptSuite | None = None
    round_trip: Callable[[UInt8[np.ndarray, "n size size 3"]], UInt8[np.ndarray, "n size size 3"]] | None = None
    title: ClassVar[str] = "Prompt adherence"
    about: ClassVar[str] = (
        "A reader of scenes looks at each sample: does it show what its prompt asks for, no less and no more? The "
        "ceiling is what true scenes score, chance is what the samples score against the prompts of others."
    )
    headline: ClassVar[str] = "adherence"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"samples", "prompts"})
    also: ClassVar[tuple[str, ...]] = ("adherence_seen", "adherence_held_out")
    numbers: ClassVar[Mapping[str, Number]] = {
        "adherence": Number(label="Samples that are what was asked for", kind="percent"),
        "adherence_seen": Number(label="Of pairs seen in training", kind="percent", lower_is_better=False),
        "adherence_held_out": Number(label="Of pairs never seen in training", kind="percent", lower_is_better=False),
        **{name: Number(label=name.replace("_", " "), kind="percent") for name in CATEGORIES},
        "ceiling": Number(label="True scenes for the same prompts", kind="percent"),
        "round_trip": Number(label="The same through the first stage", kind="percent"),
        "shuffled": Number(label="Against the prompts of other samples", kind="percent"),
    }
    note: ClassVar[str] = "{ceiling} for true scenes, {shuffled} by chance"

    def __post_init__(self):
        if not self.prompts:
            raise UserError(
                "prompt_adherence needs prompts with what they require: data.dataset=scenes has them; leave this "
                "metric out for other data"
            )

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns `adherence`, the same of every category, of seen and of held-out pairs with 95% Wilson intervals,
        `ceiling`, `round_trip` of latents, `shuffled` and the number of samples."""
        check_same_shape(samples, train, test)
        asked = self._asked(samples)
        seen = read(samples.images)
        hits = _met(seen, [prompt.requirement for prompt in asked])
        new = np.array([prompt.held_out for prompt in asked], object)
        groups = {
            **{name: np.array([prompt.category == name for prompt in asked]) for name in CATEGORIES},
            "adherence_seen": new == False,  # noqa: E712  None is neither
            "adherence_held_out": new == True,  # noqa: E712
        }
        return {
            **proportion("adherence", hits),
            **{
                key: value
                for name, of in groups.items()
                if of.any()
                for key, value in proportion(name, hits[of]).items()
            },
            **self._ceiling(asked),
            "shuffled": by_chance(seen, asked),
            "num_samples": len(samples),
        }

    def _asked(self, samples: ImageSet) -> list[Prompt]:
        """The prompts of the samples.

        Raises:
          UserError: samples without texts, or with others.
        """
        if samples.texts is None:
            raise UserError("prompt_adherence needs the texts that samples were asked for with, and they have none")
        known = self.prompts.by_text()
        other = next((text for text in samples.texts if text not in known), None)
        if other is not None:
            raise UserError(
                f"what {other!r} requires is not known: prompt_adherence judges samples of the prompts of its data set"
            )
        return [known[text] for text in samples.texts]

    def _ceiling(self, asked: Sequence[Prompt]) -> dict[str, float]:
        """The adherence of true scenes for these prompts, as they are and through the first stage."""
        texts = {prompt.text for prompt in asked}
        rows = [i for i, prompt in enumerate(self.prompts) if prompt.text in texts]
        pictures, wanted = self.prompts.pictures(rows), [self.prompts[i].requirement for i in rows]
        found = {"ceiling": float(adherence(pictures, wanted).mean())}
        if self.round_trip is not None:
            found["round_trip"] = float(adherence(self.round_trip(pictures), wanted).mean())
        return found
