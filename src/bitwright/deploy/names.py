"""Names of tensors in a written file, all made from the name of their site."""

from __future__ import annotations


def sum_name(site: str) -> str:
    """What the op of a kernel gives, before it is quantized."""
    return f"{site}/sum"


def codes_name(site: str) -> str:
    """Integer codes of an activation."""
    return f"{site}/codes"


def unbounded_name(site: str) -> str:
    """Codes before the bound of an activation or of a width below 8 bits."""
    return f"{site}/unbounded"


def real_name(site: str) -> str:
    """Dequantized values."""
    return f"{site}/real"


def scale_name(site: str) -> str:
    """Scale of a site."""
    return f"{site}/scale"


def zero_point_name(site: str) -> str:
    """Zero point of a site."""
    return f"{site}/zero_point"
