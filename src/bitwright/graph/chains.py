"""Chains of elementwise ops: functions of one value, whatever ops an exporter spells them with.

`x * sigmoid(x)`, `x * clip(x + 3, 0, 6) / 6`, `0.5 * x * (1 + erf(x / sqrt(2)))`: every element of the output depends
on one element of one input, so on 8-bit codes each chain is a table of 256 entries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

#: Ops of ONNX that compute each element of their output from the elements of their inputs in the same place.
ELEMENTWISE = frozenset({
    "Abs", "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish",
    "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu",
})  # fmt: skip
#: The same of the domain com.microsoft.
MICROSOFT_ELEMENTWISE = frozenset({"FastGelu", "Gelu", "QuickGelu"})


def elementwise_chain(seed: ir.Node, place: Mapping[ir.Node, int], taken: Collection[ir.Node] = ()) -> list[ir.Node]:
    """The longest chain that begins with `seed`, in execution order; empty where `seed` begins none.

    All nodes are elementwise ops on floating-point numbers that read one value computed elsewhere, one-element
    constants, and each other; one value of the chain, the last, is read outside it or leaves the graph.

    Args:
        seed: the node of the chain that comes first in the graph.
        place: number of each node of the graph, in execution order.
        taken: nodes that a chain must not hold.

    Example:
        >>> x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
        >>> gate = ir.Node("", "Sigmoid", [x])
        >>> swish = ir.Node("", "Mul", [x, gate.outputs[0]])
        >>> for value in (*gate.outputs, *swish.outputs):
        ...     value.shape, value.type = x.shape, x.type
        >>> graph = ir.Graph([x], swish.outputs, nodes=[gate, swish])
        >>> [node.op_type for node in elementwise_chain(gate, {gate: 0, swish: 1})]
        ['Sigmoid', 'Mul']
    """
    operands = set(_activations(seed)) if is_elementwise(seed) and seed not in taken else set()
    if len(operands) != 1:
        return []
    x = operands.pop()
    members = {seed: None}  # in the order in which they were found
    read_outside = [seed.outputs[0]]
    longest = 1
    while True:
        # What others read of a chain is its last value, so the readers of every earlier one must belong to it.
        first = min(read_outside, key=lambda v: place[_maker(v)])
        found = None if first.is_graph_output() else _readers(first, x, members, taken)
        if not found:
            return sorted(list(members)[:longest], key=lambda n: place[n])
        members.update(dict.fromkeys(found))
        read_outside = [v for v in (*read_outside, *(n.outputs[0] for n in found)) if not _is_inside(v, members)]
        if len(read_outside) == 1:
            longest = len(members)


def is_elementwise(node: ir.Node) -> bool:
    """Whether each element of the one output depends on one element of the computed inputs, all floating-point.

    Constants have one element and no more axes than the result, so that they leave its shape alone.
    """
    known = ELEMENTWISE if not node.domain else MICROSOFT_ELEMENTWISE if node.domain == "com.microsoft" else ()
    if node.op_type not in known or len(node.outputs) != 1:
        return False
    activations = _activations(node)
    if node.op_type == "Clip" and activations != list(node.inputs[:1]):
        return False
    values = [*activations, node.outputs[0]]
    if not activations or any(v.dtype is None or not v.dtype.is_floating_point() or v.shape is None for v in values):
        return False
    shape = node.outputs[0].shape
    return all(v.shape == shape for v in activations) and all(
        v.const_value is not None and v.const_value.size == 1 and len(v.const_value.shape) <= len(shape or ())
        for v in node.inputs
        if v is not None and v.is_initializer()
    )


def _activations(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and not v.is_initializer()]


def _is_inside(value: ir.Value, members: Collection[ir.Node]) -> bool:
    """Whether nothing but members reads a value, and something does."""
    uses = value.uses()
    return bool(uses) and not value.is_graph_output() and all(use.node in members for use in uses)


def _readers(
    value: ir.Value, x: ir.Value, members: Collection[ir.Node], taken: Collection[ir.Node]
) -> dict[ir.Node, None] | None:
    """The readers of a value and what those compute from `x` beside it; None where one is no member of a chain."""
    found: dict[ir.Node, None] = {}
    waiting = [use.node for use in value.uses()]
    while waiting:
        node = waiting.pop()
        if node in members or node in found:
            continue
        if node in taken or node.graph is not value.graph or not is_elementwise(node):
            return None
        found[node] = None
        operands = [v for v in _activations(node) if v is not x]
        if any(v.producer() is None for v in operands):
            return None
        waiting.extend(_maker(v) for v in operands)
    return found


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
