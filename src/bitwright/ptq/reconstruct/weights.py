"""How a unit's weights are rounded while it is reconstructed: the form of a row of `ROUNDINGS`, and plain ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.formats.affine import fake_quantize
from bitwright.formats.rounding import round_straight_through
from bitwright.plan.encoding import Encoding


class Rounding(Protocol):
    """What a row of `ROUNDINGS` is, made as `row(weight, encoding, strength, **settings)`; weights to weights.

    Attributes:
        encoding: the grid to begin with.
        beta: power of the regulariser, set by the engine as time goes; None while there is none.
        time: share of the iterations that have been made, set by the engine.
    """

    encoding: Encoding
    beta: float | None
    time: float

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight as it is quantized now."""

    def groups(self) -> Mapping[str, nn.Parameter]:
        """`{kind of rate: parameter}`: `weight`, `weight step`, `weight zero`; one more of a kind is `weight:1`."""

    def settled(self) -> bool:
        """Whether nothing can change any more."""

    def undecided(self) -> float:
        """Share of the weights that are between two codes."""

    def rounded(self) -> Encoding:
        """The encoding, its codes chosen."""


def refuse_fixed_steps(encoding: Encoding) -> None:
    """For roundings that move a weight's step.

    Raises:
        InputError: a format that is a table of levels, or whose steps are powers of two.
    """
    if encoding.spec.format != "affine":
        raise InputError(
            "a weight", f"of the format {encoding.spec.format}", "integers with a free scale, whose step can move",
            "choose another rounding, or another format with --set W=...",
        )  # fmt: skip


class Nearest(nn.Module):
    """The codes that are there already, or the nearest; nothing is learned."""

    def __init__(self, weight: Tensor, encoding: Encoding, strength: float = 0.0) -> None:
        super().__init__()
        self.encoding, self.beta, self.time = encoding, None, 0.0
        self.register_buffer("value", encoding.values_of(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight."""
        value: Tensor = self.value  # type: ignore[assignment]
        return value

    def groups(self) -> Mapping[str, nn.Parameter]:
        """None."""
        return {}

    def settled(self) -> bool:
        """Always."""
        return True

    def undecided(self) -> float:
        """None of them."""
        return 0.0

    def rounded(self) -> Encoding:
        """As it was."""
        return self.encoding


class AlwaysRounded(nn.Module):
    """A rounding that computes with codes from the first iteration on, and lets them change up to the last."""

    def settled(self) -> bool:
        """Never: a weight may pass into another code at any time."""
        return False

    def undecided(self) -> float:
        """None: what is computed with is rounded."""
        return 0.0


class StraightThrough(AlwaysRounded):
    """A continuous weight, its step and zero point, rounded with straight-through gradients (AdaQuant).

        W~ = fake_quantize(W + V; step, rnd(zero point))

    Raises:
        InputError: a format that is a table of levels, or whose steps are powers of two.
    """

    def __init__(self, weight: Tensor, encoding: Encoding, strength: float = 0.0) -> None:
        super().__init__()
        refuse_fixed_steps(encoding)
        self.encoding, self.beta, self.time = encoding, None, 0.0
        self.weight = nn.Parameter(weight.clone())
        self.step = nn.Parameter(encoding.scale.clone())
        self.zero = nn.Parameter(encoding.zero_point.float(), requires_grad=not encoding.spec.symmetric)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is rounded now; the float weight has said all when this was made."""
        expand = self.encoding.spec.granularity.expand
        step, zero = expand(self.step.abs(), weight), expand(round_straight_through(self._zero()), weight)
        return fake_quantize(self.weight, step, zero, self.encoding.spec.grid)

    def _zero(self) -> Tensor:
        grid = self.encoding.spec.grid
        return self.zero + (self.zero.clamp(grid.qmin, grid.qmax) - self.zero).detach()

    def groups(self) -> Mapping[str, nn.Parameter]:
        """Weight, step and zero point."""
        zero = {"weight zero": self.zero} if self.zero.requires_grad else {}
        return {"weight": self.weight, "weight step": self.step, **zero}

    @torch.no_grad()
    def rounded(self) -> Encoding:
        """Codes at the learned step."""
        zero = torch.round(self._zero()).to(torch.int32)
        moved = dataclasses.replace(self.encoding, scale=self.step.detach().abs().clone(), zero_point=zero, codes=None)
        return dataclasses.replace(moved, codes=moved.quantize(self.weight.detach()))
