"""What a user sets: widths for all sites, or for those that a glob names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.lookup import did_you_mean

#: Regions that a hint names.
SHOWN = 12
EXAMPLE = "'W=4,A=8', 'layer4.*:W=8' or 'head.*:float'"


@dataclass(frozen=True, kw_only=True)
class Override:
    """Widths for the regions and sites that match.

    Attributes:
        pattern: glob of regions or sites; "" for all but the ends of the network.
        weights: bits of weights; None leaves them.
        activations: bits of a region's output, or of the site; None leaves them.
        keep_float: the region stays in float.
    """

    pattern: str = ""
    weights: int | None = None
    activations: int | None = None
    keep_float: bool = False


def parse_override(text: str) -> Override:
    """Read `[GLOB:]W=bits,A=bits` or `GLOB:float`.

    Raises:
        InputError: another form, or bits outside 1 to 16.

    Example:
        >>> parse_override("layer4.*:W=8")
        Override(pattern='layer4.*', weights=8, activations=None, keep_float=False)
    """
    where = f"--set {text!r}"
    pattern, colon, body = text.rpartition(":")
    if colon and not pattern:
        raise InputError(where, "names no site before the colon", EXAMPLE)
    if body == "float":
        if not pattern:
            raise InputError(where, "names no region to keep in float", EXAMPLE)
        return Override(pattern=pattern, keep_float=True)
    bits: dict[str, int] = {}
    for part in body.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals or key not in ("W", "A") or key in bits:
            raise InputError(where, f"{part.strip()!r} is not understood", EXAMPLE)
        bits[key] = _bits(value, where)
    return Override(pattern=pattern, weights=bits.get("W"), activations=bits.get("A"))


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


def _bits(text: str, where: str) -> int:
    try:
        bits = int(text)
    except ValueError:
        raise InputError(where, f"{text!r} is no number of bits", "1 to 16") from None
    if not 1 <= bits <= 16:
        raise InputError(where, f"{bits} bits", "1 to 16 bits")
    return bits
