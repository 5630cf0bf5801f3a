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
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.execute.observe import Watch, observe
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
#: Above the mean, no value is taken to be further; as activation ranges of batch norm have it.
DEVIATIONS = 6.0
#: What channels reach is counted on so many steps from 0 to 6.
STEPS = 64


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

    Args:
        relu6: ReLU6 inside a set. `fit` leaves the function as it is: channels that get to 6 share one factor, and no
            other is made to; what they reach is told by images, else by the statistics of batch norm, else the set is
            left as it is. `widen` bounds all channels at the largest `6 / s_i`, `replace` makes a plain ReLU of it, as
            the paper does: both change the function where channels get to 6. `keep` leaves such sets as they are.
        reached: share of its values above 6 up to which a channel does not count as one that gets there.
        images: how many are looked at for that.
    """

    relu6: str = "fit"
    reached: float = 0.01
    images: int = 64

    needs: ClassVar[frozenset[str]] = frozenset({"folded"})
    gives: ClassVar[frozenset[str]] = frozenset()
    clashes: ClassVar[frozenset[str]] = frozenset({"plan"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state whose float network is the same function, apart from ReLU6 that has another bound.

        Raises:
            InputError: a setting out of its range, or a network that has a plan.
        """
        if self.relu6 not in ("fit", "widen", "replace", "keep"):
            raise InputError("equalize.relu6", f"is {self.relu6!r}", "fit, widen, replace or keep")
        if not 0 <= self.reached < 1:
            raise InputError("equalize.reached", f"is {self.reached}", "a share, from 0 to below 1", "use 0.01")
        if self.images < 1:
            raise InputError("equalize.images", f"is {self.images}", "1 or more", "use 64")
        if state.plan is not None:
            raise InputError("equalize", "the network has a plan", "one that is not placed", "run it before 'place'")
        model = state.model.clone()
        links = [link for link in find_links(model) if self._equalizable(link)]
        limits: dict[str, Tensor] = {}
        if self.relu6 == "fit":
            limits = self._reach(state, links, batches, images_done)
            links = [link for link in links if link.first.weight in limits or not _relu6(link)]
        sets = equalizable_sets(links)
        bounded = [(node, link) for links in sets for link in links for node in _relu6(link)]
        work = _Work(state, limits)
        sweeps, largest = 0, float("inf")
        while sets and sweeps < SWEEPS and largest >= STILL:
            largest = max(work.equalize(links) for links in sets)
            sweeps += 1
        for node, link in bounded:
            weight = link.first.weight
            common = work.common.get(weight, work.total[weight].min())
            _with_bound(model, node, None if self.relu6 == "replace" else float(RELU6[1] / common))
        told = {
            "equalized_sets": len(sets), "equalization_sweeps": sweeps, "relu6_changed": len(bounded),
            "relu6_reached": sum(int((limits[link.first.weight] > RELU6[1]).sum()) for _, link in bounded if limits),
        }  # fmt: skip
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

    def _reach(
        self, state: State, links: Sequence[Link], batches: Batches | None, images_done: Progress | None
    ) -> dict[str, Tensor]:
        """What channels reach before a ReLU6, up to 6, `[C]`, by the layer's weight; infinite where they get there."""
        watched = {link.first.node.outputs[0].name or "": link.first.weight for link in links if _relu6(link)}
        if batches is None:
            found = {weight: state.batchnorm[weight] for weight in watched.values() if weight in state.batchnorm}
            often = NormalDist().inv_cdf(1 - self.reached) if self.reached else math.inf
            return {
                weight: _limits(bn.beta + often * bn.gamma.abs(), bn.beta + DEVIATIONS * bn.gamma.abs())
                for weight, bn in found.items()
            }
        counts: dict[str, Tensor] = {}

        def count(site: str, values: Tensor) -> None:
            counts[site] = counts.get(site, torch.zeros(1)) + counted(values, RELU6[1])

        watches = [Watch(site=site, extremes=False) for site in watched]
        if watches:
            observe(state.model, state.overlay, watches, batches.take(self.images), count, progress=images_done)
        return {
            watched[site]: _limits(*(stayed_below(n, RELU6[1], share) for share in (self.reached, 0.0)))
            for site, n in counts.items()
        }


def _limits(often: Tensor, ever: Tensor) -> Tensor:
    """From what all but a few values stay below, and all of them."""
    return torch.where(often > RELU6[1], math.inf, ever.double().clamp(max=RELU6[1]))


def counted(values: Tensor, top: float) -> Tensor:
    """How many values of each channel lie up to 0, in each of 64 steps from 0 to `top`, and above: `[C, 66]`.

    Args:
        values: `[N, C, ...]`.
        top: where the steps end.
    """
    channels = values.shape[1]
    steps = (values.float() * (STEPS / top)).ceil_().nan_to_num_(0.0).clamp_(0, STEPS + 1).to(torch.int32)
    steps += (torch.arange(channels, dtype=torch.int32) * (STEPS + 2)).reshape(1, -1, *[1] * (values.ndim - 2))
    return torch.bincount(steps.flatten(), minlength=channels * (STEPS + 2)).reshape(channels, -1)


def stayed_below(counts: Tensor, top: float, share: float) -> Tensor:
    """The least step that all but `share` of a channel's values stay below, `[C]` float64; infinite above `top`.

    Example:
        >>> counts = counted(torch.tensor([[0.0, 9.0], [1.5, 9.0], [1.5, 0.1], [1.5, 0.1]]), 6.0)
        >>> stayed_below(counts, 6.0, 0.5).tolist(), stayed_below(counts, 6.0, 0.4).tolist()
        ([1.5, 0.1875], [1.5, inf])
    """
    enough = counts.cumsum(1) >= (1 - share) * counts.sum(1, keepdim=True)
    first = enough.int().argmax(1)
    return torch.where(first > STEPS, math.inf, first.double() * (top / STEPS))


def _relu6(link: Link) -> list[ir.Node]:
    return [node for node in link.between if activation_bounds(node) == RELU6]


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
    """Weights, biases and statistics in float64 while they are scaled.

    `limits` has what channels reach before a ReLU6 that shall stay what it is.
    """

    def __init__(self, state: State, limits: Mapping[str, Tensor]) -> None:
        self.before = state
        self.limits = limits
        self.common: dict[str, Tensor] = {}  # the factor of all channels that get to 6
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
        largest = 0.0
        for link, wanted in zip(links, factors, strict=True):
            before = self.total.get(link.first.weight, torch.ones_like(wanted))
            total = self._allowed(link.first.weight, before * wanted)
            s = total / before
            self._divide_outputs(link.first, s)
            self.total[link.first.weight] = total
            self._multiply_inputs(link.last, s.repeat_interleave(link.repeat))
            largest = max(largest, float(s.log().abs().max()))
        return largest

    def _allowed(self, weight: str, total: Tensor) -> Tensor:
        """The nearest factors that leave the ReLU6 behind a layer what it is."""
        reach = self.limits.get(weight)
        if reach is None or not bool((there := reach > RELU6[1]).any()):
            return total
        self.common[weight] = common = total[there].log().mean().exp()
        return torch.where(there, common, torch.maximum(total, common * reach.clamp(min=0.0) / RELU6[1]))

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
