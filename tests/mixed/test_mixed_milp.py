"""Integer programming: all assignments of small problems, HAWQ-V3's ResNet-18, AdaQuant's program."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy

from bitwright.errors import InputError
from bitwright.mixed import one_hot
from bitwright.mixed.problem import Additive, Assignment, Group, Problem, Values, Width
from bitwright.mixed.sensitivity.hawq import omega
from bitwright.mixed.solvers.milp import Milp

Draw = Callable[..., Problem]
Every = Callable[[Problem], list[Assignment]]


@pytest.mark.parametrize(
    "kind",
    [
        {"groups": 8},
        {"costs": 2, "whole": False},
        {"costs": 3},
        {"costs": 2, "pairs": True, "groups": 5},
        {"pairs": True, "groups": 5, "whole": False},
        {"groups": 5, "costs": 3, "once": 1, "whole": False},
        {"groups": 4, "costs": 2, "once": 2, "pairs": True},
    ],
    ids=str,
)
def test_nothing_within_the_limits_loses_less(kind: dict[str, Any], draw_problem: Draw, every: Every) -> None:
    solved = 0
    for seed in range(12):
        problem = draw_problem(seed, **kind)
        points = every(problem)
        if not points:
            with pytest.raises(InputError, match=r"cannot be met at once|limit of \w+: .* \(the least that"):
                Milp()(problem)
            continue
        found, least = Milp()(problem), min(point.loss for point in points)
        assert found.best.loss == pytest.approx(least, rel=1e-12, abs=1e-12)
        assert found.proven and problem.fits(found.best.choices) and not found.notes
        solved += 1
    assert solved > 8


def test_a_limit_that_only_one_assignment_meets_is_met(draw_problem: Draw, every: Every) -> None:
    for seed in range(20):
        drawn = draw_problem(seed, costs=2, whole=False)
        choices = tuple(np.random.default_rng(seed).integers(drawn.sizes).tolist())
        problem = dataclasses.replace(drawn, limits=dict(drawn.assignment(choices).costs))
        least = min(point.loss for point in every(problem))
        assert Milp()(problem).best.loss == pytest.approx(least, rel=1e-12, abs=1e-12)


def two(loss: Values, size: Values, limit: float) -> Problem:
    """Groups of two choices with these tables."""
    groups = tuple(Group(name=f"g{g}", choices=(Width(8, 8), Width(4, 4))) for g in range(len(loss)))
    tables = {"size": Additive(values=size)}
    return Problem(groups=groups, loss=Additive(values=loss), costs=tables, limits={"size": limit})


def test_small_losses_count_beside_a_huge_one() -> None:
    # 1e9 for what is out of the question anyway must not hide which of two tiny losses is smaller.
    loss = ((0.0, 1e9), (0.0, 2e-9), (0.0, 1e-9))
    problem = two(loss, ((2.0, 1.0),) * 3, 5.0)
    assert Milp()(problem).best.choices == (0, 0, 1)


def test_an_assignment_above_the_limit_by_less_than_the_solver_sees_is_cut_off() -> None:
    # Lowering b loses less, but leaves 1e-7 of 1e4 too much; HiGHS alone takes it.
    loss, size = ((0.0, 2.0), (0.0, 1.0), (0.0, 50.0)), ((10.0, 5.0), (10.0, 5.0 + 1e-7), (1e4, 0.0))
    problem = two(loss, size, 1e4 + 15.0)
    assert Milp()(problem).best.choices == (1, 0, 0)
    assert Milp()(dataclasses.replace(problem, limits={"size": 1e4 + 15.0 + 2e-7})).best.choices == (0, 1, 0)


def test_too_many_of_them_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # A solver that does not see 1 too much, as HiGHS does not see a part in 1e7.
    monkeypatch.setattr(one_hot, "CUTS", 2)
    monkeypatch.setattr(one_hot, "DRAWN_IN", 0.5)
    real = scipy.optimize.milp

    def careless(*args: Any, constraints: Any, **kwargs: Any) -> Any:
        upper = np.array(constraints.ub)
        upper[4] += one_hot.ROWS * 0.4  # after one row a group
        constraints = scipy.optimize.LinearConstraint(constraints.A, constraints.lb, upper)
        return real(*args, constraints=constraints, **kwargs)

    monkeypatch.setattr("bitwright.mixed.one_hot.milp", careless)
    problem = two(((0.0, 1.0), (0.0, 1.1), (0.0, 1.2), (0.0, 1.3)), ((10.0, 0.0),) * 4, 19.0)
    found = Milp()(problem)
    assert problem.fits(found.best.choices) and found.best.loss == pytest.approx(3.3)
    assert not found.proven and found.bound == 0.0 and "too near a limit to tell apart" in found.notes[0]


def test_interactions_change_what_is_best() -> None:
    problem = two(((0.0, 1.0), (0.0, 1.1), (0.0, 1.2)), ((2.0, 1.0),) * 3, 4.0)
    assert Milp()(problem).best.choices == (1, 1, 0)
    apart = Additive(values=problem.loss.values, pairs={(0, 1): ((0.0, 0.0), (0.0, 5.0))})
    assert Milp()(dataclasses.replace(problem, loss=apart)).best.choices == (1, 0, 1)
    together = Additive(values=problem.loss.values, pairs={(1, 2): ((0.0, 0.0), (0.0, -5.0))})
    found = Milp()(dataclasses.replace(problem, loss=together)).best
    assert found.choices == (0, 1, 1) and found.loss == pytest.approx(-2.7)


def test_too_many_products_are_refused(draw_problem: Draw) -> None:
    problem = draw_problem(0, pairs=True)
    count = sum(a * b for a, b in zip(problem.sizes, problem.sizes[1:], strict=False))
    with pytest.raises(InputError, match=f"pairs: {count} products of choices in 5 pairs of groups; expected at most"):
        Milp(products=count - 1)(problem)
    assert Milp(products=count)(problem).proven


def test_a_cost_may_have_a_least(draw_problem: Draw, every: Every) -> None:
    problem = draw_problem(2, costs=2)
    points = every(problem)
    floor = sorted(point.costs["latency"] for point in points)[len(points) // 2]
    found = Milp()(problem, at_least={"latency": floor})
    assert found.best.loss == min(point.loss for point in points if point.costs["latency"] >= floor)
    with pytest.raises(InputError, match=r"at_least: latency >= 1000000, which no assignment .* expected within \d"):
        Milp()(problem, at_least={"latency": 1e6})


def test_time_that_is_up_is_told(draw_problem: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw_problem(0)
    least = Milp()(problem).best.loss
    real = scipy.optimize.milp

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["options"]["time_limit"] == 7.0
        found = real(*args, **kwargs)
        found.status, found.mip_dual_bound = 1, found.mip_dual_bound / 2
        return found

    monkeypatch.setattr("bitwright.mixed.one_hot.milp", interrupted)
    found = Milp(time_limit=7.0)(problem)
    assert found.best.loss == least and found.bound is not None and found.bound < least and not found.proven
    assert found.notes[0].startswith("7 s were up: a loss below")

    def nothing(*args: Any, **kwargs: Any) -> Any:
        found = interrupted(*args, **kwargs)
        found.x = None
        return found

    monkeypatch.setattr("bitwright.mixed.one_hot.milp", nothing)
    with pytest.raises(InputError, match="no assignment found in 7 s; give it a longer time_limit"):
        Milp(time_limit=7.0)(problem)


def test_standard_output_belongs_to_the_commands(
    draw_problem: Draw, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # HiGHS prints from C, and C keeps what is printed for a while.
    real, libc = scipy.optimize.milp, ctypes.CDLL(None)

    def printing(*args: Any, **kwargs: Any) -> Any:
        libc.printf(b"from C\n")
        return real(*args, **kwargs)

    monkeypatch.setattr("bitwright.mixed.one_hot.milp", printing)
    Milp()(draw_problem(0))
    print("from the command")
    libc.fflush(None)
    output, errors = capfd.readouterr()
    assert output == "from the command\n" and "from C" in errors


def test_a_gap_is_told_and_kept_to() -> None:
    random = np.random.default_rng(0)
    loss = tuple((0.0, float(v)) for v in random.uniform(1, 2, 40))
    size = tuple((float(v), 0.0) for v in random.uniform(1, 2, 40))
    problem = two(loss, size, 20.0)
    least, found = Milp()(problem).best.loss, Milp(gap=0.3)(problem)
    assert found.bound is not None and found.bound <= least <= found.best.loss <= found.bound * 1.43
    assert found.proven or "(gap 0.3)" in found.notes[0]


@pytest.mark.parametrize(("option", "value"), [("gap", 1.0), ("gap", -0.1), ("time_limit", 0.0)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"milp\.{option}"):
        Milp(**{option: value})  # type: ignore[arg-type]


# HAWQ-V3: ResNet-18 at 8 and 4 bits; the downsampling convolutions move with the one that feeds the same sum.

TRACES = (
    ".06857826 .03162379 .03298575 .01205663 .02222431 .00596336 .06931772 .00807129 .00372905 .00530698 "
    ".00209011 .00737569 .00210454 .00151197 .00158041 .00078146 .00451841 .00098745 .00072944"
)
MOVED_8 = (
    ".0235 .0125 .0102 .0082 .0145 .0344 .0023 .0287 .0148 .0333 .0682 .0027 .0448 .0336 .0576 .1130 .0102 .0947 .0532"
)
MOVED_4 = (
    "6.7430 3.9691 3.3281 2.6796 4.7277 10.5966 .6827 9.0942 4.8857 10.7599 21.7546 .8603 14.5324 10.9651 "
    "18.7706 36.4044 3.1572 29.6994 17.4016"
)
PARAMETERS = [36864] * 4 + [73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824]
PARAMETERS += [1179648, 2359296, 131072, 2359296, 2359296]
HALF, SIXTEENTH = (4, 9, 14), (6, 11, 16)
TIES = {6: 4, 11: 9, 16: 14}


def hawq() -> tuple[Problem, list[list[int]]]:
    """The problem, and the layers of each group."""
    traces, moved_8, moved_4 = ([float(v) for v in text.split()] for text in (TRACES, MOVED_8, MOVED_4))
    macs = [57802752 if i in HALF else 6422528 if i in SIXTEENTH else 115605504 for i in range(19)]
    layers = [[i, *(tied for tied, to in TIES.items() if to == i)] for i in range(19) if i not in TIES]

    def table(of: Callable[[int, int], float]) -> Additive:
        return Additive(values=tuple(tuple(math.fsum(of(i, b) for i in tied) for b in (8, 4)) for tied in layers))

    costs = {"size": table(lambda i, b: PARAMETERS[i] * b), "bops": table(lambda i, b: macs[i] * b * b)}
    loss = table(lambda i, b: omega(traces[i], (moved_8 if b == 8 else moved_4)[i]))
    groups = tuple(Group(name=f"{tied}", choices=(Width(8, 8), Width(4, 4))) for tied in layers)
    return Problem(groups=groups, loss=loss, costs=costs), layers


@pytest.mark.parametrize(
    ("cost", "level", "narrow", "loss", "mebibytes"),
    [
        ("bops", 0.25, None, 0.46042, None),
        ("bops", 0.5, [3, 8, *range(12, 19)], 0.21569, 5.990),
        ("bops", 0.75, [8, 13, 15, 18], 0.07996, None),
        ("size", 0.25, [14, 15, 16, 17, 18], 0.11830, None),
        ("size", 0.5, [15, 17, 18], 0.07451, 7.266),
        ("size", 0.75, [13, 18], 0.03344, None),
    ],
)
def test_hawq_v3_of_resnet18(
    cost: str, level: float, narrow: list[int] | None, loss: float, mebibytes: float | None
) -> None:
    problem, layers = hawq()
    high, low = (problem.costs[cost].of((c,) * 16) for c in (0, 1))
    found = Milp()(dataclasses.replace(problem, limits={cost: low + (high - low) * level}))
    assert round(found.best.loss, 5) == loss and found.proven
    taken = sorted(i for tied, c in zip(layers, found.best.choices, strict=True) for i in tied if c)
    assert narrow is None or taken == narrow
    assert mebibytes is None or round(found.best.costs["size"] / 8 / 2**20, 3) == mebibytes


def test_adaquants_program_over_its_budgets(every: Every) -> None:
    # All layers at 8 bits; x_l = 1 takes layer l to 4; the sum of bits is at most D 32 sum of parameters.
    random = np.random.default_rng(1)
    parameters = random.integers(1, 200, 8) * 100.0
    degrade = np.maximum(random.normal(0.05, 0.1, 8), 1e-6)
    problem = two(tuple((0.0, float(v)) for v in degrade), tuple((8 * float(n), 4 * float(n)) for n in parameters), 0)
    losses = []
    for budget in np.arange(0.13, 0.2501, 0.01):
        limited = dataclasses.replace(problem, limits={"size": float(budget * 32 * parameters.sum())})
        losses.append(Milp()(limited).best.loss)
        assert losses[-1] == pytest.approx(min(point.loss for point in every(limited)), rel=1e-12)
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1] == 0.0
