from __future__ import annotations

import pytest
import torch

from bitwright.errors import InputError
from bitwright.ranges.batchnorm import added_statistics, batchnorm_range, batchnorm_statistics

BETA, GAMMA = torch.tensor([1.0, -0.5, 4.0]), torch.tensor([0.5, -2.0, 0.1])


def ends(**kwargs: object) -> tuple[list[float], list[float]]:
    lo, hi = batchnorm_range(batchnorm_statistics(BETA, GAMMA), **kwargs)  # type: ignore[arg-type]
    return lo.tolist(), hi.tolist()


def test_by_hand() -> None:
    assert ends() == ([-12.5], [11.5])
    lo, hi = ends(deviations=1.0)
    assert lo == [-2.5] and hi == pytest.approx([4.1])
    assert ends(clip=(0.0, torch.inf)) == ([0.0], [11.5])
    assert ends(clip=(0.0, 6.0)) == ([0.0], [6.0])
    lo, hi = ends(per_channel=True)
    assert lo == pytest.approx([-2.0, -12.5, 0.0]) and hi == pytest.approx([4.0, 11.5, 4.6])


def test_holds_all_but_the_tails_of_normal_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    x = BETA + GAMMA * torch.randn(100_000, 3, generator=generator)
    lo, hi = batchnorm_range(batchnorm_statistics(BETA, GAMMA), deviations=3.0, per_channel=True)
    inside = ((x >= lo) & (x <= hi)).double().mean(0)
    assert bool((inside > 0.9965).all())
    assert bool((inside[:2] < 0.9985).all())  # the third channel ends at zero, far below its values


def test_residual_sums_add_means_and_variances() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = batchnorm_statistics(BETA, GAMMA), batchnorm_statistics(GAMMA, BETA)
    total = added_statistics(a, b)
    samples = sum(t.mean + t.deviation * torch.randn(200_000, 3, generator=generator) for t in (a, b))
    torch.testing.assert_close(total.mean, samples.mean(0), atol=0.03, rtol=0)  # type: ignore[union-attr]
    torch.testing.assert_close(total.deviation, samples.std(0), atol=0, rtol=0.01)  # type: ignore[union-attr]


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"batch norm: mean \[3\], deviation \[2\]; expected two vectors"):
        batchnorm_statistics(BETA, GAMMA[:2])
    with pytest.raises(InputError, match="batch norm: NaN or infinity in beta or gamma"):
        batchnorm_statistics(BETA, GAMMA / 0)
    with pytest.raises(InputError, match=r"residual sum: terms of \[3, 2\] channels; expected at least one term"):
        added_statistics(batchnorm_statistics(BETA, GAMMA), batchnorm_statistics(BETA[:2], GAMMA[:2]))
    with pytest.raises(InputError, match=r"residual sum: terms of \[\] channels"):
        added_statistics()
    with pytest.raises(InputError, match=r"deviations: 0; expected more than 0"):
        ends(deviations=0)
    with pytest.raises(InputError, match=r"clip: \(6, 0\); expected the lower bound first"):
        ends(clip=(6, 0))
