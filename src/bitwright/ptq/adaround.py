"""AdaRound: each weight is rounded up or down, as lowers the error of its layer's output most.

    min_V ||f(W x) - f(W~(V) x^)||^2 + strength sum(1 - |2 h(V) - 1|^beta)

f is the activation that follows, x the float network's input of the layer and x^ that of the network quantized so far.
The grid stays. Activations are in float meanwhile.

Source: M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020. Choices: beta falls
linearly (BRECQ, QDrop), not along a cosine; layers of a table of levels are rounded to the levels on either side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.pipeline import Progress, State
from bitwright.ptq.reconstruct.engine import reconstruct
from bitwright.ptq.reconstruct.method import Method


@dataclass(frozen=True, kw_only=True)
class AdaRound:
    """Learned rounding, layer after layer.

    Args:
        iterations: for each layer.
        images: calibration images.
        batch: images a step.
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        loss: `output`, the error after the activation that follows, on the images of each step; `moments`, before it,
            on all images at once, from their second moments: a step is many times cheaper in most layers.
        strength: of the regulariser; the error is a sum over channels.
        warmup: share of the iterations without it.
        seed: of the images of each step.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        work: folder that keeps finished layers; none if empty.
    """

    iterations: int = 10_000
    images: int = 1024
    batch: int = 32
    rate: float = 0.0
    loss: str = "output"
    strength: float = 0.01
    warmup: float = 0.2
    seed: int = 0
    memory: str = ""
    work: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state whose weights have codes of their own choice.

        Raises:
            InputError: `loss` is neither `output` nor `moments`.
        """
        losses = {"output": "error", "moments": "moments"}
        if self.loss not in losses:
            raise InputError("adaround.loss", f"is {self.loss!r}", "output or moments")
        method = Method(
            name="adaround", unit="layer", inputs="quantized", rounding="soft", loss=losses[self.loss],
            iterations=self.iterations,
            images=self.images, batch=self.batch, weight_rate=self.rate, strength=self.strength, warmup=self.warmup,
            seed=self.seed, memory=self.memory, work=self.work,
        )  # fmt: skip
        return reconstruct(state, batches, method, images_done)
