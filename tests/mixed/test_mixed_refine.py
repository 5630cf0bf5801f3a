"""Tries of whole networks near what a solver found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitwright.errors import InputError
from bitwright.mixed.problem import Additive, Choices, Group, Problem, Width
from bitwright.mixed.refine import neighbours, refine
from bitwright.mixed.solvers.milp import Milp

WIDTHS = (Width(8, 8), Width(4, 4), Width(2, 2))


def problem_of(seed: int, groups: int = 5) -> tuple[Problem, dict[Choices, float]]:
    """A problem whose losses do not add up, and the true loss of every assignment."""
    random = np.random.default_rng(seed)
    bits = np.array([8.0, 4.0, 2.0])
    loss = Additive(values=tuple(tuple(sorted(random.random(3))) for _ in range(groups)))
    size = Additive(values=tuple(tuple(bits * random.integers(1, 9)) for _ in range(groups)))
    found = tuple(Group(name=f"g{i}", choices=WIDTHS) for i in range(groups))
    most = sum(row[0] for row in size.values) * 0.55
    problem = Problem(groups=found, loss=loss, costs={"size": size}, limits={"size": most})
    interactions = random.normal(0, 0.15, (groups, groups, 3, 3))
    true = {
        c: loss.of(c) + sum(interactions[g, h, c[g], c[h]] for g in range(groups) for h in range(g))
        for c in itertools.product(range(3), repeat=groups)
    }
    return problem, true


@pytest.mark.parametrize("seed", range(6))
def test_what_it_finds_is_the_best_of_its_tries_and_fits(seed: int) -> None:
    problem, true = problem_of(seed)
    start = Milp()(problem).best
    tried: list[Choices] = []

    def measured(choices: Choices) -> float:
        tried.append(choices)
        return true[choices]

    found, lost = refine(problem, start, measured, 20)
    assert tried[0] == start.choices and len(tried) == len(set(tried)) == 20
    assert lost == true[found.choices] == min(true[c] for c in tried) <= true[start.choices]
    assert all(problem.fits(c) for c in tried)
    assert found.loss == problem.loss.of(found.choices)  # what is foretold stays what is foretold


def test_some_tries_are_better_than_none_and_enough_are_the_optimum() -> None:
    better = []
    for seed in range(6):
        problem, true = problem_of(seed)
        start = Milp()(problem).best
        best = min(lost for choices, lost in true.items() if problem.fits(choices))
        lost = [refine(problem, start, true.__getitem__, tries)[1] for tries in (1, 10, 3**5)]
        assert lost[0] == true[start.choices] and lost[0] >= lost[1] >= lost[2] == best
        better.append(lost[1] < lost[0])
    assert sum(better) >= 4


def test_where_losses_add_up_nothing_is_better_than_the_solvers() -> None:
    problem, _ = problem_of(0)
    start = Milp()(problem).best
    assert refine(problem, start, problem.loss.of, 30)[0] == start


def test_neighbours_are_one_step_away() -> None:
    groups = [Group(name=name, choices=WIDTHS) for name in "ab"]
    near = list(neighbours(groups, (1, 1)))
    assert sorted(set(near)) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_weights_and_activations_are_steps_of_their_own() -> None:
    """Of two groups at W2A2 one gets activations or weights for the weights, or activations, of the other one."""
    widths = [Width(w, a) for w, a in itertools.product((4, 2, 1), (4, 2, 1))]
    groups, at = [Group(name=name, choices=tuple(widths)) for name in "ab"], widths.index(Width(2, 2))
    twice = {c for c in neighbours(groups, (at, at)) if at not in c}
    assert {tuple(str(widths[i]) for i in c) for c in twice} == {
        *itertools.product(("W1A2", "W2A1"), ("W4A2", "W2A4")), *itertools.product(("W4A2", "W2A4"), ("W1A2", "W2A1")),
    }  # fmt: skip


def test_no_try_is_refused() -> None:
    problem, true = problem_of(0)
    with pytest.raises(InputError, match="refine: is 0; expected 1 try or more"):
        refine(problem, Milp()(problem).best, true.__getitem__, 0)
