"""The branching workflow of the white paper: which steps run for which network, with images and without."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.graph.export import from_module

LITTLE = {"adaround": {"iterations": 20}}


@cache
def network(depthwise: bool, batchnorm: bool) -> ir.Model:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for group in (1, 4 if depthwise else 1):
        layers.append(nn.Conv2d(4, 4, 3, groups=group, bias=not batchnorm))
        if batchnorm:
            layers.append(nn.BatchNorm2d(4))
        layers.append(nn.ReLU())
    return from_module(nn.Sequential(*layers, nn.Conv2d(4, 2, 1)).eval(), torch.zeros(2, 4, 8, 8))


def quantized(depthwise: bool, batchnorm: bool, data: bool, **settings: Any) -> tuple[list[str], bw.Quantized]:
    images = {"input": np.random.default_rng(0).normal(size=(32, 4, 8, 8)).astype(np.float32)} if data else None
    model = network(depthwise, batchnorm).clone()
    q = bw.quantize(model, images, recipe="whitepaper", steps={**LITTLE, **settings})
    return [event.step.partition("(")[0] for event in q.state.log], q


@pytest.mark.parametrize(
    ("depthwise", "batchnorm", "data", "ran"),
    [
        (False, False, True, ["Calibrate", "AdaRound"]),
        (False, True, True, ["Calibrate", "AdaRound"]),
        (True, False, True, ["Equalize", "Calibrate", "AdaRound"]),
        (True, True, True, ["Equalize", "AbsorbBias", "Calibrate", "AdaRound"]),
        (False, True, False, ["Calibrate", "CorrectBias"]),
        (True, True, False, ["Equalize", "AbsorbBias", "Calibrate", "CorrectBias"]),
    ],
)
def test_the_branches(depthwise: bool, batchnorm: bool, data: bool, ran: list[str]) -> None:
    steps, q = quantized(depthwise, batchnorm, data)
    assert [step for step in steps if step not in ("FoldBatchNorm", "Place")] == ran
    (calibrate,) = (event.step for event in q.state.log if event.step.startswith("Calibrate"))
    assert f"activations={'mse' if data else 'batchnorm'!r}" in calibrate
    rounded = any(encoding.codes is not None for encoding in q.state.encodings.values())
    assert rounded == data


def test_one_scale_for_a_whole_weight_asks_for_equalization() -> None:
    steps, _ = quantized(False, True, True, place={"granularity": "tensor"})
    assert steps[:3] == ["FoldBatchNorm", "Equalize", "AbsorbBias"]


def test_without_images_and_without_batch_norm_ranges_follow_from_the_inputs_alone() -> None:
    steps, q = quantized(False, False, False)
    assert steps == ["FoldBatchNorm", "Place", "Calibrate"] and q.images_used == 0


def test_what_it_writes_is_proven() -> None:
    _, q = quantized(True, True, False)
    images = {"input": np.random.default_rng(1).normal(size=(16, 4, 8, 8)).astype(np.float32)}
    assert q.verify(images).proven
