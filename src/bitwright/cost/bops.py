"""Bit operations: what multiplying costs where hardware takes one bit of each operand at a time.

    BOPs = sum_r MAC_r b_w b_a                                          (float32: 32 * 32 = 1024 a MAC)
    BOPs = sum_r MAC_r (b_w b_a + b_w + b_a + log2(I/g * k_h * k_w))    (with accumulation)

They say nothing of latency but on bit-serial hardware.

Source: Yao et al., HAWQ-V3, ICML 2021 (the first form); Baskin et al., UNIQ, 2018 (the second).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bitwright.cost.additive import Additive
from bitwright.cost.table import Widths
from bitwright.cost.workload import Product


def bit_operations(macs: int, weight_bits: int, activation_bits: int, terms: int = 0) -> float:
    """BOPs of one layer.

    Args:
        macs: multiply-accumulates.
        weight_bits, activation_bits: widths of the operands.
        terms: products in each sum, to count accumulation; 0 not to.

    Example:
        >>> bit_operations(10, 4, 8), bit_operations(10, 4, 8, terms=16)
        (320.0, 480.0)
    """
    adding = weight_bits + activation_bits + math.log2(terms) if terms else 0.0
    return macs * (weight_bits * activation_bits + adding)


@dataclass(frozen=True, kw_only=True)
class Bops(Additive):
    """Bit operations of one image.

    Args:
        accumulation: count the bits of the sums too.
    """

    accumulation: bool = False

    unit: ClassVar[str] = "BOP"

    def product(self, product: Product, widths: Widths) -> float:
        """BOPs of the region."""
        terms = product.terms if self.accumulation else 0
        return bit_operations(product.macs, *product.multiplied(widths), terms)
