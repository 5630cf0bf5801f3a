"""Give each layer constants of its own.

A weight that two layers read has one set of codes, but a bias has the scale `s_x s_w` of its layer's input, and a
layer that stays in float needs the weight's real values. So a constant of several readers becomes one for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from torch import Tensor

from bitwright.graph.names import fresh_name
from bitwright.graph.overlay import initializer, set_initializer
from bitwright.graph.regions import Region, find_regions
from bitwright.targets.target import Target


def shared_constants(regions: list[Region], target: Target) -> list[tuple[Region, ir.Value]]:
    """Weights and biases that something else reads too, with the region that is to get its own."""
    layers = [r for r in regions if target.rule(r.kind) is not None]
    pairs = [(r, v) for r in layers for v in (r.weight, r.bias) if v is not None]
    first = {v: r for r, v in reversed(pairs)}
    # The first layer keeps the constant, unless an op that is no layer reads it as well.
    kept = {v for v in first if sum(other is v for _, other in pairs) == len(v.uses())}
    return [(r, v) for r, v in pairs if len(v.uses()) > 1 and not (v in kept and first[v] is r)]


def separate_constants(
    model: ir.Model, overlay: Mapping[str, Tensor], target: Target
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of the model whose layers share no constants, and `{new name: old name}`; the model itself if none do.

    Example:
        >>> x, w = ir.Value(name="x"), ir.Value(name="conv.weight", const_value=ir.tensor([[[[1.0]]]]))
        >>> a = ir.Node("", "Conv", [x, w])
        >>> b = ir.Node("", "Conv", [a.outputs[0], w])
        >>> graph = ir.Graph([x], b.outputs, nodes=[a, b], initializers=[w], opset_imports={"": 21})
        >>> from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64
        >>> separate_constants(ir.Model(graph, ir_version=10), {}, ONNXRUNTIME_X64)[1]
        {'conv.weight#2': 'conv.weight'}
    """
    if not shared_constants(find_regions(model), target):
        return model, {}
    model = model.clone()
    names: dict[str, str] = {}
    for region, value in shared_constants(find_regions(model), target):
        old = value.name or ""
        number = 2 + sum(source == old for source in names.values())
        new = fresh_name(model, f"{old}#{number}")
        region.op.replace_input_with(
            list(region.op.inputs).index(value), set_initializer(model, new, initializer(model, overlay, old))
        )
        names[new] = old
    return model, names
