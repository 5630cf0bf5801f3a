"""AdaQuant's table for its integer program: the loss with one group lowered, less that of the network at its widest.

    dL_g(k) = max(loss(all at their widest but g at k) - loss(all at their widest), 1e-6)

The loss is the mean squared error of the outputs to those of the float network, or the cross-entropy of the labels.

Source: Hubara et al., Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming,
2020, section 4; the floor is that of the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.mixed.sensitivity.measure import OneAtATime

LEAST = 1e-6


@dataclass(frozen=True, kw_only=True)
class AdaQuantLoss(OneAtATime):
    """What lowering a group adds to the loss.

    Args:
        loss: `mse` to the float outputs, or `cross-entropy`, which needs labels.

    Raises:
        InputError: another loss.

    Example:
        >>> AdaQuantLoss().added(0.5, 0.25), AdaQuantLoss().added(0.25, 0.5)
        (0.25, 1e-06)
    """

    loss: str = "mse"

    base: ClassVar[Literal["float", "widest"]] = "widest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("mse", "cross-entropy"):
            raise InputError("adaquant.loss", f"is {self.loss!r}", "mse or cross-entropy")

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether labels are needed."""
        return self.loss == "cross-entropy"

    def metric(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """The loss of each image, `[images]`."""
        if self.loss == "mse" or labels is None:
            return (y - reference).flatten(1).square().mean(1)
        return nn.functional.cross_entropy(y, labels.long(), reduction="none")

    def added(self, loss: float, base: float) -> float:
        """`max(loss - base, 1e-6)`."""
        return max(loss - base, LEAST)
