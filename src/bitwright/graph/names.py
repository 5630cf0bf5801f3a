"""Names: one for life, for every value, region and initializer."""

from __future__ import annotations

import ast

import onnx_ir as ir

#: Where PyTorch's exporter notes the modules that an op was called in: `['', 'layer1', 'layer1.0', 'add_3']`.
SCOPES = "pkg.torch.onnx.name_scopes"


def fresh_name(model: ir.Model, wish: str) -> str:
    """`wish`, or `wish` with the first number that makes it new in the graph."""
    taken = {v.name for n in model.graph for v in n.outputs} | set(model.graph.initializers)
    taken |= {v.name for v in model.graph.inputs}
    name, i = wish, 1
    while name in taken:
        name, i = f"{wish}_{i}", i + 1
    return name


def module_path(node: ir.Node) -> str | None:
    """The module that called an op, "" for the network itself; None where the exporter does not say.

    PyTorch's exporter lists the modules in the node's metadata. Its older one, by TorchScript, puts them into the
    node's name, where a child of a container repeats the container's last name:
    `/features/features.0/conv/conv.1/Conv` is the module `features.0.conv.1`.

    Example:
        >>> module_path(ir.Node("", "Conv", [], name="/layer1/layer1.0/conv1/Conv"))
        'layer1.0.conv1'
        >>> module_path(ir.Node("", "Add", [], name="/layer1/layer1.0/Add_1"))
        'layer1.0'
        >>> module_path(ir.Node("", "Add", [], metadata_props={SCOPES: "['', 'layer1', 'layer1.0', 'add_3']"}))
        'layer1.0'
        >>> module_path(ir.Node("", "Add", [], name="block1_add")) is None
        True
    """
    if SCOPES in node.metadata_props:
        return _innermost(node.metadata_props[SCOPES])
    name = node.name or ""
    if not name.startswith("/"):
        return None
    path: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)


def _innermost(scopes: str) -> str | None:
    try:
        modules = ast.literal_eval(scopes)[:-1]
    except (ValueError, SyntaxError, TypeError):
        return None
    return str(modules[-1]) if modules and not str(modules[-1]).startswith("_empty_nn_module") else ""


def weight_path(weight: str) -> str:
    """The module path of a weight: its name without the last component.

    Example:
        >>> weight_path("layer1.0.conv1.weight"), weight_path("onnx::Conv_193"), weight_path("/a/a.0/Transpose_out")
        ('layer1.0.conv1', '', '')
    """
    return "" if "::" in weight or "/" in weight else weight.rpartition(".")[0]
