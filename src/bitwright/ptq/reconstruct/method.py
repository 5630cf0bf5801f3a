"""What a method of reconstruction says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bitwright.errors import InputError

Unit = Literal["layer", "block", "net"]
Inputs = Literal["float", "quantized", "mixed"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Settings of the engine.

    Attributes:
        name: of the step, for the log.
        unit: what is reconstructed as one.
        inputs: what a unit reads: values of the float network, of the network quantized so far, or of both, mixed
            element by element with probability `keep`.
        rounding: row of `ROUNDINGS`: how weights move.
        rounding_settings: `(setting, value)` of that row.
        loss: row of `LOSSES`.
        power: of the error in the loss.
        prediction_weight: of the prediction difference beside the error, where the loss has both.
        activation_weight: of the error of activations inside the network, beside its prediction.
        temperature: of the softmax in the prediction difference.
        activations: whether activations are quantized while weights are learned.
        learn_steps: whether the steps of a unit's activations are learned.
        learn_exponents: whether the steps that are powers of two are.
        learn_biases: whether biases are.
        learn_borders: whether the borders are at which layers' outputs are rounded up: `channel` for one in each
            channel, `tensor` for one in all; empty for halves.
        keep: probability that an element of an activation is quantized; 1 for always.
        keep_end: that probability at the end, reached linearly; None where it stays.
        correction: steps by which a unit's float inputs are moved towards the statistics of its batch norms; 0 for
            inputs as they are.
        correction_rate: of these steps.
        closeness: weight of the distance from the inputs as they were.
        iterations: steps of the optimiser for each unit.
        images: calibration images; all if there are fewer.
        batch: images a step.
        weight_rate: learning rate of rounding variables or weights. 0 for 1e-3 at 10,000 iterations or more, and with
            fewer as much more, so that a variable can travel as far.
        step_rate: of activation steps; falls to 0 along a cosine.
        weight_step_rate: of steps and zero points of weights.
        bias_rate: of biases.
        falling: whether the rates of weights fall to 0 too, so that codes come to rest; for roundings that jump.
        range_rates: the rates of steps are those of whole ranges, `step * (qmax - qmin)`.
        strength: of the rounding's regulariser.
        warmup: share of the iterations without regulariser.
        beta: its power at the end of the warm-up and at the end.
        seed: of the images of each step, and of what is left in float.
        memory: bytes that the process may take, `4GiB`; cached activations beyond it lie in files. Empty: no bound.
        only: globs of the units to reconstruct; all if there are none.
        work: folder in which each finished unit is kept, so that a killed run goes on; empty for none.
    """

    name: str
    unit: Unit = "layer"
    inputs: Inputs = "quantized"
    rounding: str = "soft"
    rounding_settings: tuple[tuple[str, float], ...] = ()
    loss: str = "error"
    power: float = 2.0
    prediction_weight: float = 1.0
    activation_weight: float = 1.0
    temperature: float = 1.0
    activations: bool = False
    learn_steps: bool = False
    learn_exponents: bool = False
    learn_biases: bool = False
    learn_borders: Literal["", "channel", "tensor"] = ""
    keep: float = 1.0
    keep_end: float | None = None
    correction: int = 0
    correction_rate: float = 1e-3
    closeness: float = 50.0
    iterations: int = 10_000
    images: int = 1024
    batch: int = 32
    weight_rate: float = 0.0
    step_rate: float = 4e-5
    weight_step_rate: float = 1e-3
    bias_rate: float = 1e-3
    falling: bool = False
    range_rates: bool = False
    strength: float = 0.01
    warmup: float = 0.2
    beta: tuple[float, float] = field(default=(20.0, 2.0))
    seed: int = 0
    memory: str = ""
    only: tuple[str, ...] = ()
    work: str = ""

    def __post_init__(self) -> None:
        for key in ("iterations", "images", "batch"):
            if getattr(self, key) < 1:
                raise InputError(f"{self.name}.{key}", f"is {getattr(self, key)}", "a whole number from 1 on")
        for key in ("weight_rate", "step_rate", "weight_step_rate", "bias_rate", "strength", "prediction_weight",
                    "activation_weight", "correction", "correction_rate", "closeness"):  # fmt: skip
            if not getattr(self, key) >= 0:
                raise InputError(f"{self.name}.{key}", f"is {getattr(self, key)}", "0 or more")
        for key in ("keep", "keep_end", "warmup"):
            if not 0 <= (getattr(self, key) or 0) <= 1:
                raise InputError(f"{self.name}.{key}", f"is {getattr(self, key)}", "from 0 to 1")
        for key, fix in (("power", "2 is the squared error"), ("temperature", "1 leaves the logits as they are")):
            if not getattr(self, key) > 0:
                raise InputError(f"{self.name}.{key}", f"is {getattr(self, key)}", "above 0", fix)
        bytes_of(self.memory, f"{self.name}.memory")

    @property
    def rate(self) -> float:
        """Learning rate of rounding variables or weights.

        Example:
            >>> [Method(name="adaround", iterations=n).rate for n in (20000, 10000, 2000)]
            [0.001, 0.001, 0.005]
        """
        return self.weight_rate or 1e-3 * max(1.0, 10_000 / self.iterations)

    def keep_at(self, iteration: int) -> float:
        """Probability that an element of an activation is quantized.

        Example:
            >>> [Method(name="nwq", iterations=4, keep=0.5, keep_end=1.0).keep_at(i) for i in range(5)]
            [0.5, 0.625, 0.75, 0.875, 1.0]
        """
        end = self.keep if self.keep_end is None else self.keep_end
        return self.keep + (end - self.keep) * iteration / self.iterations

    def beta_at(self, iteration: int) -> float | None:
        """Power of the regulariser: linear after the warm-up; None during it.

        Example:
            >>> method = Method(name="adaround", iterations=10000)
            >>> [method.beta_at(i) for i in (0, 4000, 6000, 8000)]
            [None, 15.5, 11.0, 6.5]
        """
        start = self.warmup * self.iterations
        if iteration < start or start >= self.iterations:
            return None
        high, low = self.beta
        return low + (high - low) * (1 - (iteration - start) / (self.iterations - start))


_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def bytes_of(text: str, where: str) -> int | None:
    """Bytes that `4GiB` says; None for an empty text.

    Raises:
        InputError: it says none.

    Example:
        >>> bytes_of("4GiB", "memory"), bytes_of("500 MB", "memory"), bytes_of("", "memory")
        (4294967296, 500000000, None)
    """
    if not text:
        return None
    number = text.rstrip("KMGTiB ")
    unit = text[len(number) :].strip()
    try:
        return int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        raise InputError(where, f"is {text!r}", "a number of bytes, as 4GiB or 500MB") from None
