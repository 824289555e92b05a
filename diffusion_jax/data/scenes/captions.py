"""Captions for scenes, and exactly what they require.

    label        "red star": one object, the largest, without mentioning the others
    sentence     "two red circles and a blue star", "a drawing of a green ring to the left of a heart"
    description  "two objects on a dark striped ground: a small red star at the top left; a large blue ring in the
                 centre. the red star is left of the blue ring."

One caption in seven of the first two densities names no colours. A caption is always true, and states a relation only
if it is beyond dispute (`Scene.clearly`). Its requirement is made together with it, and never parsed from it.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from diffusion_jax.data.scenes.graph import Requirement, Scene, SceneObject, Wanted, place_of

NUMBER_OF_DRAWS = 12
"""The number of random numbers that the wording of one caption uses."""

NUMBERS = ("no", "one", "two", "three", "four")
OPENINGS = ("", "", "a picture of ", "a drawing of ", "an image with ")
"""The beginnings of a sentence."""
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
SIZE_WORDS = {"small": ("small", "tiny"), "medium": ("medium", "middle-sized"), "large": ("large", "big")}
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
_UNCOLOURED = 1 / 7
_RELATED = 0.7  # share of sentences of at least two objects that state a relation, if one is clear


@dataclasses.dataclass(frozen=True)
class Choices:
    """Choices, by random numbers in [0, 1)."""

    numbers: Iterator[float]

    def one_of(self, words: Sequence[str]) -> str:
        return words[int(next(self.numbers) * len(words))]

    def happens(self, probability: float) -> bool:
        return next(self.numbers) < probability


def caption(scene: Scene, density: str, numbers: Sequence[float]) -> tuple[str, Requirement]:
    """A caption for a scene, and what it requires.

    Args:
      scene: a scene whose shapes and colours are known.
      density: "label", "sentence" or "description".
      numbers: `NUMBER_OF_DRAWS` random numbers in [0, 1), which choose the wording.
    """
    choose = Choices(iter(numbers))
    return {"label": _label, "sentence": _sentence, "description": _description}[density](scene, choose)


def wanted_of(one: SceneObject, *, colours: bool = True) -> Wanted:
    """An object by its shape, optionally with its colour."""
    return Wanted(shape=one.shape, colour=one.colour if colours else None)


def named(wanted: Wanted, number: int = 1, *, adjective: str = "") -> str:
    """ "a small red star", "two circles"."""
    noun = {"cross": "crosses"}.get(wanted.shape, f"{wanted.shape}s") if number > 1 else wanted.shape
    words = " ".join(word for word in (adjective, wanted.colour, noun) if word)
    return f"{NUMBERS[number]} {words}" if number > 1 else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _label(scene: Scene, choose: Choices) -> tuple[str, Requirement]:
    largest = max(scene.objects, key=lambda one: one.box[2] - one.box[0])
    wanted = wanted_of(largest, colours=not choose.happens(_UNCOLOURED))
    return named(wanted).split(" ", 1)[1], Requirement(objects=(wanted,), exact=False)


def _sentence(scene: Scene, choose: Choices) -> tuple[str, Requirement]:
    colours = not choose.happens(_UNCOLOURED)
    opening = choose.one_of(OPENINGS)
    groups = grouped(scene, colours=colours)
    order = [wanted for wanted, members in groups.items() for _ in members]
    singles = [(wanted, members[0]) for wanted, members in groups.items() if len(members) == 1]
    phrases = [named(wanted, len(members)) for wanted, members in groups.items()]
    stated = _relation(scene, singles, choose) if choose.happens(_RELATED) else None
    if stated is None:
        return f"{opening}{listed(phrases)}", Requirement(objects=tuple(order))
    one, relation, other, words = stated
    required = Requirement(objects=tuple(order), relations=((order.index(one), relation, order.index(other)),))
    if len(order) == 2:
        return f"{opening}{named(one)} {words} {named(other)}", required
    return f"{opening}{listed(phrases)}, {the(one)} {words} {the(other)}", required


def _description(scene: Scene, choose: Choices) -> tuple[str, Requirement]:
    groups = grouped(scene)
    wanted, phrases = [], []
    for kind, members in groups.items():
        placed = [dataclasses.replace(kind, size=one.size, place=place_of(one, scene.picture)) for one in members]
        wanted += placed
        sizes = [choose.one_of(SIZE_WORDS[one.size]) for one in members]
        places = [place_words(one.place) for one in placed]
        if len(members) == 1:
            phrases.append(f"{named(kind, adjective=sizes[0])} {places[0]}")
        else:
            each = [f"a {size} one {place}" for size, place in zip(sizes, places, strict=True)]
            phrases.append(f"{named(kind, len(members))}, {listed(each)}")
    total = len(wanted)
    texture = "" if scene.texture == "plain" else f"{scene.texture} "
    objects = "one object" if total == 1 else f"{NUMBERS[total]} objects"
    text = f"{objects} on a {scene.ground} {texture}ground: {'; '.join(phrases)}."
    singles = [(kind, members[0]) for kind, members in groups.items() if len(members) == 1]
    stated = _relation(scene, singles, choose)
    if stated is None:
        return text, Requirement(objects=tuple(wanted))
    one, relation, other, words = stated
    kinds = [kind for kind, members in groups.items() for _ in members]
    required = Requirement(objects=tuple(wanted), relations=((kinds.index(one), relation, kinds.index(other)),))
    return f"{text} {the(one)} is {words} {the(other)}.", required


def grouped(scene: Scene, *, colours: bool = True) -> dict[Wanted, list[SceneObject]]:
    """Objects grouped by the words that describe them."""
    groups: dict[Wanted, list[SceneObject]] = {}
    for one in scene.objects:
        groups.setdefault(wanted_of(one, colours=colours), []).append(one)
    return groups


def _relation(
    scene: Scene, singles: Sequence[tuple[Wanted, SceneObject]], choose: Choices
) -> tuple[Wanted, str, Wanted, str] | None:
    """One clear relation between two objects that are unique in the scene, and words for it."""
    found = [
        (one, relation, other)
        for one, first in singles
        for other, second in singles
        if one != other
        for relation in scene.clearly(first, second)
    ]
    if not found:
        return None
    one, relation, other = choose.one_of(found)
    return one, relation, other, choose.one_of(_RELATION_WORDS[relation])


def relation_words(relation: str, number: float) -> str:
    """Words for a relation, chosen by a random number in [0, 1)."""
    words = _RELATION_WORDS[relation]
    return words[int(number * len(words))]


def the(wanted: Wanted) -> str:
    """ "the red star"."""
    return f"the {named(wanted).split(' ', 1)[1]}"


def place_words(place: tuple[int, int]) -> str:
    """ "at the top left", for a cell of thirds (column, row)."""
    row, column = _ROWS[place[1]], _COLUMNS[place[0]]
    return f"at the {row} {column}".replace("  ", " ").strip() if row or column else "in the centre"
