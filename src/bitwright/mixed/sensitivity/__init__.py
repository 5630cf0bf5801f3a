"""How much the network suffers from each width of each group: one measure a file.

The last three are no tables of losses but orders (`measure.Ordering`): what to lower next in the network as it is.
"""

from __future__ import annotations

from bitwright.lookup import Row, lookup

_HOME = "bitwright.mixed.sensitivity"

SENSITIVITIES: dict[str, Row] = {
    "sqnr": Row(f"{_HOME}.sqnr:Sqnr", "noise over signal of the outputs, one group quantized at a time"),
    "kl": Row(f"{_HOME}.kl:Kl", "divergence of the outputs from float, one group lowered in the widest network"),
    "zeroq": Row(
        f"{_HOME}.zeroq:ZeroQ", "divergence with only one group's weights quantized; works on distilled data"
    ),
    "adaquant": Row(f"{_HOME}.adaquant:AdaQuantLoss", "loss with one group lowered, less that of the widest network"),
    "accuracy": Row(
        f"{_HOME}.accuracy:Accuracy", "accuracy lost with one group lowered in the widest network; labels"
    ),
    "hawq": Row(f"{_HOME}.hawq:Hawq", "trace of the loss's Hessian times squared noise, activations apart; labels"),
    "fisher": Row(f"{_HOME}.fisher:Fisher", "squared gradients of single images times squared noise; labels"),
    "msq": Row(f"{_HOME}.msq:Msq", "an order: what a layer adds to the accuracy of imprinted classifiers; labels"),
    "random": Row(f"{_HOME}.orders:ByChance", "an order drawn by a seed: what others have to be better than"),
    "size": Row(f"{_HOME}.orders:BySize", "an order, the largest group first: what others have to be better than"),
}


def is_order(method: str) -> bool:
    """Whether a row gives no losses, but a walk that takes the place of a solver (`measure.Ordering`).

    Raises:
        InputError: no such row.

    Example:
        >>> is_order("msq"), is_order("kl")
        (True, False)
    """
    return hasattr(lookup(SENSITIVITIES, method, "method").load(), "trajectory")
