"""ADMM: draw each layer's weights to a grid whose scale moves with them.

    min ||z~ - z||^2  with  W in {a (q - z)}, a a scale for each channel

The weight is free, and a penalty draws it to the nearest point of the grid, which is looked for now and then, scale
and codes by turns (`reconstruct/multipliers.py`, `reconstruct/alternate.py`). Activations are in float meanwhile.

Source: Leng et al., Extremely Low Bit Neural Network: Squeeze the Last Bit Out with ADMM, AAAI 2018. Choices: layer
by layer on unlabelled images, where the paper trains the network; all layers, where it leaves the first and last out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class ADMM(Reconstruction):
    """Layer-wise reconstruction by alternating directions.

    Args, beside those of `Reconstruction`:
        turns: how often the nearest point of the grid is looked for.
        rate: Adam's, of the weights, in steps; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        strength: of the penalty at first, for a weight that is a step away; it grows a hundredfold.
    """

    iterations: int = 10_000
    turns: int = 20
    rate: float = 0.0
    strength: float = 0.01

    def methods(self, state: State) -> Sequence[Method]:
        """One walk.

        Raises:
            InputError: no turn at all.
        """
        if self.turns < 1:
            raise InputError("admm.turns", f"is {self.turns}", "a whole number from 1 on")
        method = self.method(
            "admm",
            unit="layer",
            inputs="quantized",
            rounding="alternating",
            rounding_settings=(("turns", self.turns),),
            weight_rate=self.rate,
            strength=self.strength,
        )
        return [method]
