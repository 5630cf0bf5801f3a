from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.ranges.kl import KL, Grouping, kl_divergence, kl_threshold

GROUPINGS: list[Grouping] = ["even", "floor"]


def by_the_procedure(hist: list[float], i: int, levels: int, grouping: Grouping) -> float:
    """Step by step: clip, group, expand, normalise, compare."""
    p = hist[:i]
    p[i - 1] += sum(hist[i:])
    group = [j * levels // i if grouping == "even" else min(j // (i // levels), levels - 1) for j in range(i)]
    q = [0.0] * i
    for g in range(levels):
        members = [j for j in range(i) if group[j] == g]
        filled = [j for j in members if hist[j] > 0]
        for j in filled:
            q[j] = sum(hist[m] for m in members) / len(filled)
    divergence = 0.0
    for pj, qj in zip(p, q, strict=True):
        if pj > 0:
            if qj == 0:
                return math.inf
            divergence += pj / sum(p) * math.log((pj / sum(p)) / (qj / sum(q)))
    return divergence


def exponential(tau: float, outliers: int) -> Tensor:
    counts = (1e6 * torch.exp(-torch.arange(2048, dtype=torch.float64) / tau)).floor()
    counts[-1] += outliers
    return counts[None]


@pytest.mark.parametrize(
    ("tau", "outliers", "even", "floor"),
    [(50, 0, 537, 623), (100, 0, 1109, 1151), (50, 100, 537, 637), (100, 100, 1109, 1151)],
)
def test_golden_thresholds(tau: float, outliers: int, even: int, floor: int) -> None:
    counts = exponential(tau, outliers)
    assert kl_threshold(counts, 128, grouping="even").item() == even
    assert kl_threshold(counts, 128, grouping="floor").item() == floor


def test_golden_divergence() -> None:
    counts = torch.tensor([[1, 0, 2, 3, 5, 3, 1, 7]])
    for grouping in GROUPINGS:
        assert kl_divergence(counts, torch.tensor([8]), 2, grouping=grouping).item() == pytest.approx(
            0.150315, abs=1e-6
        )


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_running_sums_follow_the_procedure(levels: int, grouping: Grouping) -> None:
    counts = torch.randint(0, 6, (4, 37), generator=torch.Generator().manual_seed(levels))
    counts[1, ::2] = 0  # many empty bins: infinite divergences
    counts[2, 20:] = 0
    i = torch.arange(levels, 38)
    ours = kl_divergence(counts, i, levels, grouping=grouping)
    theirs = [[by_the_procedure(row, int(n), levels, grouping) for n in i] for row in counts.double().tolist()]
    finite = torch.isfinite(torch.tensor(theirs, dtype=torch.float64))
    assert torch.equal(torch.isfinite(ours), finite) and not bool(finite.all())
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_threshold_is_the_last_least_divergence_of_each_row(grouping: Grouping) -> None:
    counts = torch.randint(1, 50, (3, 60), generator=torch.Generator().manual_seed(0))
    counts[1, 30:] = 0  # bins beyond the data of a row are no candidates
    counts[2] = 7  # every even split is perfect: KL is 0 at 60 bins
    for row, found in zip(counts, kl_threshold(counts, 4, grouping=grouping).tolist(), strict=True):
        hist = row[: int(row.nonzero().max()) + 1].double().tolist()
        hist[0] = hist[1]
        values = [by_the_procedure(hist, n, 4, grouping) for n in range(4, len(hist) + 1)]
        least = max(n for n, v in enumerate(values, start=4) if v <= min(values) + 1e-13)
        assert found == least
    assert kl_threshold(counts, 4, grouping=grouping)[2].item() == 60


def test_of_equal_divergences_the_largest_threshold_wins() -> None:
    counts = torch.tensor([[3, 3, 1, 1, 0, 1, 0, 3]])
    divergence = kl_divergence(counts, torch.tensor([2, 8]), 2, grouping="even")[0]
    assert divergence[0].item() == pytest.approx(divergence[1].item(), abs=1e-15)
    assert kl_threshold(counts, 2).item() == 8


def test_the_mass_of_zeros_does_not_count() -> None:
    counts = exponential(50, 0)
    more = counts.clone()
    more[0, 0] = 1e9
    assert torch.equal(kl_threshold(more, 128), kl_threshold(counts, 128))


@pytest.mark.parametrize("chunk", [1, 5000, 1 << 20])
def test_chunks_do_not_change_the_threshold(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("bitwright.ranges.kl._CHUNK", chunk)
    counts = torch.cat([exponential(20, 0), exponential(30, 5)])[:, :300]
    assert kl_threshold(counts, 32).tolist() == [kl_threshold(row[None], 32).item() for row in counts]


def range_of(x: Tensor, grid: Affine, symmetric: bool) -> tuple[float, float]:
    estimator = KL()
    lo, hi = estimator.finish(estimator.update(estimator.init(), x), grid, symmetric=symmetric)
    return lo.item(), hi.item()


def test_clips_a_long_tail_and_keeps_it_where_levels_are_plenty() -> None:
    x = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0)) ** 3
    amax = x.abs().max().item()
    assert range_of(x, Affine(bits=8, signed=True), True)[1] < 0.6 * amax
    lo, hi = range_of(x, Affine(bits=16, signed=True), False)
    assert (lo, hi) == (x.min().item(), x.max().item())


def test_one_sided_data_use_every_level_of_an_asymmetric_grid() -> None:
    # 256 levels on one side cut where 128 levels of either sign would with half the data range.
    x = -torch.log1p(-torch.linspace(0, 0.99999, 200_000))[None]
    grid = Affine(bits=8, signed=False)
    alone, both = range_of(x, grid, False), range_of(x, grid, True)
    nine = range_of(x, Affine(bits=9, signed=False), True)
    assert alone[0] == 0 and both[0] == -both[1]
    assert alone[1] == nine[1] != both[1]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="grouping: 'nvidia'; expected 'even' or 'floor'"):
        KL(grouping="nvidia")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bins: 8; expected 16 or more"):
        KL(bins=8)
