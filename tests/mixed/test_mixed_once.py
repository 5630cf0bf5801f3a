"""What is due once for many choices: counted once, by every solver, in both directions, against all assignments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bitwright.errors import InputError
from bitwright.mixed.feasible import feasible, least, nearest, negative, reachable
from bitwright.mixed.one_hot import Bound, minimise
from bitwright.mixed.problem import Additive, Assignment, Due, Group, Problem, Width
from bitwright.mixed.solvers.genetic import Genetic
from bitwright.mixed.solvers.greedy import Greedy
from bitwright.mixed.solvers.milp import Milp
from bitwright.mixed.solvers.pareto import finest

Draw = Callable[..., Problem]
Every = Callable[[Problem], list[Assignment]]

GROUPS = tuple(Group(name=name, choices=(Width(8, 8), Width(4, 4))) for name in "abc")
#: Bytes of three layers, and a table of 30 that unpacks 4 bits.
SIZE = Additive(values=((40.0, 20.0),) * 3, once=(Due(30.0, frozenset({(0, 1), (1, 1), (2, 1)})),))
LOSS = Additive(values=((0.0, 1.0), (0.0, 1.1), (0.0, 1.2)))


def sized(limit: float) -> Problem:
    return Problem(groups=GROUPS, loss=LOSS, costs={"size": SIZE}, limits={"size": limit})


def test_it_counts_once_however_many_make_it_due() -> None:
    assert [SIZE.of(choices) for choices in [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)]] == [120, 130, 110, 90]
    assert Additive(values=SIZE.values, once=(Due(5.0, frozenset()),)).of((1, 1, 1)) == 60.0


def test_a_first_narrow_layer_has_to_earn_the_table() -> None:
    # One layer of 4 bits is larger than none: the least loss below 119 are two of them, not one.
    assert Milp()(sized(119.0)).best.choices == (1, 1, 0)
    without = dataclasses.replace(sized(119.0), costs={"size": dataclasses.replace(SIZE, once=())})
    assert Milp()(without).best.choices == (1, 0, 0)
    assert Milp()(sized(120.0)).best.choices == (0, 0, 0)


def test_a_table_dearer_than_its_limit_leaves_its_choices_out() -> None:
    dear = Additive(values=((40.0, 20.0),) * 3, once=(Due(1e6, frozenset({(0, 1), (1, 1)})),))
    problem = dataclasses.replace(sized(100.0), costs={"size": dear})
    assert Milp()(problem).best.choices == (0, 0, 1)
    with pytest.raises(InputError, match="limit of size: 99; expected 100 "):
        Milp()(dataclasses.replace(problem, limits={"size": 99.0}))


def test_a_bound_from_below_is_not_met_by_what_is_not_due() -> None:
    # 125 and more is only one narrow layer with its table, and no way to count the table without one.
    found = minimise((2, 2, 2), LOSS, [Bound(of=SIZE, least=125.0)])
    assert found is not None and found.choices == (1, 0, 0) and found.proven
    assert minimise((2, 2, 2), LOSS, [Bound(of=SIZE, least=131.0)]) is None


def test_the_least_and_the_most_count_it(draw_problem: Draw, every: Every) -> None:
    assert reachable(sized(1e3)) == {"size": (90.0, 130.0)}
    for seed in range(4):
        problem = dataclasses.replace(draw_problem(seed, groups=4, costs=1, once=2, pairs=seed % 2 == 0), limits={})
        points = every(problem)
        for name, (low, high) in reachable(problem).items():
            assert low == min(point.costs[name] for point in points)
            assert high == max(point.costs[name] for point in points)
        assert problem.loss.of(least(problem.loss)) == pytest.approx(min(p.loss for p in points), rel=1e-12)
        other = negative(problem.loss)
        assert all(other.of(point.choices) == -point.loss for point in points)


def test_what_comes_nearest_counts_it(draw_problem: Draw, every: Every) -> None:
    for seed in range(3):
        drawn = draw_problem(seed, groups=3, costs=2, once=2)
        points = every(dataclasses.replace(drawn, limits={}))
        limits = {cost: min(point.costs[cost] for point in points) for cost in drawn.costs}
        problem = dataclasses.replace(drawn, limits=limits)
        spans = {name: (high - low) or 1.0 for name, (low, high) in reachable(problem).items()}

        def excess(point: Assignment, limits: dict[str, float] = limits, spans: dict[str, float] = spans) -> float:
            return sum(max(0.0, point.costs[name] - limit) / spans[name] for name, limit in limits.items())

        assert excess(nearest(problem)) == pytest.approx(min(map(excess, points)), abs=1e-9)
        if every(problem):
            assert problem.fits(feasible(problem).choices)
        else:
            with pytest.raises(InputError, match="cannot be met at once"):
                feasible(problem)


def test_a_least_of_a_cost_is_exact(draw_problem: Draw, every: Every) -> None:
    for seed in range(4):
        problem = dataclasses.replace(draw_problem(seed, groups=5, once=2), limits={})
        points = every(problem)
        floor = sorted(point.costs["size"] for point in points)[-len(points) // 4]
        found = Milp()(problem, at_least={"size": floor})
        wanted = min(point.loss for point in points if point.costs["size"] >= floor)
        assert found.best.loss == pytest.approx(wanted, rel=1e-12, abs=1e-12) and found.best.costs["size"] >= floor


def test_greedy_weighs_steps_by_what_they_really_save(draw_problem: Draw, every: Every) -> None:
    # c alone saves 20, with the table that b of 4 bits has already; to a table of its own it is the dearest.
    tables = (Due(30.0, frozenset({(0, 1), (2, 1)})), Due(5.0, frozenset({(1, 1)})))
    size = Additive(values=((40.0, 20.0), (40.0, 20.0), (80.0, 20.0)), once=tables)
    loss = Additive(values=((0.0, 1.0), (0.0, 1.0), (0.0, 1.5)))
    problem = Problem(groups=GROUPS, loss=loss, costs={"size": size}, limits={"size": 95.0})
    # Saved: b 15 for 1.0, c 30 for 1.5 with its table (a nothing); then a 20 for 1.0, b 15 for 1.0.
    assert [point.choices for point in Greedy()(problem).points] == [(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)]
    for seed in range(4):
        drawn = draw_problem(seed, groups=3, once=2)
        try:
            found = Greedy()(drawn)
        except InputError:
            continue
        assert drawn.fits(found.best.choices) and found.best.loss >= min(point.loss for point in every(drawn)) - 1e-12


def test_greedy_starts_at_the_least_loss_that_is_due_once() -> None:
    loss = Additive(values=((0.5, 0.6), (0.5, 0.6), (0.5, 0.6)), once=(Due(1.0, frozenset({(0, 0), (1, 0), (2, 0)})),))
    problem = Problem(groups=GROUPS, loss=loss, costs={"size": SIZE}, limits={})
    assert Greedy()(problem).best.choices == (1, 1, 1)


def test_genetic_search_counts_it_in_limits_and_loss(draw_problem: Draw, every: Every) -> None:
    for seed in range(3):
        problem = draw_problem(seed, groups=4, once=2)
        if not every(problem):
            continue
        found = Genetic(generations=20)(problem).best
        assert problem.fits(found.choices)
        assert found.loss == pytest.approx(min(point.loss for point in every(problem)), abs=1e-12)


def test_what_is_due_once_tells_costs_apart() -> None:
    whole = Additive(values=((8.0, 4.0),), once=(Due(3.0, frozenset({(0, 1)})),))
    assert (finest(dataclasses.replace(whole, once=())), finest(whole)) == (2.0, 0.5)
