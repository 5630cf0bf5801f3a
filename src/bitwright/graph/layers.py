"""Layers with weights, and which layer alone reads which other's output: what equalization and bias steps walk along.

A weight is seen as rows: `[O, I/g, *]`, one row an output channel, whatever the op stores. Row `o` reads the inputs of
group `o // (O/g)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.graph.names import fresh_name, weight_path
from bitwright.graph.overlay import initializer, set_initializer
from bitwright.graph.regions import activation_bounds, only_consumer

#: Ops that may stand between two linked layers: they keep the channels apart and in order. Flatten and Reshape do
#: where they put a channel's elements side by side (`[N, C, H, W]` to `[N, C H W]`).
PASSING = (
    "Relu", "LeakyRelu", "PRelu", "Clip", "Identity", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool",
    "Flatten", "Reshape",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A convolution or linear layer whose weight and bias are constants of its own.

    Attributes:
        node: Conv, ConvTranspose or Gemm.
        weight: name of the initializer.
        bias: name of the initializer, None without one.
        group: groups of a convolution, else 1.
    """

    node: ir.Node
    weight: str
    bias: str | None
    group: int

    def rows(self, weight: Tensor) -> Tensor:
        """The stored weight as `[O, I/g, *]`."""
        if self.node.op_type == "Gemm" and not self.node.attributes.get_int("transB", 0):
            return weight.T
        if self.node.op_type == "ConvTranspose":
            return weight.unflatten(0, (self.group, -1)).transpose(1, 2).flatten(0, 1)
        return weight

    def stored(self, rows: Tensor) -> Tensor:
        """Rows as the op stores them: the inverse of `rows`."""
        if self.node.op_type == "Gemm" and not self.node.attributes.get_int("transB", 0):
            return rows.T.contiguous()
        if self.node.op_type == "ConvTranspose":
            return rows.unflatten(0, (self.group, -1)).transpose(1, 2).flatten(0, 1).contiguous()
        return rows

    def grouped(self, weight: Tensor) -> Tensor:
        """The stored weight as `[g, O/g, I/g, elements]`."""
        rows = self.rows(weight)
        return rows.reshape(self.group, rows.shape[0] // self.group, rows.shape[1], -1)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel, its own."""
        shape = _shape(self.node.inputs[1])
        own = 0 if self.node.op_type == "ConvTranspose" else 1
        return self.group > 1 and len(shape) > 1 and shape[own] == 1 and shape[1 - own] == self.group

    @property
    def pads(self) -> bool:
        """Whether a convolution may read zeros beside its input."""
        automatic = self.node.attributes.get_string("auto_pad", "NOTSET")
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            return any(d != 1 for d in _shape(self.node.inputs[1])[2:])
        return self.node.op_type == "ConvTranspose" or any(self.node.attributes.get_ints("pads", ()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """Two layers, the second of which alone reads what the first gives, through ops that keep channels apart.

    Attributes:
        first, last: the layers.
        between: nodes between them, in order.
        repeat: inputs of the second for each channel of the first; more than 1 behind a Flatten.
    """

    first: Layer
    last: Layer
    between: tuple[ir.Node, ...]
    repeat: int = 1


def _shape(value: ir.Value | None) -> list[int]:
    shape = None if value is None else value.shape
    return [] if shape is None else [d if isinstance(d, int) else -1 for d in shape]


def layer_of(node: ir.Node) -> Layer | None:
    """A node as a layer; None where its op is no layer, or its constants are computed or read elsewhere too."""
    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return None
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    for value in (weight, bias):
        if value is not None and (not value.is_initializer() or len(value.uses()) > 1 or value.is_graph_output()):
            return None
    if weight is None:
        return None
    attributes = node.attributes
    if node.op_type == "Gemm":
        scaled = attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0
        if scaled or bool(attributes.get_int("transA", 0)):
            return None
    layer = Layer(
        node=node, weight=weight.name or "", bias=None if bias is None else bias.name,
        group=attributes.get_int("group", 1),
    )  # fmt: skip
    outputs = _outputs(layer)
    if (bias is not None and _shape(bias)[-1:] != [outputs]) or any(d != 1 for d in _shape(bias)[:-1]):
        return None
    return layer


def _outputs(layer: Layer) -> int:
    shape = _shape(layer.node.inputs[1])
    if layer.node.op_type == "Gemm":
        return shape[0 if layer.node.attributes.get_int("transB", 0) else 1]
    return shape[1] * layer.group if layer.node.op_type == "ConvTranspose" else shape[0]


def find_links(model: ir.Model) -> list[Link]:
    """All pairs of linked layers of a normalised model, in execution order of the first.

    Example:
        >>> x, w = ir.Value(name="x"), [ir.Value(name=n, const_value=ir.tensor([[1.0]])) for n in "ab"]
        >>> for value in w:
        ...     value.shape = ir.Shape([1, 1])
        >>> a = ir.Node("", "Gemm", [x, w[0]])
        >>> relu = ir.Node("", "Relu", a.outputs)
        >>> b = ir.Node("", "Gemm", [relu.outputs[0], w[1]])
        >>> graph = ir.Graph([x], b.outputs, nodes=[a, relu, b], initializers=w, opset_imports={"": 21})
        >>> [(link.first.weight, link.last.weight) for link in find_links(ir.Model(graph, ir_version=10))]
        [('a', 'b')]
    """
    layers = {node: layer for node in model.graph if (layer := layer_of(node)) is not None}
    found = []
    for first in layers.values():
        between: list[ir.Node] = []
        repeat, value = 1, first.node.outputs[0]
        while (node := only_consumer(value)) is not None and node.inputs[0] is value:
            if node in layers:
                found.append(Link(first=first, last=layers[node], between=tuple(between), repeat=repeat))
                break
            more = _repeats(node)
            if more is None:
                break
            repeat *= more
            between.append(node)
            value = node.outputs[0]
    return found


def _repeats(node: ir.Node) -> int | None:
    """Channels that each channel becomes in a passing op; None where the op does not pass channels on."""
    if node.domain or node.op_type not in PASSING or any(v.uses() for v in node.outputs[1:]):
        return None
    if any(v is not None and not v.is_initializer() for v in node.inputs[1:]):
        return None
    if node.op_type == "Clip" and activation_bounds(node) is None:
        return None
    if node.op_type not in ("Flatten", "Reshape"):
        return 1
    before, after = _shape(node.inputs[0]), _shape(node.outputs[0])
    inner = before[2:]
    if len(before) < 2 or len(after) != 2 or before[1] < 1 or any(d < 1 for d in inner):
        return None
    repeat = int(torch.tensor(inner, dtype=torch.int64).prod()) if inner else 1
    return repeat if after[1] == before[1] * repeat else None


def add_bias(model: ir.Model, node: ir.Node, overlay: Mapping[str, Tensor]) -> str:
    """Give a layer that has none a bias of zeros, in place; its name."""
    weight = node.inputs[1]
    layer = layer_of(node)
    assert weight is not None and weight.name is not None and layer is not None
    zeros = torch.zeros(layer.rows(initializer(model, overlay, weight.name)).shape[0])
    name = fresh_name(model, f"{weight_path(weight.name) or weight.name}.bias")
    value = set_initializer(model, name, zeros)
    node.resize_inputs(3)
    node.replace_input_with(2, value)
    return name
