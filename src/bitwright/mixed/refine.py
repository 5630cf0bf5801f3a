"""Assignments near one that a solver found, tried in the network itself: losses that do not add up are seen so.

    repeat: of the assignments within all limits that are neighbours of one that was tried, or in every second turn of
            the best so far, take the one not tried that is foretold to lose least;
            measure the loss of the whole network with it; it is the best so far if it loses less

Neighbours differ in one group, or in two of which one goes a step down and the other one up: to the next narrower or
wider weights, or activations.
What is foretold ranks the candidates; what is measured decides.

Source: local search on a surrogate; of mixed widths, Wang et al., HAQ, CVPR 2019, has an agent measure whole networks
instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from bitwright.errors import InputError
from bitwright.mixed.problem import Assignment, Choices, Group, Problem, Width


def refine(
    problem: Problem, start: Assignment, measured: Callable[[Choices], float], tries: int
) -> tuple[Assignment, float]:
    """The best assignment of so many tries, and its measured loss; the start is tried first.

    Args:
        problem: whose limits hold, and whose loss foretells.
        start: within the limits.
        measured: loss of the whole network with these choices.
        tries: most measurements.

    Raises:
        InputError: fewer than one try.

    Example:
        >>> from bitwright.mixed.problem import Additive, Group, Width
        >>> groups = tuple(Group(name=name, choices=(Width(8, 8), Width(4, 4))) for name in ("a", "b"))
        >>> loss, size = Additive(values=((0.0, 1.0), (0.0, 2.0))), Additive(values=((8.0, 4.0), (8.0, 4.0)))
        >>> problem = Problem(groups=groups, loss=loss, costs={"size": size}, limits={"size": 12.0})
        >>> found, lost = refine(problem, problem.assignment((1, 0)), lambda c: {(0, 1): 0.5}.get(c, 1.0), 3)
        >>> found.choices, lost
        ((0, 1), 0.5)
    """
    if tries < 1:
        raise InputError("refine", f"is {tries}", "1 try or more")
    best = start.choices
    known = {best: measured(best)}
    near: dict[Choices, dict[Choices, float]] = {}  # of each that was tried, what its neighbours are foretold to lose
    while len(known) < tries:
        for tried in known.keys() - near.keys():
            fitting = {c for c in neighbours(problem.groups, tried) if problem.fits(c)}
            near[tried] = {c: problem.loss.of(c) for c in fitting}
        turns = (near, {best: near[best]}) if len(known) % 2 else ({best: near[best]}, near)
        untried = ({c: of[c] for of in turn.values() for c in of if c not in known} for turn in turns)
        left = next((found for found in untried if found), None)
        if left is None:
            break
        candidate = min(left, key=lambda c: (left[c], c))
        known[candidate] = measured(candidate)
        best = min(best, candidate, key=lambda c: known[c])
    return problem.assignment(best), known[best]


def neighbours(groups: Sequence[Group], choices: Choices) -> Iterator[Choices]:
    """Assignments with one group at another choice, or one a step down and one a step up.

    Example:
        >>> both = tuple(Group(name=name, choices=(Width(8, 8), Width(8, 4), Width(4, 8))) for name in "ab")
        >>> sorted(set(neighbours(both, (0, 1))))
        [(0, 0), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    """
    for g, group in enumerate(groups):
        for c in range(len(group.choices)):
            if c != choices[g]:
                yield (*choices[:g], c, *choices[g + 1 :])
    down = [steps(group.choices, at, _is_below) for group, at in zip(groups, choices, strict=True)]
    up = [steps(group.choices, at, _is_above) for group, at in zip(groups, choices, strict=True)]
    for g, h in itertools.permutations(range(len(groups)), 2):
        for lower, higher in itertools.product(down[g], up[h]):
            changed = list(choices)
            changed[g], changed[h] = lower, higher
            yield tuple(changed)


def steps(widths: Sequence[Width], at: int, is_beyond: Callable[[Width, Width], bool]) -> list[int]:
    """Choices beyond one, with none between.

    Example:
        >>> steps((Width(8, 8), Width(8, 4), Width(4, 8), Width(4, 4)), 0, _is_below)
        [1, 2]
    """
    beyond = [i for i, width in enumerate(widths) if is_beyond(width, widths[at])]
    return [i for i in beyond if not any(is_beyond(widths[i], widths[j]) for j in beyond)]


def _is_below(width: Width, other: Width) -> bool:
    """Narrower in weights or activations, and wider in neither."""
    pairs = [(width.weight or 0, other.weight or 0), (width.activation or 0, other.activation or 0)]
    return width != other and all(own <= its for own, its in pairs)


def _is_above(width: Width, other: Width) -> bool:
    return _is_below(other, width)
