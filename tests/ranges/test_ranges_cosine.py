from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine, fake_quantize, scale_and_zero_point
from bitwright.ranges.cosine import Cosine, cosine_and_error
from bitwright.ranges.minmax import MinMax


def heavy(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3


def run(estimator: Cosine | MinMax, x: Tensor, grid: Affine, symmetric: bool) -> tuple[Tensor, Tensor]:
    state = estimator.update(estimator.init(), x)  # type: ignore[arg-type]
    return estimator.finish(state, grid, symmetric=symmetric)  # type: ignore[arg-type]


def cosine(x: Tensor, lo: Tensor, hi: Tensor, grid: Affine, symmetric: bool) -> Tensor:
    s, z = scale_and_zero_point(lo, hi, grid, symmetric=symmetric)
    y = fake_quantize(x, s[:, None], z[:, None], grid).double()
    return (x.double() * y).sum(1) / (x.double().norm(dim=1) * y.norm(dim=1))


def test_cosine_and_error_by_hand() -> None:
    x, y = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[4.0, 3.0], [1.0, 0.0]])
    found = cosine_and_error(x, y, None)
    assert found[0].tolist() == pytest.approx([24 / 25, 0]) and found[1].tolist() == pytest.approx([2, 1])
    weighted = cosine_and_error(x, y, torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    assert weighted[0].tolist() == pytest.approx([1, 0]) and weighted[1].tolist() == pytest.approx([2, 1])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_finds_the_best_factor_of_the_bracket(bits: int, symmetric: bool) -> None:
    grid, x = Affine(bits=bits, signed=True), heavy(3, 500)
    lo, hi = run(Cosine(candidates=31), x, grid, symmetric)
    low, high = run(MinMax(), x, grid, symmetric)
    factors = torch.linspace(0.5, 2, 31, dtype=torch.float64).tolist()
    every = torch.stack([cosine(x, low * f, high * f, grid, symmetric) for f in factors])
    torch.testing.assert_close(cosine(x, lo, hi, grid, symmetric), every.amax(0), atol=1e-6, rtol=0)
    gain = cosine(x, lo, hi, grid, symmetric) - cosine(x, low, high, grid, symmetric)
    assert bool((gain >= 0).all()) and (bits == 8 or bool((gain > 0).any()))


def test_the_bracket_bounds_the_range() -> None:
    x, grid = heavy(2, 4000), Affine(bits=2, signed=True, narrow=True)
    amax = x.abs().amax(1)
    for narrowest, widest in ((0.5, 2.0), (0.05, 0.1), (1.5, 1.6)):
        _, hi = run(Cosine(narrowest=narrowest, widest=widest), x, grid, True)
        assert bool((hi >= narrowest * amax * 0.999).all() and (hi <= widest * amax * 1.001).all())


def test_equal_cosines_are_decided_by_the_squared_error() -> None:
    # Codes -1, 0, 1 and x = +-1: every A up to 2 points in the same direction, A = 1 is also right in size.
    _, hi = run(Cosine(candidates=4), torch.tensor([[1.0, -1.0]]), Affine(bits=2, signed=True, narrow=True), True)
    assert hi.item() == 1.0


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_histogram_is_as_good_as_the_values(symmetric: bool) -> None:
    x, grid = heavy(2, 20_000), Affine(bits=4, signed=False)
    exact = cosine(x, *run(Cosine(), x, grid, symmetric), grid, symmetric)
    streamed = cosine(x, *run(Cosine(exact_limit=100), x, grid, symmetric), grid, symmetric)
    assert bool((1 - streamed <= 1.02 * (1 - exact)).all())


def test_small_chunks_give_the_same_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, x = Affine(bits=4, signed=False), heavy(5, 70)
    whole = run(Cosine(), x, grid, False)
    monkeypatch.setattr("bitwright.ranges.cosine._CHUNK", 150)
    parts = run(Cosine(), x, grid, False)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"narrowest, widest: 2.0, 1.0; expected 0 < narrowest < widest"):
        Cosine(narrowest=2.0, widest=1.0)
    with pytest.raises(InputError, match="candidates: 1; expected 2 or more"):
        Cosine(candidates=1)
    with pytest.raises(InputError, match="bins: 1; expected 16 or more"):
        Cosine(bins=1)
