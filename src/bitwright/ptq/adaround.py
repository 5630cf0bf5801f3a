"""AdaRound: each weight is rounded up or down, as lowers the error of its layer's output most.

    min_V ||f(W x) - f(W~(V) x^)||^2 + strength sum(1 - |2 h(V) - 1|^beta)

f is the activation that follows, x the float network's input of the layer and x^ that of the network quantized so far.
The grid stays. Activations are in float meanwhile.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020. Choices: beta falls
linearly (BRECQ, QDrop), not along a cosine; layers of a table of levels are rounded to the levels on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class AdaRound(Reconstruction):
    """Learned rounding, layer after layer.

    Args, beside those of `Reconstruction`:
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        loss: `output`, the error after the activation that follows, on the images of each step; `moments`, before it,
            on all images at once, from their second moments: a step is many times cheaper where positions are many;
            `cheapest`, the one of both whose steps cost less, layer by layer.
        strength: of the regulariser; the error is a sum over channels.
        warmup: share of the iterations without it.
    """

    iterations: int = 10_000
    rate: float = 0.0
    loss: str = "output"
    strength: float = 0.01
    warmup: float = 0.2

    def methods(self, state: State) -> Sequence[Method]:
        """One walk.

        Raises:
            InputError: `loss` is none of these.
        """
        if self.loss not in ("output", "moments", "cheapest"):
            raise InputError("adaround.loss", f"is {self.loss!r}", "output, moments or cheapest")
        method = self.method(
            "adaround",
            unit="layer",
            inputs="quantized",
            rounding="soft",
            loss="error" if self.loss == "output" else self.loss,
            weight_rate=self.rate,
            strength=self.strength,
            warmup=self.warmup,
        )
        return [method]
