"""Energy of one image: a model with published figures of one process, no measurement.

    E = sum_r MAC_r e_mac(b_w, b_a) + bits moved * e_mem / 32

    e_mac = e_mult(int8) b_w b_a / 64 + e_add(int32)   in integers   (8 x 8: 0.2 + 0.1 = 0.3 pJ)
    e_mac = e_mult(float32) + e_add(float32)           in float      (3.7 + 0.9 = 4.6 pJ)

The product `b_w b_a / 64` is an extrapolation: the source gives multiplications of 8 and 32 bits only (at 32 x 32 the
model says 3.2 pJ, the source 3.1). Each weight comes from DRAM once an image; activations are written to SRAM once and
read once by each region that reads them. Additions, pools and functions of single values are not counted.

The figures are those of `energy_45nm.json`; another table of this form is named by its path.

Source: Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from bitwright.cost.additive import Additive
from bitwright.cost.table import Widths
from bitwright.cost.workload import FLOAT, Held, Product
from bitwright.errors import InputError, first_line

#: The table of the source.
HOROWITZ = Path(__file__).parent / "energy_45nm.json"
#: Entries that the model reads.
READ = (
    ("multiply", "int8"), ("add", "int32"), ("multiply", "float32"), ("add", "float32"), ("memory_32_bits", "sram"),
    ("memory_32_bits", "dram"),
)  # fmt: skip


@cache
def read_table(path: str) -> dict[str, Any]:
    """A table of energies in picojoules.

    Raises:
        InputError: no such file, no JSON, an entry that is missing or no number from 0 on, or no source.

    Example:
        >>> read_table(str(HOROWITZ))["multiply"]["int8"]
        0.2
    """
    expected = "a table as bitwright/cost/energy_45nm.json"
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", expected) from error
    except ValueError as error:
        raise InputError(path, f"is no JSON ({first_line(error)})", expected) from error
    for part, name in READ:
        rows = table.get(part) if isinstance(table, dict) else None
        found = rows.get(name) if isinstance(rows, dict) else None
        good = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found) and found >= 0
        if not good:
            raise InputError(f"{path}: {part}.{name}", f"is {found!r}", f"picojoules, in {expected}")
    if not table.get("source") or table.get("unit") != "pJ":
        raise InputError(path, "does not say its source and the unit pJ", expected, "say where its figures come from")
    return dict(table)


@dataclass(frozen=True, kw_only=True)
class Energy(Additive):
    """Picojoules of one image.

    Args:
        table: path of a JSON table of energies; that of Horowitz if empty.

    Raises:
        InputError: the table cannot be read, or lacks an entry.

    Example:
        >>> round(Energy().mac(8, 8), 6), round(Energy().mac(32, 32), 6)
        (0.3, 4.6)
    """

    table: str = ""

    unit: ClassVar[str] = "pJ"

    def __post_init__(self) -> None:
        read_table(self._path)

    @property
    def _path(self) -> str:
        return self.table or str(HOROWITZ)

    @property
    def source(self) -> str:
        """Where the figures come from."""
        return str(read_table(self._path)["source"])

    def mac(self, weight_bits: int, activation_bits: int) -> float:
        """Picojoules of one multiply-accumulate; 32 bits are float."""
        table = read_table(self._path)
        if FLOAT in (weight_bits, activation_bits):
            return float(table["multiply"]["float32"] + table["add"]["float32"])
        return float(table["multiply"]["int8"] * weight_bits * activation_bits / 64 + table["add"]["int32"])

    def product(self, product: Product, widths: Widths) -> float:
        """Picojoules of a region: its MACs, and its weight from DRAM."""
        memory = read_table(self._path)["memory_32_bits"]["dram"] / 32
        moved = product.weight_elements * widths[0] * memory if product.weight_elements else 0.0
        return product.macs * self.mac(*product.multiplied(widths)) + moved

    def bit(self, held: Held) -> float:
        """Picojoules for each bit of the width of a value, in SRAM."""
        return held.elements * held.moves * float(read_table(self._path)["memory_32_bits"]["sram"]) / 32
