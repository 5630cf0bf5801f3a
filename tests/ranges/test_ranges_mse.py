from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine, dequantize, quantize, scale_and_zero_point
from bitwright.ranges import mse
from bitwright.ranges.minmax import MinMax
from bitwright.ranges.mse import MSE


def heavy(*shape: int, seed: int = 0) -> Tensor:
    """Laplace: heavy tails."""
    u = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs() * 0.999999)


def run(estimator: MSE | MinMax, x: Tensor, grid: Affine, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    state = estimator.update(estimator.init(), x)  # type: ignore[arg-type]
    return estimator.finish(state, grid, symmetric=symmetric)  # type: ignore[arg-type]


def loss(x: Tensor, lo: Tensor, hi: Tensor, grid: Affine, symmetric: bool, p: float = 2.0) -> Tensor:
    """Mean |x - Q(x)|^p of each row, through the deployed codes, in float64."""
    s, z = scale_and_zero_point(lo, hi, grid, symmetric=symmetric)
    y = dequantize(quantize(x, s[:, None], z[:, None], grid), s[:, None], z[:, None])
    return (x - y).double().abs().pow(p).mean(1)


def brute_force(x: Tensor, grid: Affine, symmetric: bool, p: float, candidates: int) -> tuple[float, float, float]:
    """Least loss of one row over every length and every zero point, plainly."""
    lo, hi = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    amax = max(-lo, hi)
    levels = grid.qmax - grid.qmin
    best = (float("inf"), 0.0, 0.0)
    for i in range(1, candidates + 1):
        if symmetric:
            ends = [(-amax * i / candidates, amax * i / candidates)]
        elif lo == 0 or hi == 0:
            ends = [(lo * i / candidates, hi * i / candidates)]
        else:
            d = (hi - lo) * i / candidates / levels
            ends = [(-zero * d, (levels - zero) * d) for zero in range(levels + 1)]
        for low, high in ends:
            found = loss(x, torch.tensor([low]), torch.tensor([high]), grid, symmetric, p).item()
            if found < best[0]:
                best = (found, low, high)
    return best


@pytest.mark.parametrize("p", [2.0, 2.4, 1.0])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "grid",
    [
        Affine(bits=2, signed=True, narrow=True),
        Affine(bits=4, signed=False),
        Affine(bits=4, signed=True),
        Affine(bits=5, signed=False),
    ],
    ids=str,
)
def test_finds_what_trying_everything_finds(grid: Affine, symmetric: bool, p: float) -> None:
    x = heavy(2, 100) + torch.tensor([[0.0], [0.7]])
    x = torch.cat([x, -x[1:]])
    lo, hi = run(MSE(p=p, candidates=20), x, grid, symmetric)
    found = loss(x, lo, hi, grid, symmetric, p)
    for i in range(3):
        least, low, high = brute_force(x[i : i + 1], grid, symmetric, p, 20)
        # The range is a float32 number, which moves values that lie on a tie.
        assert found[i].item() == pytest.approx(least, rel=1e-5)
        if p == 2.0:
            assert (lo[i].item(), hi[i].item()) == pytest.approx((low, high), rel=1e-5, abs=1e-5)


def test_skewed_rows_find_what_trying_everything_finds() -> None:
    grid = Affine(bits=3, signed=False)
    block = -heavy(10, 1).abs() - 0.2  # thirty values at one end, a few that are spread out at the other
    x = torch.cat([block.repeat(1, 30), heavy(10, 12, seed=1).abs()], dim=1)
    x = torch.cat([x, -x])
    lo, hi = run(MSE(candidates=8), x, grid)
    found = loss(x, lo, hi, grid, False)
    for i, row in enumerate(x):
        assert found[i].item() == pytest.approx(brute_force(row[None], grid, False, 2.0, 8)[0], rel=1e-5)


def test_eight_bits_two_sided_finds_the_best_zero_point() -> None:
    grid = Affine(bits=8, signed=True)
    x = heavy(1, 60) + 0.5
    lo, hi = run(MSE(candidates=10), x, grid)
    least, _, _ = brute_force(x, grid, False, 2.0, 10)
    assert loss(x, lo, hi, grid, False).item() == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_is_narrower_than_min_max_and_loses_less_on_heavy_tails(bits: int, symmetric: bool) -> None:
    grid = Affine(bits=bits, signed=True)
    x = heavy(4, 3000) if bits < 8 else heavy(1, 60_000)
    mse, minmax = run(MSE(), x, grid, symmetric), run(MinMax(), x, grid, symmetric)
    assert bool((mse[1] - mse[0] < minmax[1] - minmax[0]).all())
    assert bool((loss(x, *mse, grid, symmetric) < loss(x, *minmax, grid, symmetric)).all())
    # The other direction: what it gives up is the largest error.
    worst = [loss(x, *r, grid, symmetric, p=40.0) for r in (mse, minmax)]
    assert bool((worst[0] > worst[1]).all())


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_cuts_evenly_spread_values_into_equal_cells(bits: int) -> None:
    # 2^b - 1 cells of equal width over [-1, 1]: the outermost codes lie half a cell inside.
    x = torch.linspace(-1, 1, 4001)[None]
    lo, hi = run(MSE(), x, Affine(bits=bits, signed=True, narrow=True), True)
    assert hi.item() == pytest.approx(1 - 1 / (2**bits - 1), abs=0.006)
    assert lo.item() == -hi.item()


@pytest.mark.parametrize("shape", ["two-sided", "one-sided", "negative"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_streaming_histogram_loses_at_most_two_percent_more(shape: str, symmetric: bool, bits: int) -> None:
    grid = Affine(bits=bits, signed=False)
    x = heavy(2, 40_000, seed=bits) + 0.2
    x = {"two-sided": x, "one-sided": x.relu(), "negative": -x.relu()}[shape]
    exact = run(MSE(), x, grid, symmetric)
    estimator = MSE(exact_limit=1000)
    state = estimator.init()
    for part in x.split(8000, dim=1):
        state = estimator.update(state, part)
    assert state.values is None and state.histogram is not None
    streamed = estimator.finish(state, grid, symmetric=symmetric)
    ratio = loss(x, *streamed, grid, symmetric) / loss(x, *exact, grid, symmetric)
    assert bool((ratio <= 1.02).all()), ratio


def test_a_larger_exponent_clips_less() -> None:
    x, grid = heavy(1, 5000), Affine(bits=4, signed=True, narrow=True)
    widths = [run(MSE(p=p), x, grid, True)[1].item() for p in (1.0, 2.0, 2.4, 4.0)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_of_equal_losses_the_smallest_range_wins() -> None:
    # Codes -1, 0, 1 and A in {3/4, 3/2, 9/4, 3}: the values 0 and +-3 lose nothing with A = 3 alone;
    # 3/2 and 3 with equal weights lose the same 9/4 with A = 3/2 and A = 3 (where 3/2 is a tie and goes to 0).
    grid = Affine(bits=2, signed=True, narrow=True)
    x = torch.tensor([[0.0, 3.0, -3.0, 0.0], [1.5, 3.0, -1.5, -3.0]])
    assert run(MSE(candidates=2), x, grid, True)[1].tolist() == [3.0, 1.5]


def test_of_equal_zero_points_the_smallest_wins() -> None:
    # Mirrored data and four codes: one code below zero and two above lose what two below and one above lose.
    x, grid = torch.tensor([[-2.0, -1.0, 1.0, 2.0]]), Affine(bits=2, signed=False)
    lo, hi = run(MSE(), x, grid)
    assert -lo.item() < hi.item()
    assert loss(x, lo, hi, grid, False).item() == loss(x, -hi, -lo, grid, False).item()


def test_the_limit_of_exact_values_is_inclusive() -> None:
    estimator = MSE(exact_limit=10)
    state = estimator.update(estimator.init(), heavy(2, 4))
    at_the_limit = estimator.update(state, heavy(2, 6))
    assert at_the_limit.values is not None and at_the_limit.values.shape == (2, 10)
    assert estimator.update(at_the_limit, heavy(2, 1)).values is None


def test_small_chunks_give_the_same_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, x = Affine(bits=4, signed=False), heavy(5, 110)
    whole = [run(MSE(), x, grid, s) for s in (False, True)]
    for chunk in (100, 2000):
        monkeypatch.setattr("bitwright.ranges.mse._CHUNK", chunk)
        for symmetric in (False, True):
            lo, hi = run(MSE(), x, grid, symmetric)
            assert torch.equal(lo, whole[symmetric][0]) and torch.equal(hi, whole[symmetric][1])


@pytest.mark.parametrize("bits", [12, 16])
def test_wide_grids_lose_no_more_than_min_max(bits: int) -> None:
    grid, x = Affine(bits=bits, signed=True), heavy(2, 300)
    mse, minmax = run(MSE(), x, grid), run(MinMax(), x, grid)
    assert bool((loss(x, *mse, grid, False) <= 1.001 * loss(x, *minmax, grid, False)).all())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"p: an exponent of 0\.0; expected more than 0"):
        MSE(p=0.0)
    with pytest.raises(InputError, match="candidates: 1; expected 2 or more"):
        MSE(candidates=1)
    with pytest.raises(InputError, match="bins: 3; expected 16 or more"):
        MSE(bins=3)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_sorted_rows_give_the_same_ranges(bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running sums are a short cut, not another search: the same lengths and zero points are chosen."""
    rows = (
        torch.randn(6, 2000, generator=torch.Generator().manual_seed(bits)) * torch.tensor([[1, 2, 3, 1e-3, 1, 1]]).T
    )
    rows[4].abs_()
    rows[5] = 0.0
    grid = Affine(bits=bits, signed=symmetric, narrow=symmetric)
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(mse, "SORTED_FROM", least)
        found.append(mse.search_range(rows, None, grid, symmetric=symmetric, p=2.0, candidates=100))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
