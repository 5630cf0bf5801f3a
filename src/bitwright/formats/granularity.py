"""Which elements of a tensor share one scale.

Rows: every granularity views a tensor as `[rows, n]`, one row for each scale, so that
range estimators and formats need to know nothing of axes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitwright.errors import InputError


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor.

    `[A, B] -> scale []`, rows `[1, A*B]`.
    """

    def rows(self, x: Tensor) -> Tensor:
        """`x` as `[1, n]`."""
        return x.reshape(1, -1)

    def expand(self, parameter: Tensor, like: Tensor) -> Tensor:
        """A parameter of shape `[]` or `[1]`, made to broadcast over `like`."""
        return parameter.reshape([1] * like.ndim)


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of one axis (output channels of a weight).

    `[A, B], axis 0 -> scale [A]`, rows `[A, B]`.
    """

    axis: int

    def rows(self, x: Tensor) -> Tensor:
        """`x` as `[channels, n]`."""
        return x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)

    def expand(self, parameter: Tensor, like: Tensor) -> Tensor:
        """A parameter of shape `[channels]`, made to broadcast over `like`."""
        shape = [1] * like.ndim
        shape[self.axis] = -1
        return parameter.reshape(shape)


@dataclass(frozen=True)
class PerGroup:
    """One scale for every `size` neighbours along one axis, the blocks of ONNX DequantizeLinear.

    `[A, B], axis 1, size g -> scale [A, B/g]`, rows `[A*B/g, g]`.

    Raises:
        InputError: the axis does not divide into whole groups.
    """

    axis: int
    size: int

    def rows(self, x: Tensor) -> Tensor:
        """`x` as `[groups, size]`, groups in the order of the scale's elements."""
        axis = self._checked_axis(x)
        return x.unflatten(axis, (-1, self.size)).movedim(axis + 1, -1).reshape(-1, self.size)

    def expand(self, parameter: Tensor, like: Tensor) -> Tensor:
        """A parameter of shape `[groups]`, or that of the scale, in the shape of `like`."""
        axis = self._checked_axis(like)
        shape = list(like.shape)
        shape[axis] //= self.size
        return parameter.reshape(shape).repeat_interleave(self.size, axis)

    def _checked_axis(self, x: Tensor) -> int:
        if not -x.ndim <= self.axis < x.ndim:
            raise InputError("group axis", f"{self.axis}", f"an axis of a tensor of shape {list(x.shape)}")
        if self.size < 1 or x.shape[self.axis] % self.size:
            found = f"{self.size} for axis {self.axis} of length {x.shape[self.axis]}"
            raise InputError("group size", found, "a divisor of the length", "choose another size or axis")
        return self.axis % x.ndim


Granularity = PerTensor | PerAxis | PerGroup
