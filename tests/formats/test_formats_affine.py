from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import (
    SMALLEST_SCALE,
    Affine,
    dequantize,
    fake_quantize,
    quantize,
    scale_and_zero_point,
)
from bitwright.formats.granularity import PerAxis, PerTensor

GRIDS = [
    (Affine(bits=b, signed=signed, narrow=narrow), symmetric)
    for b in range(1, 17)
    for signed, narrow in ((False, False), (True, False), (True, True))
    for symmetric in (False, True)
    if not (narrow and b < 2) and not (symmetric and not signed and b == 1)
]
EXHAUSTIVE = [case for case in GRIDS if case[0].bits <= 8]


def name(case: tuple[Affine, bool]) -> str:
    grid, symmetric = case
    sign = "narrow" if grid.narrow else "signed" if grid.signed else "unsigned"
    return f"{sign}{grid.bits}-{'symmetric' if symmetric else 'asymmetric'}"


finite = st.floats(-1e6, 1e6, width=32)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Low and high ends of three rows: any sign, any size, one-sided and empty ones too."""
    ends = torch.tensor(draw(st.lists(st.tuples(finite, finite), min_size=3, max_size=3)))
    return ends.amin(1), ends.amax(1)


def samples(scale: Tensor, zero_point: Tensor, grid: Affine) -> Tensor:
    """Points of each row, sorted, from below the grid to above it: quarter steps and everything near an edge."""
    codes = torch.linspace(grid.qmin - 3.0, grid.qmax + 3.0, 4 * 61 + 1)
    points = (codes[None] - zero_point[:, None]) * scale[:, None]
    return torch.cat([points, torch.nextafter(points, torch.tensor(0.0))], dim=1).sort(1).values


# ---------------------------------------------------------------- the grid


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "qmin", "qmax"),
    [
        (1, False, False, 0, 1),
        (1, True, False, -1, 0),
        (2, True, True, -1, 1),
        (4, False, False, 0, 15),
        (8, True, False, -128, 127),
        (8, True, True, -127, 127),
        (16, False, False, 0, 65535),
        (16, True, False, -32768, 32767),
    ],
)
def test_codes(bits: int, signed: bool, narrow: bool, qmin: int, qmax: int) -> None:
    grid = Affine(bits=bits, signed=signed, narrow=narrow)
    assert (grid.qmin, grid.qmax) == (qmin, qmax)


@pytest.mark.parametrize("bits", [0, 17, -3, 4.0, True])
def test_width_is_refused(bits: int) -> None:
    with pytest.raises(InputError, match=r"bits: a width of .*; expected a whole number from 1 to 16"):
        Affine(bits=bits, signed=True)


def test_narrow_is_refused() -> None:
    with pytest.raises(InputError, match=r"narrow: an unsigned grid; expected a signed grid"):
        Affine(bits=8, signed=False, narrow=True)
    with pytest.raises(InputError, match=r"narrow: 1 bit, which leaves the code 0 alone; expected 2 bits or more"):
        Affine(bits=1, signed=True, narrow=True)


# ---------------------------------------------------------------- scale and zero point


@pytest.mark.parametrize(
    ("lo", "hi", "bits", "scale", "zero_point"),
    [
        (-1.0, 1.0, 8, 0.00784314, 128),
        (-0.5, 3.0, 4, 0.2333333, 2),
        (0.2, 5.1, 8, 0.02, 0),
        (-3.0, 6.0, 8, 0.03529412, 85),
    ],
)
def test_asymmetric_vectors(lo: float, hi: float, bits: int, scale: float, zero_point: int) -> None:
    s, z = scale_and_zero_point(
        torch.tensor([lo]), torch.tensor([hi]), Affine(bits=bits, signed=False), symmetric=False
    )
    assert s.item() == pytest.approx(scale, rel=5e-7)
    assert z.item() == zero_point
    assert (s.dtype, z.dtype) == (torch.float32, torch.int32)


@pytest.mark.parametrize(
    ("grid", "scale", "zero_point"),
    [
        (Affine(bits=8, signed=True, narrow=True), 2.54 / 127, 0),
        (Affine(bits=2, signed=True, narrow=True), 2.54, 0),
        (Affine(bits=8, signed=True), 5.08 / 255, 0),
        (Affine(bits=1, signed=True), 5.08, 0),
        (Affine(bits=8, signed=False), 2.54 / 127, 128),
        (Affine(bits=4, signed=False), 2.54 / 7, 8),
    ],
)
@pytest.mark.parametrize(("lo", "hi"), [(-2.54, 1.0), (0.3, 2.54), (-2.54, -0.1)])
def test_symmetric_takes_the_larger_magnitude(
    lo: float, hi: float, grid: Affine, scale: float, zero_point: int
) -> None:
    s, z = scale_and_zero_point(torch.tensor(lo), torch.tensor(hi), grid, symmetric=True)
    assert s.item() == pytest.approx(scale, rel=2e-7)
    assert z.item() == zero_point
    assert s.shape == z.shape == ()


def test_one_sided_ranges_keep_their_zero_end() -> None:
    lo, hi = torch.tensor([0.5, -8.0]), torch.tensor([4.0, -2.0])
    s, z = scale_and_zero_point(lo, hi, Affine(bits=4, signed=False), symmetric=False)
    assert z.tolist() == [0, 15]
    torch.testing.assert_close(s, torch.tensor([4.0, 8.0]) / 15)
    assert scale_and_zero_point(lo, hi, Affine(bits=4, signed=True), symmetric=False)[1].tolist() == [-8, 7]


def test_the_scale_is_rounded_once_from_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    hi = torch.rand(10_000, generator=generator)
    s, _ = scale_and_zero_point(-hi / 3, hi, Affine(bits=8, signed=False), symmetric=False)
    assert torch.equal(s, ((hi.double() - (-hi / 3).double()) / 255).float())


@pytest.mark.parametrize("case", GRIDS, ids=name)
def test_scales_of_empty_and_of_huge_ranges_are_normal(case: tuple[Affine, bool]) -> None:
    grid, symmetric = case
    top = torch.finfo(torch.float32).max
    lo, hi = torch.tensor([0.0, -1e-30, -top]), torch.tensor([0.0, 1e-30, top])
    s, z = scale_and_zero_point(lo, hi, grid, symmetric=symmetric)
    assert s[:2].tolist() == [torch.tensor(SMALLEST_SCALE).item()] * 2
    assert bool(torch.isfinite(s).all())
    assert bool((z >= grid.qmin).all() and (z <= grid.qmax).all())


def test_bad_ranges_are_refused() -> None:
    grid = Affine(bits=8, signed=True)
    with pytest.raises(InputError, match=r"low ends \[2\], high ends \[3\]; expected the same shape"):
        scale_and_zero_point(torch.zeros(2), torch.ones(3), grid, symmetric=True)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="an end that is NaN or infinity"):
            scale_and_zero_point(torch.zeros(1), torch.tensor([bad]), grid, symmetric=False)
    with pytest.raises(InputError, match="1 unsigned bit, which has no code on either side of zero"):
        scale_and_zero_point(torch.zeros(1), torch.ones(1), Affine(bits=1, signed=False), symmetric=True)


# ---------------------------------------------------------------- codes and values


def test_vectors() -> None:
    grid = Affine(bits=8, signed=False)
    s, z = scale_and_zero_point(torch.tensor(-1.0), torch.tensor(1.0), grid, symmetric=False)
    # -1 / s is 127.5 in exact arithmetic, code 0; the float32 scale is a little larger than 2 / 255, code 1.
    x = torch.tensor([-1.0, 0.0, -0.26, 1.0, 1.2])
    assert quantize(x, s, z, grid).tolist() == [1, 128, 95, 255, 255]
    expected = torch.tensor([-0.996078, 0, -0.258824, 0.996078, 0.996078])
    torch.testing.assert_close(fake_quantize(x, s, z, grid), expected, atol=1e-6, rtol=0)
    grid = Affine(bits=4, signed=False)
    s, z = scale_and_zero_point(torch.tensor(-0.5), torch.tensor(3.0), grid, symmetric=False)
    assert quantize(torch.tensor([-0.5, 0, 0.795, 3, 3.6]), s, z, grid).tolist() == [0, 2, 5, 15, 15]


def test_ties_go_to_the_even_multiple_before_the_zero_point_is_added() -> None:
    grid = Affine(bits=4, signed=False)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantize(x, torch.tensor(1.0), torch.tensor(5), grid).tolist() == [5, 7, 7, 5, 3]


def test_division_not_reciprocal() -> None:
    s = torch.tensor(0.037)
    x = (torch.arange(2000) + 0.5) * s  # near the ties, where one unit in the last place decides
    quotient, product = torch.round(x / s), torch.round(x * (1 / s))
    assert not torch.equal(quotient, product)
    assert torch.equal(quantize(x, s, torch.tensor(0), Affine(bits=16, signed=False)).float(), quotient)


def test_infinity_saturates() -> None:
    x = torch.tensor([float("inf"), -float("inf"), 3e38, -3e38])
    s, z = torch.tensor(1e-8), torch.tensor(-3)
    assert quantize(x, s, z, Affine(bits=8, signed=True)).tolist() == [127, -128, 127, -128]


@pytest.mark.parametrize("case", EXHAUSTIVE, ids=name)
def test_every_code_survives_the_way_to_its_value_and_back(case: tuple[Affine, bool]) -> None:
    grid, symmetric = case
    lo = torch.tensor([-1.7, -3e-5, 0.0, -900.0, 0.0])
    hi = torch.tensor([0.9, 7e-5, 6.0, 0.0, 0.0])
    s, z = (t[:, None] for t in scale_and_zero_point(lo, hi, grid, symmetric=symmetric))
    codes = torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int32).expand(5, -1)
    assert torch.equal(quantize(dequantize(codes, s, z), s, z, grid), codes)


def test_every_16_bit_code_survives() -> None:
    for signed in (False, True):
        grid = Affine(bits=16, signed=signed)
        s, z = scale_and_zero_point(torch.tensor(-0.37), torch.tensor(1.9), grid, symmetric=False)
        codes = torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int32)
        assert torch.equal(quantize(dequantize(codes, s, z), s, z, grid), codes)


@pytest.mark.parametrize("case", GRIDS, ids=name)
@settings(max_examples=10, deadline=None)
@given(data=ranges())
def test_projection(case: tuple[Affine, bool], data: tuple[Tensor, Tensor]) -> None:
    """Idempotent, monotone, zero exact, codes on the grid, error at most half a step inside the range."""
    grid, symmetric = case
    scale, zero_point = scale_and_zero_point(*data, grid, symmetric=symmetric)
    x = samples(scale, zero_point, grid)
    s, z = scale[:, None], zero_point[:, None]
    q = quantize(x, s, z, grid)
    y = dequantize(q, s, z)
    assert q.dtype == torch.int32 and int(q.min()) >= grid.qmin and int(q.max()) <= grid.qmax
    assert torch.equal(fake_quantize(x, s, z, grid), y)
    assert torch.equal(quantize(y, s, z, grid), q)
    assert bool((q.diff(dim=1) >= 0).all())
    assert torch.equal(fake_quantize(torch.zeros(3, 1), s, z, grid), torch.zeros(3, 1))
    low, high = dequantize(torch.tensor(grid.qmin), s, z), dequantize(torch.tensor(grid.qmax), s, z)
    error = (x - y).abs()
    inside = (x >= low) & (x <= high)
    # The quotient and the product are rounded to float32: one unit in the last place of each.
    slack = 2.0**-22 * torch.maximum(x.abs(), y.abs())
    assert bool((error <= s / 2 + slack)[inside].all())
    outside = torch.where(x < low, low - x, x - high)
    assert bool((error <= outside + s / 2 + slack)[~inside].all())
    assert bool((q == grid.qmin)[(x < low)].all() and (q == grid.qmax)[x > high].all())


# One symmetric signed bit is left out: it has the codes -1 and 0 alone.
@pytest.mark.parametrize("case", [c for c in GRIDS if c != (Affine(bits=1, signed=True), True)], ids=name)
@settings(max_examples=8, deadline=None)
@given(data=ranges())
def test_the_range_is_covered_up_to_half_a_step(case: tuple[Affine, bool], data: tuple[Tensor, Tensor]) -> None:
    grid, symmetric = case
    s, z = scale_and_zero_point(*data, grid, symmetric=symmetric)
    lo, hi = data[0].clamp(max=0), data[1].clamp(min=0)
    # (2^b - 1) / 2 = 127.5 steps of half-range symmetric rounding, and the nudge of z, cost half a step each.
    slack = 0.5 * s + 1e-6 * torch.maximum(-lo, hi)
    assert bool((dequantize(torch.tensor(grid.qmin), s, z) <= lo + slack).all())
    assert bool((dequantize(torch.tensor(grid.qmax), s, z) >= hi - slack).all())


@pytest.mark.parametrize("case", GRIDS, ids=name)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_is_a_loop_of_per_tensor(case: tuple[Affine, bool], axis: int) -> None:
    grid, symmetric = case
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(axis))
    granularity = PerAxis(axis)
    rows = granularity.rows(x)
    scale, zero_point = scale_and_zero_point(rows.amin(1), rows.amax(1), grid, symmetric=symmetric)
    together = quantize(x, granularity.expand(scale, x), granularity.expand(zero_point, x), grid)
    for i, channel in enumerate(x.unbind(axis)):
        alone = PerTensor()
        row = alone.rows(channel)
        s, z = scale_and_zero_point(row.amin(1), row.amax(1), grid, symmetric=symmetric)
        q = quantize(channel, alone.expand(s, channel), alone.expand(z, channel), grid)
        assert torch.equal(together.select(axis, i), q)
        assert s.item() == scale[i].item()


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("case", GRIDS, ids=name)
def test_gradients_leave_the_values_alone_and_mask_clipped_codes(case: tuple[Affine, bool]) -> None:
    grid, symmetric = case
    lo, hi = torch.tensor([-0.7, 0.0, -2.0]), torch.tensor([1.3, 5.0, 0.0])
    scale, zero_point = scale_and_zero_point(lo, hi, grid, symmetric=symmetric)
    s, z = scale[:, None], zero_point[:, None]
    x = samples(scale, zero_point, grid).requires_grad_()
    y = fake_quantize(x, s, z, grid)
    assert torch.equal(y, dequantize(quantize(x.detach(), s, z, grid), s, z))
    y.sum().backward()
    code = torch.round(x.detach() / s) + z
    assert x.grad is not None
    assert torch.equal(x.grad, ((code >= grid.qmin) & (code <= grid.qmax)).float())


def test_gradients_are_those_of_torch() -> None:
    grid = Affine(bits=4, signed=True)
    s, z = torch.tensor(0.25), torch.tensor(2, dtype=torch.int32)  # a power of two: the reciprocal is exact
    ours = torch.linspace(-4, 4, 333).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    fake_quantize(ours, s, z, grid).sum().backward()
    torch.fake_quantize_per_tensor_affine(theirs, 0.25, 2, grid.qmin, grid.qmax).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_a_scale_that_requires_a_gradient_gets_the_learned_step_size_gradient() -> None:
    grid = Affine(bits=2, signed=True)
    x = torch.tensor([-3.0, -0.9, -0.3, 0.24, 0.26, 5.0])
    s = torch.full((6,), 0.5, requires_grad=True)
    z = torch.zeros(6, requires_grad=True)
    y = fake_quantize(x, s, z, grid)
    y.sum().backward()
    assert y.tolist() == [-1.0, -1.0, -0.5, 0.0, 0.5, 0.5]
    assert s.grad is not None and z.grad is not None
    torch.testing.assert_close(s.grad, torch.tensor([-2.0, -0.2, -0.4, -0.48, 0.48, 1.0]))
    torch.testing.assert_close(z.grad, torch.tensor([-0.5, 0, 0, 0, 0, -0.5]))


def test_a_buffer_takes_the_values_and_no_gradients() -> None:
    grid, s, z = Affine(bits=4, signed=True), torch.tensor(0.3), torch.tensor(1)
    x = torch.linspace(-4, 4, 50)
    buffer = torch.empty(50)
    assert fake_quantize(x, s, z, grid, out=buffer) is buffer
    assert torch.equal(buffer, fake_quantize(x, s, z, grid))
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        fake_quantize(x.requires_grad_(), s, z, grid, out=buffer)


def test_the_input_is_not_written_to() -> None:
    x = torch.tensor([0.3, -7.0])
    kept = x.clone()
    grid = Affine(bits=4, signed=True)
    quantize(x, torch.tensor(1.0), torch.tensor(0), grid)
    fake_quantize(x, torch.tensor(1.0), torch.tensor(0), grid)
    assert torch.equal(x, kept)
