"""What a plan says of one site: quantized so, shared with another site, derived from others, or float because ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.formats.granularity import Granularity, PerAxis, PerTensor


@dataclass(frozen=True, kw_only=True)
class QSpec:
    """Quantized: the number format of a site.

    Attributes:
        bits: width, 1 to 16.
        signed: codes on both sides of zero.
        symmetric: zero point in the middle of the grid.
        narrow: leave out the most negative code, so that the grid is symmetric too.
        axis: one scale for each index of this axis; None for one scale in all.
        format: row of `FORMATS`.
    """

    bits: int
    signed: bool = False
    symmetric: bool = False
    narrow: bool = False
    axis: int | None = None
    format: str = "affine"

    @property
    def grid(self) -> Affine:
        """The integer codes."""
        return Affine(bits=self.bits, signed=self.signed, narrow=self.narrow)

    @property
    def granularity(self) -> Granularity:
        """Which elements share a scale."""
        return PerTensor() if self.axis is None else PerAxis(self.axis)


@dataclass(frozen=True)
class Shared:
    """The same encoding as site `site`, because the op between them moves codes unchanged."""

    site: str


@dataclass(frozen=True)
class Derived:
    """A bias: int32 codes at the scale `s_x * s_w` of its region's input and weight."""

    input: str
    weight: str


@dataclass(frozen=True)
class Float:
    """Not quantized, and why."""

    reason: str


SiteSpec = QSpec | Shared | Derived | Float
_KINDS: dict[str, type[Any]] = {"quantized": QSpec, "shared": Shared, "derived": Derived, "float": Float}


def spec_to_json(spec: SiteSpec) -> dict[str, Any]:
    """A spec as JSON; fields at their defaults are left out.

    Example:
        >>> spec_to_json(QSpec(bits=8)), spec_to_json(Shared("x"))
        ({'kind': 'quantized', 'bits': 8}, {'kind': 'shared', 'site': 'x'})
    """
    kind = next(k for k, t in _KINDS.items() if isinstance(spec, t))
    fields = {
        name: getattr(spec, name)
        for name, field in type(spec).__dataclass_fields__.items()
        if getattr(spec, name) != field.default
    }
    return {"kind": kind, **fields}


def spec_from_json(entry: Any, where: str) -> SiteSpec:
    """The spec that `spec_to_json` wrote.

    Raises:
        InputError: an unknown kind or field.
    """
    if not isinstance(entry, dict) or entry.get("kind") not in _KINDS:
        raise InputError(where, f"is {entry!r}", f"an object whose kind is one of {', '.join(_KINDS)}")
    fields = {k: v for k, v in entry.items() if k != "kind"}
    try:
        spec: SiteSpec = _KINDS[entry["kind"]](**fields)
    except TypeError as error:
        raise InputError(where, str(error), f"fields of a {entry['kind']} site") from error
    if isinstance(spec, QSpec):
        _ = spec.grid  # checks the width
    return spec
