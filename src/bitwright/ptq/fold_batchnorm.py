"""Fold batch norm into the layer before it, or into the one after it.

With `k = gamma / sqrt(var + eps)`: `W' = W k` along the output channels, `b' = beta + (b - mean) k`, in float64 and
rounded once. A batch norm with no layer before it goes into the convolution or linear layer that alone reads it, where
that is exact: `W' = W k` along the input channels, `b' = b + sum W (beta - mean k)`. The zeros that a convolution pads
with come after the batch norm, so there must be none. What is left becomes a depthwise 1x1 convolution with weight `k`
and bias `beta - mean k`, which is the same function.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, section 3.2 (inference form); axes of transposed and grouped convolutions from the ONNX definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.graph.names import fresh_name, weight_path
from bitwright.graph.overlay import initializer, set_initializer
from bitwright.graph.regions import only_consumer
from bitwright.pipeline import BatchNorm, Progress, State

FOLDABLE = ("Conv", "ConvTranspose", "Gemm")
#: `(weight, bias, statistics, op, group, trans_b) -> (weight, bias)`.
Fold = Callable[[Tensor, Tensor | None, BatchNorm, str, int, bool], tuple[Tensor, Tensor]]


def scale_output_channels(weight: Tensor, k: Tensor, op: str, group: int = 1, trans_b: bool = True) -> Tensor:
    """`W k` along the output channels of a layer.

    Shapes: Conv `[O, I/g, *]`; Gemm `[O, I]` with transB, else `[I, O]`; ConvTranspose `[I, O/g, *]`, whose output
    channel `g * O/g + o` is row group `g`, column `o`.

    Example:
        >>> scale_output_channels(torch.ones(2, 1, 1, 1), torch.tensor([2.0, 3.0]), "Conv").flatten().tolist()
        [2.0, 3.0]
    """
    if op == "ConvTranspose":
        grouped = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        return (grouped * k.reshape(group, 1, -1, 1)).reshape(weight.shape)
    if op == "Gemm" and not trans_b:
        return weight * k
    return weight * k.reshape(-1, *[1] * (weight.ndim - 1))


def fold(
    weight: Tensor, bias: Tensor | None, bn: BatchNorm, op: str, group: int, trans_b: bool
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that does both, float32.

    Args:
        weight: `scale_output_channels` says its shape.
        bias: one value for each output channel, or one for all; None for zeros.
        bn: statistics, `[channels]` each.
        op, group, trans_b: of the layer.

    Example:
        >>> ones = torch.ones(2)
        >>> bn = BatchNorm(gamma=torch.tensor([2.0, -2.0]), beta=ones, mean=ones, var=ones * 4, eps=0.0)
        >>> weight, bias = fold(torch.ones(2, 1), ones * 3, bn, "Gemm", 1, True)
        >>> weight.flatten().tolist(), bias.tolist()
        ([1.0, -1.0], [3.0, -1.0])
    """
    gamma, beta, mean, var = (t.double() for t in (bn.gamma, bn.beta, bn.mean, bn.var))
    k = gamma / torch.sqrt(var + bn.eps)
    b = torch.zeros_like(beta) if bias is None else bias.double().reshape(-1)
    # W' = W k ; b' = beta + (b - mean) k
    folded = scale_output_channels(weight.double(), k, op, group, trans_b)
    return folded.float(), (beta + (b - mean) * k).float()


def fold_forward(
    weight: Tensor, bias: Tensor | None, bn: BatchNorm, op: str, group: int, trans_b: bool
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that does the batch norm before it too, float32.

    Shapes: Conv `[O, I/g, *]`, whose output channel `o` reads the inputs of group `o // (O/g)`; Gemm `[O, I]` with
    transB, else `[I, O]`; `[I]` for the statistics.

    Example:
        >>> two, one, four = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([4.0])
        >>> bn = BatchNorm(gamma=two, beta=four, mean=one, var=four, eps=0.0)  # x + 3
        >>> weight, bias = fold_forward(torch.tensor([[3.0], [1.0]]), None, bn, "Gemm", 1, True)
        >>> weight.flatten().tolist(), bias.tolist()
        ([3.0, 1.0], [9.0, 3.0])
    """
    gamma, beta, mean, var = (t.double() for t in (bn.gamma, bn.beta, bn.mean, bn.var))
    k = gamma / torch.sqrt(var + bn.eps)
    constant = beta - mean * k
    turned = op == "Gemm" and not trans_b
    rows = weight.double().T if turned else weight.double()
    outputs, inputs = rows.shape[:2]
    grouped = rows.reshape(group, outputs // group, inputs, -1)
    # W' = W k ; b' = b + sum W (beta - mean k)
    scaled = (grouped * k.reshape(group, 1, inputs, 1)).reshape(rows.shape)
    added = (grouped * constant.reshape(group, 1, inputs, 1)).sum((2, 3)).reshape(-1)
    if bias is not None:
        added = added + bias.double().reshape(-1)
    return (scaled.T if turned else scaled).float().contiguous(), added.float()


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm:
    """Fold every batch norm.

    What it was is kept under the name of the weight that it went into: in `State.batchnorm` where it was folded into
    the layer before it or became one, in `State.input_batchnorm` where into the layer after it. What stays: batch norm
    of two axes beside no layer, statistics that are computed, `training_mode=1`.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({"folded"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state whose graph has no foldable batch norm."""
        model = state.model.clone()
        overlay = dict(state.overlay)
        kept, of_inputs = dict(state.batchnorm), dict(state.input_batchnorm)
        for node in list(model.graph):
            if node.op_type != "BatchNormalization" or not _has_constant_statistics(node):
                continue
            bn = _statistics(model, overlay, node)
            layer = node.inputs[0].producer() if node.inputs[0] is not None else None
            reader = only_consumer(node.outputs[0])
            if layer is not None and _foldable(layer, node):
                name = _fold_into(model, overlay, layer, bn, fold)
                _bypass(node, layer)
            elif reader is not None and _foldable_forward(reader, node):
                of_inputs[_fold_into(model, overlay, reader, bn, fold_forward)] = bn
                reader.replace_input_with(0, node.inputs[0])
                model.graph.remove(node, safe=True)
                continue
            elif node.inputs[0] is not None and node.inputs[0].shape is not None and len(node.inputs[0].shape) > 2:
                name = _as_depthwise(model, node, bn)
            else:
                continue
            kept[name] = bn
        return state.but(model=model, overlay=overlay, batchnorm=kept, input_batchnorm=of_inputs)


def _has_constant_statistics(node: ir.Node) -> bool:
    training = node.attributes.get_int("training_mode", 0)
    if training or len(node.outputs) > 1:
        return False
    return all(v is not None and v.is_initializer() for v in node.inputs[1:5])


def _statistics(model: ir.Model, overlay: dict[str, Tensor], node: ir.Node) -> BatchNorm:
    gamma, beta, mean, var = (initializer(model, overlay, v.name or "") for v in node.inputs[1:5] if v is not None)
    return BatchNorm(gamma=gamma, beta=beta, mean=mean, var=var, eps=node.attributes.get_float("epsilon", 1e-5))


def _foldable(layer: ir.Node, bn: ir.Node) -> bool:
    if layer.op_type not in FOLDABLE or only_consumer(layer.outputs[0]) is not bn:
        return False
    return _has_constant_weight(layer) and (layer.op_type != "Gemm" or _plain_gemm(layer))


def _has_constant_weight(layer: ir.Node) -> bool:
    constants = [v for v in layer.inputs[1:3] if v is not None]
    return bool(constants) and all(v.is_initializer() for v in constants)


def _foldable_forward(reader: ir.Node, bn: ir.Node) -> bool:
    """Whether a layer that alone reads a batch norm is linear in it everywhere, borders too."""
    if reader.domain or reader.inputs[0] is not bn.outputs[0] or not _has_constant_weight(reader):
        return False
    if reader.op_type == "Gemm":
        return _plain_gemm(reader) and not reader.attributes.get_int("transA", 0)
    return reader.op_type == "Conv" and not _pads(reader)


def _pads(conv: ir.Node) -> bool:
    """Whether a convolution may read zeros beside its input."""
    automatic = conv.attributes.get_string("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        weight = conv.inputs[1]
        return weight is None or weight.shape is None or any(d != 1 for d in weight.shape[2:])
    return automatic != "VALID" and any(conv.attributes.get_ints("pads", ()))


def _plain_gemm(layer: ir.Node) -> bool:
    """`x W + b` with one bias for each output, or one for all, whichever the image."""
    if layer.attributes.get_float("alpha", 1.0) != 1.0 or layer.attributes.get_float("beta", 1.0) != 1.0:
        return False
    weight, bias = layer.inputs[1], layer.inputs[2] if len(layer.inputs) > 2 else None
    if bias is None or bias.shape is None or weight is None or weight.shape is None:
        return bias is None
    outputs = weight.shape[0 if layer.attributes.get_int("transB", 0) else 1]
    return all(d == 1 for d in bias.shape[:-1]) and [*bias.shape[-1:]] in ([], [1], [outputs])


def _fold_into(model: ir.Model, overlay: dict[str, Tensor], layer: ir.Node, bn: BatchNorm, how: Fold) -> str:
    """Give a layer its new weight and bias; the name of the weight."""
    weight = layer.inputs[1]
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    assert weight is not None and weight.name is not None
    new_weight, new_bias = how(
        initializer(model, overlay, weight.name),
        None if bias is None else initializer(model, overlay, bias.name or ""),
        bn, layer.op_type, layer.attributes.get_int("group", 1), bool(layer.attributes.get_int("transB", 0)),
    )  # fmt: skip
    path = weight_path(weight.name) or weight.name
    # A weight that other nodes read too keeps its values; this layer gets its own.
    name = weight.name if len(weight.uses()) == 1 else fresh_name(model, f"{path}.folded")
    layer.replace_input_with(1, set_initializer(model, name, new_weight))
    if bias is None or len(bias.uses()) > 1:
        bias_name = fresh_name(model, f"{path}.bias")
    else:
        bias_name = bias.name or ""
    value = set_initializer(model, bias_name, new_bias)
    layer.resize_inputs(3)
    layer.replace_input_with(2, value)
    for stale in (name, bias_name):
        overlay.pop(stale, None)
    return name


def _bypass(bn: ir.Node, layer: ir.Node) -> None:
    """The layer gives the batch norm's value, under the batch norm's name: what others read keeps its name."""
    inner, outer = layer.outputs[0], bn.outputs[0]
    ir.convenience.replace_all_uses_with(outer, inner, replace_graph_outputs=True)
    name, outer.name = outer.name, None
    inner.name = name
    assert bn.graph is not None
    bn.graph.remove(bn, safe=True)


def _as_depthwise(model: ir.Model, node: ir.Node, bn: BatchNorm) -> str:
    x, gamma = node.inputs[0], node.inputs[1]
    assert x is not None and x.shape is not None and gamma is not None
    channels, spatial = bn.gamma.shape[0], len(x.shape) - 2
    path = weight_path(gamma.name or "") or (node.name or "batchnorm")
    ones = torch.ones(channels, 1, *[1] * spatial)
    weight, bias = fold(ones, None, bn, "Conv", channels, True)
    name = fresh_name(model, f"{path}.depthwise_weight")
    conv = ir.Node(
        "", "Conv", [x, set_initializer(model, name, weight),
                     set_initializer(model, fresh_name(model, f"{path}.depthwise_bias"), bias)],
        {"group": ir.AttrInt64("group", channels), "kernel_shape": ir.AttrInt64s("kernel_shape", [1] * spatial)},
        name=node.name, metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    before, after = node.outputs[0], conv.outputs[0]
    after.shape, after.type = before.shape, before.type
    assert node.graph is not None
    node.graph.insert_before(node, conv)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    after.name, before.name = before.name, None
    node.graph.remove(node, safe=True)
    return name
