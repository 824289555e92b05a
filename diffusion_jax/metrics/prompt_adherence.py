"""Do samples show what their prompts ask for, according to a reader that makes no mistake on true scenes?"""

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

_MOST_COMPARED = 50  # other prompts that each picture is compared with, to estimate chance


def adherence(
    images: UInt8[np.ndarray, "n size size 3"], requirements: Sequence[Requirement]
) -> Bool[np.ndarray, " n"]:
    """Whether each picture shows what is required of it.

    Raises:
      UserError: pictures that the reader does not accept, or another number of requirements.
    """
    if len(images) != len(requirements):
        raise UserError(f"{len(images)} pictures for {len(requirements)} requirements: give one for each")
    return _met(read(images), requirements)


def by_chance(seen: Sequence[Scene], prompts: Sequence[Prompt]) -> float:
    """How often a picture fits another prompt: the adherence of samples that ignore their prompts."""
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
    """Share of samples that show exactly what their prompt asks for, in shape, colour, number and place.

    The judge reads shapes, colours and places from the picture by rules (`data.scenes.reading`) and never sees the
    prompt's words. It is strict: one object too many is an error.

    How to read it: the score is also given by GenEval's categories (Ghosh et al. 2023, arXiv:2310.11513), and
      separately for
    prompts whose pairs of shape and colour occur in training and for those with a new pair. `ceiling` is the score of
    true scenes for the same prompts. `shuffled` is the score of these samples against other samples' prompts, which is
    chance. For a model of latents, `round_trip` is the score of the true scenes after its first stage has encoded and
    decoded them, an upper bound for its samples. The metric says nothing about variety.

    Attributes:
      prompts: prompts with their requirements, from data.dataset=scenes.
      round_trip: sends pictures through the first stage, if there is one.

    Raises:
      UserError: there are no prompts.
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
                "prompt_adherence needs prompts with known requirements: data.dataset=scenes has them; leave this "
                "metric out for other data"
            )

    def __call__(self, samples: ImageSet, *, train: ImageSet, test: ImageSet) -> dict[str, float]:
        """Returns `adherence`, for all prompts, for every category, for seen and for held-out pairs, with 95% Wilson
        intervals; `ceiling`, `round_trip` for latents, `shuffled` and the number of samples."""
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
          UserError: the samples have no texts, or others.
        """
        if samples.texts is None:
            raise UserError("prompt_adherence needs the prompts of the samples, but they have none")
        known = self.prompts.by_text()
        other = next((text for text in samples.texts if text not in known), None)
        if other is not None:
            raise UserError(
                f"the requirements of {other!r} are unknown: prompt_adherence judges only samples for its data set's "
                f"prompts"
            )
        return [known[text] for text in samples.texts]

    def _ceiling(self, asked: Sequence[Prompt]) -> dict[str, float]:
        """The adherence of true scenes for these prompts, as they are and after the first stage."""
        texts = {prompt.text for prompt in asked}
        rows = [i for i, prompt in enumerate(self.prompts) if prompt.text in texts]
        pictures, wanted = self.prompts.pictures(rows), [self.prompts[i].requirement for i in rows]
        found = {"ceiling": float(adherence(pictures, wanted).mean())}
        if self.round_trip is not None:
            found["round_trip"] = float(adherence(self.round_trip(pictures), wanted).mean())
        return found
