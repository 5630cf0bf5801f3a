"""Regions: the nodes that a runtime executes as one.

A region is one op and the activation that follows it alone: conv/gemm + bias + BN + relu/relu6, residual add + relu,
pool, concat, reshape ...; or a chain of elementwise ops that is a function of one value (`chains.py`). It is named
after the module that holds its weight or that called it, whichever exporter wrote the file, and every node of the
graph belongs to exactly one region.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bitwright.graph.alone import title
from bitwright.graph.captures import captured_values
from bitwright.graph.chains import elementwise_chain
from bitwright.graph.macs import WEIGHTED_OPS, node_macs
from bitwright.graph.names import module_path, weight_path
from bitwright.graph.uses import is_use

#: Ops that absorb batch norm and an activation.
ABSORBING = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """One op with what it absorbed.

    Attributes:
        name: module path of the weight (`layer1.0.conv1`); without a weight, path of the module that is the op
            (`avgpool`), or of the module that called it and the op's type (`layer1.0.Add`); where the file names no
            modules, the node's name. A second region of the same name is `name#2`.
        nodes: in execution order; the first is the op itself. Nodes of other regions may stand between them, but what
            a region reads is computed before its first node, and what it gives is read after its last.
        inputs: values computed elsewhere that the region reads, in branches too (no initializers).
        weight, bias: initializers of conv, gemm, matmul; None elsewhere.
        output: the value that others read.
        bounds: `(low, high)` of the absorbed activation, `(0, inf)` for ReLU; None without one.
        macs: multiply-accumulates for a batch of one.
        is_table: the nodes are one elementwise function of the one value in `inputs`.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    weight: ir.Value | None
    bias: ir.Value | None
    output: ir.Value
    bounds: tuple[float, float] | None
    macs: int
    is_table: bool = False

    @property
    def op(self) -> ir.Node:
        """The node that gives the region its kind."""
        return self.nodes[0]

    @property
    def kind(self) -> str:
        """Op type of the region, `DepthwiseConv` for a convolution with one channel a group, `Table` for a function.

        A Relu, or a Clip with constant bounds, that stands alone keeps its op type: it only bounds what it reads.
        """
        if self.is_table:
            return "Table"
        if self.op.op_type == "Conv" and self.weight is not None and self.weight.shape is not None:
            group = self.op.attributes.get_int("group", 1)
            if group > 1 and self.weight.shape[1] == 1:
                return "DepthwiseConv"
        return title(self.op)


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`; None when several do, one in a branch does, or the value leaves the graph."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node


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
        bounds[i] = float(value.const_value.numpy().item())
    return bounds[0], bounds[1]


def find_regions(model: ir.Model) -> list[Region]:
    """All regions of a normalised model, in execution order."""
    place = {node: i for i, node in enumerate(model.graph)}
    taken: set[ir.Node] = set()
    groups: list[tuple[list[ir.Node], bool]] = []
    for node in place:
        if node in taken:
            continue
        chain = [node] if is_use(node) else elementwise_chain(node, place, taken)
        is_table = not all(_has_kernel_of_its_own(member) for member in chain)
        groups.append((chain if is_table else _grow(node), is_table))
        taken.update(groups[-1][0])
    names = region_names([nodes[0] for nodes, _ in groups])
    return [_region(nodes, name, is_table) for (nodes, is_table), name in zip(groups, names, strict=True)]


def _has_kernel_of_its_own(member: ir.Node) -> bool:
    """Whether an op of a chain is a bound, or the sum of two computed values: integers do these exactly by themselves.

    A chain of nothing else, `x + relu(x)`, is left in its parts.
    """
    is_sum = member.op_type == "Add" and not any(v is None or v.is_initializer() for v in member.inputs)
    return is_sum or activation_bounds(member) is not None


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


def region_names(ops: Sequence[ir.Node]) -> list[str]:
    """A name for the region of each op, all different.

    Example:
        >>> conv, add = (ir.Node("", t, [], name=f"/block/{n}") for t, n in [("Conv", "conv1/Conv"), ("Add", "Add")])
        >>> region_names([conv, add, add])
        ['block.conv1', 'block.Add', 'block.Add#2']
    """
    paths = [_path(op) for op in ops]
    containers = {p[:i] for p in paths if p for i, c in enumerate(p) if c == "."}
    kinds: dict[str | None, set[str]] = defaultdict(set)
    for op, path in zip(ops, paths, strict=True):
        kinds[path].add(op.op_type)
    seen: dict[str, int] = {}
    names = []
    for op, path in zip(ops, paths, strict=True):
        if path is None:
            name = op.name or (_weight_name(op) or f"{op.op_type}:{op.outputs[0].name if op.outputs else ''}")
        elif path and path not in containers and (len(kinds[path]) == 1 or _weight_name(op)):
            name = path
        else:  # called in a module that has other ops too
            name = f"{path}.{op.op_type}" if path else op.op_type
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def _path(op: ir.Node) -> str | None:
    return weight_path(_weight_name(op)) or module_path(op)


def _weight_name(op: ir.Node) -> str:
    weight = _initializer(op, WEIGHTED_OPS[op.op_type]) if op.op_type in WEIGHTED_OPS else None
    return "" if weight is None else weight.name or ""


def _region(nodes: list[ir.Node], name: str, is_table: bool) -> Region:
    op = nodes[0]
    weight = _initializer(op, WEIGHTED_OPS[op.op_type]) if op.op_type in WEIGHTED_OPS else None
    bias = _initializer(op, 2) if op.op_type in ("Conv", "ConvTranspose", "Gemm") else None
    inside = {o for n in nodes for o in n.outputs}
    inputs = dict.fromkeys(
        v
        for n in nodes
        for v in (*n.inputs, *captured_values(n))
        if v is not None and v not in inside and not v.is_initializer()
    )
    return Region(
        name=name, nodes=tuple(nodes), inputs=tuple(inputs), weight=weight, bias=bias, output=nodes[-1].outputs[0],
        bounds=None if is_table else activation_bounds(nodes[-1]), macs=sum(node_macs(n) for n in nodes),
        is_table=is_table,
    )  # fmt: skip


def _initializer(node: ir.Node, index: int) -> ir.Value | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value if value is not None and value.is_initializer() else None
