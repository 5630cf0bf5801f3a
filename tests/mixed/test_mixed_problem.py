"""Problems, what they can reach, and the errors of impossible ones."""

from __future__ import annotations

import dataclasses

import pytest

from bitwright.errors import InputError
from bitwright.mixed.feasible import feasible, least, nearest, reachable
from bitwright.mixed.problem import Additive, Due, Group, Problem, Solution, Width

GROUPS = tuple(Group(name=name, choices=(Width(8, 8), Width(4, 4))) for name in ("a", "b"))
LOSS = Additive(values=((0.0, 1.0), (0.0, 2.0)))
#: Small where the widths are small, and the other way round.
SIZE = Additive(values=((8.0, 4.0), (80.0, 40.0)))
LATENCY = Additive(values=((1.0, 2.0), (1.0, 4.0)), rest=0.5)


def problem(**changes: object) -> Problem:
    fields = {"groups": GROUPS, "loss": LOSS, "costs": {"size": SIZE, "latency": LATENCY}, **changes}
    return Problem(**fields)  # type: ignore[arg-type]


def test_an_assignment_has_its_loss_and_every_cost_and_its_widths() -> None:
    found = problem().assignment((1, 0))
    assert (found.loss, dict(found.costs)) == (1.0, {"size": 84.0, "latency": 3.5})
    assert problem().widths(found) == {"a": Width(4, 4), "b": Width(8, 8)}


def test_a_limit_that_is_a_sum_of_floats_is_met_by_the_same_sum() -> None:
    table = Additive(values=((0.1,), (0.2,), (0.3,)))
    groups = tuple(Group(name=name, choices=(Width(8, 8),)) for name in "abc")
    limited = Problem(groups=groups, loss=table, costs={"size": table}, limits={"size": 0.1 * 6 * (1 - 1e-15)})
    assert limited.fits((0, 0, 0))
    assert not dataclasses.replace(limited, limits={"size": 0.6 - 1e-9}).fits((0, 0, 0))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"groups": ()}, "groups: none"),
        ({"groups": (GROUPS[0], GROUPS[0])}, r"groups: \['a'\] twice"),
        ({"groups": (GROUPS[0], Group(name="b", choices=()))}, "group 'b': no choice"),
        ({"loss": Additive(values=((0.0, 1.0),))}, "loss: values for 1 groups; expected 2"),
        ({"costs": {"size": Additive(values=((8.0, 4.0), (8.0,)))}}, "cost 'size': 1 values for group 1; expected 2"),
        ({"loss": Additive(values=((0.0, 1.0), (0.0, float("nan"))))}, "loss: a value that is not finite"),
        ({"loss": Additive(values=LOSS.values, pairs={(1, 0): ((0.0,) * 2,) * 2})}, "a pair of groups 1 and 0"),
        ({"loss": Additive(values=LOSS.values, pairs={(0, 1): ((0.0,) * 2,)})}, "another shape .* expected 2 x 2"),
        ({"loss": Additive(values=LOSS.values, once=(Due(1.0, frozenset({(2, 0)})),))}, "due for choice 0 of group 2"),
        ({"loss": Additive(values=LOSS.values, once=(Due(1.0, frozenset({(1, 2)})),))}, "due for choice 2 of group 1"),
        ({"costs": {"size": Additive(values=SIZE.values, once=(Due(-1.0, frozenset()),))}}, "-1 due once; expected 0"),
        ({"loss": Additive(values=LOSS.values, once=(Due(float("inf"), frozenset()),))}, "inf due once"),
        ({"limits": {"sise": 1.0}}, "cost 'sise': .* did you mean 'size'"),
        ({"limits": {"size": float("nan")}}, "limit of 'size': no number"),
    ],
)
def test_problems_that_do_not_fit_together_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        problem(**changes)


def test_what_can_be_reached_is_told_of_every_cost() -> None:
    assert reachable(problem()) == {"size": (44.0, 88.0), "latency": (2.5, 6.5)}


def test_interactions_count_in_what_can_be_reached() -> None:
    # Both narrow would be the least without the term that makes it dear.
    cost = Additive(values=((2.0, 1.0), (2.0, 1.0)), pairs={(0, 1): ((0.0, 0.0), (0.0, 10.0))})
    assert least(cost) in {(0, 1), (1, 0)}
    assert reachable(problem(costs={"latency": cost})) == {"latency": (3.0, 12.0)}


def test_a_limit_below_the_least_says_the_least_and_the_most() -> None:
    with pytest.raises(InputError, match=r"limit of size: 40; expected 44 \(the least .*\) to 88 \(the most\)"):
        feasible(problem(limits={"size": 40.0, "latency": 100.0}))


def test_limits_that_exclude_each_other_say_what_comes_nearest() -> None:
    both = problem(limits={"size": 48.0, "latency": 3.0})
    # Scaled excesses: 40 / 44 of all wide, 2.5 / 4 of b narrow, 36 / 44 + 0.5 / 4 of a narrow, 3.5 / 4 of both.
    found = nearest(both)
    assert found.choices == (0, 1) and dict(found.costs) == {"size": 48.0, "latency": 5.5}
    told = (
        r"limits: size <= 48, latency <= 3 cannot be met at once; .* nearest is size = 48, latency = 5.5; "
        r"raise one of them \(alone they reach size 44 to 88, latency 2.5 to 6.5\)"
    )
    with pytest.raises(InputError, match=told):
        feasible(both)
    assert feasible(problem(limits={"size": 84.0, "latency": 3.5})).choices == (1, 0)


def test_a_solution_is_proven_only_by_a_bound_at_its_loss() -> None:
    best = problem().assignment((0, 1))
    assert not Solution(best=best).proven and not Solution(best=best, bound=1.9).proven
    assert Solution(best=best, bound=2.0).proven


def test_widths_are_those_of_the_formats() -> None:
    with pytest.raises(InputError, match="width: 17 bits; expected 1 to 16"):
        Width(8, 17)
    assert str(Width(None, None)) == "float"
