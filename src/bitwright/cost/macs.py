"""Multiply-accumulates of one image.

    MAC(conv) = O * (I/g) * k_h * k_w * H_out * W_out,   MAC(linear) = I * O

Bias, batch norm, additions and pools are not counted (`graph/macs.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.cost.additive import Additive
from bitwright.cost.table import Widths
from bitwright.cost.workload import Product


@dataclass(frozen=True, kw_only=True)
class Macs(Additive):
    """Multiply-accumulates: no width changes them, so that no budget on them can be met by widths."""

    unit: ClassVar[str] = "MAC"

    def product(self, product: Product, widths: Widths) -> float:
        """MACs of the region."""
        return float(product.macs)
