"""Greedy lowering: one group and one step at a time.

`lowered` is the loop of MSQ's algorithm 1: all groups at their first choice; the groups are scored, and the one with
the smallest score goes one choice down; then all are scored again, in the network as it is now. In MSQ the score is
how much a layer changes what the features tell, `|Acc_i - Acc_(i-1)|`. One choice down is one bit of weight and
activation in the paper; where the two have widths apart, the wider goes down first (`down`), so that no step widens
anything.

`Greedy` has losses that were measured once and add up. Its next step is the one of the least

    (loss after - loss before) / sum_k (cost_k before - cost_k after) / span_k

over the costs k that are still above their limits; for one cost and no interactions these are the corners of the
linear relaxation.

Choices made where the paper is silent: of equal scores the group with the most parameters goes first, then the first
one; printed indices are one off (layer idx+1 is tested, chosen and lowered); the first layer is lowered or not as
`fixed` says.

Source: MSQ, algorithm 1; the ratio is Dantzig's, for the multiple-choice knapsack problem (Sinha and Zoltners,
Operations Research 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.lookup import did_you_mean
from bitwright.mixed.feasible import feasible, least, reachable, told
from bitwright.mixed.problem import (
    ROUNDING,
    Additive,
    Assignment,
    Choices,
    Group,
    Problem,
    Solution,
    Width,
    within,
)

#: The score of every group in the network with these choices.
Scores = Callable[[Choices], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a trajectory.

    Attributes:
        choices: of all groups, after it.
        costs: of these choices.
        group: what was lowered; None at the start.
        scores: of all groups, by which it was chosen; empty at the start.
    """

    choices: Choices
    costs: Mapping[str, float]
    group: int | None = None
    scores: tuple[float, ...] = ()


def down(choices: Sequence[Width], at: int) -> int | None:
    """The next choice below one: as wide or narrower in weight and activation, the wider of the two going first.

    Args:
        choices: of a group.
        at: index of the one to go down from.

    Returns:
        The index of the widest that is below; of those that are not below each other the one whose wider width is
        least, then the one of the largest product of both, then of the narrower weight; None if none is below.

    Example:
        >>> choices = [Width(w, a) for w in (8, 4, 2) for a in (8, 4)]
        >>> at, walk = 0, []
        >>> while at is not None:
        ...     walk.append(str(choices[at]))
        ...     at = down(choices, at)
        >>> walk
        ['W8A8', 'W4A8', 'W4A4', 'W2A4']
    """
    widths = [(width.weight or 0, width.activation or 0) for width in choices]

    def under(this: tuple[int, int], that: tuple[int, int]) -> bool:
        return this != that and this[0] <= that[0] and this[1] <= that[1]

    below = [c for c, width in enumerate(widths) if under(width, widths[at])]
    highest = [c for c in below if not any(under(widths[c], widths[other]) for other in below)]
    return min(highest, key=lambda c: (max(widths[c]), -math.prod(widths[c]), widths[c]), default=None)


def steps_down(choices: Sequence[Width]) -> int:
    """How often a group can go down from its first choice.

    Example:
        >>> steps_down([Width(w, a) for w in (8, 4, 2) for a in (8, 4)])
        3
    """
    count, at = 0, down(choices, 0)
    while at is not None:
        count, at = count + 1, down(choices, at)
    return count


def lowered(
    groups: Sequence[Group],
    costs: Mapping[str, Additive],
    limits: Mapping[str, float],
    scores: Scores,
    *,
    fixed: Collection[str] = (),
    start: Choices | None = None,
) -> Iterator[Step]:
    """Lower the group of the smallest score by one choice, until all limits are met or none can go lower.

    A step is given as soon as it is made, so that a long run can be kept, and gone on with from `start`.

    Args:
        groups: what is lowered, each by `down`.
        costs: told of each step; those with a limit end the loop.
        limits: cost -> the most that it may be; with none, all groups are lowered to the end.
        scores: called once a step, with the choices so far; one number a group, those of `fixed` groups unused.
        fixed: names of groups that keep their choice.
        start: choices to begin with; the first of each group if not said.

    Yields:
        The start, then every step.

    Raises:
        InputError: a fixed group that is not there, a limit without its cost, scores that are not one a group, or NaN.

    Example:
        >>> groups = [Group(name=name, choices=(Width(8, 8), Width(4, 4)), parameters=10) for name in ("a", "b")]
        >>> size = Additive(values=((80.0, 40.0), (80.0, 40.0)))
        >>> [step.choices for step in lowered(groups, {"size": size}, {"size": 100.0}, lambda choices: [0.2, 0.1])]
        [(0, 0), (0, 1), (1, 1)]
    """
    names = [group.name for group in groups]
    for name in fixed:
        if name not in names:
            raise InputError("fixed", f"there is no group {name!r}", fix=did_you_mean(name, names))
    for name in limits:
        if name not in costs:
            raise InputError(f"limit of {name!r}", "no such cost", fix=did_you_mean(name, costs))
    below = [[down(group.choices, c) for c in range(len(group.choices))] for group in groups]
    choices = start if start is not None else (0,) * len(groups)
    step = Step(choices=choices, costs={name: cost.of(choices) for name, cost in costs.items()})
    yield step
    while not all(within(step.costs[name], limit) for name, limit in limits.items()) or not limits:
        next_down = {
            g: there for g, group in enumerate(groups)
            if group.name not in fixed and (there := below[g][step.choices[g]]) is not None
        }  # fmt: skip
        if not next_down:
            return
        found = tuple(float(score) for score in scores(step.choices))
        if len(found) != len(groups) or any(math.isnan(found[g]) for g in next_down):
            raise InputError("scores", f"{len(found)} values {found}", f"{len(groups)} numbers, one a group")
        lowest = min(next_down, key=lambda g: (found[g], -groups[g].parameters, g))
        choices = _with(step.choices, lowest, next_down[lowest])
        step = Step(
            choices=choices, costs={name: cost.of(choices) for name, cost in costs.items()}, group=lowest, scores=found
        )
        yield step


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """From the least loss down to the limits, each time by the step that loses least for what it saves.

    It has one pass and proves nothing; `points` are its steps. A step that brings a cost above its limit is none.

    Example:
        >>> groups = tuple(Group(name=name, choices=(Width(8, 8), Width(4, 4))) for name in ("a", "b"))
        >>> loss, size = Additive(values=((0.0, 1.0), (0.0, 2.0))), Additive(values=((8.0, 4.0), (80.0, 40.0)))
        >>> found = Greedy()(Problem(groups=groups, loss=loss, costs={"size": size}, limits={"size": 50.0}))
        >>> found.best.choices, len(found.points), found.proven
        ((0, 1), 2, False)
    """

    def __call__(self, problem: Problem) -> Solution:
        """Solve a problem.

        Raises:
            InputError: limits that cannot be met, or that are not met by steps of one group.
        """
        feasible(problem)
        spans = {name: (high - low) or 1.0 for name, (low, high) in reachable(problem).items()}
        points = [problem.assignment(_cheapest_of_least_loss(problem, spans))]
        while not problem.fits(points[-1].choices):
            found = _next(problem, points[-1], spans)
            if found is None:
                costs = ", ".join(f"{name} = {told(points[-1].costs[name])}" for name in problem.limits)
                raise InputError(
                    "greedy", f"no step brings a cost down and keeps the others; it got to {costs}",
                    fix="use milp, which finds an assignment within these limits",
                )  # fmt: skip
            points.append(found)
        return Solution(best=points[-1], points=tuple(points))


def _cheapest_of_least_loss(problem: Problem, spans: Mapping[str, float]) -> Choices:
    """The choices of the least loss; of equal ones of a group, where losses add up, what is cheapest by itself."""
    if problem.loss.pairs or problem.loss.once:
        return least(problem.loss)

    def order(g: int, c: int) -> tuple[float, float]:
        return problem.loss.values[g][c], sum(problem.costs[k].values[g][c] / spans[k] for k in problem.limits)

    return tuple(min((*order(g, c), c) for c in range(size))[-1] for g, size in enumerate(problem.sizes))


def _next(problem: Problem, at: Assignment, spans: Mapping[str, float]) -> Assignment | None:
    """The step of the least loss for what it saves of the costs that are above their limits; None if there is none."""
    above = [name for name, limit in problem.limits.items() if not within(at.costs[name], limit)]
    best: tuple[float, float, Assignment] | None = None
    for g, size in enumerate(problem.sizes):
        for c in range(size):
            if c == at.choices[g]:
                continue
            there = problem.assignment(_with(at.choices, g, c))
            saved = math.fsum((at.costs[name] - there.costs[name]) / spans[name] for name in above)
            kept = all(within(there.costs[name], limit) for name, limit in problem.limits.items() if name not in above)
            if saved <= ROUNDING or not kept:
                continue
            ratio = (there.loss - at.loss) / saved
            if best is None or (ratio, -saved) < best[:2]:
                best = ratio, -saved, there
    return best[2] if best is not None else None


def _with(choices: Choices, g: int, c: int) -> Choices:
    return (*choices[:g], c, *choices[g + 1 :])
