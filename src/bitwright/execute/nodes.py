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


def function_of(node: ir.Node) -> Callable[..., Any]:
    """The torch function of a node.

    Raises:
        UnsupportedError: no row of `OPS`, or an op of another domain, which means something else.
    """
    if node.domain or node.op_type not in OPS:
        domain = f" of the domain {node.domain!r}" if node.domain else ""
        raise UnsupportedError(
            f"node {node.name!r}", f"op {node.op_type!r}{domain} cannot be executed",
            f"one of the {len(OPS)} ops of bitwright.execute.OPS", "export the network without it",
        )  # fmt: skip
    return op_function(node.op_type)


@cache
def _parameters(op_type: str) -> frozenset[str]:
    return frozenset(inspect.signature(op_function(op_type)).parameters)


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The node's attributes as Python values, and its number of outputs where the function asks for it.

    Raises:
        UnsupportedError: an attribute that the function does not know.
    """
    found = {name: _plain(attribute) for name, attribute in node.attributes.items()}
    known = _parameters(node.op_type)
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
