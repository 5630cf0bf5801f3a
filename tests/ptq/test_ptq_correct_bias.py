"""Bias correction: the shift that rounding brings is taken back, by images and by batch norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.execute.integer import quantized_bias
from bitwright.graph.layers import layer_of
from bitwright.graph.regions import find_regions
from bitwright.pipeline import State, check_chain, run_chain
from bitwright.plan.spec import Derived, Float
from bitwright.ptq.absorb_bias import constant_response
from bitwright.ptq.calibrate import BIAS_LIMIT, Calibrate
from bitwright.ptq.correct_bias import CorrectBias, with_biases
from bitwright.ptq.moments import moments_of
from bitwright.ptq.place import Place
from bitwright.ptq.programs import float_program, simulated_program

Folded = Callable[..., State]
BatchesOf = Callable[..., Batches]
NODES = [
    ("Conv", "x a", "n"), ("BatchNormalization", "n gamma beta mean var", "c"), ("Relu", "c", "r"),
    ("Conv", "r d", "e", {"group": 8}), ("Relu", "e", "f"), ("Conv", "f b b.bias", "y"),
]  # fmt: skip


def constants(seed: int = 0) -> dict[str, np.ndarray]:
    """Eight channels, then a depthwise layer without bias, then three outputs; no symmetric weights."""
    rng = np.random.default_rng(seed)
    found = {
        "a": rng.standard_normal((8, 2, 1, 1)), "gamma": rng.uniform(0.5, 2, 8), "beta": rng.standard_normal(8),
        "mean": np.zeros(8), "var": 2 * np.ones(8), "d": 1 + rng.standard_normal((8, 1, 3, 3)),
        "b": rng.standard_normal((3, 8, 1, 1)), "b.bias": np.array([0.5, 0.0, -0.5]),
    }  # fmt: skip
    return {k: v.astype(np.float32) for k, v in found.items()}


def calibrated(folded: Folded, batches_of: BatchesOf, *settings: str, **place: Any) -> tuple[State, Batches]:
    state = folded(NODES, constants(), (2, 5, 5))
    x = np.random.default_rng(1).standard_normal((24, 2, 5, 5)).astype(np.float32) + 0.5
    batches = batches_of(state, x, batch=8)
    return run_chain([Place(set=settings, **place), Calibrate()], state, batches), batches


def means(state: State, batches: Batches, reference: State) -> dict[str, Tensor]:
    """`mean(y~ - y)` of each layer, `[channels]`, with activations and biases in float."""
    assert state.plan is not None
    names = [r.op.outputs[0].name or "" for r in find_regions(state.model) if r.weight is not None]
    weights = {r.weight.name for r in find_regions(state.model) if r.weight is not None}
    left = {s: nn.Identity() for s in state.plan.sites if s not in weights}
    program = simulated_program(state, outputs=names, quantizers=left)
    x = torch.from_numpy(np.concatenate([b.inputs["x"] for b in batches]))
    found, wanted = program.module(x), float_program(reference, outputs=names).module(x)
    return {n: (a - b).mean((0, 2, 3)) for n, a, b in zip(names, found, wanted, strict=True)}


def test_images_take_the_shift_of_every_layer_back(folded: Folded, batches_of: BatchesOf) -> None:
    state, batches = calibrated(folded, batches_of, "W=3", ends=0)
    found = CorrectBias()(state, batches)
    before, after = means(state, batches, state), means(found, batches, state)
    assert len(before) == 3
    for name, shift in after.items():
        assert float(before[name].abs().max()) > 1e-2
        assert float(shift.abs().max()) < 1e-4, name
    assert found.log[-1].facts["corrected"] == 3


def test_batches_do_not_matter_and_images_are_limited(folded: Folded, batches_of: BatchesOf) -> None:
    state, batches = calibrated(folded, batches_of, "W=3", ends=0)
    x = np.concatenate([b.inputs["x"] for b in batches])
    whole = CorrectBias()(state, batches_of(state, x, batch=24))
    parts = CorrectBias()(state, batches_of(state, x, batch=5))
    few = CorrectBias(images=4)(state, batches)
    same = CorrectBias()(state, batches_of(state, x[:4], batch=4))
    for name in whole.overlay:
        assert torch.allclose(whole.overlay[name], parts.overlay[name], atol=1e-5)
        assert torch.allclose(few.overlay[name], same.overlay[name], atol=1e-5)
    assert not torch.allclose(few.overlay["b.bias"], whole.overlay["b.bias"], atol=1e-4)


def test_activations_can_be_quantized_meanwhile(folded: Folded, batches_of: BatchesOf) -> None:
    state, batches = calibrated(folded, batches_of, "W=3,A=2", ends=0)
    assert not torch.allclose(
        CorrectBias(activations=True)(state, batches).overlay["b.bias"],
        CorrectBias()(state, batches).overlay["b.bias"], atol=1e-3,
    )  # fmt: skip


def test_layers_without_a_bias_get_one_that_is_planned(folded: Folded, batches_of: BatchesOf) -> None:
    state, batches = calibrated(folded, batches_of)
    assert state.plan is not None
    found = CorrectBias()(state, batches)
    assert found.plan is not None
    (added,) = set(found.plan.sites) - set(state.plan.sites)
    assert found.plan.sites[added] == Derived("r", "d") and found.model is not state.model
    region = next(r for r in find_regions(found.model) if r.bias is not None and r.bias.name == added)
    assert found.plan.regions[region.name] == ("d", added, region.output.name)
    kept, _ = calibrated(folded, batches_of, "W=4,A=float")
    assert with_biases(kept).plan is not None
    float_site = next(s for n, s in with_biases(kept).plan.sites.items() if n not in kept.plan.sites)  # type: ignore[union-attr]
    assert isinstance(float_site, Float)


def test_the_analytic_shift_is_the_rounding_error_of_the_expected_input(folded: Folded, batches_of: BatchesOf) -> None:
    state, _ = calibrated(folded, batches_of, "W=3", ends=0)
    found = CorrectBias(method="analytic")(state)
    regions = {r.weight.name: r for r in find_regions(found.model) if r.weight is not None}
    layer = layer_of(regions["d"].op)
    assert layer is not None and layer.bias is not None
    encoding, weight = state.encodings["d"], state.tensor("d")
    error = encoding.dequantize(encoding.codes_of(weight)) - weight
    expected = constant_response(layer, error, moments_of(state).moments["r"].mean)
    assert torch.allclose(found.overlay[layer.bias].double(), -expected, atol=1e-6)
    # By hand: depthwise, so each channel's nine errors times the mean of its normal variable behind ReLU.
    assert torch.allclose(expected, error.double().sum((1, 2, 3)) * moments_of(state).moments["r"].mean)


def test_the_analytic_shift_agrees_with_draws_of_the_distribution(folded: Folded, batches_of: BatchesOf) -> None:
    """Where the network's inputs are what batch norm saw, both methods find the same."""
    state, _ = calibrated(folded, batches_of, "W=3", ends=0)
    analytic = CorrectBias(method="analytic")(state)
    bn = state.batchnorm["a"]
    x = torch.randn(200_000, 8, 1, 1) * bn.gamma.abs().reshape(1, -1, 1, 1) + bn.beta.reshape(1, -1, 1, 1)
    encoding, weight = state.encodings["d"], state.tensor("d")
    error = (encoding.dequantize(encoding.codes_of(weight)) - weight).sum((2, 3), keepdim=True)
    drawn = (torch.relu(x) * error.reshape(1, -1, 1, 1)).mean((0, 2, 3))
    (name,) = (n for n in analytic.overlay if n not in ("b.bias", "a.bias", *state.model.graph.initializers))
    assert torch.allclose(analytic.overlay[name], -drawn, atol=2e-2 * float(drawn.abs().max()))


def test_biases_stay_within_int32(folded: Folded, batches_of: BatchesOf) -> None:
    state, batches = calibrated(folded, batches_of, "W=3", ends=0)
    shrunk = dict(state.encodings)
    shrunk["b"] = dataclasses.replace(shrunk["b"], scale=shrunk["b"].scale * 1e-9)
    found = CorrectBias()(state.but(encodings=shrunk), batches)
    codes = quantized_bias(found.tensor("b.bias"), found.encoding("f"), found.encodings["b"])
    assert float(codes.abs().max()) <= BIAS_LIMIT and bool((found.encodings["b"].scale > shrunk["b"].scale).any())


def test_eight_bits_per_channel_have_next_to_nothing_to_correct(folded: Folded, batches_of: BatchesOf) -> None:
    narrow, batches = calibrated(folded, batches_of, "W=3", ends=0)
    wide, _ = calibrated(folded, batches_of)
    shifts = [CorrectBias()(s, batches).log[-1].facts["largest_correction"] for s in (narrow, wide)]
    assert shifts[1] < shifts[0] / 8


def test_what_it_refuses(folded: Folded, batches_of: BatchesOf) -> None:
    state, batches = calibrated(folded, batches_of)
    for step, told in [
        (CorrectBias(method="guess"), r"correct_bias\.method: is 'guess'; expected empirical or analytic"),
        (CorrectBias(images=0), r"correct_bias\.images: is 0"),
    ]:
        with pytest.raises(InputError, match=told):
            step(state, batches)
    with pytest.raises(InputError, match=r"correct_bias: no data; expected images .*; give --data"):
        CorrectBias()(state)
    with pytest.raises(InputError, match="has no batch norm to tell its means from"):
        CorrectBias(method="analytic")(state.but(batchnorm={}))
    with pytest.raises(InputError, match=r"needs encodings"):
        check_chain([CorrectBias()])
    assert CorrectBias().needs_data and not CorrectBias(method="analytic").needs_data
