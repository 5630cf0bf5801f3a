"""Moving and plain averages of the extremes of each batch: outliers of single batches are clipped cheaply.

    EMA       lo <- (1 - c) lo + c min(batch),  hi likewise; the first batch assigns
    average   lo = mean over batches of min(batch),  hi likewise

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018 (moving average). With c = 0.01 and ten batches the result is all but the first batch:
small c is for training, 0.1 or the plain average for calibration. Neither suits logits, where the extremes
are what counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.ranges.estimator import no_data, row_extremes, with_zero


@dataclass(frozen=True, kw_only=True)
class AverageState:
    """Averaged extremes of each row, `[rows]`, and how many batches they stand for."""

    lo: Tensor | None = None
    hi: Tensor | None = None
    batches: int = 0


@dataclass(frozen=True, kw_only=True)
class EMA:
    """Exponential moving average of the extremes of each batch.

    Args:
        c: weight of a new batch, above 0 to 1.

    Raises:
        InputError: c is not within (0, 1].

    Example:
        >>> import torch
        >>> estimator = EMA(c=0.25)
        >>> state = estimator.update(estimator.init(), torch.tensor([[-1.0, 4.0]]))
        >>> state = estimator.update(state, torch.tensor([[-1.0, 8.0]]))
        >>> estimator.finish(state, Affine(bits=8, signed=False), symmetric=False)
        (tensor([-1.]), tensor([5.]))
    """

    c: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.c <= 1.0:
            raise InputError("c", f"{self.c}", "above 0 and at most 1", "0.1 for calibration, 0.01 for training")

    @property
    def extremes_only(self) -> bool:
        """True: the two extremes of a row and batch are all that counts."""
        return True

    def init(self) -> AverageState:
        """The state before any data."""
        return AverageState()

    def update(self, state: AverageState, rows: Tensor, *, site: str = "tensor") -> AverageState:
        """The state after the batch `rows`, `[rows, n]`."""
        return _towards(state, rows, self.c, site)

    def finish(
        self, state: AverageState, grid: Affine, *, symmetric: bool, site: str = "tensor"
    ) -> tuple[Tensor, Tensor]:
        """`(lo, hi)`, each `[rows]`."""
        return _ends(state, symmetric, site)


@dataclass(frozen=True, kw_only=True)
class AverageMinMax:
    """Mean over the batches of their extremes.

    Example:
        >>> import torch
        >>> estimator = AverageMinMax()
        >>> state = estimator.update(estimator.init(), torch.tensor([[-1.0, 4.0]]))
        >>> state = estimator.update(state, torch.tensor([[-1.0, 8.0]]))
        >>> estimator.finish(state, Affine(bits=8, signed=False), symmetric=False)
        (tensor([-1.]), tensor([6.]))
    """

    @property
    def extremes_only(self) -> bool:
        """True: the two extremes of a row and batch are all that counts."""
        return True

    def init(self) -> AverageState:
        """The state before any data."""
        return AverageState()

    def update(self, state: AverageState, rows: Tensor, *, site: str = "tensor") -> AverageState:
        """The state after the batch `rows`, `[rows, n]`."""
        return _towards(state, rows, 1 / (state.batches + 1), site)

    def finish(
        self, state: AverageState, grid: Affine, *, symmetric: bool, site: str = "tensor"
    ) -> tuple[Tensor, Tensor]:
        """`(lo, hi)`, each `[rows]`."""
        return _ends(state, symmetric, site)


def _towards(state: AverageState, rows: Tensor, weight: float, site: str) -> AverageState:
    lo, hi = (end.double() for end in row_extremes(rows, state.lo, site))  # float64: thousands of small steps
    if state.lo is not None and state.hi is not None:
        lo, hi = state.lo + weight * (lo - state.lo), state.hi + weight * (hi - state.hi)
    return AverageState(lo=lo, hi=hi, batches=state.batches + 1)


def _ends(state: AverageState, symmetric: bool, site: str) -> tuple[Tensor, Tensor]:
    if state.lo is None or state.hi is None:
        raise no_data(site)
    return with_zero(state.lo.float(), state.hi.float(), symmetric=symmetric)
