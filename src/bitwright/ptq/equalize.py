"""Cross-layer equalization: give neighbouring layers weights of like ranges, channel by channel.

ReLU, PReLU, leaky ReLU, max and average pools are positively homogeneous, `f(x/s) = f(x)/s` for `s > 0`. So the output
channels of a layer can be divided by `s`, and the input channels of the next layer multiplied by it: the network stays
the same function. With `r1_i = max|W1[i]|`, `r2_i = max|W2[:, i]|`:

    s_i = sqrt(r1_i / r2_i);   W1[i] /= s_i,  b1[i] /= s_i,  W2[:, i] *= s_i;   both ranges become sqrt(r1_i r2_i)

A set is two layers, or two with depthwise layers between them. In a set of n layers every range becomes
`g_i = (r1_i ... rn_i)^(1/n)`; between layers j and j + 1 stands `s_j = r1 ... rj / g^j`. Neighbouring sets share
layers, so sweeps over all sets are repeated until nothing moves.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.graph.layers import Layer, Link, find_links
from bitwright.graph.names import fresh_name
from bitwright.graph.overlay import set_initializer
from bitwright.graph.regions import activation_bounds
from bitwright.graph.swap import swap
from bitwright.pipeline import BatchNorm, Event, Progress, State

#: Sweeps end when no factor is further from 1 than this (as a logarithm), or after so many.
STILL, SWEEPS = 1e-3, 20
#: Factors lie between these.
LEAST, MOST = 1e-8, 1e8
RELU6 = (0.0, 6.0)


def equalization_factors(ranges: Sequence[Tensor]) -> list[Tensor]:
    """Factors between the layers of a set, n - 1 of `[channels]`, that make the ranges of its n layers equal.

    `s_j = r_1 ... r_j / g^j` with `g = (r_1 ... r_n)^(1/n)`; 1 where a range is zero.

    Args:
        ranges: `max|W|` of each layer, `[channels]`.

    Example:
        >>> [s.tolist() for s in equalization_factors([torch.tensor([4.0, 0.0]), torch.tensor([1.0, 9.0])])]
        [[2.0, 1.0]]
    """
    logs = torch.stack([r.double() for r in ranges]).log()
    alive = torch.isfinite(logs).all(0)
    steps = logs - logs.mean(0)
    factors = torch.where(alive, steps.cumsum(0)[:-1], 0.0).exp()
    return [s.clamp(LEAST, MOST) for s in factors]


@dataclass(frozen=True, kw_only=True)
class Equalize:
    """Make the weight ranges of neighbouring layers alike, so that one scale for a whole weight is enough.

    Through ReLU6 this is not exact: the bound of channel i would become `6 / s_i`, and an activation has one bound.

    Args:
        relu6: `widen` bounds all channels of a ReLU6 inside a set at the largest `6 / s_i`; `replace` makes a plain
            ReLU of it, as the paper does; `keep` leaves sets with ReLU6 as they are.
    """

    relu6: str = "widen"

    needs: ClassVar[frozenset[str]] = frozenset({"folded"})
    gives: ClassVar[frozenset[str]] = frozenset()
    clashes: ClassVar[frozenset[str]] = frozenset({"plan"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state whose float network is the same function, apart from ReLU6 that became ReLU.

        Raises:
            InputError: an unknown setting, or a network that has a plan.
        """
        if self.relu6 not in ("widen", "replace", "keep"):
            raise InputError("equalize.relu6", f"is {self.relu6!r}", "widen, replace or keep")
        if state.plan is not None:
            raise InputError("equalize", "the network has a plan", "one that is not placed", "run it before 'place'")
        model = state.model.clone()
        links = [link for link in find_links(model) if self._equalizable(link)]
        sets = equalizable_sets(links)
        inside = [(node, link) for links in sets for link in links for node in link.between]
        bounded = [(node, link) for node, link in inside if activation_bounds(node) == RELU6]
        work = _Work(state)
        sweeps, largest = 0, float("inf")
        while sets and sweeps < SWEEPS and largest >= STILL:
            largest = max(work.equalize(links) for links in sets)
            sweeps += 1
        for node, link in bounded:
            bound = RELU6[1] / work.total[link.first.weight].min()
            _with_bound(model, node, float(bound) if self.relu6 == "widen" else None)
        told = {"equalized_sets": len(sets), "equalization_sweeps": sweeps, "relu6_changed": len(bounded)}
        return work.state(model if bounded else state.model).but(
            log=(*state.log, Event(step="equalize", seconds=0.0, facts=told))
        )

    def _equalizable(self, link: Link) -> bool:
        if any(layer.group > 1 and not layer.is_depthwise for layer in (link.first, link.last)):
            return False
        return all(self._homogeneous(node) for node in link.between)

    def _homogeneous(self, node: ir.Node) -> bool:
        bounds = activation_bounds(node)
        return bounds is None or bounds == (0.0, float("inf")) or (bounds == RELU6 and self.relu6 != "keep")


def _with_bound(model: ir.Model, node: ir.Node, bound: float | None) -> None:
    """A ReLU6 with another bound, or a ReLU, in place."""
    if bound is None:
        swap(model, node, ir.Node("", "Relu", [node.inputs[0]]))
    else:
        name = fresh_name(model, f"{node.outputs[0].name}/bound")
        node.replace_input_with(2, set_initializer(model, name, torch.tensor(bound)))


def equalizable_sets(links: Sequence[Link]) -> list[tuple[Link, ...]]:
    """Links joined into sets: each begins and ends with a layer that other sets may share; between are depthwise ones.

    Example:
        >>> equalizable_sets([])
        []
    """
    after = {link.first.weight: link for link in links}
    inside = {link.last.weight for link in links if link.last.is_depthwise and link.last.weight in after}
    found = []
    for link in links:
        if link.first.weight in inside:
            continue
        chain = [link]
        while chain[-1].last.weight in inside:
            chain.append(after[chain[-1].last.weight])
        found.append(tuple(chain))
    return found


class _Work:
    """Weights, biases and statistics in float64 while they are scaled."""

    def __init__(self, state: State) -> None:
        self.before = state
        self.tensors: dict[str, Tensor] = {}
        self.total: dict[str, Tensor] = {}  # what the outputs of each layer were divided by, all sweeps together
        self.batchnorm, self.input_batchnorm = dict(state.batchnorm), dict(state.input_batchnorm)

    def tensor(self, name: str) -> Tensor:
        """The present value."""
        if name not in self.tensors:
            self.tensors[name] = self.before.tensor(name).double()
        return self.tensors[name]

    def state(self, model: ir.Model) -> State:
        """The state with what changed, rounded once."""
        overlay = {**self.before.overlay, **{name: tensor.float() for name, tensor in self.tensors.items()}}
        return self.before.but(
            model=model, overlay=overlay, batchnorm=self.batchnorm, input_batchnorm=self.input_batchnorm
        )

    def equalize(self, links: Sequence[Link]) -> float:
        """One set; the largest |log s|."""
        middle = [output_ranges(link.first, self.tensor(link.first.weight)) for link in links]
        last = links[-1]
        factors = equalization_factors([*middle, input_ranges(last.last, self.tensor(last.last.weight), last.repeat)])
        for link, s in zip(links, factors, strict=True):
            self._divide_outputs(link.first, s)
            self.total[link.first.weight] = self.total.get(link.first.weight, 1.0) * s
            self._multiply_inputs(link.last, s.repeat_interleave(link.repeat))
        return max(float(s.log().abs().max()) for s in factors)

    def _scale(self, layer: Layer, how: Callable[[Tensor], Tensor]) -> None:
        self.tensors[layer.weight] = layer.stored(how(layer.rows(self.tensor(layer.weight))))

    def _divide_outputs(self, layer: Layer, s: Tensor) -> None:
        self._scale(layer, lambda rows: rows / s.reshape(-1, *[1] * (rows.ndim - 1)))
        if layer.bias is not None:
            self.tensors[layer.bias] = self.tensor(layer.bias) / s
        if layer.weight in self.batchnorm:
            bn = self.batchnorm[layer.weight]
            self.batchnorm[layer.weight] = dataclasses.replace(
                bn, gamma=(bn.gamma.double() / s).float(), beta=(bn.beta.double() / s).float()
            )

    def _multiply_inputs(self, layer: Layer, s: Tensor) -> None:
        def multiplied(rows: Tensor) -> Tensor:
            outputs, inputs = rows.shape[:2]
            grouped = rows.reshape(layer.group, outputs // layer.group, inputs, -1)
            return (grouped * s.reshape(layer.group, 1, inputs, 1)).reshape(rows.shape)

        self._scale(layer, multiplied)
        if layer.weight in self.input_batchnorm:
            self.input_batchnorm[layer.weight] = _divided_inputs(self.input_batchnorm[layer.weight], s)


def _divided_inputs(bn: BatchNorm, s: Tensor) -> BatchNorm:
    """Statistics of a batch norm before a layer whose inputs were divided by `s`."""
    return dataclasses.replace(bn, mean=(bn.mean.double() / s).float(), var=(bn.var.double() / s.square()).float())


def output_ranges(layer: Layer, weight: Tensor) -> Tensor:
    """`max|W[i]|` of each output channel, `[O]`."""
    return layer.rows(weight).abs().flatten(1).amax(1)


def input_ranges(layer: Layer, weight: Tensor, repeat: int = 1) -> Tensor:
    """`max|W[:, i]|` of each input channel, `[I / repeat]`; `repeat` neighbours count as one channel."""
    return layer.grouped(weight).abs().amax((1, 3)).reshape(-1, repeat).amax(1)
