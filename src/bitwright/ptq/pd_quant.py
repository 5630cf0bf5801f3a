"""PD-Quant: QDrop that also keeps what the network predicts, on inputs whose distribution was corrected.

    min_{V, s} ||z~ - z||^2 + prediction_weight KL(softmax(y / T) || softmax(y~ / T)) + regulariser

The block runs twice: on inputs that are mixed element by element, for the error of its output z~, and on those of the
network quantized so far, for y~, what the rest of the network in float gives from there. y is the float network's
output for the same image. Before a block is learned, its float inputs are moved so that the batch norms in it see the
statistics of their training (`reconstruct/correct.py`); the error is measured at the moved inputs.

Source: Liu et al., PD-Quant: Post-Training Quantization based on Prediction Difference Metric, CVPR 2023. Choices:
`prediction_weight` is the paper's 1 / lambda_r, there 1 / 0.1; `closeness` its 1 / lambda_c, there 1 / 0.02 for
ResNets and up to 1 / 0.001 for networks like MobileNetV2; of a block's inputs the first moves. The statistics are
compared image by image: on maps of few positions single images differ from the whole set much, and `correction=0` may
be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class PDQuant(Reconstruction):
    """Block reconstruction with the prediction difference and corrected inputs.

    Args, beside those of `Reconstruction`:
        keep: probability that an element is quantized.
        prediction_weight: of the prediction difference; 0 leaves QDrop's loss.
        temperature: of its softmax; 1 for networks like MobileNetV2.
        correction: steps that move a block's inputs, for each batch; 0 to leave them.
        closeness: weight of the distance from the inputs as they were.
        rate: Adam's, of the rounding variables; 0 for 3e-3, and more where there are fewer than 20,000 iterations.
        step_rate: Adam's, of the activation steps, falling to 0.
        strength: of the regulariser; 0.1 for networks like MobileNetV2.
        warmup: share of the iterations without it.
    """

    keep: float = 0.5
    prediction_weight: float = 10.0
    temperature: float = 4.0
    correction: int = 500
    closeness: float = 50.0
    rate: float = 0.0
    step_rate: float = 4e-5
    strength: float = 0.01
    warmup: float = 0.2

    def methods(self, state: State) -> Sequence[Method]:
        """One walk."""
        method = self.method(
            "pd_quant",
            unit="block",
            inputs="mixed" if self.keep < 1 else "quantized",
            rounding="soft",
            loss="error and prediction" if self.prediction_weight else "error",
            prediction_weight=self.prediction_weight,
            temperature=self.temperature,
            correction=self.correction,
            closeness=self.closeness,
            activations=True,
            learn_steps=True,
            keep=self.keep,
            weight_rate=self.rate or 3e-3 * max(1.0, 20_000 / self.iterations),
            step_rate=self.step_rate,
            strength=self.strength,
            warmup=self.warmup,
        )
        return [method]
