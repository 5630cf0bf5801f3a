"""From a width that is asked for to the number format that a target has at it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from bitwright.errors import UnsupportedError
from bitwright.placement.overrides import Width
from bitwright.plan.spec import QSpec
from bitwright.targets.target import Target

#: Weights of this width and less are asymmetric: a symmetric grid of few levels wastes too many of them.
ASYMMETRIC_WEIGHT_BITS = 4


def activation_spec(site: str, width: Width, target: Target) -> QSpec:
    """The format of an activation: one scale, unsigned with any zero point, or as the target wants it.

    Raises:
        UnsupportedError: the target has no activations of this width or format.

    Example:
        >>> from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64
        >>> activation_spec("x", Width(bits=4), ONNXRUNTIME_X64)
        QSpec(bits=4, signed=False, symmetric=False, narrow=False, axis=None, format='affine')
    """
    if width.bits not in target.activation_bits or width.format not in target.activation_formats:
        raise UnsupportedError(
            f"site {site!r}", f"{width}-bit activations",
            f"one of {_list(target.activation_bits)} on {target.name}, of the formats "
            f"{', '.join(target.activation_formats)}",
            "set another width with --set A=...",
        )  # fmt: skip
    symmetric = target.symmetric_activations
    return QSpec(bits=width.bits, format=width.format, signed=symmetric, symmetric=symmetric)


def weight_spec(site: str, width: Width, target: Target, axis: int | None) -> QSpec:
    """The format of a weight with one scale for each index of `axis`.

    Raises:
        UnsupportedError: the target has no weights of this width or format.

    Example:
        >>> from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64
        >>> weight_spec("w", Width(bits=8), ONNXRUNTIME_X64, 0)
        QSpec(bits=8, signed=True, symmetric=True, narrow=True, axis=0, format='affine')
    """
    known = target.weight_packing.get(width.format, {})
    if width.bits not in known:
        expected = f"{width.format} weights of {_list(known)} bits" if known else ", ".join(target.weight_packing)
        raise UnsupportedError(
            f"site {site!r}", f"{width}-bit weights", f"{expected} on {target.name}",
            "set another width with --set W=...",
        )  # fmt: skip
    spec = QSpec(bits=width.bits, format=width.format, axis=axis)
    if spec.has_levels:
        return spec
    symmetric = width.bits > ASYMMETRIC_WEIGHT_BITS
    return dataclasses.replace(spec, signed=symmetric, symmetric=symmetric, narrow=symmetric)


def _list(widths: Iterable[int]) -> str:
    return ", ".join(str(w) for w in sorted(widths))
