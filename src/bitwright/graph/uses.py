"""One use of a value, as a value of its own: `value -> reader:input`.

Where several ops read a value, each may need it in another width. An Identity on the way to one reader gives this use
a name, so that it can have an encoding of its own, be calibrated and be compared as any other value.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

#: Stands between the value and its reader in the name of a use.
ARROW = " -> "


def use_name(value: str, reader: str, index: int) -> str:
    """Name of the use of `value` as input `index` of the region `reader`.

    Example:
        >>> use_name("x", "layer1.0.conv1", 0)
        'x -> layer1.0.conv1:0'
    """
    return f"{value}{ARROW}{reader}:{index}"


def is_use(node: ir.Node) -> bool:
    """Whether a node stands for one use of a value."""
    return node.op_type == "Identity" and not node.domain and ARROW in (node.outputs[0].name or "")


def split_uses(
    model: ir.Model, readers: Callable[[ir.Model], list[tuple[str, ir.Node]]], wanted: Callable[[str], bool]
) -> tuple[ir.Model, list[str]]:
    """A copy of the model in which the uses that are wanted are values, and their names; the model itself if none is.

    Args:
        model: normalised model.
        readers: name and node of every op that a use can name, of a model.
        wanted: asked with the name of every use.
    """

    def found(of: ir.Model) -> list[tuple[str, ir.Node, int]]:
        return [
            (use_name(value.name or "", name, i), node, i)
            for name, node in readers(of)
            for i, value in enumerate(node.inputs)
            if value is not None and not value.is_initializer() and not is_use(node)
            and wanted(use_name(value.name or "", name, i))
        ]  # fmt: skip

    if not found(model):
        return model, []
    model = model.clone()
    names = []
    for name, node, index in found(model):
        value = node.inputs[index]
        assert value is not None and node.graph is not None
        use = ir.Node("", "Identity", [value], name=name)
        use.outputs[0].name, use.outputs[0].shape, use.outputs[0].type = name, value.shape, value.type
        node.graph.insert_before(node, use)
        node.replace_input_with(index, use.outputs[0])
        names.append(name)
    return model, names
