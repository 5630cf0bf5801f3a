"""Streaming equals one shot, for the estimators that see all batches as one set of values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.formats.affine import Affine, fake_quantize, scale_and_zero_point
from bitwright.ranges.estimator import Estimator
from bitwright.ranges.minmax import MinMax
from bitwright.ranges.mse import MSE
from bitwright.ranges.percentile import Percentile

GRID = Affine(bits=4, signed=False)
ESTIMATORS = [MinMax(), MSE(), Percentile(percentile=99.5)]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n", [16, 1000])
def test_streaming_equals_one_shot_within_a_bin(estimator: Estimator[Any], symmetric: bool, n: int) -> None:
    data = torch.randn(3, 8 * n, generator=torch.Generator().manual_seed(n)) * torch.tensor([[1.0], [5.0], [0.1]])
    whole = estimator.update(estimator.init(), data)
    state = estimator.init()
    for batch in data.split(n, dim=1):
        state = estimator.update(state, batch)
    one_shot = estimator.finish(whole, GRID, symmetric=symmetric)
    streamed = estimator.finish(state, GRID, symmetric=symmetric)
    amax = data.abs().amax(1)
    # Min-max, and MSE below its limit, see the values themselves; percentile sees bins.
    tolerance = 1.001 * amax / 2048 if isinstance(estimator, Percentile) else torch.zeros(3)
    for a, b in zip(one_shot, streamed, strict=True):
        assert bool(((a - b).abs() <= tolerance).all())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_streamed_mse_loses_no_more_than_one_shot_within_two_percent(bits: int) -> None:
    grid = Affine(bits=bits, signed=True, narrow=True)
    data = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(1)) ** 3
    estimator = MSE(exact_limit=100)
    state = estimator.init()
    for batch in data.split(1000, dim=1):
        state = estimator.update(state, batch)
    _, one_shot = estimator.finish(estimator.update(estimator.init(), data), grid, symmetric=True)
    _, streamed = estimator.finish(state, grid, symmetric=True)

    def loss(amax: Tensor) -> Tensor:
        scale, zero_point = scale_and_zero_point(-amax, amax, grid, symmetric=True)
        return (data - fake_quantize(data, scale[:, None], zero_point[:, None], grid)).double().square().mean(1)

    assert bool((loss(streamed) <= 1.02 * loss(one_shot)).all())
