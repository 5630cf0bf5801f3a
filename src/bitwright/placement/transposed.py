"""Transposed convolutions as convolutions, for targets that have no integer kernel for them.

A transposed convolution of stride `s` adds `x[n] w[k]` to the output `t = s n + k - p`. The outputs `t = s q + r` of
one phase `r` are a convolution of `x` with every s-th tap of `w`, so all phases together are one convolution with
`s O` output channels (`s` the product of the strides) and about `ceil(k / s)` taps, and a shuffle of channels into
space:

    w'[o s + r][l] = w[o][k],  k = s j + c,  c = (r + p) mod s,  l = floor((r + p) / s) - j
    y[o][s q + r] = conv(x, w')[o s + r][q]

The phases are aligned (`p` is lowered, and the output cropped) so that the kernel is as short as it can be. Where `s`
does not divide `k`, some phases have fewer taps than others and get zeros: the multiply-accumulates of the convolution
count those, because its kernel multiplies by them.

Source: V. Dumoulin and F. Visin, A guide to convolution arithmetic for deep learning, 2016,
https://arxiv.org/abs/1603.07285, section 4; W. Shi et al., Is the deconvolution layer the same as a convolutional
layer?, 2016, https://arxiv.org/abs/1609.07009.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.graph.names import fresh_name
from bitwright.graph.overlay import initializer, set_initializer
from bitwright.graph.regions import activation_bounds, only_consumer
from bitwright.graph.swap import integers
from bitwright.targets.target import Target


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One spatial axis of a transposed convolution, aligned to phases.

    Attributes:
        stride: phases.
        taps: for each phase, `{tap of the convolution: tap of the transposed one}`.
        kernel: taps of the convolution.
        pads: its zeros before and after the input.
        crop: first output that is kept, and one past the last, after the shuffle.
        size: outputs after the shuffle, `stride` times those of the convolution.
    """

    stride: int
    taps: tuple[Mapping[int, int], ...]
    kernel: int
    pads: tuple[int, int]
    crop: tuple[int, int]
    size: int


def align(inputs: int, outputs: int, kernel: int, stride: int, start: int, dilation: int = 1) -> Axis:
    """The phases of one axis.

    Args:
        inputs, outputs: sizes.
        kernel: taps of the transposed convolution.
        stride: of the output.
        start: outputs cut off at the beginning (`pads`).
        dilation: distance of its taps.

    Example:
        >>> axis = align(inputs=8, outputs=16, kernel=3, stride=2, start=1)  # output_padding 1
        >>> axis.kernel, axis.taps, axis.pads, axis.crop
        (2, ({0: 1}, {1: 0, 0: 2}), (0, 1), (0, 16))
    """
    choices = [_aligned(inputs, outputs, kernel, stride, start, dilation, crop) for crop in range(stride)]
    return min(choices, key=lambda axis: (axis.kernel, axis.crop[0], axis.size))


def _aligned(inputs: int, outputs: int, kernel: int, stride: int, start: int, dilation: int, crop: int) -> Axis:
    # The output t = s q + r, of which the first `crop` are dropped, gets x[n] w[k] where s n + d k = t + start - crop.
    offsets = [
        {(r + start - crop - dilation * k) // stride: k for k in range(kernel)
         if (r + start - crop - dilation * k) % stride == 0}
        for r in range(stride)
    ]  # fmt: skip
    used = [offset for phase in offsets for offset in phase]
    low, high = min([0, *used]), max([0, *used])
    rows = -(-(crop + outputs) // stride)
    before, after = -low, max(0, rows - inputs + high)
    return Axis(
        stride=stride, taps=tuple({offset - low: k for offset, k in phase.items()} for phase in offsets),
        kernel=high - low + 1, pads=(before, after), crop=(crop, crop + outputs),
        size=stride * (inputs + before + after - (high - low)),
    )  # fmt: skip


def phase_weight(weight: Tensor, axes: Sequence[Axis], group: int = 1) -> Tensor:
    """The convolution's weight.

    Shapes: `[I, O/g, *k]` to `[O s, I/g, *kernels]`, `s` the product of the strides; channel `o s + r` is phase `r`
    (row by row) of output channel `o`.

    Example:
        >>> axis = align(inputs=8, outputs=16, kernel=2, stride=2, start=0)
        >>> phase_weight(torch.tensor([[[5.0, 7.0]]]), [axis]).flatten().tolist()
        [5.0, 7.0]
    """
    inputs, outputs = weight.shape[:2]
    # Output channels first, each with the inputs of its own group.
    by_output = weight.reshape(group, inputs // group, outputs, *weight.shape[2:]).transpose(1, 2)
    by_output = by_output.reshape(group * outputs, inputs // group, *weight.shape[2:])
    strides, kernels = [a.stride for a in axes], [a.kernel for a in axes]
    result = torch.zeros(group * outputs, math.prod(strides), inputs // group, *kernels, dtype=weight.dtype)
    for r, phase in enumerate(itertools.product(*(range(s) for s in strides))):
        for taps in itertools.product(*(axis.taps[p].items() for axis, p in zip(axes, phase, strict=True))):
            everything = slice(None)
            new: tuple[slice | int, ...] = (everything, r, everything, *(tap for tap, _ in taps))
            old: tuple[slice | int, ...] = (everything, everything, *(tap for _, tap in taps))
            result[new] = by_output[old]
    return result.reshape(-1, inputs // group, *kernels)


def transposed_as_convolutions(
    model: ir.Model, overlay: Mapping[str, Tensor], target: Target
) -> tuple[ir.Model, dict[str, Tensor], dict[str, tuple[str, int]]]:
    """A copy of the model whose transposed convolutions are convolutions, with its overlay; the same if it has none.

    The third is `{new weight: (weight that it came from, phases)}`; output channel `o` became `phases` channels side
    by side. The output, the node and so the region keep their names; a bound that alone follows is moved to where the
    convolution absorbs it. Left as they are: weights or biases that are computed, sizes that are open.

    Example:
        >>> x = ir.Value(name="x", shape=ir.Shape(["batch", 1, 3, 3]), type=ir.TensorType(ir.DataType.FLOAT))
        >>> w = ir.Value(name="up.weight", const_value=ir.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        >>> w.shape, w.dtype = ir.Shape([1, 1, 2, 2]), ir.DataType.FLOAT
        >>> node = ir.Node("", "ConvTranspose", [x, w], {"strides": ir.AttrInt64s("strides", [2, 2])})
        >>> y = node.outputs[0]
        >>> y.name, y.shape, y.type = "y", ir.Shape(["batch", 1, 6, 6]), x.type
        >>> graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 21})
        >>> from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64
        >>> model, _, names = transposed_as_convolutions(ir.Model(graph, ir_version=10), {}, ONNXRUNTIME_X64)
        >>> [n.op_type for n in model.graph], names
        (['Conv', 'DepthToSpace'], {'up.weight#phases': ('up.weight', 4)})
    """
    overlay = dict(overlay)
    if target.rule("ConvTranspose") is not None or not any(map(_axes, model.graph)):
        return model, overlay, {}
    model = model.clone()
    names: dict[str, tuple[str, int]] = {}
    for node in list(model.graph):
        axes = _axes(node)
        if axes is not None:
            new, old = _rewrite(model, overlay, node, axes)
            names[new] = (old, math.prod(axis.stride for axis in axes))
    for stale in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[stale]
        overlay.pop(stale, None)
    return model, overlay, names


def _axes(node: ir.Node) -> list[Axis] | None:
    """The axes of a transposed convolution; None of other nodes, and where its constants or sizes are not known."""
    if node.op_type != "ConvTranspose" or node.domain:
        return None
    constants = [v for v in node.inputs[1:] if v is not None]
    if not constants or any(not v.is_initializer() or v.dtype != ir.DataType.FLOAT for v in constants):
        return None
    x, y, weight = node.inputs[0], node.outputs[0], constants[0]
    if x is None or x.shape is None or y.shape is None or weight.shape is None:
        return None
    known = [d for d in (*x.shape[2:], *y.shape[2:], *weight.shape) if isinstance(d, int)]
    n = len(weight.shape) - 2
    if len(known) < 3 * n + 2:
        return None
    inputs, outputs, kernels = known[:n], known[n : 2 * n], known[2 * n + 2 :]
    strides, dilations = (list(node.attributes.get_ints(key, [1] * n)) for key in ("strides", "dilations"))
    starts = _starts(node, inputs, outputs, kernels, strides, dilations)
    rows = zip(inputs, outputs, kernels, strides, starts, dilations, strict=True)
    return [align(*row) for row in rows]


def _starts(
    node: ir.Node, inputs: Sequence[int], outputs: Sequence[int], kernels: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:  # fmt: skip
    """Outputs cut off at the beginning of each axis; where the output's size is given, the runtime halves the rest."""
    n = len(inputs)
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic not in ("SAME_UPPER", "SAME_LOWER") and "output_shape" not in node.attributes:
        return [0] * n if automatic == "VALID" else list(node.attributes.get_ints("pads", [0] * 2 * n))[:n]
    extra = node.attributes.get_ints("output_padding", [0] * n)
    rows = zip(inputs, outputs, kernels, strides, dilations, extra, strict=True)
    totals = [max(0, s * (i - 1) + e + (k - 1) * d + 1 - o) for i, o, k, s, d, e in rows]
    return [total // 2 if automatic == "SAME_UPPER" else total - total // 2 for total in totals]


def _rewrite(model: ir.Model, overlay: Mapping[str, Tensor], node: ir.Node, axes: Sequence[Axis]) -> tuple[str, str]:
    """Names of the new weight and of the old one."""
    x, weight = node.inputs[:2]
    assert x is not None and weight is not None
    old, group = weight.name or "", node.attributes.get_int("group", 1)
    strides = [axis.stride for axis in axes]
    phases = math.prod(strides)
    new = fresh_name(model, f"{old}#phases")
    tensor = phase_weight(initializer(model, overlay, old), axes, group)
    inputs = [x, set_initializer(model, new, tensor)]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        repeated = initializer(model, overlay, bias.name or "").repeat_interleave(phases)
        inputs.append(set_initializer(model, fresh_name(model, f"{bias.name}#phases"), repeated))
    attributes = [
        ir.AttrInt64("group", group), ir.AttrInt64s("kernel_shape", [a.kernel for a in axes]),
        ir.AttrInt64s("pads", [a.pads[0] for a in axes] + [a.pads[1] for a in axes]),
    ]  # fmt: skip
    name = node.name or _free_node_name(model, old)
    conv = ir.Node("", "Conv", inputs, attributes, name=name, metadata_props=dict(node.metadata_props))
    plane = [axis.size // axis.stride for axis in axes]
    parts = _Parts(model, node)
    value = parts.append(conv, [tensor.shape[0], *plane], "phases")
    follower = only_consumer(node.outputs[0])
    last = node
    if follower is not None and activation_bounds(follower) is not None:
        bounded = ir.Node(
            "", follower.op_type, [value, *follower.inputs[1:]], follower.attributes.values(), name=follower.name,
            metadata_props=dict(follower.metadata_props),
        )  # fmt: skip
        value, last = parts.append(bounded, [tensor.shape[0], *plane], "phases/bounded"), follower
    if phases > 1:
        value = _shuffle(parts, value, tensor.shape[0] // phases, strides, plane)
    if any(axis.crop != (0, axis.size) for axis in axes):
        value = _crop(parts, value, axes)
    _take_the_place(model, last, value)
    if last is not node:
        model.graph.remove(node, safe=True)
    return new, old


def _free_node_name(model: ir.Model, weight: str) -> str:
    """A node without a name is known by its weight, `weight#2` where that serves another."""
    taken = {node.name for node in model.graph}
    names = (weight if i == 1 else f"{weight}#{i}" for i in itertools.count(1))
    return next(name for name in names if name not in taken)


class _Parts:
    """Nodes put before a transposed convolution, each with one value called after its output."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self.count = 0

    def append(self, new: ir.Node, sizes: Sequence[int], name: str) -> ir.Value:
        value, output = new.outputs[0], self.node.outputs[0]
        assert output.shape is not None
        value.name = fresh_name(self.model, f"{output.name}#{name}")
        value.type, value.shape = output.type, ir.Shape([output.shape[0], *sizes])
        if new.name is None:
            self.count += 1
            new.name = f"{self.node.name or output.name}_{name.partition('/')[0]}_{self.count}"
            new.metadata_props.update(self.node.metadata_props)
        self.model.graph.insert_before(self.node, new)
        return value

    def integers(self, numbers: Sequence[int], name: str) -> ir.Value:
        return integers(self.model, f"{self.node.outputs[0].name}#{name}", list(numbers))


def _shuffle(parts: _Parts, x: ir.Value, channels: int, strides: Sequence[int], plane: Sequence[int]) -> ir.Value:
    """Phases into space: channel `o s + r` at `q` to channel `o` at `s q + r`, on every axis."""
    sizes = [s * q for s, q in zip(strides, plane, strict=True)]
    if len(strides) == 2 and strides[0] == strides[1]:
        attributes = [ir.AttrInt64("blocksize", strides[0]), ir.AttrString("mode", "CRD")]
        return parts.append(ir.Node("", "DepthToSpace", [x], attributes), [channels, *sizes], "shuffled")
    n = len(strides)
    split = ir.Node("", "Reshape", [x, parts.integers([0, channels, *strides, *plane], "split")])
    x = parts.append(split, [channels, *strides, *plane], "split")
    order = [0, 1, *(axis for i in range(n) for axis in (2 + n + i, 2 + i))]
    pairs = [size for pair in zip(plane, strides, strict=True) for size in pair]
    turned = parts.append(ir.Node("", "Transpose", [x], [ir.AttrInt64s("perm", order)]), [channels, *pairs], "turned")
    joined = ir.Node("", "Reshape", [turned, parts.integers([0, channels, *sizes], "joined")])
    return parts.append(joined, [channels, *sizes], "joined")


def _crop(parts: _Parts, x: ir.Value, axes: Sequence[Axis]) -> ir.Value:
    cut = [(i + 2, *axis.crop) for i, axis in enumerate(axes) if axis.crop != (0, axis.size)]
    along, first, end = (
        parts.integers([row[i] for row in cut], name) for i, name in enumerate(("axes", "start", "end"))
    )
    assert x.shape is not None and isinstance(x.shape[1], int)
    sizes = [x.shape[1], *(axis.crop[1] - axis.crop[0] for axis in axes)]
    return parts.append(ir.Node("", "Slice", [x, first, end, along]), sizes, "cropped")


def _take_the_place(model: ir.Model, last: ir.Node, value: ir.Value) -> None:
    """The new value under the name of the one that `last` gave."""
    before = last.outputs[0]
    value.shape, value.type = before.shape, before.type
    ir.convenience.replace_all_uses_with(before, value, replace_graph_outputs=True)
    name, before.name = before.name, f"{before.name}/replaced"
    value.name = name
    model.graph.remove(last, safe=True)
