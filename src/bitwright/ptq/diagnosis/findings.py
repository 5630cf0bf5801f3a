"""From what was measured to causes, and to the remedies that they ask for.

Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.7; thresholds are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitwright.ptq.diagnosis.layers import Layer
from bitwright.ptq.diagnosis.scan import Scan, SiteScan

#: Channels whose ranges differ so much share a scale badly: a median channel has less than 32 of 255 steps.
WIDE_SPREAD = 8.0
#: `max / rms` of normal weights is 3 to 4; a uniform distribution has 1.7.
LONG_TAIL = 6.0
#: Share of the error's power that is a shift of the channels.
BIASED = 0.05
#: Share of values beyond the range.
SATURATED = 0.05
#: Share of the codes that hold the middle 99.9 % of the values. How many codes are ever used tells less: images of few
#: grey levels use few, all over their range.
UNUSED = 0.5
#: Width from which on finer rounding or ranges change little; the widest weights of some targets have 7 bits.
FINE_BITS = 7


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Something that explains an error, and what helps.

    Attributes:
        text: what it is, one line.
        remedies: rows of `recipes.remedies.REMEDIES`, the first to try first; none where nothing is to be done.
    """

    text: str
    remedies: tuple[str, ...] = ()


CAUSES: dict[str, Cause] = {
    "outlier-channels": Cause(
        text="channels of very different ranges share one scale", remedies=("per-channel", "equalize")
    ),
    "weight-tail": Cause(text="a few large weights stretch the range of their channel", remedies=("mse-weights",)),
    "dead-channels": Cause(text="channels whose weights are all zero"),
    "biased-error": Cause(text="the error has a mean: it shifts the layer's channels", remedies=("correct-bias",)),
    "coarse-weights": Cause(
        text="few levels, and each weight is rounded by itself", remedies=("mse-weights", "gptq", "adaround")
    ),
    "activation-tail": Cause(
        text="few large values stretch the range: half of the codes and more hold nearly nothing",
        remedies=("mse-activations", "percentile-activations"),
    ),
    "saturated": Cause(text="many values lie beyond the range", remedies=("minmax-activations",)),
    "coarse-activations": Cause(text="few levels for the values", remedies=("mse-activations", "qdrop", "raise")),
    "end": Cause(text="an end of the network at few bits", remedies=("raise",)),
    "sensitive": Cause(text="the outputs depend much on it", remedies=("raise",)),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A cause at a site, with the numbers that show it."""

    site: str
    region: str
    cause: str
    evidence: str


def findings(
    scanned: Scan, layers: Sequence[Layer], widths: Mapping[str, int], ends: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """What the layers show, in their order.

    Args:
        scanned: the scans.
        layers: the layers that were looked at.
        widths: `{site: bits}`.
        ends: sites at the ends of the network.
    """
    rows = {row.site: row for row in scanned.sites}
    found: list[Finding] = []
    for layer in layers:
        causes = _of_weights(layer, widths) if layer.weights is not None else _of_values(layer, widths)
        if widths[layer.site] < FINE_BITS:
            causes += _of_width(rows.get(layer.site), layer.site in ends)
        found += [
            Finding(site=layer.site, region=layer.region, cause=cause, evidence=evidence) for cause, evidence in causes
        ]
    return tuple(found)


def _of_weights(layer: Layer, widths: Mapping[str, int]) -> list[tuple[str, str]]:
    look, bits = layer.weights, widths[layer.site]
    assert look is not None
    causes = []
    if not look.per_channel and look.spread > WIDE_SPREAD:
        causes.append(("outlier-channels", f"widest channel {look.spread:.1f} times the median one"))
    if look.tail > LONG_TAIL:
        causes.append(("weight-tail", f"largest weight {look.tail:.1f} times the rms of its channel"))
    if look.dead:
        causes.append(("dead-channels", f"{look.dead} of {look.channels}"))
    if look.bias > BIASED:
        causes.append(("biased-error", f"{100 * look.bias:.0f} % of the error's power is a shift"))
    if bits < FINE_BITS:
        causes.append(("coarse-weights", f"{bits} bits"))
    return causes


def _of_values(layer: Layer, widths: Mapping[str, int]) -> list[tuple[str, str]]:
    look, bits = layer.values, widths[layer.site]
    assert look is not None
    causes = []
    if look.clipped > SATURATED:
        causes.append(("saturated", f"{100 * look.clipped:.1f} % of the values"))
    if look.core < UNUSED:
        causes.append(("activation-tail", f"99.9 % of the values in {100 * look.core:.0f} % of the codes"))
    if bits < FINE_BITS:
        causes.append(("coarse-activations", f"{bits} bits"))
    return causes


def _of_width(row: SiteScan | None, end: bool) -> list[tuple[str, str]]:
    if row is None:
        return []
    evidence = f"alone {row.only.sqnr_db:.1f} dB; without it {100 * row.repaired:.0f} % less noise"
    if end:
        return [("end", evidence)]
    return [("sensitive", evidence)] if row.repaired > 0.1 else []


def remedies(found: Sequence[Finding]) -> tuple[str, ...]:
    """The remedies that findings ask for, each once.

    Example:
        >>> remedies([Finding(site="w", region="r", cause="biased-error", evidence="")])
        ('correct-bias',)
    """
    return tuple(dict.fromkeys(name for finding in found for name in CAUSES[finding.cause].remedies))
