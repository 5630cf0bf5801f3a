"""What every row of FORMATS is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Format(Protocol):
    """A number format, on rows `[rows, n]` of weights that share their parameters row by row.

    `fit` gives the parameters that the other two take: the first is the float32 scale, `[rows]`. Values grow
    with their codes, `qmin .. qmax`; `encode(decode(codes))` is `codes`.
    """

    @property
    def bits(self) -> int:
        """Width of a stored code."""
        ...

    @property
    def qmin(self) -> int:
        """Lowest code."""
        ...

    @property
    def qmax(self) -> int:
        """Highest code."""
        ...

    def fit(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The parameters that suit the values, without any data but these."""
        ...

    def encode(self, rows: Tensor, *parameters: Tensor) -> Tensor:
        """Codes, int32 `[rows, n]`."""
        ...

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """Values, float32 `[rows, n]`."""
        ...
