"""What the op functions share about their arguments: integer lists, axes and refusals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bitwright.errors import InputError, UnsupportedError

Ints = Tensor | Sequence[int] | int
"""A shape-like input: a tensor of integers, or the Python integers it stands for."""


def ints(values: Ints) -> list[int]:
    """The Python integers of a shape-like input.

    Example:
        >>> ints((2, 3)), ints(4)
        ([2, 3], [4])
    """
    if isinstance(values, Tensor):
        return [int(value) for value in values.reshape(-1).tolist()]
    if isinstance(values, int):
        return [values]
    return list(values)


def axis_of(op: str, axis: int, rank: int) -> int:
    """A non-negative axis of a tensor of `rank` dimensions, or an InputError.

    Example:
        >>> axis_of("Concat", -1, 4)
        3
    """
    if not -rank <= axis < rank:
        raise InputError(
            f"{op}: axis", f"is {axis}", f"-{rank} to {rank - 1}: the input has {rank} dimensions", "check the model"
        )
    return axis % rank


def axes_of(op: str, axes: Ints, rank: int) -> list[int]:
    """Non-negative axes, in the order given."""
    return [axis_of(op, axis, rank) for axis in ints(axes)]


def unsupported(op: str, attribute: str, value: object, expected: str) -> UnsupportedError:
    """The refusal of an attribute value that the op's row does not do.

    Example:
        >>> print(unsupported("BatchNormalization", "training_mode", 1, "0"))
        BatchNormalization: training_mode is 1; expected 0; export or rewrite the node in a form that is listed
    """
    return UnsupportedError(
        op, f"{attribute} is {value!r}", expected, "export or rewrite the node in a form that is listed"
    )
