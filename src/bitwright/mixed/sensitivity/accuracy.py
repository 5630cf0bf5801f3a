"""Accuracy that is lost with one group lowered in the network at its widest: measured, on labelled images.

    loss_g(k) = accuracy(all at their widest) - accuracy(all at their widest but g at k)

It counts answers, so differences below one image cannot be told, and among n images chance alone moves it by about
`sqrt(changed answers) / n`: many images, or another measure.

Source: Wu et al., Integer Quantization for Deep Learning Inference, 2020, section 5.1 (partial quantization).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from bitwright.errors import InputError
from bitwright.mixed.sensitivity.measure import OneAtATime


@dataclass(frozen=True, kw_only=True)
class Accuracy(OneAtATime):
    """Share of right answers lost.

    Example:
        >>> import torch
        >>> Accuracy().metric(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), torch.tensor([1]))
        tensor([0.])
    """

    base: ClassVar[Literal["float", "widest"]] = "widest"
    needs_labels: ClassVar[bool] = True

    def metric(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """1 for a wrong answer, 0 for a right one, `[images]`."""
        if labels is None:
            raise InputError("accuracy", "no labels", "labelled images")
        return (y.argmax(1) != labels).to(y.dtype)
