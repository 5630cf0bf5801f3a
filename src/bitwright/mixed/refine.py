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
from collections.abc import Callable, Iterator, Mapping, Sequence

from bitwright.cost.workload import FLOAT
from bitwright.errors import InputError
from bitwright.mixed.problem import Assignment, Choices, Group, Problem, Width


def refine(
    problem: Problem, start: Assignment, measured: Callable[[Choices], float], tries: int,
    foretold: Callable[[Choices], Mapping[Choices, float]] | None = None,
) -> tuple[Assignment, float]:  # fmt: skip
    """The best assignment of so many tries, and its measured loss; the start is tried first.

    Args:
        problem: whose limits hold, and whose loss foretells.
        start: within the limits.
        measured: loss of the whole network with these choices.
        tries: most measurements.
        foretold: of the best so far, what those near it lose, asked anew before each try, instead of what the
            problem's loss says of those near any that was tried.

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
    near: dict[Choices, Mapping[Choices, float]] = {}  # what the neighbours of each that was tried may lose
    while len(known) < tries:
        if foretold is not None:
            near[best] = foretold(best)
        else:
            near |= {tried: _added_up(problem, tried) for tried in known.keys() - near.keys()}
        own = {best: near[best]}
        turns = (near, own) if len(known) % 2 and foretold is None else (own, near)
        untried = ({c: of[c] for of in turn.values() for c in of if c not in known} for turn in turns)
        left = next((found for found in untried if found), None)
        if left is None:
            break
        candidate = min(left, key=lambda c: (left[c], c))
        known[candidate] = measured(candidate)
        best = min(best, candidate, key=lambda c: known[c])
    return problem.assignment(best), known[best]


def _added_up(problem: Problem, choices: Choices) -> dict[Choices, float]:
    return {c: problem.loss.of(c) for c in neighbours(problem.groups, choices) if problem.fits(c)}


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
    down, up = steps_down(groups, choices), steps_up(groups, choices)
    for (g, lower), (h, higher) in itertools.product(down, up):
        if g != h:
            changed = list(choices)
            changed[g], changed[h] = lower, higher
            yield tuple(changed)


def steps_down(groups: Sequence[Group], choices: Choices) -> list[tuple[int, int]]:
    """`(group, choice)` of each step to the next narrower weights or activations."""
    return [(g, c) for g, group in enumerate(groups) for c in steps(group.choices, choices[g], _is_below)]


def steps_up(groups: Sequence[Group], choices: Choices) -> list[tuple[int, int]]:
    """`(group, choice)` of each step to the next wider weights or activations."""
    return [(g, c) for g, group in enumerate(groups) for c in steps(group.choices, choices[g], _is_above)]


def steps(widths: Sequence[Width], at: int, is_beyond: Callable[[Width, Width], bool]) -> list[int]:
    """Choices beyond one, with none between.

    Example:
        >>> widths = (Width(FLOAT, None), Width(8, 8), Width(8, 4), Width(4, 8), Width(4, 4))
        >>> steps(widths, 0, _is_below), steps(widths, 1, _is_below)
        ([1], [2, 3])
    """
    beyond = [i for i, width in enumerate(widths) if is_beyond(width, widths[at])]
    return [i for i in beyond if not any(is_beyond(widths[i], widths[j]) for j in beyond)]


def _is_below(width: Width, other: Width) -> bool:
    """Narrower in weights or activations, and wider in neither."""
    return width != other and all(own <= its for own, its in zip(_bits(width), _bits(other), strict=True))


def _is_above(width: Width, other: Width) -> bool:
    return _is_below(other, width)


def _bits(width: Width) -> tuple[int, int]:
    return width.weight or 0, FLOAT if width.in_float else width.activation or 0
