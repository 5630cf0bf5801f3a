"""RAPQ: steps that are powers of two, learned with the rounding of the weights instead of fixed before it.

    weights: min_{P, V} ||z~ - z||^2 + regularisers,    s = 2^(e + h(P)), in the first part of the time; then V alone
    then, from the network's input again, activation steps: min_P ||z~ - z||^2,    s a power of two or its half

So the exponents of a block weigh rounding against clipping together (`reconstruct/exponents.py`). Weights and
activations of other formats, such as 8-bit ends, keep their steps.

Source: Yao et al., RAPQ: Rescuing Accuracy for Power-of-Two Low-bit Post-training Quantization, IJCAI 2022.
Choices: the plain squared error, where the paper chooses its power by batch norm; zero points are whole numbers, where
the authors' are not, and follow the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class RAPQ(Reconstruction):
    """Block reconstruction with learned powers of two.

    Args, beside those of `Reconstruction`:
        step_iterations: of the activation steps of each block; 0 to leave them.
        settle: share of the iterations in which the weights' exponents are chosen.
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        strength: of the regulariser; 0.1 for networks like MobileNetV2.
        warmup: share of the iterations without it.
    """

    step_iterations: int = 5_000
    settle: float = 0.1
    rate: float = 0.0
    strength: float = 0.01
    warmup: float = 0.2

    def methods(self, state: State) -> Sequence[Method]:
        """Weights first, then the exponents of activations.

        Raises:
            InputError: no weight of the format `pow2`, or a share that is not from 0 to 1.
        """
        if not 0 <= self.settle <= 1:
            raise InputError("rapq.settle", f"is {self.settle}", "from 0 to 1", "0.1 is a tenth of the iterations")
        specs = [encoding.spec for site, encoding in state.encodings.items() if site in state.model.graph.initializers]
        if state.encodings and not any(spec.format == "pow2" for spec in specs):
            raise InputError(
                "rapq", "no weight whose steps are powers of two", "one at least",
                "give the format with --set W=pow2-4,A=pow2-4",
            )  # fmt: skip
        # Each variable can cross its whole range: -2.4 to 2.4.
        method = self.method(
            "rapq",
            folder="weights",
            unit="block",
            inputs="quantized",
            rounding="exponent",
            rounding_settings=(("settle", self.settle),),
            weight_rate=self.rate,
            strength=self.strength,
            warmup=self.warmup,
            weight_step_rate=5 / max(1.0, self.settle * self.iterations),
        )
        if not self.step_iterations:
            return [method]
        steps = self.method(
            "rapq",
            folder="steps",
            unit="block",
            inputs="quantized",
            rounding="nearest",
            activations=True,
            learn_exponents=True,
            iterations=self.step_iterations,
            step_rate=8 / self.step_iterations,
        )
        return [method, steps]
