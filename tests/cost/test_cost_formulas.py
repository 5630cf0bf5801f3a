"""Figures of the papers: what each cost says of layers and networks whose numbers are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.cost.bops import Bops, bit_operations
from bitwright.cost.energy import HOROWITZ, Energy
from bitwright.cost.linear import Linear, linear_cost
from bitwright.cost.macs import Macs
from bitwright.cost.weights import Weights
from bitwright.errors import InputError
from bitwright.pipeline import State

# HAWQ-V3's ResNet-18: 19 layers in order, first and last left out.
WIDE = 115605504
MACS = [
    {**dict.fromkeys((4, 9, 14), WIDE // 2), **dict.fromkeys((6, 11, 16), 6422528)}.get(i, WIDE) for i in range(19)
]
PARAMETERS = [36864] * 4 + [73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824]
PARAMETERS += [1179648, 2359296, 131072, 2359296, 2359296]
BOPS_HALF = [8, 8, 8, 4, 8, 8, 8, 8, 4, 8, 8, 8, 4, 4, 4, 4, 4, 4, 4]
SIZE_HALF = [4 if i in (15, 17, 18) else 8 for i in range(19)]


def bops(bits: list[int]) -> float:
    return sum(bit_operations(macs, b, b) for macs, b in zip(MACS, bits, strict=True))


def mebibytes(bits: list[int]) -> float:
    return sum(n * b for n, b in zip(PARAMETERS, bits, strict=True)) / 8 / 2**20


def test_hawq_v3_configurations_meet_their_budgets_and_have_their_sizes() -> None:
    four, eight = bops([4] * 19), bops([8] * 19)
    assert bops(BOPS_HALF) <= four + (eight - four) * 0.5
    # 8 bits in any further layer with the MACs of most would break it: the budget is used up.
    assert bops([8 if i == 18 else b for i, b in enumerate(BOPS_HALF)]) > four + (eight - four) * 0.5
    assert round(mebibytes(BOPS_HALF), 3) == 5.990
    assert round(mebibytes(SIZE_HALF), 3) == 7.266
    small, large = mebibytes([4] * 19), mebibytes([8] * 19)
    assert mebibytes(SIZE_HALF) <= small + (large - small) * 0.5


@pytest.mark.parametrize(
    ("inner", "ends", "expected"), [(32, 32, 1857.61), (8, 8, 116.10), (4, 4, 29.03), (4, 8, 34.71)]
)
def test_bops_of_resnet18(inner: int, ends: int, expected: float) -> None:
    total, at_ends = 1_814_073_344, 118_013_952 + 512_000
    found = bit_operations(total - at_ends, inner, inner) + bit_operations(at_ends, ends, ends)
    assert round(found / 1e9, 2) == expected


def test_bops_with_accumulation() -> None:
    assert bit_operations(1000, 4, 8, terms=64) == 1000 * (32 + 4 + 8 + 6)


@pytest.mark.parametrize(("inner", "quadratic", "linear"), [(16, 1.0, 1.0), (8, 0.25, 0.5), (4, 0.0680, 0.2573)])
def test_costs_of_the_mostly_4_bit_study(inner: int, quadratic: float, linear: float) -> None:
    total, at_ends, end = 4_089_184_256, 118_013_952 + 2_048_000, max(inner, 8)
    assert bit_operations(total, 16, 16) == 1_046_831_169_536
    found = bit_operations(total - at_ends, inner, inner) + bit_operations(at_ends, end, end)
    assert round(found / bit_operations(total, 16, 16), 4) == quadratic
    found = linear_cost(total - at_ends, inner, inner) + linear_cost(at_ends, end, end)
    assert round(found / linear_cost(total, 16, 16), 4) == linear


@pytest.mark.parametrize(("w", "a", "step"), [(1, 2, 4), (4, 4, 4), (3, 5, 8), (8, 4, 8), (9, 4, 16), (17, 8, 32)])
def test_linear_cost_takes_the_wider_and_rounds_up(w: int, a: int, step: int) -> None:
    assert linear_cost(7, w, a) == linear_cost(7, a, w) == 7 * step


@pytest.mark.parametrize(
    ("settings", "ends", "expected", "ratio"),
    [(("W=8,A=8",), 8, 2.595, 4.0), (("W=4,A=4",), 8, 0.670, 7.97), (("W=2,A=4",), 8, None, 15.81),
     (("W=4,A=4",), 0, 0.649, 8.0)],
)  # fmt: skip
def test_resnet20_has_the_published_costs(
    placed: Callable[..., State], settings: tuple[str, ...], ends: int, expected: float | None, ratio: float
) -> None:
    state = placed("resnet20", *settings, target="anybits", ends=ends)
    assert Macs().of(state) == Macs().reference(state) == 40_551_040
    assert round(Bops().reference(state) / 1e9, 2) == 41.52
    if expected is not None:
        assert round(Bops().of(state) / 1e9, 3) == expected
    assert Weights().reference(state) == 268_336 * 4
    assert round(Weights().reference(state) / Weights().of(state), 2) == ratio


def test_scales_and_biases_are_counted_where_they_are_asked_for(residual: State) -> None:
    assert Weights().of(residual) == (32 + 64) * 7 / 8
    # 8 scales each; no bias.
    assert Weights(parameters=True).of(residual) == (32 + 64) * 7 / 8 + 2 * 8 * 4
    assert Weights(parameters=True).reference(residual) == (32 + 64) * 4


def test_costs_of_a_network_that_is_added_up_by_hand(residual: State) -> None:
    # a: 4 * 8 * 4 = 128 MACs at W7A8, b: 8 * 8 * 4 = 256 at W7A4.
    assert Bops().of(residual) == 128 * 7 * 8 + 256 * 7 * 4
    assert Bops(accumulation=True).of(residual) == 128 * (7 * 8 + 7 + 8 + 2) + 256 * (7 * 4 + 7 + 4 + 3)
    assert Linear().of(residual) == 128 * 8 + 256 * 8
    macs = 128 * (0.2 * 7 * 8 / 64 + 0.1) + 256 * (0.2 * 7 * 4 / 64 + 0.1)
    dram = (32 + 64) * 7 * 20.0
    # x is read once; h written, read by b and the sum; d and s written and read once; y written.
    sram = (16 * 1 * 8 + 32 * 3 * 4 + 32 * 2 * 8 + 32 * 2 * 8 + 32 * 1 * 8) * 5 / 32
    assert Energy().of(residual) == pytest.approx(macs + dram + sram)
    floats = 384 * 4.6 + 96 * 640 + (16 + 96 + 64 + 64 + 32) * 5
    assert Energy().reference(residual) == pytest.approx(floats)


def test_energies_are_those_of_horowitz() -> None:
    energy = Energy()
    assert energy.mac(8, 8) == pytest.approx(0.3) and energy.mac(32, 32) == pytest.approx(4.6)
    assert round(energy.mac(32, 32) / energy.mac(8, 8), 1) == 15.3
    assert energy.mac(4, 4) == pytest.approx(0.2 * 16 / 64 + 0.1)
    assert energy.mac(8, 32) == energy.mac(32, 32)
    assert "Horowitz" in energy.source and "45 nm" in energy.source


def test_the_table_of_energies_can_be_another(tmp_path: Path, residual: State) -> None:
    table = json.loads(HOROWITZ.read_text())
    table["multiply"]["int8"], table["source"] = 0.4, "a process of our own"
    (tmp_path / "own.json").write_text(json.dumps(table))
    own = Energy(table=str(tmp_path / "own.json"))
    assert own.mac(8, 8) == pytest.approx(0.5) and own.source == "a process of our own"
    assert own.of(residual) > Energy().of(residual)
    assert own.reference(residual) == Energy().reference(residual)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON"),
        ("[]", "multiply.int8: is None"),
        ({"multiply": {"int8": "much"}}, "multiply.int8: is 'much'"),
        ({"multiply": {"int8": -1, "float32": 1}}, "multiply.int8: is -1"),
        ({"source": ""}, "does not say its source"),
        ({"unit": "nJ"}, "does not say its source and the unit pJ"),
    ],
)
def test_a_wrong_table_of_energies_is_refused(change: object, told: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    if isinstance(change, str):
        path.write_text(change)
    elif change is not None:
        assert isinstance(change, dict)
        path.write_text(json.dumps(json.loads(HOROWITZ.read_text()) | change))
    with pytest.raises(InputError, match=told):
        Energy(table=str(path))
