"""Conditions of a recipe's steps: what a network, its data and its placing must be for a step to run.

An entry of a recipe may say `when: [depthwise or per_tensor, data]`: all texts of the list must hold; a text is one
condition, `not` one, or several with `or` between. The conditions are the closed table below.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from bitwright.errors import InputError
from bitwright.lookup import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Case:
    """What conditions look at.

    Attributes:
        network: normalised float network, batch norm not folded yet.
        data: whether calibration images are given.
        placing: settings of the step `place`, as the recipe and the user say.
    """

    network: ir.Model
    data: bool
    placing: Mapping[str, Any]


def _has_batchnorm(case: Case) -> bool:
    return any(node.op_type == "BatchNormalization" for node in case.network.graph)


def _is_depthwise(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    weight, group = node.inputs[1], node.attributes.get_int("group", 1)
    return group > 1 and weight is not None and weight.shape is not None and weight.shape[1] == 1


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A row: what it says, and how it is found out."""

    help: str
    holds: Callable[[Case], bool]


CONDITIONS: dict[str, Condition] = {
    "data": Condition(help="calibration images are given", holds=lambda case: case.data),
    "batchnorm": Condition(help="the network has batch norm, whose statistics are known", holds=_has_batchnorm),
    "depthwise": Condition(
        help="the network has depthwise convolutions",
        holds=lambda case: any(map(_is_depthwise, case.network.graph)),
    ),
    "per_tensor": Condition(
        help="weights have one scale for the whole tensor",
        holds=lambda case: case.placing.get("granularity") == "tensor",
    ),
}


def parse_condition(text: Any, where: str) -> tuple[tuple[bool, str], ...]:
    """Read `A`, `not A` or `A or not B`: `(whether it is to hold, condition)` of each alternative.

    Raises:
        InputError: another form, or an unknown condition.

    Example:
        >>> parse_condition("depthwise or not data", "x")
        ((True, 'depthwise'), (False, 'data'))
    """
    if not isinstance(text, str) or not text.split():
        raise InputError(where, f"has the condition {text!r}", f"texts of {', '.join(CONDITIONS)}, not, or")
    alternatives = []
    for part in f" {' '.join(text.split())} ".split(" or "):
        words = part.split()
        wanted = words[:1] != ["not"]
        name = " ".join(words if wanted else words[1:])
        if name not in CONDITIONS:
            raise InputError(where, f"there is no condition {name!r}", fix=did_you_mean(name, CONDITIONS))
        alternatives.append((wanted, name))
    return tuple(alternatives)


def holding(case: Case) -> frozenset[str]:
    """The conditions that hold."""
    return frozenset(name for name, condition in CONDITIONS.items() if condition.holds(case))


def met(texts: Collection[str], hold: Collection[str]) -> bool:
    """Whether all of an entry's conditions hold.

    Example:
        >>> met(["depthwise or per_tensor", "not data"], {"depthwise"}), met(["data"], {"depthwise"}), met([], ())
        (True, False, True)
    """
    return all(any((name in hold) == wanted for wanted, name in parse_condition(text, "when")) for text in texts)
