"""Linear cost: hardware whose multiplier has a fixed number of bits a cycle.

    cost = sum_r MAC_r max(b_w, b_a),   bits rounded up to 4, 8, 16 or 32

Source: Abdolrashidi et al., Pareto-Optimal Quantized ResNet Is Mostly 4-bit, CVPR workshops 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.cost.additive import Additive
from bitwright.cost.table import Widths
from bitwright.cost.workload import Product

#: Widths that multipliers have.
STEPS = (4, 8, 16, 32)


def linear_cost(macs: int, weight_bits: int, activation_bits: int) -> float:
    """MAC bits of one layer.

    Example:
        >>> linear_cost(10, 4, 8), linear_cost(10, 2, 3), linear_cost(10, 5, 4)
        (80.0, 40.0, 80.0)
    """
    return float(macs * next(step for step in STEPS if step >= max(weight_bits, activation_bits)))


@dataclass(frozen=True, kw_only=True)
class Linear(Additive):
    """MACs of one image times the wider of the two widths."""

    unit: ClassVar[str] = "MAC bit"

    def product(self, product: Product, widths: Widths) -> float:
        """Cost of the region."""
        return linear_cost(product.macs, *product.multiplied(widths))
