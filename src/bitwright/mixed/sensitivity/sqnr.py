"""Noise over signal of the outputs, with one group quantized and all else in float.

    loss = mean over images of  ||y~ - y||^2 / ||y||^2

Noise of independent sources adds up, so the sum over groups foretells that of the whole. No labels, any output.

Source: Pandey et al., A Practical Mixed Precision Algorithm for Post-Training Quantization, 2023, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from bitwright.mixed.sensitivity.measure import OneAtATime

#: Power below which an output is silent.
SILENT = 1e-12


@dataclass(frozen=True, kw_only=True)
class Sqnr(OneAtATime):
    """Noise power of an image's outputs over their power.

    Example:
        >>> import torch
        >>> Sqnr().metric(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]]), None)
        tensor([0.5000])
    """

    base: ClassVar[Literal["float", "widest"]] = "float"

    def metric(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """`||y - reference||^2 / ||reference||^2`, `[images]`."""
        noise = (y - reference).flatten(1).square().sum(1)
        return noise / reference.flatten(1).square().sum(1).clamp(min=SILENT)
