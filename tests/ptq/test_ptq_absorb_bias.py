"""Bias absorption: what moves, where it is exact, and what is left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.pipeline import BatchNorm, State
from bitwright.plan.plan import Plan
from bitwright.ptq.absorb_bias import AbsorbBias
from bitwright.ptq.programs import float_program

Folded = Callable[..., State]
RELU = ("Relu", "c", "r")
#: Channel 0 is at 5 +- 1, channel 1 at 1 +- 1: c = [2, 0].
STATISTICS = {"gamma": [1.0, -1.0], "beta": [5.0, 1.0], "mean": [0.0, 0.0], "var": [1.0, 1.0]}


def network(folded: Folded, *between: tuple[Any, ...], bias: bool = True, last: dict[str, Any] | None = None) -> State:
    """`x -> 1x1 -> batch norm -> between -> 3x3`, where `between` gives `r`."""
    rng = np.random.default_rng(0)
    constants = {k: np.array(v, np.float32) for k, v in STATISTICS.items()} | {
        "a": np.array([0.3, -0.2], np.float32).reshape(2, 1, 1, 1),
        "b": rng.standard_normal((3, 2, 3, 3)).astype(np.float32),
        "b.bias": np.array([1, 2, 3], np.float32),
    }
    nodes = [
        ("Conv", "x a", "n"), ("BatchNormalization", "n gamma beta mean var", "c"), *between,
        ("Conv", "r b b.bias" if bias else "r b", "y", last or {}),
    ]  # fmt: skip
    if not bias:
        del constants["b.bias"]
    return folded(nodes, constants, (1, 5, 5))


def output(state: State, x: Tensor) -> Tensor:
    found: Tensor = float_program(state).module(x)[0]
    return found


def bias_of(state: State, weight: str) -> Tensor:
    """The bias of the layer with this weight."""
    (node,) = (
        n for n in state.model.graph if len(n.inputs) > 1 and n.inputs[1] is not None and n.inputs[1].name == weight
    )
    bias = node.inputs[2]
    assert bias is not None
    return state.tensor(bias.name or "")


@pytest.mark.parametrize("bias", [True, False])
def test_what_no_relu_cuts_off_moves_and_the_function_stays(bias: bool, folded: Folded) -> None:
    state = network(folded, RELU, bias=bias)
    found = AbsorbBias()(state)
    assert bias_of(found, "a").tolist() == pytest.approx([3.0, 1.0]), "5 - (5 - 3 * 1), and a channel that is cut off"
    moved = 2 * state.tensor("b")[:, 0].sum((1, 2))
    assert torch.allclose(bias_of(found, "b"), moved + (torch.tensor([1.0, 2.0, 3.0]) if bias else 0), atol=1e-5)
    assert found.batchnorm["a"].beta.tolist() == [3.0, 1.0] and state.batchnorm["a"].beta.tolist() == [5.0, 1.0]
    x = torch.randn(4, 1, 5, 5)  # channel 0 stays above 5 - 0.3 * 5
    assert torch.allclose(output(found, x), output(state, x), atol=1e-4)
    assert found.log[-1].facts == {"absorbed_channels": 1}


def test_values_below_the_bound_are_what_is_lost(folded: Folded) -> None:
    state = network(folded, RELU)
    found = AbsorbBias()(state)
    x = torch.full((1, 1, 5, 5), -15.0)  # channel 0 is 0.5, less than c = 2
    assert not torch.allclose(output(found, x), output(state, x), atol=1e-2)
    assert not AbsorbBias(deviations=5.0)(state).overlay, "5 deviations below 5 is 0"


def test_without_an_activation_the_whole_mean_moves(folded: Folded) -> None:
    state = network(folded, ("Identity", "c", "r"))
    found = AbsorbBias()(state)
    assert found.batchnorm["a"].beta.tolist() == [0.0, 0.0] == pytest.approx(bias_of(found, "a").tolist())
    x = 30 * torch.randn(2, 1, 5, 5)
    assert torch.allclose(output(found, x), output(state, x), atol=1e-3)


def test_padding_shifts_the_border_alone_and_can_be_refused(folded: Folded) -> None:
    state = network(folded, RELU, last={"pads": [1, 1, 1, 1]})
    found = AbsorbBias()(state)
    x = torch.randn(4, 1, 5, 5)
    error = (output(found, x) - output(state, x)).abs()
    assert float(error[:, :, 1:-1, 1:-1].max()) < 1e-4 < float(error[:, :, 0].max())
    assert not AbsorbBias(padded=False)(state).overlay


@pytest.mark.parametrize(
    ("between", "moves"),
    [([RELU], True), ([("LeakyRelu", "c", "r")], True),
     ([("Relu", "c", "q"), ("MaxPool", "q", "r", {"kernel_shape": [2, 2]})], True),
     ([("HardSwish", "c", "r")], False), ([("Clip", "c zero six", "r")], False)],
)  # fmt: skip
def test_what_may_stand_between(between: list[tuple[Any, ...]], moves: bool, folded: Folded) -> None:
    constants = {name: np.array(v, np.float32) for name, v in (("zero", 0.0), ("six", 6.0)) if name in between[0][1]}
    arrays = {k: np.array(v, np.float32) for k, v in STATISTICS.items()} | constants
    arrays |= {"a": np.ones((2, 1, 1, 1), np.float32), "b": np.ones((3, 2, 2, 2), np.float32)}
    nodes = [
        ("Conv", "x a", "n"),
        ("BatchNormalization", "n gamma beta mean var", "c"),
        *between,
        ("Conv", "r b", "y"),
    ]
    assert bool(AbsorbBias()(folded(nodes, arrays, (1, 5, 5))).overlay) is moves


def test_layers_without_statistics_or_with_other_readers_are_left_alone(folded: Folded) -> None:
    state = network(folded, RELU)
    assert not AbsorbBias()(state.but(batchnorm={})).overlay
    arrays = {k: np.array(v, np.float32) for k, v in STATISTICS.items()}
    arrays |= {"a": np.ones((2, 1, 1, 1), np.float32), "b": np.ones((2, 2, 1, 1), np.float32)}
    nodes = [
        ("Conv", "x a", "n"), ("BatchNormalization", "n gamma beta mean var", "c"), RELU, ("Conv", "r b", "d"),
        ("Add", "d r", "y"),
    ]  # fmt: skip
    assert not AbsorbBias()(folded(nodes, arrays, (1, 5, 5))).overlay


def test_depthwise_layers_take_their_own_channel(folded: Folded) -> None:
    arrays = {k: np.array(v, np.float32) for k, v in STATISTICS.items()}
    arrays |= {"a": np.ones((2, 1, 1, 1), np.float32), "b": np.array([[[[3.0]]], [[[7.0]]]], np.float32)}
    nodes = [
        ("Conv", "x a", "n"), ("BatchNormalization", "n gamma beta mean var", "c"), RELU,
        ("Conv", "r b", "y", {"group": 2}),
    ]  # fmt: skip
    assert bias_of(AbsorbBias()(folded(nodes, arrays, (1, 5, 5))), "b").tolist() == [6.0, 0.0]


def test_what_it_refuses(folded: Folded) -> None:
    state = network(folded, RELU)
    with pytest.raises(InputError, match=r"absorb_bias\.deviations: is -1\.0; expected 0 or more"):
        AbsorbBias(deviations=-1.0)(state)
    with pytest.raises(InputError, match="absorb_bias: the network has a plan"):
        AbsorbBias()(state.but(plan=Plan(target="onnxruntime-x64", sites={}, regions={})))


def test_gamma_counts_by_its_size(folded: Folded) -> None:
    state = network(folded, RELU)
    bn: BatchNorm = state.batchnorm["a"]
    flipped = state.but(batchnorm={"a": dataclasses.replace(bn, gamma=-bn.gamma)})
    assert torch.equal(bias_of(AbsorbBias()(flipped), "a"), bias_of(AbsorbBias()(state), "a"))
