"""New values for initializers, laid over a model whose structure stays."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor


def initializer(model: ir.Model, overlay: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor called `name`: the overlay's, or the model's own."""
    if name in overlay:
        return overlay[name]
    value = model.graph.initializers[name].const_value
    assert value is not None
    return torch.from_numpy(value.numpy().copy())


def with_overlay(model: ir.Model, overlay: Mapping[str, Tensor]) -> ir.Model:
    """A copy of the model that holds the overlay's tensors; all other tensors are shared with the original."""
    model = model.clone()
    for name, tensor in overlay.items():
        set_initializer(model, name, tensor)
    return model


def set_initializer(model: ir.Model, name: str, tensor: Tensor) -> ir.Value:
    """Give the initializer `name` a new tensor, or register a new one, in place."""
    const = ir.tensor(tensor.detach().cpu().contiguous().numpy(), name=name)
    if name in model.graph.initializers:
        value = model.graph.initializers[name]
        value.const_value = const
    else:
        value = ir.Value(name=name, const_value=const)
        model.graph.register_initializer(value)
    value.shape, value.dtype = ir.Shape(tensor.shape), const.dtype
    return value
