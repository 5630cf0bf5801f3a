"""Fronts over one and two costs: all assignments of small problems, and the dynamic programme of ZeroQ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bitwright.errors import InputError
from bitwright.mixed.one_hot import minimise
from bitwright.mixed.problem import Additive, Assignment, Group, Problem, Width
from bitwright.mixed.solvers.pareto import Pareto, not_dominated

Draw = Callable[..., Problem]
Every = Callable[[Problem], list[Assignment]]


def numbers(points: Sequence[Assignment], costs: Sequence[str]) -> list[tuple[float, ...]]:
    return [(*(point.costs[name] for name in costs), point.loss) for point in points]


def brute(points: Sequence[Assignment], costs: Sequence[str]) -> list[tuple[float, ...]]:
    """What no other point is below or at in everything."""
    found = set(numbers(points, costs))
    return sorted(
        b for b in found if not any(a != b and all(x <= y for x, y in zip(a, b, strict=True)) for a in found)
    )


@pytest.mark.parametrize(
    ("kind", "costs", "limited"),
    [
        ({"groups": 5}, ("size",), False),
        ({"groups": 5, "whole": False, "costs": 2}, ("size",), True),
        ({"groups": 4, "pairs": True}, ("size",), False),
        ({"groups": 3, "costs": 2}, ("size", "latency"), False),
        ({"groups": 3, "costs": 3, "whole": False}, ("energy", "size"), True),
        ({"groups": 2, "costs": 2, "once": 2}, ("size", "latency"), False),
    ],
    ids=str,
)
def test_the_front_is_that_of_all_assignments(
    kind: dict[str, Any], costs: tuple[str, ...], limited: bool, draw_problem: Draw, every: Every
) -> None:
    for seed in (2, 5):
        drawn = draw_problem(seed, **kind)
        problem = drawn if limited else dataclasses.replace(drawn, limits={})
        if not every(problem):
            continue
        wanted = brute(every(problem), costs)
        found = Pareto(costs=costs, points=len(wanted) + 1)(problem)
        assert np.array(numbers(found.points, costs)) == pytest.approx(np.array(wanted)) and not found.notes
        assert found.proven
        few = Pareto(costs=costs, points=3)(problem)
        assert set(numbers(few.points, costs)) <= set(wanted) and len(few.points) == min(3, len(wanted))
        assert few.best.loss == found.best.loss


def programme(problem: Problem) -> list[tuple[float, float]]:
    """The front of size and loss, group after group."""
    front = {(problem.costs["size"].rest, 0.0)}
    for sizes, losses in zip(problem.costs["size"].values, problem.loss.values, strict=True):
        sums = {(s + ds, loss + dl) for s, loss in front for ds, dl in zip(sizes, losses, strict=True)}
        front, least = set(), float("inf")
        for size, loss in sorted(sums):
            if loss < least:
                front.add((size, loss))
                least = loss
    return sorted(front)


def test_zeroqs_front_of_twelve_layers(draw_problem: Draw) -> None:
    drawn = draw_problem(4, groups=12)
    problem = dataclasses.replace(drawn, limits={}, loss=dataclasses.replace(drawn.loss, rest=0.0))
    wanted = programme(problem)
    assert len(wanted) > 24
    found = numbers(Pareto(points=len(wanted) + 1)(problem).points, ["size"])
    assert [size for size, _ in found] == [size for size, _ in wanted]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted])
    # Fewer points than there are: both ends, and between them no gap that is wide in size and loss together.
    few = Pareto(points=8)(problem)
    assert few.notes == ("the front has more than these 8 points",)
    points = np.array(numbers(few.points, ["size"]))
    assert points[[0, -1]] == pytest.approx(np.array(wanted)[[0, -1]])
    assert np.linalg.norm(np.diff(points, axis=0) / (points[-1] - points[0]), axis=1).max() < 0.55


def test_of_choices_that_lose_the_same_the_cheapest_is_on_the_front() -> None:
    # Narrow activations of b cost nothing in loss: the dear ones are on no front, however few its points.
    groups = tuple(Group(name=n, choices=(Width(8, 8), Width(8, 4), Width(4, 4))) for n in "ab")
    loss = Additive(values=((0.0, 1.0, 2.0), (0.0, 0.0, 0.3)))
    size = Additive(values=((30.0, 20.0, 10.0), (30.0, 20.0, 10.0)))
    found = Pareto(points=2)(Problem(groups=groups, loss=loss, costs={"size": size}))
    assert [point.choices for point in found.points] == [(2, 2), (0, 1)]


def test_costs_are_the_limited_ones_if_not_said(draw_problem: Draw) -> None:
    problem = draw_problem(1, groups=3, costs=2)
    latency = dataclasses.replace(problem, limits={"latency": problem.limits["latency"]})
    assert Pareto()(latency) == Pareto(costs=("latency",))(latency)
    for costs, drawn in (((), draw_problem(0, costs=3)), (("size", "size"), problem)):
        with pytest.raises(InputError, match=r"pareto\.costs: .* expected one cost, or two different ones"):
            Pareto(costs=costs)(dataclasses.replace(drawn, limits={}))
    with pytest.raises(InputError, match="there is no cost of this name; did you mean 'size'"):
        Pareto(costs=("sise",))(problem)
    with pytest.raises(InputError, match=r"pareto\.points: 1; expected 2 or more"):
        Pareto(points=1)


def test_programs_that_ran_out_of_time_are_told(draw_problem: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    real = minimise

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["time_limit"] == 3.0
        found = real(*args, **kwargs)
        return found and dataclasses.replace(found, timed_out=True, proven=False)

    monkeypatch.setattr("bitwright.mixed.solvers.pareto.minimise", interrupted)
    notes = Pareto(costs=("size",), points=3, time_limit=3.0)(draw_problem(0, groups=4)).notes
    assert "programs ran out of time" in notes[-1]


def test_only_points_that_nothing_is_better_than_are_left() -> None:
    table = [(1.0, 4.0), (1.0, 5.0), (0.5, 6.0), (0.5, 6.0), (0.5 + 1e-15, 6.0), (0.7, 6.5), (2.0, 3.0)]
    points = [Assignment(choices=(i,), loss=loss, costs={"size": size}) for i, (loss, size) in enumerate(table)]
    assert [point.choices[0] for point in not_dominated(points, ["size"])] == [6, 0, 2]
