"""Genetic search: half of each generation are mixtures of two good assignments, half are changes of one.

    repeat: parents = the best so far
            mixture: every group takes its choice from one of two parents
            change:  every group of one parent takes a random choice with probability `mutation`
            what does not fit is drawn again

For a fitness that does not add up over groups, where no program can be written down.

Choices made where the paper is silent: `parents` is how many of the best there are; a child that does not fit after
`DRAWS` draws takes over, group by group in random order, the choices of an assignment that fits, until it fits too;
the same assignment is never measured twice.

Source: Li et al., BRECQ, ICLR 2021, section 3.4 and algorithm 2 (population 50, 100 generations, mutation 0.1, half
crossover).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bitwright.errors import InputError
from bitwright.mixed.feasible import feasible
from bitwright.mixed.problem import Choices, Problem, Solution

#: Draws of a child before it is made to fit.
DRAWS = 20


@dataclass(frozen=True, kw_only=True)
class Genetic:
    """Crossover and mutation of the best assignments so far.

    Attributes:
        population: assignments of a generation.
        generations: how many.
        mutation: probability that a group is changed.
        crossover: part of a generation that are mixtures of two.
        parents: the best so far, of which the next generation is made.
        seed: the same one gives the same search.

    Example:
        >>> from bitwright.mixed.problem import Additive, Group, Width
        >>> groups = tuple(Group(name=name, choices=(Width(8, 8), Width(4, 4))) for name in ("a", "b"))
        >>> loss, size = Additive(values=((0.0, 1.0), (0.0, 2.0))), Additive(values=((8.0, 4.0), (80.0, 40.0)))
        >>> problem = Problem(groups=groups, loss=loss, costs={"size": size}, limits={"size": 50.0})
        >>> Genetic(generations=5)(problem).best.choices
        (0, 1)
    """

    population: int = 50
    generations: int = 100
    mutation: float = 0.1
    crossover: float = 0.5
    parents: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "generations", "parents"):
            if getattr(self, name) < 1:
                raise InputError(f"genetic.{name}", str(getattr(self, name)), "1 or more")
        for name in ("mutation", "crossover"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"genetic.{name}", str(getattr(self, name)), "0 to 1")

    def __call__(self, problem: Problem) -> Solution:
        """Solve a problem.

        Raises:
            InputError: limits that cannot be met.
        """
        known = feasible(problem).choices
        found = self.evolve(problem.sizes, problem.loss.of, problem.fits, known)
        points = tuple(problem.assignment(choices) for choices in found)
        return Solution(best=points[-1], points=points)

    def evolve(
        self,
        sizes: Sequence[int],
        fitness: Callable[[Choices], float],
        fits: Callable[[Choices], bool],
        known: Choices,
    ) -> list[Choices]:
        """The search itself, for any fitness.

        Args:
            sizes: choices of each group.
            fitness: what is to be small; called once for every assignment that is met.
            fits: whether an assignment is within its limits.
            known: an assignment that fits.

        Returns:
            What was the best when it was found, the best of all last.

        Raises:
            InputError: `known` does not fit.

        Example:
            >>> Genetic().evolve([3, 3], lambda c: abs(c[0] - c[1] - 1), lambda c: sum(c) > 2, (2, 2))[-1]
            (2, 1)
        """
        if not fits(known):
            raise InputError("genetic", f"{known} is to fit and does not", "an assignment within the limits")
        draws = _Draws(sizes, fits, known, self.mutation, np.random.default_rng(self.seed))
        mixtures = round(self.population * self.crossover)
        measured: dict[Choices, float] = {}
        best: list[Choices] = []
        population = [known, *(draws.fitting(draws.whole) for _ in range(self.population - 1))]
        for generation in range(self.generations + 1):
            for child in population:
                if child not in measured:
                    measured[child] = fitness(child)
                    if not best or measured[child] < measured[best[-1]]:
                        best.append(child)
            if generation < self.generations:
                parents = sorted(measured, key=lambda choices: (measured[choices], choices))[: self.parents]
                ways = [draws.mixture] * mixtures + [draws.change] * (self.population - mixtures)
                population = [draws.fitting(functools.partial(way, parents)) for way in ways]
        return best


@dataclass(frozen=True)
class _Draws:
    """Where assignments come from."""

    sizes: Sequence[int]
    fits: Callable[[Choices], bool]
    known: Choices
    mutation: float
    random: np.random.Generator

    def whole(self) -> Choices:
        """Every group by chance."""
        return tuple(int(self.random.integers(size)) for size in self.sizes)

    def mixture(self, parents: Sequence[Choices]) -> Choices:
        """Each group as in one of two parents."""
        a, b = (parents[int(self.random.integers(len(parents)))] for _ in range(2))
        return tuple(x if first else y for x, y, first in zip(a, b, self.random.random(len(a)) < 0.5, strict=True))

    def change(self, parents: Sequence[Choices]) -> Choices:
        """Some groups of one parent by chance."""
        parent = parents[int(self.random.integers(len(parents)))]
        moved = self.random.random(len(parent)) < self.mutation
        return tuple(new if m else old for new, old, m in zip(self.whole(), parent, moved, strict=True))

    def fitting(self, draw: Callable[[], Choices]) -> Choices:
        """What is drawn, when it fits; after `DRAWS` draws the last one with choices of `known` until it fits."""
        for _ in range(DRAWS):
            child = draw()
            if self.fits(child):
                return child
        made = list(child)
        for g in self.random.permutation(len(made)):
            made[g] = self.known[g]
            if self.fits(tuple(made)):
                break
        return tuple(made)
