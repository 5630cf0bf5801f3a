"""Regions: the nodes that a runtime executes as one.

A region is one op and the activation that follows it alone: conv/gemm + bias + BN + relu/relu6, residual add + relu,
pool, concat, reshape ... It carries the module path of its weight for a name, whichever way the exporter spells its
values, and every node of the graph belongs to exactly one region.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bitwright.graph.macs import node_macs
from bitwright.graph.names import node_path, weight_path

#: Activations that a preceding op may absorb.
ACTIVATIONS = {"Relu", "Clip"}
#: Ops that absorb batch norm and an activation.
ABSORBING = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """One op with what it absorbed.

    Attributes:
        name: module path of the weight (`layer1.0.conv1`), else of the node.
        nodes: in execution order; the first is the op itself.
        inputs: values computed elsewhere that the region reads (no initializers).
        weight, bias: initializers of conv, gemm, matmul; None elsewhere.
        output: the value that others read.
        bounds: `(low, high)` of the absorbed activation, `(0, inf)` for ReLU; None without one.
        macs: multiply-accumulates for a batch of one.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    weight: ir.Value | None
    bias: ir.Value | None
    output: ir.Value
    bounds: tuple[float, float] | None
    macs: int

    @property
    def op(self) -> ir.Node:
        """The node that gives the region its kind."""
        return self.nodes[0]

    @property
    def kind(self) -> str:
        """Op type of the region, `DepthwiseConv` for a convolution with one channel a group."""
        if self.op.op_type == "Conv" and self.weight is not None and self.weight.shape is not None:
            group = self.op.attributes.get_int("group", 1)
            if group > 1 and self.weight.shape[1] == 1:
                return "DepthwiseConv"
        return self.op.op_type


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, or None when several do or the value leaves the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def activation_bounds(node: ir.Node) -> tuple[float, float] | None:
    """`(low, high)` of a Relu or of a Clip with constant bounds; None for other nodes."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [float("-inf"), float("inf")]
    for i, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        if value.const_value is None:
            return None
        bounds[i] = float(value.const_value.numpy())
    return bounds[0], bounds[1]


def find_regions(model: ir.Model) -> list[Region]:
    """All regions of a normalised model, in execution order."""
    taken: set[ir.Node] = set()
    regions: list[Region] = []
    names: dict[str, int] = {}
    for node in model.graph:
        if node in taken:
            continue
        nodes = _grow(node)
        taken.update(nodes)
        regions.append(_region(nodes, names))
    return regions


def _grow(node: ir.Node) -> list[ir.Node]:
    nodes = [node]
    if node.op_type not in ABSORBING or len(node.outputs) != 1:
        return nodes
    follower = only_consumer(node.outputs[0])
    if follower is not None and follower.op_type == "BatchNormalization" and node.op_type != "Add":
        nodes.append(follower)
        follower = only_consumer(follower.outputs[0])
    if follower is not None and activation_bounds(follower) is not None:
        nodes.append(follower)
    return nodes


def _region(nodes: list[ir.Node], names: dict[str, int]) -> Region:
    op = nodes[0]
    weight = _initializer(op, 1) if op.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else None
    bias = _initializer(op, 2) if op.op_type in ("Conv", "ConvTranspose", "Gemm") else None
    inside = {o for n in nodes for o in n.outputs}
    inputs = dict.fromkeys(
        v for n in nodes for v in n.inputs if v is not None and v not in inside and not v.is_initializer()
    )
    name = (weight_path(weight.name or "") if weight is not None else "") or node_path(op)
    names[name] = names.get(name, 0) + 1
    if names[name] > 1:  # a weight used twice, or node names that repeat
        name = f"{name}#{names[name]}"
    return Region(
        name=name, nodes=tuple(nodes), inputs=tuple(inputs), weight=weight, bias=bias, output=nodes[-1].outputs[0],
        bounds=activation_bounds(nodes[-1]), macs=sum(node_macs(n) for n in nodes),
    )  # fmt: skip


def _initializer(node: ir.Node, index: int) -> ir.Value | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value if value is not None and value.is_initializer() else None
