"""Placing changes a graph as the target needs it: transposed convolutions, and what is known of their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bitwright.execute.observe import float_session
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.graph.overlay import with_overlay
from bitwright.graph.regions import find_regions
from bitwright.models import example
from bitwright.pipeline import State
from bitwright.plan.spec import QSpec
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place

GENERATOR = np.random.default_rng(29)
UP = [("ConvTranspose", "x up.weight up.bias", "a", {"strides": [2, 2]})]
NORM = ("BatchNormalization", "a bn.weight bn.bias bn.mean bn.var", "y")


def constants() -> dict[str, np.ndarray]:
    found = {"up.weight": (3, 4, 3, 3), "up.bias": (4,)} | {f"bn.{k}": (4,) for k in ("weight", "bias", "mean", "var")}
    arrays = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in found.items()}
    return arrays | {"bn.var": arrays["bn.var"] ** 2 + 0.1}


@pytest.mark.parametrize("name", ["small_conv_transpose", "small_unet"])
def test_networks_with_transposed_convolutions(name: str, exported: Callable[[str], Path]) -> None:
    model = normalise(open_model(exported(name)))
    state = Place()(FoldBatchNorm()(State(model=model, reference=model)))
    assert state.plan is not None and not state.plan.refused
    assert not any(node.op_type == "ConvTranspose" for node in state.model.graph)
    layers = {r.name for r in find_regions(model) if r.kind == "ConvTranspose"}
    assert layers and layers <= {r.name for r in find_regions(state.model) if r.kind == "Conv"}
    for layer in layers:
        assert isinstance(state.plan.sites[f"{layer}.weight#phases"], QSpec)
        assert f"{layer}.weight" not in state.plan.sites
    x = {model.graph.inputs[0].name: example(name, batch=3).numpy()}
    (expected,), (found,) = (
        float_session(with_overlay(s.model, s.overlay), 1).run(None, x)
        for s in (State(model=model, reference=model), state)
    )
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_statistics_follow_the_channels(placed: Callable[..., State]) -> None:
    arrays = constants()
    state = placed([*UP, NORM], arrays, (3, 5, 5))
    assert set(state.batchnorm) == {"up.weight#phases"}
    kept = state.batchnorm["up.weight#phases"]
    assert len(kept.mean) == state.tensor("up.weight#phases").shape[0] == 16
    assert torch.equal(kept.mean, torch.from_numpy(np.repeat(arrays["bn.mean"], 4)))


def test_weights_of_the_overlay_are_placed(placed: Callable[..., State]) -> None:
    model = placed([*UP, ("Relu", "a", "y")], constants(), (3, 5, 5)).reference
    weight = torch.randn(3, 4, 3, 3)
    state = Place()(State(model=model, reference=model, overlay={"up.weight": weight}))
    assert "up.weight" not in state.overlay
    total = state.tensor("up.weight#phases").double().sum()
    assert torch.isclose(total, weight.double().sum()), "every tap once, and zeros"


def test_targets_and_graphs_without_such_a_need_keep_their_overlay(placed: Callable[..., State]) -> None:
    nodes: list[tuple[Any, ...]] = [("Conv", "x c.weight", "y")]
    model: ir.Model = placed(nodes, {"c.weight": np.ones((2, 3, 1, 1), np.float32)}, (3, 5, 5)).model
    overlay = {"c.weight": torch.full((2, 3, 1, 1), 2.0)}
    state = Place()(State(model=model, reference=model, overlay=overlay))
    assert state.model is model and state.overlay == overlay
