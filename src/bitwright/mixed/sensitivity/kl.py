"""Divergence of the outputs from the float network's, with one group lowered in the network at its widest.

    loss_g(k) = mean KL(y || y~, group g at k) - mean KL(y || y~, all at their widest)

Source: the metric of OpenVINO's and NNCF's searches and of TensorRT's calibration; ours is what a choice adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from bitwright.mixed.sensitivity.measure import OneAtATime, divergence


@dataclass(frozen=True, kw_only=True)
class Kl(OneAtATime):
    """Divergence from the float network that a choice adds.

    Example:
        >>> import torch
        >>> Kl().metric(torch.zeros(1, 2), torch.zeros(1, 2), None)
        tensor([0.])
    """

    base: ClassVar[Literal["float", "widest"]] = "widest"

    def metric(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """`KL(softmax(reference) || softmax(y))`, `[images]`."""
        return divergence(y, reference)
