"""What every range estimator is, and the two checks that all of them share."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine

S = TypeVar("S")


class Estimator(Protocol[S]):
    """`init -> update -> finish`; the state is a value and lives outside."""

    @property
    def extremes_only(self) -> bool:
        """Whether rows `[[min, max]]` stand for all the values of a row, as many as there are."""
        ...

    def init(self) -> S:
        """The state before any data."""
        ...

    def update(self, state: S, rows: Tensor, *, site: str = "tensor") -> S:
        """The state after `rows`, `[rows, n]`, have been seen too. Its size does not depend on the number of calls."""
        ...

    def finish(self, state: S, grid: Affine, *, symmetric: bool, site: str = "tensor") -> tuple[Tensor, Tensor]:
        """`(lo, hi)`, each `[rows]` float32, `lo <= 0 <= hi`; symmetric ranges are `(-A, A)`."""
        ...


def row_extremes(rows: Tensor, seen: Tensor | None, site: str) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each row, `[rows]` float32.

    Args:
        rows: the data, `[rows, n]`.
        seen: a `[rows]` tensor of the state, or None before the first call.
        site: name of the tensor, for errors.

    Raises:
        InputError: the shape is not `[rows, n]` with `n > 0`, the number of rows changed, or a value is NaN
            or infinite.

    Example:
        >>> lo, hi = row_extremes(torch.tensor([[1.0, -2.0], [0.0, 5.0]]), None, "w")
        >>> lo.tolist(), hi.tolist()
        ([-2.0, 0.0], [1.0, 5.0])
    """
    if rows.ndim != 2 or rows.numel() == 0:
        raise InputError(site, f"data of shape {list(rows.shape)}", "[rows, n] with at least one value")
    if seen is not None and seen.shape[0] != rows.shape[0]:
        raise InputError(
            site,
            f"{rows.shape[0]} rows after {seen.shape[0]} rows",
            "the same number of rows in every update",
            "check the granularity and the shapes of the batches",
        )
    lo, hi = torch.aminmax(rows.float(), dim=1)  # NaN propagates, so this one pass also checks the data
    if not bool(torch.isfinite(lo).all() and torch.isfinite(hi).all()):
        raise InputError(site, "NaN or infinity in the data", "finite values", "check the model and its preprocessing")
    return lo, hi


def no_data(site: str) -> InputError:
    """The error of `finish` before the first `update`."""
    return InputError(site, "no data was seen", "an update before finish", "calibrate with one batch or more")


def with_zero(lo: Tensor, hi: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The range widened to contain zero; `(-A, A)` with `A = max(|lo|, |hi|)` when symmetric.

    Example:
        >>> with_zero(torch.tensor([1.0]), torch.tensor([3.0]), symmetric=False)
        (tensor([0.]), tensor([3.]))
    """
    lo, hi = lo.clamp(max=0.0), hi.clamp(min=0.0)
    if symmetric:
        amax = torch.maximum(-lo, hi)
        return -amax, amax
    return lo, hi
