from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine, fake_quantize, scale_and_zero_point
from bitwright.ranges.aciq import ACIQ, Distribution, optimal_clipping

LAPLACE = [1.8628, 2.8307, 3.8972, 5.0286, 6.2048, 7.4131, 8.6456, 9.8968, 11.1627]
NORMAL = [1.2399, 1.7106, 2.1516, 2.5591, 2.9362, 3.2869, 3.6151, 3.9240, 4.2163]


def laplace(n: int) -> Tensor:
    """Quantiles of the Laplace distribution of scale 1."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    return (-u.sign() * torch.log1p(-2 * u.abs())).float()[None]


def normal(n: int) -> Tensor:
    """Quantiles of the normal distribution of deviation 1."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (math.sqrt(2) * torch.erfinv(2 * u - 1)).float()[None]


def run(x: Tensor, grid: Affine, symmetric: bool, distribution: Distribution = "laplace") -> tuple[float, float]:
    estimator = ACIQ(distribution=distribution)
    lo, hi = estimator.finish(estimator.update(estimator.init(), x), grid, symmetric=symmetric)
    return lo.item(), hi.item()


@pytest.mark.parametrize(("distribution", "table"), [("laplace", LAPLACE), ("normal", NORMAL)])
def test_published_optima(distribution: Distribution, table: list[float]) -> None:
    assert [optimal_clipping(m, distribution) for m in range(1, 10)] == pytest.approx(table, abs=6e-5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_laplace_optimum_in_closed_form(bits: int) -> None:
    a = optimal_clipping(bits, "laplace")
    assert a * math.exp(a) == pytest.approx(3 * 4**bits, rel=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("symmetric", [False, True])
def test_range_of_its_own_distributions(bits: int, symmetric: bool) -> None:
    grid = Affine(bits=bits, signed=True)
    for x, distribution, table in ((laplace(100_001), "laplace", LAPLACE), (normal(100_001), "normal", NORMAL)):
        for size in (1.0, 30.0):
            lo, hi = run(size * x, grid, symmetric, distribution)  # type: ignore[arg-type]
            assert hi == pytest.approx(size * table[bits - 1], rel=2e-3)
            assert lo == pytest.approx(-hi, rel=2e-3)


def test_an_asymmetric_range_follows_the_mean() -> None:
    grid = Affine(bits=2, signed=False)
    lo, hi = run(laplace(100_001) + 1.5, grid, False)
    assert (lo, hi) == pytest.approx((1.5 - 2.8307, 1.5 + 2.8307), rel=5e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_fold_of_a_relu_is_undone(sign: float) -> None:
    # One-sided: the spread is that before ReLU, the optimum that of one bit more.
    for x, distribution, table in ((laplace(100_001), "laplace", LAPLACE), (normal(100_001), "normal", NORMAL)):
        ends = run(sign * x.relu(), Affine(bits=2, signed=False), False, distribution)  # type: ignore[arg-type]
        assert sorted(abs(end) for end in ends) == pytest.approx([0, table[2]], rel=2e-3)
        # A symmetric grid spends half of its codes on the other side.
        _, amax = run(sign * x.relu(), Affine(bits=2, signed=True), True, distribution)  # type: ignore[arg-type]
        assert amax == pytest.approx(table[1], rel=2e-3)


def test_never_beyond_the_data() -> None:
    x = torch.linspace(-1, 1, 1001)[None]
    assert run(x, Affine(bits=8, signed=True), False) == (-1.0, 1.0)


@pytest.mark.parametrize("bits", [3, 4])
def test_is_the_best_clipping_of_its_distribution_and_not_of_the_other(bits: int) -> None:
    grid = Affine(bits=bits, signed=True)

    def loss(x: Tensor, amax: float) -> float:
        s, z = scale_and_zero_point(torch.tensor(-amax), torch.tensor(amax), grid, symmetric=True)
        return (x - fake_quantize(x, s, z, grid)).double().square().mean().item()

    for x, own, other in ((laplace(20_001), "laplace", "normal"), (normal(20_001), "normal", "laplace")):
        best = min(loss(x, a / 50) for a in range(50, 400))
        assert loss(x, run(x, grid, True, own)[1]) < 1.05 * best  # type: ignore[arg-type]
        assert loss(x, run(x, grid, True, other)[1]) > loss(x, run(x, grid, True, own)[1])  # type: ignore[arg-type]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="distribution: 'gauss'; expected 'laplace' or 'normal'"):
        ACIQ(distribution="gauss")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bins: 2; expected 16 or more"):
        ACIQ(bins=2)
