"""What can be reached at all: the least and the most of every cost, and what comes nearest to impossible limits."""

from __future__ import annotations

from collections.abc import Callable

from bitwright.errors import InputError
from bitwright.mixed.one_hot import Bound, minimise
from bitwright.mixed.problem import Additive, Assignment, Choices, Due, Problem, within


def reachable(problem: Problem) -> dict[str, tuple[float, float]]:
    """The least and the most of every cost, each taken alone and without limits.

    Example:
        >>> from bitwright.mixed.problem import Group, Width
        >>> group = Group(name="a", choices=(Width(8, 8), Width(4, 4)))
        >>> table = Additive(values=((8.0, 4.0),), rest=1.0)
        >>> reachable(Problem(groups=(group,), loss=table, costs={"size": table}))
        {'size': (5.0, 9.0)}
    """
    return {name: (cost.of(least(cost)), cost.of(least(negative(cost)))) for name, cost in problem.costs.items()}


def least(of: Additive) -> Choices:
    """The choices that make a sum least; the first of equal ones.

    Example:
        >>> least(Additive(values=((8.0, 4.0), (1.0, 1.0))))
        (1, 0)
    """
    if not of.pairs and not of.once:
        return tuple(row.index(min(row)) for row in of.values)
    found = minimise(tuple(map(len, of.values)), of)
    assert found is not None, "without limits there is always an assignment"
    return found.choices


def negative(of: Additive) -> Additive:
    """The same sum with the other sign, to find the most of it; no cost of a problem: nothing due is negative there.

    Example:
        >>> negative(Additive(values=((8.0, 4.0),))).values
        ((-8.0, -4.0),)
    """
    pairs = {pair: tuple(tuple(-value for value in row) for row in rows) for pair, rows in of.pairs.items()}
    return Additive(
        values=tuple(tuple(-value for value in row) for row in of.values), rest=-of.rest, pairs=pairs,
        once=tuple(Due(-due.cost, due.choices) for due in of.once),
    )  # fmt: skip


def nearest(problem: Problem) -> Assignment:
    """The assignment that exceeds its limits least: the sum of the excesses, each by the span of its cost.

    Example:
        >>> from bitwright.mixed.problem import Group, Width
        >>> group = Group(name="a", choices=(Width(8, 8), Width(4, 4)))
        >>> table = Additive(values=((8.0, 4.0),))
        >>> nearest(Problem(groups=(group,), loss=table, costs={"size": table}, limits={"size": 1.0})).costs
        {'size': 4.0}
    """
    spans = {name: most - least for name, (least, most) in reachable(problem).items()}
    bounds = [
        Bound(of=problem.costs[name], most=limit, soft=spans[name] or 1.0) for name, limit in problem.limits.items()
    ]
    found = minimise(problem.sizes, None, bounds)
    assert found is not None, "soft limits leave every assignment"
    return problem.assignment(found.choices)


def hard(problem: Problem) -> list[Bound]:
    """The limits of a problem.

    Example:
        >>> from bitwright.mixed.problem import Group, Width
        >>> group = Group(name="a", choices=(Width(8, 8), Width(4, 4)))
        >>> table = Additive(values=((8.0, 4.0),))
        >>> hard(Problem(groups=(group,), loss=table, costs={"size": table}, limits={"size": 5.0}))[0].most
        5.0
    """
    return [Bound(of=problem.costs[name], most=limit) for name, limit in problem.limits.items()]


def feasible(problem: Problem, spelled: Callable[[str, float], str] | None = None) -> Assignment:
    """An assignment within all limits, whatever it loses.

    Args:
        problem: its limits.
        spelled: how errors show a value of a cost, as that of its name and with a unit.

    Raises:
        InputError: there is none; says the least and the most of the cost that cannot be met, or, where each limit can
            be met but not all at once, what comes nearest.

    Example:
        >>> from bitwright.mixed.problem import Group, Width
        >>> group = Group(name="a", choices=(Width(8, 8), Width(4, 4)))
        >>> table = Additive(values=((8.0, 4.0),))
        >>> feasible(Problem(groups=(group,), loss=table, costs={"size": table}, limits={"size": 1.0}))
        Traceback (most recent call last):
        bitwright.errors.InputError: limit of size: 1; expected 4 (the least that can be reached) to 8 (the most);
        raise it, or offer narrower widths
    """
    spans = reachable(problem)
    of = spelled or (lambda name, value: told(value))
    for name, limit in problem.limits.items():
        low, high = spans[name]
        if not within(low, limit):
            raise InputError(
                f"limit of {name}", of(name, limit),
                f"{of(name, low)} (the least that can be reached) to {of(name, high)} (the most)",
                "raise it, or offer narrower widths",
            )  # fmt: skip
    if len(problem.limits) == 1:
        return problem.assignment(least(problem.costs[next(iter(problem.limits))]))
    met = minimise(problem.sizes, None, hard(problem))
    if met is not None:
        return problem.assignment(met.choices)
    found = nearest(problem)
    limits = ", ".join(f"{name} <= {of(name, limit)}" for name, limit in problem.limits.items())
    near = ", ".join(f"{name} = {of(name, found.costs[name])}" for name in problem.limits)
    each = ", ".join(f"{name} {of(name, spans[name][0])} to {of(name, spans[name][1])}" for name in problem.limits)
    raise InputError(
        "limits", f"{limits} cannot be met at once", f"limits that one assignment meets; nearest is {near}",
        f"raise one of them (alone they reach {each})",
    )  # fmt: skip


def told(value: float) -> str:
    """A number as errors show it.

    Example:
        >>> told(93323264.0), told(0.123456789)
        ('93323264', '0.123457')
    """
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
