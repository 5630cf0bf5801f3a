"""The ladder of `bitwright auto`: recipes from cheap to dear, and then more bits for the sites that hurt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One attempt.

    Attributes:
        name: of the attempt.
        recipe: a recipe's name; "" for that of the best attempt so far.
        help: what it adds to the rungs before it, one line.
        raises: share of the sites of less than 8 bits that are given 8, those first whose repair pays off most.
    """

    name: str
    recipe: str
    help: str
    raises: float = 0.0


LADDER: tuple[Rung, ...] = (
    Rung(name="int8", recipe="int8", help="ranges of the smallest and largest values"),
    Rung(name="mse", recipe="int8-mse", help="ranges of the least squared error"),
    Rung(name="equalized", recipe="equalized", help="weight ranges of neighbouring layers made alike"),
    Rung(name="corrected", recipe="corrected", help="shifts taken back from the biases"),
    Rung(name="closed-form", recipe="closed-form", help="weights of few bits rounded in closed form"),
    Rung(name="tuned", recipe="tuned", help="weights, ranges and biases moved, layer by layer, for a short while"),
    Rung(name="learned-briefly", recipe="learned-briefly", help="as learned, for a short while"),
    Rung(name="whitepaper", recipe="whitepaper", help="rounding of weights learned, layer by layer"),
    Rung(name="learned", recipe="learned", help="rounding and steps learned, block by block"),
    Rung(name="raise-1/8", recipe="", help="8 bits for an eighth of the sites", raises=1 / 8),
    Rung(name="raise-1/4", recipe="", help="8 bits for a quarter of the sites", raises=1 / 4),
    Rung(name="raise-1/2", recipe="", help="8 bits for half of the sites", raises=1 / 2),
)
