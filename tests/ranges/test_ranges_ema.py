from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.ranges.ema import EMA, AverageMinMax

GRID = Affine(bits=8, signed=False)


def run(estimator: EMA | AverageMinMax, batches: list[Tensor]) -> tuple[list[float], list[float]]:
    state = estimator.init()
    for batch in batches:
        state = estimator.update(state, batch)
    lo, hi = estimator.finish(state, GRID, symmetric=False)
    return lo.tolist(), hi.tolist()


BATCHES = [torch.tensor([[-1.0, 3.0], [0.0, 8.0]]), torch.tensor([[-3.0, 1.0], [-4.0, 0.0]]), torch.zeros(2, 5)]


def test_moving_average_by_hand() -> None:
    # lo: -1, -1.5, -1.125; hi: 3, 2.5, 1.875. Second row: 0, -1, -0.75 and 8, 6, 4.5.
    assert run(EMA(c=0.25), BATCHES) == ([-1.125, -0.75], [1.875, 4.5])


def test_the_first_batch_assigns_and_c_of_one_keeps_the_last() -> None:
    assert run(EMA(c=0.01), BATCHES[:1]) == ([-1.0, 0.0], [3.0, 8.0])
    assert run(EMA(c=1.0), BATCHES[:2]) == ([-3.0, -4.0], [1.0, 0.0])


def test_average_is_the_arithmetic_mean() -> None:
    lo, hi = run(AverageMinMax(), BATCHES)
    assert lo == pytest.approx([-4 / 3, -4 / 3]) and hi == pytest.approx([4 / 3, 8 / 3])


def test_a_small_c_leaves_the_first_batch_standing() -> None:
    batches = [torch.tensor([[0.0, 1.0]])] + [torch.tensor([[0.0, 2.0]])] * 10
    assert run(EMA(c=0.01), batches)[1][0] < 1.1
    assert run(EMA(c=0.1), batches)[1][0] > 1.6
    assert run(AverageMinMax(), batches)[1][0] == pytest.approx(21 / 11)


def test_clips_the_outlier_of_one_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(1, 1000, generator=generator) for _ in range(20)]
    batches[7][0, 0] = 100.0
    assert run(AverageMinMax(), batches)[1][0] == pytest.approx((19 + 100) / 20, abs=0.01)
    assert run(EMA(), batches)[1][0] < 10


@pytest.mark.parametrize("c", [0.0, -0.1, 1.5])
def test_a_weight_outside_of_0_to_1_is_refused(c: float) -> None:
    with pytest.raises(InputError, match=rf"c: {c}; expected above 0 and at most 1"):
        EMA(c=c)
