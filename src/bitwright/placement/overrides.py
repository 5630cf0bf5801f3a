"""What a user sets: widths for all sites, or for those that a glob names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.formats import FORMATS
from bitwright.lookup import did_you_mean, lookup
from bitwright.plan.spec import QSpec

#: Regions that a hint names.
SHOWN = 12
EXAMPLE = "'W=4,A=8', 'W=log2-4', 'layer4.*:W=8' or 'head.*:float'"
#: What stands in place of a width of activations, and the mode of compute that it means.
MODES = {"float": "weights", "dynamic": "dynamic"}
#: Formats that have one width.
FIXED_WIDTHS = {"binary": 1, "ternary": 2}


@dataclass(frozen=True, kw_only=True)
class Width:
    """Bits, and the number format that they are of.

    Attributes:
        bits: 1 to 16.
        format: row of `FORMATS`.
    """

    bits: int
    format: str = "affine"

    def __str__(self) -> str:
        """As it is written in an override."""
        if self.format == "affine":
            return str(self.bits)
        return self.format if self.format in FIXED_WIDTHS else f"{self.format}-{self.bits}"


@dataclass(frozen=True, kw_only=True)
class Override:
    """Widths for the regions and sites that match.

    Attributes:
        pattern: glob of regions or sites; "" for all but the ends of the network.
        weights: width of weights; None leaves them.
        activations: width of a region's output, or of the site; None leaves them.
        keep_float: the region stays in float.
        mode: `weights` (b-bit weights, float compute) or `dynamic` (activation ranges found at run time) for the
            layers with weights; "" for integers with calibrated ranges.
    """

    pattern: str = ""
    weights: Width | None = None
    activations: Width | None = None
    keep_float: bool = False
    mode: str = ""


def parse_override(text: str) -> Override:
    """Read `[GLOB:]W=width,A=width` or `GLOB:float`; a width is `bits`, or a format and its bits, `log2-4`.

    `A=float` stores weights only, `A=dynamic` finds the activation ranges of linear layers at run time.

    Raises:
        InputError: another form, a format that is not there, or bits that it has not.

    Example:
        >>> parse_override("layer4.*:W=log2-4").weights
        Width(bits=4, format='log2')
    """
    where = f"--set {text!r}"
    pattern, colon, body = text.rpartition(":")
    if colon and not pattern:
        raise InputError(where, "names no site before the colon", EXAMPLE)
    if body == "float":
        if not pattern:
            raise InputError(where, "names no region to keep in float", EXAMPLE)
        return Override(pattern=pattern, keep_float=True)
    widths: dict[str, Width] = {}
    mode = ""
    for part in body.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals or key not in ("W", "A") or key in widths or (key == "A" and mode):
            raise InputError(where, f"{part.strip()!r} is not understood", EXAMPLE)
        if key == "A" and value in MODES:
            mode = MODES[value]
        else:
            widths[key] = _width(value, where)
    if "W" in widths and widths["W"] == Width(bits=1):  # one bit of weight is its sign: no zero point can help it
        widths["W"] = Width(bits=1, format="binary")
    return Override(pattern=pattern, weights=widths.get("W"), activations=widths.get("A"), mode=mode)


def what_would_match(pattern: str, regions: Sequence[str], sites: Sequence[str]) -> str:
    """A hint for a glob that names nothing: the nearest names, or the first regions.

    Example:
        >>> what_would_match("layer1.0.cnv1", ["layer1.0.conv1", "fc"], ["fc.weight"])
        "did you mean 'layer1.0.conv1'?"
        >>> what_would_match("head.*", ["conv1", "conv2", "fc"], [])
        'choose from conv1, conv2, fc'
    """
    hint = did_you_mean(pattern.rstrip("*."), [*regions, *sites])
    if hint.startswith("did you mean"):
        return hint
    more = len(regions) - SHOWN
    rest = f" and {more} more, which `bitwright inspect` lists" if more > 0 else ""
    return f"choose from {', '.join(regions[:SHOWN])}{rest}"


def _width(text: str, where: str) -> Width:
    name, dash, digits = text.rpartition("-")
    if not dash and text in FIXED_WIDTHS:
        return Width(bits=FIXED_WIDTHS[text], format=text)
    if name:
        lookup(FORMATS, name, "format")
    elif dash or not digits.isdigit():
        expected = f"1 to 16, or one of {', '.join([*FIXED_WIDTHS, 'log2-4', 'codebook-3'])} ..."
        raise InputError(where, f"{text!r} is no number of bits", expected)
    if not digits.isdigit() or not 1 <= int(digits) <= 16:
        raise InputError(where, f"{digits} bits", "1 to 16 bits")
    width = Width(bits=int(digits), format=name or "affine")
    spec = QSpec(bits=width.bits, format=width.format)
    try:
        _ = spec.levels_format() if spec.has_levels else spec.grid
    except InputError as error:
        raise InputError(where, f"{error.where}: {error.found}", error.expected, error.fix) from error
    return width
