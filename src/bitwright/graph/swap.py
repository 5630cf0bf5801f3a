"""Put one node in the place of another, in place; what is read keeps its name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bitwright.graph.names import fresh_name


def swap(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of `old`; node and output keep the old ones' names, shape and type."""
    before, after = old.outputs[0], new.outputs[0]
    new.name = old.name
    new.metadata_props.update(old.metadata_props)
    after.shape, after.type = before.shape, before.type
    model.graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    name = before.name
    before.name = f"{name}/replaced"
    after.name = name
    model.graph.remove(old, safe=True)


def integers(model: ir.Model, wish: str, numbers: list[int]) -> ir.Value:
    """A new initializer of int64 numbers: a shape, axes, bounds."""
    name = fresh_name(model, wish)
    value = ir.Value(name=name, const_value=ir.tensor(np.array(numbers, dtype=np.int64), name=name))
    value.dtype, value.shape = ir.DataType.INT64, ir.Shape([len(numbers)])
    model.graph.register_initializer(value)
    return value


def sizes(value: ir.Value | None) -> list[int | str | None]:
    """The dimensions of a value, names where they are open; `[None]` where nothing is known."""
    if value is None or value.shape is None:
        return [None]
    return [d if isinstance(d, int) else d.value for d in value.shape]


def rank(value: ir.Value | None) -> int:
    """Number of axes; 0 where it is not known."""
    return len(value.shape) if value is not None and value.shape is not None else 0
