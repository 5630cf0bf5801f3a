"""Budgets: `size=1/8`, `latency=0.5`, `bops=2e9`, `size=200kB`.

A fraction, a percentage, or a number up to 1 without a unit is relative to the float network; a number above 1, or one
with a unit, is absolute, without a unit in that of the cost. A relative budget on latency refers to the float file in
the same runtime and the same run of measurements.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bitwright.cost import COSTS
from bitwright.errors import InputError
from bitwright.lookup import did_you_mean, lookup

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
#: `{unit of a cost: {unit of a budget: how many of the cost's}}`.
UNITS: dict[str, dict[str, float]] = {
    "B": {f"{prefix}B": factor for prefix, factor in (_DECIMAL | _BINARY).items()},
    "MAC": _DECIMAL | {f"{prefix}MAC": factor for prefix, factor in _DECIMAL.items()},
    "BOP": _DECIMAL | {f"{prefix}BOP": factor for prefix, factor in _DECIMAL.items()},
    "MAC bit": _DECIMAL,
    "pJ": {"pJ": 1.0, "nJ": 1e3, "uJ": 1e6, "mJ": 1e9, "J": 1e12},
    "ms": {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3},
}
EXAMPLES = "'size=1/8', 'latency=0.5', 'bops=2e9' or 'size=200kB'"
_NUMBER = re.compile(r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>[A-Za-z%]*)")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A bound on a cost.

    Attributes:
        name: row of `COSTS`.
        value: the bound, in the unit of the cost; relative, a share of the float network's.
        relative: whether it is a share.
    """

    name: str
    value: float
    relative: bool

    def limit(self, reference: float) -> float:
        """The bound in the unit of the cost.

        Args:
            reference: cost of the float network.

        Example:
            >>> Budget(name="size", value=0.125, relative=True).limit(800.0)
            100.0
        """
        return self.value * reference if self.relative else self.value


def parse_budget(text: str) -> Budget:
    """Read `NAME=VALUE`.

    Raises:
        InputError: another form, no such cost, no number, a unit of another cost, or a bound that is not above 0.

    Example:
        >>> parse_budget("size=1/8")
        Budget(name='size', value=0.125, relative=True)
        >>> parse_budget("size=200kB").limit(0.0), parse_budget("latency=0.5").relative
        (200000.0, True)
    """
    where = f"budget {text!r}"
    name, equals, said = (part.strip() for part in text.partition("="))
    if not equals or not said:
        raise InputError(where, "is not understood", f"a cost and a bound, as {EXAMPLES}")
    if name not in COSTS:
        raise InputError(where, f"there is no cost {name!r}", fix=did_you_mean(name, COSTS))
    unit: str = lookup(COSTS, name, "cost").load().unit
    value, relative = _value(said, unit, where)
    if not math.isfinite(value) or value <= 0:
        raise InputError(where, f"its bound is {said}", "a number above 0", f"say it as {EXAMPLES}")
    return Budget(name=name, value=value, relative=relative)


def spelled(value: float, unit: str) -> str:
    """A cost for people, with its unit.

    Example:
        >>> spelled(200000.0, "B"), spelled(2.08e9, "BOP"), spelled(0.42, "ms"), spelled(950.0, "MAC bit")
        ('200 kB', '2.08 GBOP', '0.42 ms', '950 MAC bit')
    """
    if unit == "ms":
        return f"{value:.3g} ms"
    if unit == "pJ":
        steps = [("pJ", 1.0), ("nJ", 1e3), ("uJ", 1e6), ("mJ", 1e9)]
    else:
        steps = [(f"{prefix}{unit}", factor) for prefix, factor in _DECIMAL.items()]
    name, factor = next((s for s in reversed(steps) if abs(value) >= s[1]), steps[0])
    scaled = value / factor
    return f"{scaled:.0f} {name}" if scaled >= 100 else f"{scaled:.3g} {name}"


def _value(said: str, unit: str, where: str) -> tuple[float, bool]:
    """The number, in the unit of the cost, and whether it is a share of the float network's."""
    above, slash, below = said.partition("/")
    if slash:
        first, second = (_NUMBER.fullmatch(part.strip()) for part in (above, below))
        if first is None or second is None or first["unit"] or second["unit"] or not float(second["number"]):
            raise InputError(where, f"{said!r} is no fraction", f"two numbers, as in {EXAMPLES}")
        return float(first["number"]) / float(second["number"]), True
    found = _NUMBER.fullmatch(said)
    if found is None:
        raise InputError(where, f"{said!r} is not a number", f"a number, as in {EXAMPLES}")
    number, suffix = float(found["number"]), found["unit"]
    if suffix == "%":
        return number / 100, True
    if not suffix:
        return number, number <= 1
    if suffix not in UNITS[unit]:
        expected = f"one of {', '.join(filter(None, UNITS[unit]))}, or none for {unit}"
        raise InputError(where, f"{suffix!r} is no unit of this cost", expected)
    return number * UNITS[unit][suffix], False
