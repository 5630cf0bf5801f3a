"""NWQ: reconstruct the network as one, from soft to hard: weights by a cooling softmax, activations by a mixture.

    min_{V, s} KL(softmax(y) || softmax(y~)) + activation_weight mean over blocks of |a~ - a|^2 / |a|^2
    weights:      W~ = sum_k softmax(V / T)_k level_k,    T falling to `coldest`
    activations:  Q(x) with probability keep, else x;    keep rises from `keep` to 1

`reconstruct/anneal.py` has the rounding. The second term keeps values inside the network where they were: a network as
one unit has many ways to fit the outputs of few images.

Source: Wang et al., Leveraging Inter-Layer Dependency for Post-Training Quantization, NeurIPS 2022 (network-wise
unit, activation regularization, annealing softmax, annealing mixup). Choices: the mixture is drawn for each element;
`keep` rises linearly; errors of activations are relative and taken at the ends of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class NWQ(Reconstruction):
    """Reconstruction of the network as one, annealed.

    Args, beside those of `Reconstruction`:
        activation_weight: of the error of values inside the network.
        keep: probability at first that an element of an activation is quantized.
        coldest: temperature of the softmax at the end, from 1.
        rate: Adam's, of the candidates' logits; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        step_rate: of the activation steps, falling to 0.
    """

    activation_weight: float = 1.0
    keep: float = 0.5
    coldest: float = 0.01
    rate: float = 0.0
    step_rate: float = 4e-5

    def methods(self, state: State) -> Sequence[Method]:
        """One walk.

        Raises:
            InputError: a temperature that is not from above 0 to 1.
            UnsupportedError: a network of several outputs.
        """
        if not 0 < self.coldest <= 1:
            raise InputError("nwq.coldest", f"is {self.coldest}", "above 0, at most 1", "0.01 is cold")
        method = self.method(
            "nwq",
            unit="net",
            inputs="quantized",
            rounding="annealing",
            rounding_settings=(("coldest", self.coldest),),
            loss="network",
            activation_weight=self.activation_weight,
            activations=True,
            learn_steps=True,
            keep=self.keep,
            keep_end=1.0,
            weight_rate=self.rate,
            step_rate=self.step_rate,
        )
        return [method]
