"""Places for names beside points, so that no name covers another one or a point, nor, if there is space, a line.

Names take their places in order, each the nearest free one of a fixed list around its point: twelve directions, then
the same further away, where a line leads to the point; such lines cross neither each other nor a name if there is
another place. The same points give the same places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Directions that are tried, the most usual first: right above, right below, left above, left below, above, ...
DIRECTIONS = (
    (1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0),
    (0.4, 1.0), (-0.4, 1.0), (0.4, -1.0), (-0.4, -1.0),
)  # fmt: skip
#: What it weighs that the line to a name crosses a name or another such line, where a piece of a line weighs 1.
CROSSING = 100
#: Distances that are tried, in gaps.
DISTANCES = (0.7, 1.0, 1.5, 2.2, 3.0, 4.0, 5.5, 7.0, 9.0)


@dataclass(frozen=True)
class Box:
    """A rectangle.

    Example:
        >>> Box(0, 0, 2, 1).overlaps(Box(1, 0.5, 3, 3)), Box(0, 0, 2, 1).overlaps(Box(2, 0, 3, 1))
        (True, False)
    """

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether they share more than an edge."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def holds(self, other: Box) -> bool:
        """Whether the other one is inside."""
        return (
            self.left <= other.left and other.right <= self.right and self.bottom <= other.bottom
            and other.top <= self.top
        )  # fmt: skip

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of it that is nearest to another one."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def distance(self, x: float, y: float) -> float:
        """How far a point is from it."""
        return math.dist(self.nearest(x, y), (x, y))


def place(
    points: Sequence[tuple[float, ...]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    taken: Sequence[Box],
    lines: Sequence[Box] = (),
    *,
    gap: float,
) -> list[Box | None]:
    """A box for each name, or None where all places are taken.

    Args:
        points: x and y of what is named.
        sizes: width and height of its name.
        frame: in which names have to stay.
        taken: what they must not cover.
        lines: of what they cover as little as there is a place for.
        gap: between a point and its name, if there is space.

    Example:
        >>> boxes = place([(0, 0), (1, 0)], [(4, 2), (4, 2)], Box(-9, -9, 9, 9), [], gap=1)
        >>> boxes[0].overlaps(boxes[1])
        False
        >>> place([(0, 0)], [(4, 2)], Box(-1, -1, 1, 1), [], gap=1)
        [None]
    """
    covered, found, leaders = list(taken), list[Box | None](), list[Box]()
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        candidates = [
            _beside(x, y, width, height, gap * distance, direction)
            for distance in DISTANCES for direction in DIRECTIONS
        ]  # fmt: skip
        free = [c for c in candidates if frame.holds(c) and not any(c.overlaps(box) for box in covered)]
        box, least = None, math.inf
        for candidate in free:
            leader = along((x, y), candidate.nearest(x, y), gap / 2)
            covers = sum(candidate.overlaps(line) for line in (*lines, *leaders))
            weight = covers + CROSSING * sum(_meet(leader, [other]) for other in (*leaders, *filter(None, found)))
            if weight < least:
                box, least = candidate, weight
            if not weight:
                break
        found.append(box)
        if box is not None:
            covered.append(box)
            leaders += along((x, y), box.nearest(x, y), gap / 2)
    return found


def _meet(a: Sequence[Box], b: Sequence[Box]) -> bool:
    """Whether any two of these overlap."""
    return any(first.overlaps(second) for first in a for second in b)


def along(start: tuple[float, ...], end: tuple[float, ...], step: float) -> list[Box]:
    """Small boxes that cover the line between two points, for `place` to keep away from.

    Example:
        >>> along((0, 0), (4, 0), 2)
        [Box(left=-1.0, bottom=-1.0, right=1.0, top=1.0), Box(left=1.0, bottom=-1.0, right=3.0, top=1.0),
         Box(left=3.0, bottom=-1.0, right=5.0, top=1.0)]
    """
    count, half = max(1, math.ceil(math.dist(start, end) / step)), step / 2
    shares = [i / count for i in range(count + 1)]
    at = [tuple(a + (b - a) * share for a, b in zip(start, end, strict=True)) for share in shares]
    return [Box(x - half, y - half, x + half, y + half) for x, y in at]


def _beside(x: float, y: float, width: float, height: float, gap: float, direction: tuple[float, float]) -> Box:
    """A name in a direction from a point."""
    across, up = direction
    left = x + across * gap - (width / 2 if across == 0 else width if across < 0 else 0.0)
    bottom = y + up * gap - (height / 2 if up == 0 else height if up < 0 else 0.0)
    return Box(left, bottom, left + width, bottom + height)
