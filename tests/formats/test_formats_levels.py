"""Level tables, and the formats made of them: log2, APoT, codebook, binary, ternary."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError, UnsupportedError
from bitwright.formats.affine import Affine
from bitwright.formats.apot import APoT
from bitwright.formats.binary import Binary
from bitwright.formats.codebook import Codebook, best_levels
from bitwright.formats.levels import as_int8, decode_levels, encode_levels, fit_scale, midpoints
from bitwright.formats.log2 import Log2
from bitwright.formats.ternary import Ternary


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def squared_error(number_format: Log2 | APoT | Codebook | Binary | Ternary | Affine, x: Tensor) -> float:
    parameters = number_format.fit(x)
    return (
        (number_format.decode(number_format.encode(x, *parameters), *parameters) - x).double().square().mean().item()
    )


# ---------------------------------------------------------------- tables


def test_nearest_level_by_trying_all() -> None:
    levels = torch.tensor([-100, -7, -1, 0, 3, 4, 50])
    x = normal(2, 500) * 60
    scale = torch.tensor([1.0, 0.7])
    codes = encode_levels(x, scale, midpoints(levels))
    distance = (x[..., None] - levels * scale[:, None, None]).abs()
    torch.testing.assert_close(distance.gather(2, codes.long()[..., None])[..., 0], distance.amin(2))
    assert torch.equal(decode_levels(codes, scale, levels), levels[codes.long()] * scale[:, None])


def test_on_a_boundary_the_level_nearer_to_zero_wins() -> None:
    x = torch.tensor([[-3.0, -1.5, 1.5, 3.0]])
    levels = torch.tensor([-4, -2, -1, 1, 2, 4])
    y = decode_levels(encode_levels(x, torch.ones(1), midpoints(levels)), torch.ones(1), levels)
    assert y.tolist() == [[-2.0, -1.0, 1.0, 2.0]]


def test_fitted_scale_is_the_best_of_its_candidates() -> None:
    levels = torch.tensor(APoT(bits=4).levels)
    boundaries, x = midpoints(levels), normal(3, 400) ** 3
    found = fit_scale(x, levels, boundaries, candidates=25)

    def error(scale: Tensor) -> Tensor:
        return (decode_levels(encode_levels(x, scale, boundaries), scale, levels) - x).double().square().sum(1)

    amax = x.abs().amax(1).double() / 10
    every = torch.stack([error((amax * i / 25).float()) for i in range(1, 26)])
    torch.testing.assert_close(error(found), every.amin(0), rtol=1e-6, atol=0)
    assert bool((found < amax).all())


def test_fitted_scale_does_not_depend_on_chunks_and_prefers_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = torch.tensor(Log2(bits=3).levels)
    x = torch.cat([normal(6, 50), torch.tensor([4.0, 2.0, -1.0] + [0.0] * 47)[None]])
    whole = fit_scale(x, levels, midpoints(levels))
    monkeypatch.setattr("bitwright.formats.levels._CHUNK", 1)
    assert torch.equal(fit_scale(x, levels, midpoints(levels)), whole)
    # u and 2 u with the levels -1, 0, 1 lose u^2 either way: 2 u becomes u, or u (a tie) becomes 0.
    u = torch.linspace(0.01, 3, 50)[:, None]
    ternary = torch.tensor([-1, 0, 1])
    found = fit_scale(
        torch.cat([u, 2 * u, -u, -2 * u], dim=1).repeat(1, 37), ternary, midpoints(ternary), candidates=2
    )
    assert torch.equal(found, u[:, 0])


def test_int8_tables() -> None:
    assert as_int8(Log2(bits=4).levels, "log2").tolist() == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]
    for bits in (2, 3, 4, 5):
        assert as_int8(APoT(bits=bits).levels, "apot").dtype == torch.int8
    with pytest.raises(UnsupportedError, match=r"log2: a level of -?16384; expected levels from -127 to 127; choose"):
        as_int8(Log2(bits=5).levels, "log2")
    with pytest.raises(InputError, match=r"table: levels \[1, 0\]; expected ascending levels, each once"):
        as_int8((1, 0), "table")
    with pytest.raises(InputError, match=r"table: levels \[\]"):
        as_int8((), "table")


# ---------------------------------------------------------------- log2


def test_log2_levels() -> None:
    assert Log2(bits=2).levels == (-1, 0, 1)
    assert Log2(bits=2, signed=False).levels == (0, 1, 2, 4)
    assert Log2(bits=4, signed=False).levels == (0, *(2**k for k in range(15)))


def test_log2_rounds_in_the_logarithm_or_linearly() -> None:
    x = torch.tensor([[0.3, 0.49, 0.51, 0.70, 0.71, 1.41, 1.42, 1.49, 1.51, 2.8, 2.9, 3.1, 100.0]])
    one = torch.ones(1)
    logarithmic, linear = Log2(bits=3), Log2(bits=3, rounding="linear")
    assert logarithmic.decode(logarithmic.encode(x, one), one).tolist() == [[0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 4, 4, 4]]
    assert linear.decode(linear.encode(x, one), one).tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 4, 4]]


def test_log2_is_the_published_rule_away_from_zero() -> None:
    x = normal(1, 2000).abs() + 0.01
    scale = torch.tensor([2.0**-8])
    y = Log2(bits=5).decode(Log2(bits=5).encode(x, scale), scale)
    published = torch.exp2(torch.round(torch.log2(x.double())).clamp(-8, 6)).float()
    assert torch.equal(y, published)


def test_linear_rounding_is_nearer_and_log_rounding_has_the_smaller_ratio() -> None:
    x, scale = torch.linspace(1, 60, 5000)[None], torch.ones(1)
    log, linear = (
        f.decode(f.encode(x, scale), scale)
        for f in (Log2(bits=4, signed=False), Log2(bits=4, signed=False, rounding="linear"))
    )
    assert (linear - x).square().mean() < (log - x).square().mean()
    ratio = [torch.log2(y / x).abs().max().item() for y in (log, linear)]
    assert ratio[0] <= 0.5 + 1e-6 < ratio[1]


def test_log2_refusals() -> None:
    for bits, signed, expected in (
        (1, True, "2 to 6"),
        (7, True, "2 to 6"),
        (6, False, "1 to 5"),
        (True, False, "1 to 5"),
    ):
        with pytest.raises(InputError, match=f"log2 bits: a width of {bits}; expected {expected}"):
            Log2(bits=bits, signed=signed)
    with pytest.raises(InputError, match="log2 rounding: 'up'; expected 'log' or 'linear'"):
        Log2(rounding="up")  # type: ignore[arg-type]


# ---------------------------------------------------------------- APoT


def test_apot_levels_are_the_published_sums() -> None:
    # In units of the paper: p + q, divided by the smallest power.
    three = {p + q for p in (0, 1 / 2, 1 / 4, 1 / 16) for q in (0, 1 / 8)}
    four = {p + q for p in (0, 1 / 2, 1 / 8, 1 / 32) for q in (0, 1 / 4, 1 / 16, 1 / 64)}
    assert [level for level in APoT(bits=4).levels if level >= 0] == sorted(16 * m for m in three)
    assert [level for level in APoT(bits=5).levels if level >= 0] == sorted(64 * m for m in four)
    assert APoT(bits=3).levels == (-4, -2, -1, 0, 1, 2, 4)
    assert APoT(bits=2).levels == (-1, 0, 1)


def test_apot_beats_powers_of_two_and_evenly_spaced_levels_on_bell_shaped_weights() -> None:
    x = normal(4, 5000)
    errors = [squared_error(f, x) for f in (APoT(bits=5), Log2(bits=5), Affine(bits=5, signed=True, narrow=True))]
    assert errors[0] == min(errors)
    # The other direction: on evenly spread values even spacing wins.
    even = torch.linspace(-1, 1, 5000)[None]
    assert squared_error(Affine(bits=5, signed=True, narrow=True), even) < squared_error(APoT(bits=5), even)


@pytest.mark.parametrize("bits", [1, 6, 4.5, True])
def test_apot_refuses_other_widths(bits: int) -> None:
    with pytest.raises(InputError, match=rf"apot bits: a width of {bits}; expected 2 to 5"):
        APoT(bits=bits)


# ---------------------------------------------------------------- codebook


@pytest.mark.parametrize("count", [1, 2, 3])
def test_codebook_is_the_optimum(count: int) -> None:
    x = (normal(20, seed=count) * 3).clamp(-6, 6)
    every = [torch.tensor(c) for c in itertools.combinations(range(-6, 7), count)]

    def error(levels: Tensor) -> float:
        return (x[:, None].double() - levels).square().amin(1).sum().item()

    found = best_levels(x, count)
    assert error(found) == pytest.approx(min(error(c) for c in every), rel=1e-9)
    assert found.dtype == torch.int8 and found.numel() == count


def test_codebook_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(500) * 40
    whole = best_levels(x.clamp(-127, 127), 8)
    monkeypatch.setattr("bitwright.formats.codebook._CHUNK", 7)
    assert torch.equal(best_levels(x.clamp(-127, 127), 8), whole)


def test_codebook_finds_a_mixture() -> None:
    x = torch.cat([c + 0.01 * normal(1, 50, seed=i) for i, c in enumerate((-1.0, -0.2, 0.1, 0.9))], dim=1)
    scale, levels = Codebook(bits=2).fit(x)
    torch.testing.assert_close(levels * scale, torch.tensor([-1.0, -0.2, 0.1, 0.9]), atol=0.01, rtol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codebook_loses_less_than_any_fixed_table_of_its_width(bits: int) -> None:
    x = normal(4, 3000) ** 3
    others: list[APoT | Log2 | Affine] = [APoT(bits=bits), Log2(bits=bits), Affine(bits=bits, signed=True)]
    assert squared_error(Codebook(bits=bits), x) < min(squared_error(f, x) for f in others)


@pytest.mark.parametrize("bits", [0, 8, 2.0, True])
def test_codebook_refuses_other_widths(bits: int) -> None:
    with pytest.raises(InputError, match=rf"codebook bits: a width of {bits}; expected 1 to 7"):
        Codebook(bits=bits)


# ---------------------------------------------------------------- binary and ternary


def test_binary_is_the_least_squares_fit() -> None:
    x = normal(3, 101)
    x[0, 0] = 0.0
    (alpha,) = Binary().fit(x)
    torch.testing.assert_close(alpha, x.abs().mean(1))
    y = Binary().decode(Binary().encode(x, alpha), alpha)
    assert y[0, 0] == alpha[0]  # sign(0) = +1
    error = (x - y).square().sum(1)
    for factor in (0.99, 1.01):
        assert bool(((x - factor * y).square().sum(1) > error).all())


def test_ternary_by_the_formula() -> None:
    x = normal(2, 1000) * torch.tensor([[1.0], [5.0]])
    alpha, delta = Ternary().fit(x)
    torch.testing.assert_close(delta, 0.7 * x.abs().mean(1))
    for i in range(2):
        torch.testing.assert_close(alpha[i], x[i][x[i].abs() > delta[i]].abs().mean())
    y = Ternary().decode(Ternary().encode(x, alpha, delta), alpha, delta)
    assert torch.equal(y != 0, x.abs() > delta[:, None])
    assert torch.equal(y.sign(), x.sign() * (y != 0))


def test_ternary_on_the_threshold_is_zero() -> None:
    x = torch.tensor([[1.5, 0.5, -0.5, 1.0, -1.5]])
    number_format = Ternary(threshold=0.5)
    alpha, delta = number_format.fit(x)
    assert delta.item() == 0.5
    assert number_format.encode(x, alpha, delta).tolist() == [[2, 1, 1, 2, 0]]


def test_ternary_loses_less_than_binary_and_than_min_max_of_two_bits() -> None:
    x = normal(3, 2000)
    errors = [squared_error(f, x) for f in (Ternary(), Binary(), Affine(bits=2, signed=True, narrow=True))]
    assert errors[0] == min(errors)


def test_the_ternary_threshold_is_near_the_best_for_normal_weights() -> None:
    x = normal(1, 20_000)
    errors = {t: squared_error(Ternary(threshold=t), x) for t in (0.3, 0.5, 0.7, 0.9)}
    assert min(errors, key=lambda t: errors[t]) == 0.7


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_ternary_refuses_other_thresholds(threshold: float) -> None:
    with pytest.raises(InputError, match=rf"ternary threshold: {threshold}; expected 0 or more and below 1"):
        Ternary(threshold=threshold)
