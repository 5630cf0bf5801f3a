from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import InputError
from bitwright.formats.affine import Affine, fake_quantize, quantize, scale_and_zero_point
from bitwright.formats.pow2 import PowerOfTwo, pow2_scale_and_zero_point, power_of_two, search_power_of_two


@settings(max_examples=200, deadline=None)
@given(scale=st.floats(2.0**-100, 2.0**100, width=32))
def test_is_the_power_next_to_the_scale(scale: float) -> None:
    found = {}
    for rounding in ("floor", "nearest", "ceil"):
        power = power_of_two(torch.tensor(scale), rounding).item()
        assert math.frexp(power)[0] == 0.5
        found[rounding] = power
    assert found["floor"] <= scale <= found["ceil"] <= 2 * found["floor"]
    assert abs(math.log2(found["nearest"] / scale)) <= 0.5 + 1e-9


def test_powers_stay_what_they_are() -> None:
    powers = torch.ldexp(torch.ones(61), torch.arange(-40, 21))
    for rounding in ("nearest", "ceil", "floor"):
        assert torch.equal(power_of_two(powers, rounding), powers)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grid", [Affine(bits=4, signed=False), Affine(bits=8, signed=True, narrow=True)], ids=str)
def test_ceil_never_clips_and_floor_always_does(grid: Affine, symmetric: bool) -> None:
    lo, hi = torch.tensor([-0.7, -3.0]), torch.tensor([1.3, 0.3])
    s, z = pow2_scale_and_zero_point(lo, hi, grid, symmetric=symmetric, rounding="ceil")
    assert bool(((grid.qmin - z) * s <= lo + s / 2).all() and ((grid.qmax - z) * s >= hi - s / 2).all())
    s, z = pow2_scale_and_zero_point(lo, hi, grid, symmetric=symmetric, rounding="floor")
    assert bool(((grid.qmin - z) * s > lo).logical_or((grid.qmax - z) * s < hi).all())


def test_the_zero_point_follows_the_new_scale() -> None:
    grid = Affine(bits=4, signed=False)
    lo, hi = torch.tensor([-0.5]), torch.tensor([3.0])
    s, z = scale_and_zero_point(lo, hi, grid, symmetric=False)
    assert (round(s.item(), 4), z.item()) == (0.2333, 2)
    s, z = pow2_scale_and_zero_point(lo, hi, grid, symmetric=False, rounding="floor")
    assert (s.item(), z.item()) == (0.125, 4)
    assert quantize(torch.zeros(1), s, z, grid).item() == 4


@pytest.mark.parametrize("symmetric", [False, True])
def test_search_takes_the_best_of_its_powers(symmetric: bool) -> None:
    grid = Affine(bits=4, signed=True)
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) ** 3
    s, z = search_power_of_two(x, grid, symmetric=symmetric)
    widest, same = pow2_scale_and_zero_point(x.amin(1), x.amax(1), grid, symmetric=symmetric, rounding="ceil")

    def error(scale: torch.Tensor) -> torch.Tensor:
        return (x - fake_quantize(x, scale[:, None], z[:, None], grid)).double().square().sum(1)

    assert torch.equal(z, same)
    every = torch.stack([error(widest * 0.5**k) for k in range(5)])
    assert torch.equal(error(s), every.amin(0))
    assert bool((s < widest).any())  # heavy tails: clipping pays
    even = torch.linspace(-1, 1, 1000)[None]
    assert search_power_of_two(even, grid, symmetric=True)[0].item() >= 0.125  # evenly spread: it does not


def test_scales_of_the_format_are_powers_of_two() -> None:
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 20)[:, None]
    for rounding in ("nearest", "ceil", "floor", "search"):
        scale, _ = PowerOfTwo(bits=6, rounding=rounding).fit(x)
        assert bool((torch.frexp(scale)[0] == 0.5).all())


def test_refusals() -> None:
    with pytest.raises(InputError, match="scale: a scale that is not positive and finite; expected scales above 0"):
        power_of_two(torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="rounding: 'up'; expected 'nearest', 'ceil' or 'floor'"):
        power_of_two(torch.tensor([1.0]), "up")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rounding: 'up'; expected 'nearest', 'ceil', 'floor' or 'search'"):
        PowerOfTwo(rounding="up")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bits: a width of 17"):
        PowerOfTwo(bits=17)
