"""Names: one for life, for every value, region and initializer."""

from __future__ import annotations

import onnx_ir as ir


def fresh_name(model: ir.Model, wish: str) -> str:
    """`wish`, or `wish` with the first number that makes it new in the graph."""
    taken = {v.name for n in model.graph for v in n.outputs} | set(model.graph.initializers)
    taken |= {v.name for v in model.graph.inputs}
    name, i = wish, 1
    while name in taken:
        name, i = f"{wish}_{i}", i + 1
    return name


def node_path(node: ir.Node) -> str:
    """The module path that an exporter put in a node's name, or the name itself.

    TorchScript's exporter repeats each prefix: `/layer1/layer1.0/conv1/Conv` is the module `layer1.0.conv1`.

    Example:
        >>> node_path(ir.Node("", "Conv", [], name="/layer1/layer1.0/conv1/Conv"))
        'layer1.0.conv1'
        >>> node_path(ir.Node("", "Add", [], name="/layer1/layer1.0/Add_1"))
        'layer1.0.Add_1'
        >>> node_path(ir.Node("", "Add", [], name="node_add_35"))
        'node_add_35'
    """
    name = node.name or ""
    if not name.startswith("/"):
        return name or f"{node.op_type}:{node.outputs[0].name if node.outputs else ''}"
    path = ""
    parts = name.strip("/").split("/")
    if parts[-1] == node.op_type and len(parts) > 1:
        parts.pop()
    for part in parts:
        path = part if not path or part.startswith(path + ".") else f"{path}.{part}"
    return path


def weight_path(weight: str) -> str:
    """The module path of a weight: its name without the last component.

    Example:
        >>> weight_path("layer1.0.conv1.weight"), weight_path("onnx::Conv_193")
        ('layer1.0.conv1', '')
    """
    return "" if "::" in weight or "." not in weight else weight.rpartition(".")[0]
