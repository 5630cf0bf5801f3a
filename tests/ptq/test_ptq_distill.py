"""Distilled images: the loss falls, statistics come near, whatever the order of layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bitwright.errors import InputError
from bitwright.execute.program import build
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.pipeline import State
from bitwright.ptq.distill import Distill, Distilled, batchnorm_inputs, mismatch


@pytest.fixture(scope="module")
def digits(assets: Path) -> ir.Model:
    return normalise(open_model(assets / "digits.onnx"))


@pytest.fixture(scope="module")
def found(digits: ir.Model) -> Distilled:
    return Distill(images=16, iterations=60)(digits)


def test_the_loss_falls_more_than_fivefold(found: Distilled) -> None:
    assert found.losses[-1] < found.losses[0] / 5 and len(found.losses) == 61


def test_images_have_the_shape_of_the_input_and_the_statistics_of_training(
    found: Distilled, digits: ir.Model, assets: Path
) -> None:
    assert {k: v.shape for k, v in found.arrays.items()} == {"image": (16, 1, 8, 8)}
    assert found.arrays["image"].dtype == np.float32
    watched = batchnorm_inputs(digits)
    program = build(digits, {}, outputs=[name for name, _, _ in watched])

    def distance(x: torch.Tensor) -> float:
        values = program.module(x)
        return sum(float((v.mean((0, 2, 3)) - m).square().sum()) for v, (_, m, _) in zip(values, watched, strict=True))

    noise = torch.randn(16, 1, 8, 8)
    assert distance(torch.from_numpy(found.arrays["image"])) < distance(noise) / 5


def test_the_seed_decides(digits: ir.Model) -> None:
    first, same, other = (Distill(images=4, iterations=2, seed=s)(digits).arrays["image"] for s in (0, 0, 1))
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_more_images_than_a_batch(digits: ir.Model) -> None:
    told: list[int] = []
    found = Distill(images=40, iterations=1)(digits, told.append)
    assert found.arrays["image"].shape[0] == 40 and told == [20, 20] and len(found.losses) == 2


def test_small_maps_take_the_statistics_of_the_batch() -> None:
    """Two images of one element each have no spread of their own, but one together."""
    x = torch.tensor([[[[-1.0]]], [[[1.0]]]])
    assert float(mismatch(x, torch.zeros(1), torch.tensor([2**0.5]))) == pytest.approx(0.0, abs=1e-6)
    large = torch.cat([torch.full((1, 1, 4, 4), -1.0), torch.full((1, 1, 4, 4), 1.0)])
    assert float(mismatch(large, torch.zeros(1), torch.zeros(1))) == pytest.approx(1.0, abs=1e-5), "each image alone"


def test_it_watches_what_the_batch_norm_reads_not_the_layer_before(folded: Callable[..., State]) -> None:
    arrays = {k: np.ones(1, np.float32) for k in ("gamma", "beta", "mean", "var")} | {
        "a": np.ones((1, 1, 1, 1), np.float32)
    }
    nodes = [("Relu", "x", "r"), ("BatchNormalization", "r gamma beta mean var", "n"), ("Conv", "n a", "y")]
    watched = batchnorm_inputs(folded(nodes, arrays, (1, 4, 4)).reference)
    assert [name for name, _, _ in watched] == ["r"]


def test_what_it_refuses(digits: ir.Model, folded: Callable[..., State]) -> None:
    plain = folded([("Conv", "x a", "y")], {"a": np.ones((1, 1, 1, 1), np.float32)}, (1, 4, 4))
    with pytest.raises(InputError, match=r"--data distilled: the network has no batch norm to make images from"):
        Distill()(plain.reference)
    with pytest.raises(InputError, match=r"distill: images=0, iterations=500, lr=0\.5; expected 1 or more"):
        Distill(images=0)(digits)
    with pytest.raises(InputError, match=r"--data distilled: the loss is .* after \d+ iterations"):
        Distill(images=2, iterations=20, lr=1e30)(digits)
