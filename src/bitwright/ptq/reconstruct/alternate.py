"""Scale and codes by turns: the multiple of a grid that is nearest to a row of weights.

    min_{a > 0, q on the grid} ||w - a q||^2:    q = clip(rnd(w / a)),    a = <w, q> / <q, q>,    until q stays

No half step raises the error. Which of several local optima is found depends on where it starts: the best of all
starts counts.

Source: Leng et al., Extremely Low Bit Neural Network: Squeeze the Last Bit Out with ADMM, AAAI 2018, section 3.2.
Choice: with a zero point z, which stays, q lies in `qmin - z .. qmax - z`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats.affine import SMALLEST_SCALE, Affine

#: Most turns; a few are enough.
TURNS = 100


def nearest_multiple(rows: Tensor, starts: Tensor, zero: Tensor, grid: Affine) -> tuple[Tensor, Tensor]:
    """Scale of each row, and codes, int32, zero point and all.

    Args:
        rows: `[rows, n]`.
        starts: scales to begin with, `[starts, rows]`.
        zero: zero points, `[rows]`.
        grid: the codes.

    Example:
        >>> w = torch.tensor([[0.9, -0.2, 0.45, -1.3, 0.05]])
        >>> seven, zero = Affine(bits=4, signed=True, narrow=True), torch.zeros(1)
        >>> scale, codes = nearest_multiple(w, torch.tensor([[1.3 / 8.75]]), zero, seven)
        >>> round(scale.item(), 6), codes.tolist()
        (0.186076, [[5, -1, 2, -7, 0]])
    """
    best = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    scale, codes = starts[0].clone(), torch.zeros_like(rows)
    for start in starts:
        a, q = _turns(rows, start, zero, grid)
        error = (rows - a[:, None] * q).double().square().sum(1)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, a, scale)
        codes = torch.where(better[:, None], q, codes)
    return scale, (codes + zero[:, None]).to(torch.int32)


def _turns(rows: Tensor, a: Tensor, zero: Tensor, grid: Affine) -> tuple[Tensor, Tensor]:
    low, high = (grid.qmin - zero)[:, None], (grid.qmax - zero)[:, None]

    def codes(a: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(torch.round(rows / a[:, None]), low), high)

    q = codes(a)
    for _ in range(TURNS):
        length = q.square().sum(1)
        found = (rows * q).sum(1) / length.clamp(min=1.0)
        # All codes 0, or all of the wrong sign: the scale stays.
        a = torch.where((length > 0) & (found > SMALLEST_SCALE), found, a)
        before, q = q, codes(a)
        if bool((q == before).all()):
            break
    return a, q
