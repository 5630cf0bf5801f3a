"""What every solver of the table keeps to, against all assignments of small problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bitwright.errors import InputError
from bitwright.mixed.problem import Assignment, Problem
from bitwright.mixed.solvers import SOLVERS

Draw = Callable[..., Problem]
Every = Callable[[Problem], list[Assignment]]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_keeps_to_the_limits_and_says_no_more_than_is_true(
    name: str, draw_problem: Draw, every: Every
) -> None:
    for seed in range(2):
        problem = draw_problem(seed, groups=4)
        least = min(point.loss for point in every(problem))
        found = SOLVERS[name].load()()(problem)
        assert problem.fits(found.best.choices)
        assert found.best == problem.assignment(found.best.choices)
        assert found.best.loss >= least
        assert found.best.loss == least or not found.proven
        assert found.bound is None or found.bound <= least + 1e-12
        assert found.best in found.points
        assert found == SOLVERS[name].load()()(problem), "not the same when asked again"


@pytest.mark.parametrize("name", SOLVERS)
def test_impossible_limits_are_refused_with_what_can_be_reached(name: str, draw_problem: Draw) -> None:
    problem = dataclasses.replace(draw_problem(0, groups=4), limits={"size": 1.0})
    with pytest.raises(InputError, match=r"limit of size: 1; expected \d+ \(the least .*\) to \d+ \(the most\)"):
        SOLVERS[name].load()()(problem)


@pytest.mark.parametrize("name", SOLVERS)
def test_limits_that_exclude_each_other_are_refused_with_what_is_nearest(
    name: str, draw_problem: Draw, every: Every
) -> None:
    drawn = draw_problem(2, groups=4, costs=2)
    points = every(dataclasses.replace(drawn, limits={}))
    # A little more than the least of each, which no assignment has of both.
    limits = {cost: min(point.costs[cost] for point in points) + 1.0 for cost in drawn.costs}
    problem = dataclasses.replace(drawn, limits=limits)
    assert every(problem) == []
    with pytest.raises(InputError, match=r"cannot be met at once.*nearest is size = "):
        SOLVERS[name].load()()(problem)


@pytest.mark.parametrize("name", SOLVERS)
def test_without_limits_the_best_is_the_least_loss(name: str, draw_problem: Draw, every: Every) -> None:
    problem = dataclasses.replace(draw_problem(1, groups=4), limits={})
    assert SOLVERS[name].load()()(problem).best.loss == min(point.loss for point in every(problem))
