"""Orders that look at no image: what an order that does has to be better than.

They lower the same groups as MSQ, one choice a step: all but those that hold the first layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bitwright.data.batches import Batches
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library
from bitwright.mixed.problem import Additive, Choices
from bitwright.mixed.sensitivity.points import of_groups, points, tied
from bitwright.mixed.solvers.greedy import Step, lowered
from bitwright.mixed.space import Space
from bitwright.pipeline import Progress, State


@dataclass(frozen=True, kw_only=True)
class Imageless:
    """An order by a number of each group that depends on the choices alone."""

    needs_labels: ClassVar[bool] = False

    def scores(self, choices: Choices) -> list[float]:
        """A number a group; the smallest is lowered."""
        raise NotImplementedError

    def ties(self, state: State) -> list[tuple[str, ...]]:
        """The same as MSQ's: shortcuts move with the last layers of their blocks."""
        return tied(state)

    def passes(self, space: Space) -> float:
        """None."""
        return 0.0

    def trajectory(
        self, library: Library, calibration: Batches, validation: Batches, costs: Mapping[str, Additive],
        limits: Mapping[str, float], kept: Kept | None = None, images_done: Progress | None = None,
    ) -> Iterator[Step]:  # fmt: skip
        """All steps from the widest network down to the limits; no image is read, and nothing has to be kept.

        Raises:
            InputError: see `lowered` and `of_groups`.
        """
        _, held = of_groups(points(library.state.model), library.space)
        return lowered(library.space.groups, costs, limits, self.scores, fixed=held)


@dataclass(frozen=True, kw_only=True)
class ByChance(Imageless):
    """Each step lowers one of the groups that can go lower, all of them equally likely.

    Args:
        seed: of the draws; a step's draw depends on it and on the number of steps before.

    Example:
        >>> ByChance(seed=1).scores((0, 1)) == ByChance(seed=1).scores((1, 0)) != ByChance(seed=2).scores((1, 0))
        True
    """

    seed: int = 0

    def scores(self, choices: Choices) -> list[float]:
        """Numbers drawn from 0 to 1."""
        found: list[float] = np.random.default_rng((self.seed, sum(choices))).random(len(choices)).tolist()
        return found


@dataclass(frozen=True, kw_only=True)
class BySize(Imageless):
    """The group with the most parameters goes down to its last choice, then the next one: MSQ with equal scores.

    Example:
        >>> BySize().scores((0, 1))
        [0.0, 0.0]
    """

    def scores(self, choices: Choices) -> list[float]:
        """All equal."""
        return [0.0] * len(choices)
