"""What a plan says of one site: quantized so, shared with another site, derived from others, or float because ..."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Any

from bitwright.errors import InputError
from bitwright.formats import FORMATS
from bitwright.formats.affine import Affine
from bitwright.formats.granularity import Granularity, PerAxis, PerTensor
from bitwright.lookup import did_you_mean, lookup

#: Formats whose codes are integers, `scale * (code - zero point)`; the others are tables of levels.
AFFINE_FORMATS = ("affine", "pow2")


@dataclass(frozen=True, kw_only=True)
class QSpec:
    """Quantized: the number format of a site.

    Attributes:
        bits: width, 1 to 16.
        signed: codes on both sides of zero (affine formats).
        symmetric: zero point in the middle of the grid (affine formats).
        narrow: leave out the most negative code, so that the grid is symmetric too (affine formats).
        axis: one scale for each index of this axis; None for one scale in all.
        format: row of `FORMATS`; where it is a table of levels, a code is an index into the table.
    """

    bits: int
    signed: bool = False
    symmetric: bool = False
    narrow: bool = False
    axis: int | None = None
    format: str = "affine"

    @property
    def grid(self) -> Affine:
        """The integer codes of an affine format."""
        return Affine(bits=self.bits, signed=self.signed, narrow=self.narrow)

    @property
    def has_levels(self) -> bool:
        """Whether codes are indices into a table of levels, not integers themselves."""
        return self.format not in AFFINE_FORMATS

    def levels_format(self) -> Any:
        """The format object of a table of levels, a row of `FORMATS` at this width.

        Raises:
            InputError: there is no such format, or it has no such width.

        Example:
            >>> QSpec(bits=3, format="log2").levels_format().levels
            (-4, -2, -1, 0, 1, 2, 4)
        """
        row = lookup(FORMATS, self.format, "format").load()
        if "bits" in row.__dataclass_fields__:
            return row(bits=self.bits)
        if row().bits != self.bits:
            raise InputError(f"{self.format} bits", f"a width of {self.bits}", f"{row().bits}")
        return row()

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
        InputError: an unknown kind, a field that is unknown, missing or of the wrong type, or an impossible format.

    Example:
        >>> spec_from_json({"kind": "quantized", "bits": 8}, "site 'x'")
        QSpec(bits=8, signed=False, symmetric=False, narrow=False, axis=None, format='affine')
    """
    if not isinstance(entry, dict) or entry.get("kind") not in list(_KINDS):
        raise InputError(where, f"is {entry!r}", f"an object whose kind is one of {', '.join(_KINDS)}")
    kind = _KINDS[entry["kind"]]
    known = kind.__dataclass_fields__
    for name, value in entry.items():
        if name == "kind":
            continue
        if name not in known:
            raise InputError(where, f"there is no field {name!r}", fix=did_you_mean(name, known))
        # Annotations are strings here: "int", "bool", "int | None", "str".
        if type(value).__name__.replace("NoneType", "None") not in str(known[name].type).split(" | "):
            raise InputError(where, f"{name} is {value!r}", f"of type {known[name].type}")
    missing = [n for n, f in known.items() if f.default is MISSING and n not in entry]
    if missing:
        raise InputError(where, f"has no {missing[0]}", f"{', '.join(known)} of a {entry['kind']} site")
    spec: SiteSpec = kind(**{k: v for k, v in entry.items() if k != "kind"})
    if isinstance(spec, QSpec):
        _check_format(spec, where)
    return spec


def _check_format(spec: QSpec, where: str) -> None:
    try:
        _ = spec.levels_format() if spec.has_levels else spec.grid
    except InputError as error:
        raise InputError(f"{where}: {error.where}", error.found, error.expected, error.fix) from error
