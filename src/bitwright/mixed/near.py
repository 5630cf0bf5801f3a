"""What the networks near one lose, foretold by a library that is an estimate of them.

Where errors are large, losses of single groups do not add up, and a library made behind float layers knows nothing of
what a recipe makes up for behind quantized ones. So it is asked twice, in the network as it is:

    moves to the next width of a weight or an activation:  loss(c + move) - loss(c), added up for two moves
    the SHORTLIST of those that fit and are foretold to lose least:  the loss of the whole network, put together

Source: ours; that a library has to look at what the recipe looks at is measured in docs/results/mixed.md.
"""

from __future__ import annotations

from bitwright.mixed.problem import Choices, Problem
from bitwright.mixed.refine import neighbours, steps_down, steps_up
from bitwright.mixed.sensitivity.measure import Whole

#: Networks near one that are put together and run.
SHORTLIST = 32


def near(problem: Problem, whole: Whole, choices: Choices) -> dict[Choices, float]:
    """The loss of the networks that are foretold to be best among the neighbours of one, within all limits.

    Args:
        problem: groups and limits; its loss is not looked at.
        whole: of a library.
        choices: whose neighbours.
    """
    moves = steps_down(problem.groups, choices) + steps_up(problem.groups, choices)
    base = whole(choices)
    added = {move: loss - base for move, loss in zip(moves, whole.around(choices, moves), strict=True)}
    fitting: dict[Choices, float] = {}
    for candidate in neighbours(problem.groups, choices):
        made = [(g, c) for g, (c, before) in enumerate(zip(candidate, choices, strict=True)) if c != before]
        if all(move in added for move in made) and problem.fits(candidate):
            fitting[candidate] = sum(added[move] for move in made)
    return {c: whole(c) for c in sorted(fitting, key=lambda c: (fitting[c], c))[:SHORTLIST]}
