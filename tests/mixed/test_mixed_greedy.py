"""Greedy lowering: MSQ's loop, and the steps of losses that add up."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from bitwright.cost.workload import FLOAT
from bitwright.errors import InputError
from bitwright.mixed.problem import Additive, Choices, Group, Problem, Width
from bitwright.mixed.solvers.greedy import Greedy, Step, down, lowered, steps_down
from bitwright.mixed.solvers.milp import Milp

Draw = Callable[..., Problem]
BITS = (8, 7, 6, 5, 4, 3, 2)
PARAMETERS = (100, 400, 400, 50)
GROUPS = [
    Group(name=f"g{g}", choices=tuple(Width(b, b) for b in BITS), parameters=n) for g, n in enumerate(PARAMETERS)
]
SIZE = {"size": Additive(values=tuple(tuple(float(n * b) for b in BITS) for n in PARAMETERS))}


def equal(choices: Choices) -> list[float]:
    return [0.5] * len(choices)


def by_chance(seed: int) -> Callable[[Choices], list[float]]:
    random = np.random.default_rng(seed)
    return lambda choices: random.random(len(choices)).tolist()


def test_equal_scores_lower_the_largest_first_then_the_first() -> None:
    steps = list(lowered(GROUPS, SIZE, {"size": 0.0}, equal))
    assert [step.group for step in steps] == [None, *[1] * 6, *[2] * 6, *[0] * 6, *[3] * 6]


def test_the_smallest_score_goes_down_and_all_are_measured_again() -> None:
    asked: list[Choices] = []

    def scores(choices: Choices) -> list[float]:
        asked.append(choices)
        return [0.3 + choices[0], 0.4 + choices[1], 9.0, 0.5 + choices[3]]

    steps = list(lowered(GROUPS, SIZE, {"size": 950 * 8.0 - 551}, scores))
    assert [step.group for step in steps] == [None, 0, 1, 3, 0]
    assert asked == [step.choices for step in steps[:-1]]
    assert steps[1].scores == (0.3, 0.4, 9.0, 0.5)
    # 100 + 400 + 50 + 100 bits less than 7600: the first step that gets to 7049 is the last one.
    assert [step.costs["size"] for step in steps] == [7600.0, 7500.0, 7100.0, 7050.0, 6950.0]


def test_sizes_fall_by_one_step_of_one_group_and_a_seed_gives_the_same_again() -> None:
    steps = list(lowered(GROUPS, SIZE, {}, by_chance(3)))
    assert steps == list(lowered(GROUPS, SIZE, {}, by_chance(3)))
    assert steps != list(lowered(GROUPS, SIZE, {}, by_chance(4)))
    assert len(steps) == 1 + 4 * 6 and steps[-1].choices == (6, 6, 6, 6)
    for before, after in itertools.pairwise(steps):
        assert after.costs["size"] < before.costs["size"]
        moves = [b - a for a, b in zip(before.choices, after.choices, strict=True)]
        assert sorted(moves) == [0, 0, 0, 1] and moves[after.group or 0] == 1


def test_apart_no_step_widens_anything_and_the_wider_of_weight_and_activation_goes_first() -> None:
    bits = sorted(((w, a) for w in (7, 6, 5, 4, 3, 2, 1) for a in (7, 4, 3, 2)), key=lambda pair: -math.prod(pair))
    pairs = [Width(w, a) for w, a in bits]
    groups = [Group(name=name, choices=tuple(pairs), parameters=n) for name, n in (("a", 10), ("b", 20))]
    size = {"size": Additive(values=tuple(tuple(float(g.parameters * w) for w, _ in bits) for g in groups))}
    steps = list(lowered(groups, size, {}, equal))
    chain = ["W7A7", "W6A7", "W6A4", "W5A4", "W4A4", "W3A4", "W3A3", "W2A3", "W2A2", "W1A2"]
    for g in (0, 1):
        assert list(dict.fromkeys(str(pairs[step.choices[g]]) for step in steps)) == chain
    assert len(steps) == 1 + 2 * steps_down(pairs) == 1 + 2 * (len(chain) - 1)
    assert down(pairs, len(pairs) - 1) is None and down([Width(FLOAT, 8), Width(8, 8), Width(8, 4)], 0) == 1


def test_fixed_groups_stay_and_their_scores_do_not_matter() -> None:
    fixed = [step.choices for step in lowered(GROUPS, SIZE, {}, lambda c: [float("nan"), 1, 2, 0], fixed=["g0", "g3"])]
    assert fixed[-1] == (0, 6, 6, 0) and fixed[6] == (0, 6, 0, 0)


def test_a_run_goes_on_where_it_was_left() -> None:
    def scores(choices: Choices) -> list[float]:
        return [float((7 * c + 3 * g) % 5) for g, c in enumerate(choices)]

    whole = list(lowered(GROUPS, SIZE, {"size": 4000.0}, scores))
    rest = list(lowered(GROUPS, SIZE, {"size": 4000.0}, scores, start=whole[5].choices))
    assert rest[0] == Step(choices=whole[5].choices, costs=whole[5].costs) and rest[1:] == whole[6:]
    assert list(lowered(GROUPS, SIZE, {"size": 4000.0}, scores, start=whole[-1].choices))[1:] == []


def test_what_does_not_fit_the_groups_is_refused() -> None:
    with pytest.raises(InputError, match="fixed: there is no group 'g9'; choose from g0"):
        list(lowered(GROUPS, SIZE, {}, equal, fixed=["g9"]))
    with pytest.raises(InputError, match="limit of 'bops': no such cost; choose from size"):
        list(lowered(GROUPS, SIZE, {"bops": 1.0}, equal))
    for wrong in ([1.0], [1.0, float("nan"), 1.0, 1.0]):
        with pytest.raises(InputError, match=r"scores: .* expected 4 numbers"):
            list(lowered(GROUPS, SIZE, {}, lambda choices, wrong=wrong: wrong))  # type: ignore[misc]


# Losses that add up.


def test_steps_are_those_of_the_least_loss_for_what_they_save() -> None:
    # Losses a size unit: b 1/40, then c 1/10, a 1/4; c in two steps, of which both at once is the better.
    groups = tuple(Group(name=n, choices=tuple(Width(b, b) for b in (8, 4, 2)[: 3 if n == "c" else 2])) for n in "abc")
    loss = Additive(values=((0.0, 1.0), (0.0, 1.0), (0.0, 3.0, 4.0)))
    size = Additive(values=((8.0, 4.0), (80.0, 40.0), (60.0, 40.0, 20.0)))
    problem = Problem(groups=groups, loss=loss, costs={"size": size}, limits={"size": 64.0})
    assert [point.choices for point in Greedy()(problem).points] == [(0, 0, 0), (0, 1, 0), (0, 1, 2), (1, 1, 2)]


def test_a_stricter_limit_only_goes_on(draw_problem: Draw) -> None:
    for seed in range(5):
        problem = draw_problem(seed)
        low = sum(map(min, problem.costs["size"].values)) + 10.0
        loose = Greedy()(problem)
        tight = Greedy()(dataclasses.replace(problem, limits={"size": low}))
        assert tight.points[: len(loose.points)] == loose.points
        assert tight.best.costs["size"] == low


def test_each_point_is_the_least_loss_at_its_own_cost(draw_problem: Draw) -> None:
    for seed in range(5):
        problem = draw_problem(seed)
        for point in Greedy()(problem).points:
            limited = dataclasses.replace(problem, limits={"size": point.costs["size"]})
            assert point.loss == pytest.approx(Milp()(limited).best.loss, rel=1e-9, abs=1e-12)


def test_where_no_single_step_helps_it_says_so() -> None:
    # Each group trades one cost for the other; only both moves at once meet both limits.
    groups = tuple(Group(name=n, choices=(Width(8, 8), Width(4, 4))) for n in "ab")
    costs = {"size": Additive(values=((4.0, 1.0), (1.0, 2.0))), "latency": Additive(values=((1.0, 2.0), (3.0, 1.0)))}
    loss = Additive(values=((0.0, 1.0), (0.0, 1.0)))
    problem = Problem(groups=groups, loss=loss, costs=costs, limits={"size": 3.5, "latency": 4.0})
    assert Milp()(problem).best.choices == (1, 1)
    with pytest.raises(InputError, match=r"greedy: no step .* it got to size = 5, latency = 4; use milp"):
        Greedy()(problem)
