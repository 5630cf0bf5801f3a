"""Bytes of the weights: the model size of papers.

    bits = sum_r numel_r b_r;   with parameters: + 32 for each scale and each bias

The weights of convolutions and linear layers, first and last among them, whatever a file adds around them (`size` is
the file as it is written). The ratio to the float network's is the compression ratio that papers report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.cost.additive import Additive
from bitwright.cost.table import Widths
from bitwright.cost.workload import FLOAT, Product

#: Bits of a scale, and of a bias.
PARAMETER = 32


@dataclass(frozen=True, kw_only=True)
class Weights(Additive):
    """Bytes of all weights.

    Args:
        parameters: count scales of quantized weights and biases too.
    """

    parameters: bool = False

    unit: ClassVar[str] = "B"

    def product(self, product: Product, widths: Widths) -> float:
        """Bytes of the region's weight."""
        bits = product.weight_elements * widths[0]
        if self.parameters:
            scales = product.scales if product.has_choice and widths[0] != FLOAT else 0
            bits += PARAMETER * (scales + product.bias_elements)
        return bits / 8 if product.weight_elements else 0.0
