"""Genetic search: near the least loss where losses add up, and where they do not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest

from bitwright.errors import InputError
from bitwright.mixed.problem import Assignment, Choices, Problem
from bitwright.mixed.solvers.genetic import Genetic
from bitwright.mixed.solvers.milp import Milp

Draw = Callable[..., Problem]


def test_it_finds_the_least_loss_of_most_small_problems(draw_problem: Draw) -> None:
    least = 0
    for seed in range(8):
        problem = draw_problem(seed, groups=8)
        found, exact = Genetic(generations=40)(problem), Milp()(problem).best.loss
        assert exact - 1e-12 <= found.best.loss
        least += found.best.loss == pytest.approx(exact, abs=1e-12)
    assert least >= 6


def test_generations_help_and_a_seed_gives_the_same_again(draw_problem: Draw) -> None:
    problem = draw_problem(0, groups=20)
    short, long = (Genetic(generations=n, population=20)(problem) for n in (1, 40))
    assert long.best.loss < short.best.loss
    assert long == Genetic(generations=40, population=20)(problem)
    assert long.points != Genetic(generations=40, population=20, seed=1)(problem).points
    losses = [point.loss for point in long.points]
    assert losses == sorted(losses, reverse=True) and long.best == long.points[-1]


def test_everything_that_is_measured_fits_and_nothing_is_measured_twice(draw_problem: Draw) -> None:
    drawn = draw_problem(5, groups=8)
    # So tight that hardly a draw fits.
    low = 10.0 + sum(map(min, drawn.costs["size"].values))
    problem = dataclasses.replace(drawn, limits={"size": low + 10.0})
    measured: list[Choices] = []

    def fitness(choices: Choices) -> float:
        measured.append(choices)
        return problem.loss.of(choices)

    known = tuple(row.index(min(row)) for row in problem.costs["size"].values)
    found = Genetic(generations=10).evolve(problem.sizes, fitness, problem.fits, known)
    assert len(measured) == len(set(measured)) > 1 and all(map(problem.fits, measured))
    assert problem.loss.of(found[-1]) == min(map(problem.loss.of, measured))


def test_a_fitness_that_does_not_add_up() -> None:
    # The parity of the sum and the places of neighbours: nothing of it is a sum over groups.
    def fitness(choices: Choices) -> float:
        return sum(choices) % 2 * 10.0 + max(abs(a - b) for a, b in itertools.pairwise(choices)) + choices[0]

    found = Genetic(generations=60).evolve([3] * 8, fitness, lambda c: sum(c) >= 5, (2,) * 8)
    assert fitness(found[-1]) == 1.0 and sum(found[-1]) >= 5


def test_without_mutation_nothing_new_comes_and_without_crossover_it_still_does(draw_problem: Draw) -> None:
    problem = dataclasses.replace(draw_problem(0, groups=20), limits={})
    start, still = (Genetic(generations=n, mutation=0.0, crossover=0.0)(problem) for n in (0 + 1, 20))
    assert still.best == start.best
    moved = Genetic(generations=20, crossover=0.0)(problem)
    assert moved.best.loss < still.best.loss


@pytest.mark.parametrize(
    ("option", "value"),
    [("population", 0), ("generations", 0), ("parents", 0), ("mutation", 1.5), ("crossover", -0.1)],
)
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"genetic\.{option}"):
        Genetic(**{option: value})  # type: ignore[arg-type]


def test_a_start_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="is to fit and does not"):
        Genetic().evolve([2], lambda c: 0.0, lambda c: False, (0,))


def test_points_are_assignments_of_the_problem(draw_problem: Draw) -> None:
    problem = draw_problem(0)
    assert all(isinstance(p, Assignment) and p == problem.assignment(p.choices) for p in Genetic()(problem).points)
