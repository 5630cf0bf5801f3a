"""The clipped normal distribution: the sheet's values, and a million draws."""

from __future__ import annotations

import math

import pytest
import torch

from bitwright.ranges.clipped_normal import clipped_normal

INF = math.inf


@pytest.mark.parametrize(
    ("m", "g", "high", "expected"),
    [(0.0, 1.0, INF, 0.398942), (0.5, 1.0, INF, 0.697797), (-1.0, 0.5, INF, 0.004245), (3.0, 2.0, INF, 3.058614),
     (3.0, 2.0, 6.0, 3.0)],
)  # fmt: skip
def test_means_of_the_sheet(m: float, g: float, high: float, expected: float) -> None:
    mean, _ = clipped_normal(torch.tensor([m]), torch.tensor([g]), 0.0, high)
    assert float(mean) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, INF), (0.0, 6.0), (-INF, 2.0), (-1.0, 1.0), (-INF, INF), (2.0, 3.0)])
def test_a_million_draws_agree(low: float, high: float) -> None:
    mean, deviation = torch.tensor([0.0, 0.5, -1.0, 3.0]), torch.tensor([1.0, 1.0, 0.5, 2.0])
    drawn = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0)) * deviation + mean
    drawn = drawn.clamp(low, high)
    found, spread = clipped_normal(mean, deviation, low, high)
    tolerance = 3e-3 * float(deviation.max())
    assert torch.allclose(found, drawn.double().mean(0), atol=tolerance)
    assert torch.allclose(spread, drawn.double().std(0), atol=tolerance)


def test_constants_are_clipped_themselves() -> None:
    mean, deviation = clipped_normal(torch.tensor([-1.0, 2.0, 9.0]), torch.zeros(3), 0.0, 6.0)
    assert mean.tolist() == pytest.approx([0.0, 2.0, 6.0]) and deviation.tolist() == pytest.approx([0, 0, 0], abs=1e-6)
