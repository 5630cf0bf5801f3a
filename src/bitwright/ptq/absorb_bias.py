"""Absorb high biases: move what a ReLU never cuts off from one layer's bias into the next one's.

Where channel i of a layer is nearly always above `c_i`, `ReLU(x - c) = ReLU(x) - c`, so that

    c_i = max(0, beta_i - n |gamma_i|);   b1 -= c;   b2 += sum W2[:, i] c_i

makes activations smaller by c and leaves the network's function, up to the 0.135 % (n = 3) of a normal variable below
`beta - 3 |gamma|`, and up to the border where the second layer pads with zeros. With no activation between, `c` is
`beta`.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1.3.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.graph.layers import Layer, Link, add_bias, find_links, layer_of
from bitwright.graph.overlay import initializer
from bitwright.graph.regions import activation_bounds
from bitwright.pipeline import BatchNorm, Event, Progress, State

#: Activations that are the identity above zero.
RECTIFIERS = ("Relu", "LeakyRelu", "PRelu")


def absorbed(bn: BatchNorm, deviations: float = 3.0, rectified: bool = True) -> Tensor:
    """`c = max(0, beta - n |gamma|)` of each channel; `beta` where no activation follows.

    Example:
        >>> import torch
        >>> one = torch.ones(2)
        >>> bn = BatchNorm(gamma=torch.tensor([0.5, -1.0]), beta=torch.tensor([2.0, 2.0]), mean=one, var=one, eps=0.0)
        >>> absorbed(bn).tolist(), absorbed(bn, rectified=False).tolist()
        ([0.5, 0.0], [2.0, 2.0])
    """
    return (bn.beta - deviations * bn.gamma.abs()).clamp(min=0.0) if rectified else bn.beta


def constant_response(layer: Layer, weight: Tensor, inputs: Tensor) -> Tensor:
    """What a layer gives for constant inputs without its bias, `sum W[o, i] c_i`, `[O]` float64; no borders.

    Args:
        layer: the layer.
        weight: its stored weight.
        inputs: `c`, one value for each input channel.
    """
    grouped = layer.grouped(weight.double()).sum(3)
    return (grouped * inputs.double().reshape(layer.group, 1, -1)).sum(2).flatten()


@dataclass(frozen=True, kw_only=True)
class AbsorbBias:
    """Absorb high biases into the next layer, where batch norm says how high they are.

    Left out: layers without bias or without statistics, and what other layers read too. A second layer that has no
    bias gets one.

    Args:
        deviations: how many standard deviations below the mean still count as never cut off.
        padded: also where the second layer pads with zeros, which shifts its outputs at the border.
    """

    deviations: float = 3.0
    padded: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"folded"})
    gives: ClassVar[frozenset[str]] = frozenset()
    clashes: ClassVar[frozenset[str]] = frozenset({"plan"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with smaller biases, and statistics that say so.

        Raises:
            InputError: fewer than 0 deviations, or a network that has a plan.
        """
        if not self.deviations >= 0:
            raise InputError("absorb_bias.deviations", f"is {self.deviations}", "0 or more", "3 is usual")
        if state.plan is not None:
            raise InputError(
                "absorb_bias", "the network has a plan", "one that is not placed", "run it before 'place'"
            )
        model, overlay, statistics = state.model.clone(), dict(state.overlay), dict(state.batchnorm)
        of_inputs = dict(state.input_batchnorm)
        moved = 0
        for link in find_links(model):
            first, bn = link.first, statistics.get(link.first.weight)
            rectified = any(node.op_type in RECTIFIERS for node in link.between)
            if bn is None or first.bias is None or not self._absorbable(link):
                continue
            c = absorbed(bn, self.deviations, rectified)
            if not bool(c.any()):
                continue
            last = self._with_bias(model, overlay, link.last)
            assert last.bias is not None
            spread = c.repeat_interleave(link.repeat)
            response = constant_response(last, initializer(model, overlay, last.weight), spread)
            overlay[first.bias] = initializer(model, overlay, first.bias) - c
            overlay[last.bias] = (initializer(model, overlay, last.bias).double() + response).float()
            statistics[first.weight] = dataclasses.replace(bn, beta=bn.beta - c)
            if last.weight in of_inputs:
                before = of_inputs[last.weight]
                of_inputs[last.weight] = dataclasses.replace(before, mean=before.mean - spread)
            moved += int((c != 0).sum())
        told = Event(step="absorb_bias", seconds=0.0, facts={"absorbed_channels": moved})
        return state.but(
            model=model, overlay=overlay, batchnorm=statistics, input_batchnorm=of_inputs, log=(*state.log, told)
        )

    def _absorbable(self, link: Link) -> bool:
        if link.last.pads and not self.padded:
            return False
        return all(_commutes(node) for node in link.between)

    def _with_bias(self, model: ir.Model, overlay: dict[str, Tensor], layer: Layer) -> Layer:
        if layer.bias is None:
            add_bias(model, layer.node, overlay)
        found = layer_of(layer.node)
        assert found is not None
        return found


def _commutes(node: ir.Node) -> bool:
    """Whether `f(x - c) = f(x) - c` where x is above c, and c not below zero: no upper bound, no counted padding."""
    if node.op_type == "AveragePool":
        counted = node.attributes.get_int("count_include_pad", 0) and any(node.attributes.get_ints("pads", ()))
        return not counted
    bounds = activation_bounds(node)
    return bounds is None or bounds == (0.0, float("inf"))
