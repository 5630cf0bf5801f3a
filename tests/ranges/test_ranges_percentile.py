from __future__ import annotations

import pytest
import torch

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.ranges.minmax import MinMax
from bitwright.ranges.percentile import Percentile

GRID = Affine(bits=8, signed=False)


def run(estimator: Percentile | MinMax, x: torch.Tensor, symmetric: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    state = estimator.update(estimator.init(), x)  # type: ignore[arg-type]
    return estimator.finish(state, GRID, symmetric=symmetric)  # type: ignore[arg-type]


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_is_the_quantile_within_a_bin(percentile: float) -> None:
    x = torch.randn(3, 20000, generator=torch.Generator().manual_seed(0)) + 0.4
    width = x.abs().amax(1) / 2048
    rank = round(20000 * percentile / 100)
    sorted_ = x.sort(1).values
    lo, hi = run(Percentile(percentile=percentile), x)
    for beyond in (hi - sorted_[:, rank - 1], sorted_[:, 20000 - rank] - lo):
        assert bool((beyond >= -1e-6).all() and (beyond <= 1.001 * width).all())


def test_symmetric_counts_magnitudes() -> None:
    x = torch.tensor([[-10.0, *range(1, 100)]])
    lo, hi = run(Percentile(percentile=90.0, bins=990), x, symmetric=True)
    assert hi.item() == pytest.approx(89.0) and torch.equal(lo, -hi)  # 89 values up to 89, and -10


def test_exact_zeros_count() -> None:
    x = torch.cat([torch.zeros(900), torch.arange(1.0, 101.0)])[None]
    assert run(Percentile(percentile=95.0, bins=1000), x)[1].item() == pytest.approx(50.0)
    assert run(Percentile(percentile=95.0, bins=1000), x[:, 900:])[1].item() == pytest.approx(95.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_almost_nothing_but_zeros_keeps_a_bin(sign: float) -> None:
    x = torch.zeros(1, 100_000)
    x[0, :3] = sign * torch.tensor([1.0, 2.0, 4.0])
    lo, hi = run(Percentile(percentile=99.0), x)
    assert sorted((lo.abs().item(), hi.abs().item())) == [0.0, 4.0 / 2048]
    assert (hi if sign > 0 else -lo).item() > 0


def test_a_whole_number_of_values_is_not_rounded_up() -> None:
    # 99.9 % of 41000 are 40959; 41000 * 99.9 / 100 is a little more in float64.
    x = torch.arange(1.0, 41001.0)[None]
    assert run(Percentile(percentile=99.9, bins=41000), x)[1].item() == pytest.approx(40959, abs=0.01)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_few_values_on_the_other_side_are_cut(sign: float) -> None:
    x = sign * torch.cat([torch.tensor([-5.0, -7.0]), torch.linspace(1, 2, 9998)])[None]
    lo, hi = run(Percentile(percentile=99.9), x)
    ends = sorted((sign * lo.item(), sign * hi.item()))
    assert ends[0] == 0.0 and ends[1] == pytest.approx(2.0, abs=0.01)


def test_hundred_percent_is_min_max() -> None:
    x = torch.randn(4, 999, generator=torch.Generator().manual_seed(2)) ** 3
    for symmetric in (False, True):
        ours, theirs = run(Percentile(percentile=100.0), x, symmetric), run(MinMax(), x, symmetric)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_clips_an_outlier() -> None:
    x = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(1))
    x[0, 0] = 500.0
    lo, hi = run(Percentile(), x)
    assert 3.5 < hi.item() < 4.6 and -4.6 < lo.item() < -3.5


@pytest.mark.parametrize(("percentile", "shown"), [(0.9999, "0.9999"), (50.0, "50.0"), (100.1, "100.1")])
def test_fractions_are_refused(percentile: float, shown: str) -> None:
    with pytest.raises(InputError, match=f"percentile: {shown}; expected percent, above 50 and at most 100"):
        Percentile(percentile=percentile)


def test_too_few_bins_are_refused() -> None:
    with pytest.raises(InputError, match="bins: 4; expected 16 or more"):
        Percentile(bins=4)
