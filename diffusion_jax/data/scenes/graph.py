"""The content of a scene, the requirements on a scene, and whether the one meets the other."""

import dataclasses
import itertools
from collections.abc import Sequence

from diffusion_jax.data.scenes.vocabulary import Colour, Shape, Size

CLEAR = 0.15
"""A caption states a relation if centres are this share of the picture apart along it, and boxes do not overlap
there."""
ENOUGH = 0.08
"""A requested relation holds if centres are this share of the picture apart along it."""
NEAR = 0.08
"""A requested place may be missed by this share of the picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape.

    Attributes:
      shape: its shape; None if a reader cannot tell.
      colour: its colour; None if a reader cannot tell.
      size: small, medium or large.
      box: (left, top, right, bottom) in pixels, right and bottom not included.
    """

    shape: Shape | None
    colour: Colour | None
    size: Size
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels from the top left corner."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """The graph of one picture: its side in pixels, its objects, and its ground, "" if that is not known."""

    picture: int
    objects: tuple[SceneObject, ...]
    ground: str = ""
    texture: str = ""

    def clearly(self, one: SceneObject, other: SceneObject) -> tuple[str, ...]:
        """The relations of one object to another that are beyond dispute."""
        (x, y), (other_x, other_y) = one.centre, other.centre
        found = []
        for axis, step, names in ((0, other_x - x, ("left of", "right of")), (1, other_y - y, ("above", "below"))):
            first, second = (one, other) if step > 0 else (other, one)
            apart = first.box[axis + 2] <= second.box[axis]
            if apart and abs(step) >= CLEAR * self.picture:
                found.append(names[0] if step > 0 else names[1])
        return tuple(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """An object as words describe it; None for what they leave open. `place` is a cell of thirds, (column, row)."""

    shape: Shape | None = None
    colour: Colour | None = None
    size: Size | None = None
    place: tuple[int, int] | None = None

    def fits(self, seen: SceneObject, picture: int) -> bool:
        """Whether an object fits this description."""
        for name in ("shape", "colour", "size"):
            wanted = getattr(self, name)
            if wanted is not None and wanted != getattr(seen, name):
                return False
        if self.place is None:
            return True
        shares = (coordinate / picture for coordinate in seen.centre)
        return all(
            third / 3 - NEAR <= share <= (third + 1) / 3 + NEAR for third, share in zip(self.place, shares, strict=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirement:
    """What a picture must show according to a text.

    Attributes:
      objects: the wanted objects, each a different object of the picture.
      relations: (i, relation, j): object i has this relation to object j.
      exact: whether the picture must show nothing else.
    """

    objects: tuple[Wanted, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    exact: bool = True

    def holds(self, seen: Scene) -> bool:
        """Whether the picture's objects can be matched with everything that is wanted."""
        if len(seen.objects) < len(self.objects) or (self.exact and len(seen.objects) > len(self.objects)):
            return False
        return any(self._is_met_by(chosen, seen) for chosen in itertools.permutations(seen.objects, len(self.objects)))

    def _is_met_by(self, chosen: Sequence[SceneObject], seen: Scene) -> bool:
        pairs = zip(self.objects, chosen, strict=True)
        return all(wanted.fits(one, seen.picture) for wanted, one in pairs) and all(
            related(chosen[i], relation, chosen[j], seen.picture) for i, relation, j in self.relations
        )


def related(one: SceneObject, relation: str, other: SceneObject, picture: int) -> bool:
    """Whether the relation holds for the centres, by `ENOUGH` of the picture."""
    (x, y), (other_x, other_y) = one.centre, other.centre
    ahead = {"left of": other_x - x, "right of": x - other_x, "above": other_y - y, "below": y - other_y}
    return ahead[relation] >= ENOUGH * picture


def place_of(seen: SceneObject, picture: int) -> tuple[int, int]:
    """The cell of thirds that contains the centre, (column, row)."""
    column, row = (min(int(3 * coordinate / picture), 2) for coordinate in seen.centre)
    return column, row
