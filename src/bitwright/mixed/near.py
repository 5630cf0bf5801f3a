"""What the networks near one lose, foretold by a library that is an estimate of them, and by what tries have shown.

Where errors are large, losses of single groups do not add up, and a library made behind float layers knows nothing of
what a recipe makes up for behind quantized ones. So it is asked in the network as it is, and corrected by what it said
of the networks that were made and measured:

    moves to the next width of a weight or an activation:  e(c + move) - e(c), added up for two moves
    the SHORTLIST of those that fit and are foretold to lose least:  e of the whole network, put together
    foretold:  e(c) + a + b z(c) + sum_g w(g, c_g),  z the estimate e, standardized over what was measured
               a, b, w: ridge regression of (measured - e); a and b nearly free

A move that a library believes in and that made each network worse that had it is so foretold to make the next worse.

Source: ours; that a library has to look at what the recipe looks at, and what its tries teach, is measured in
docs/results/mixed.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bitwright.mixed.problem import Choices, Problem
from bitwright.mixed.refine import neighbours, steps_down, steps_up
from bitwright.mixed.sensitivity.measure import Whole

#: Networks near one that are put together and run.
SHORTLIST = 32
#: Of the squares of `a`, `b` and each `w`, beside squared residuals: what one network shows of a choice counts half,
#: what three show three quarters.
PENALTIES = (1e-6, 0.1, 1.0)


def near(problem: Problem, whole: Whole, choices: Choices, measured: Mapping[Choices, float]) -> dict[Choices, float]:
    """The loss of the networks that are foretold to be best among the neighbours of one, within all limits.

    Args:
        problem: groups and limits; its loss is not looked at.
        whole: of a library.
        choices: whose neighbours.
        measured: losses of networks that were made; none of them is given back.
    """
    moves = steps_down(problem.groups, choices) + steps_up(problem.groups, choices)
    base = whole(choices)
    added = {move: loss - base for move, loss in zip(moves, whole.around(choices, moves), strict=True)}
    foretold = learned({tried: whole(tried) for tried in measured}, measured)
    fitting: dict[Choices, float] = {}
    for candidate in neighbours(problem.groups, choices):
        made = [(g, c) for g, (c, before) in enumerate(zip(candidate, choices, strict=True)) if c != before]
        if candidate not in measured and all(move in added for move in made) and problem.fits(candidate):
            fitting[candidate] = foretold(candidate, base + sum(added[move] for move in made))
    shortlist = sorted(fitting, key=lambda c: (fitting[c], c))[:SHORTLIST]
    return {c: foretold(c, whole(c)) for c in shortlist}


def learned(
    estimates: Mapping[Choices, float], measured: Mapping[Choices, float]
) -> Callable[[Choices, float], float]:
    """What corrects an estimate of a network's loss by those of networks that were measured; none of none.

    Args:
        estimates: of the networks that were measured.
        measured: their losses.

    Example:
        >>> estimates = {(0, 0): 1.0, (1, 0): 0.5, (1, 1): 0.8}  # the first group is believed to gain by its choice 1
        >>> corrected = learned(estimates, {(0, 0): 1.0, (1, 0): 1.6, (1, 1): 1.8})
        >>> corrected((1, 2), 0.6) > corrected((0, 2), 0.9)
        True
    """
    if not measured:
        return lambda choices, estimate: estimate
    tried = list(measured)
    e = np.array([estimates[choices] for choices in tried])
    residuals = np.array([measured[choices] for choices in tried]) - e
    mean, spread = float(e.mean()), float(e.std()) or 1.0
    seen = {pair: i for i, pair in enumerate(sorted({pair for choices in tried for pair in enumerate(choices)}), 2)}

    def features(choices: Choices, estimate: float) -> np.ndarray:
        row = np.zeros(2 + len(seen))
        row[0], row[1] = 1.0, (estimate - mean) / spread
        row[[seen[pair] for pair in enumerate(choices) if pair in seen]] = 1.0
        return row

    rows = np.stack([features(choices, estimate) for choices, estimate in zip(tried, e, strict=True)])
    a, b, w = PENALTIES
    fitted = np.linalg.solve(rows.T @ rows + np.diag([a, b, *[w] * len(seen)]), rows.T @ residuals)
    return lambda choices, estimate: estimate + float(features(choices, estimate) @ fitted)
