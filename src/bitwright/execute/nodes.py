"""From an ONNX node to a call of its torch function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx_ir as ir
import torch

from bitwright.errors import UnsupportedError
from bitwright.execute import OPS
from bitwright.graph.alone import place, title
from bitwright.lookup import did_you_mean


@cache
def op_function(op_type: str) -> Callable[..., Any]:
    """The torch function of an ONNX op.

    Raises:
        UnsupportedError: no row of `OPS`.
    """
    if op_type not in OPS:
        near = did_you_mean(op_type, OPS)
        raise UnsupportedError(f"op {op_type!r}", "cannot be executed", f"one of {len(OPS)} ops", near)
    function: Callable[..., Any] = OPS[op_type].load()
    return function


def has_row(node: ir.Node) -> bool:
    """Whether torch runs a node: `OPS` has its op, under the name of its domain if that is not ONNX's own."""
    return title(node) in OPS


def function_of(node: ir.Node) -> Callable[..., Any]:
    """The torch function of a node.

    Raises:
        UnsupportedError: no row of `OPS`.
    """
    if not has_row(node):
        raise UnsupportedError(
            place(node), f"{title(node)} has no row in the op table", f"one of the {len(OPS)} ops of it",
            "export the network without this op",
        )  # fmt: skip
    return op_function(title(node))


@cache
def _parameters(op_type: str) -> frozenset[str]:
    return frozenset(inspect.signature(op_function(op_type)).parameters)


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The node's attributes as Python values, and its number of outputs where the function asks for it.

    Raises:
        UnsupportedError: an attribute that the function does not know.
    """
    found = {name: _plain(attribute) for name, attribute in node.attributes.items()}
    known = _parameters(title(node))
    unknown = sorted(set(found) - known)
    if unknown:
        raise UnsupportedError(f"node {node.name!r}", f"{node.op_type} with attribute {', '.join(unknown)}")
    if "num_outputs" in known and "num_outputs" not in found:
        found["num_outputs"] = len(node.outputs)
    return found


def _plain(attribute: ir.Attr) -> Any:
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return torch.from_numpy(attribute.as_tensor().numpy().copy())
    if isinstance(value, tuple):
        return list(value)
    return value
