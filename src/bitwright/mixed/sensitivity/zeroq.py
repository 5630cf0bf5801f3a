"""ZeroQ's sensitivity: divergence of the outputs with only the weights of one group quantized.

    Omega_i(k) = 1/N sum_x KL(M(x) || M(x), weights of group i at k bits)

All else, activations among it, is in float. Made for distilled images; real ones do as well.

Source: Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, CVPR 2020, section 3.2, eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from bitwright.mixed.sensitivity.measure import OneAtATime, divergence


@dataclass(frozen=True, kw_only=True)
class ZeroQ(OneAtATime):
    """Divergence with one group's weights quantized.

    Example:
        >>> import torch
        >>> ZeroQ().metric(torch.zeros(1, 2), torch.zeros(1, 2), None)
        tensor([0.])
    """

    base: ClassVar[Literal["float", "widest"]] = "float"
    weights_only: ClassVar[bool] = True

    def metric(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """`KL(softmax(reference) || softmax(y))`, `[images]`."""
        return divergence(y, reference)
