"""Every method of reconstruction: what it writes is served code by code, and the claim of its paper, both ways."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.pipeline import BatchNorm, State
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import QSpec
from bitwright.ptq import STEPS
from bitwright.ptq.admm import ADMM
from bitwright.ptq.aquant import AQuant
from bitwright.ptq.attention_round import AttentionRound
from bitwright.ptq.easyquant import EasyQuant
from bitwright.ptq.flexround import FlexRound
from bitwright.ptq.nwq import NWQ
from bitwright.ptq.pd_quant import PDQuant
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.ptq.qdrop import QDrop
from bitwright.ptq.rapq import RAPQ
from bitwright.ptq.reconstruct.activations import BorderedBias, Coin, LearnedStep
from bitwright.ptq.reconstruct.alternate import nearest_multiple
from bitwright.ptq.reconstruct.anneal import AnnealingRounding
from bitwright.ptq.reconstruct.attend import AttentionRounding
from bitwright.ptq.reconstruct.correct import distance_from_statistics
from bitwright.ptq.reconstruct.divide import DividedRounding
from bitwright.ptq.reconstruct.exponents import ExponentRounding, LearnedExponent
from bitwright.ptq.reconstruct.multipliers import AlternatingRounding
from bitwright.verbs.preparing import data_for
from bitwright.verbs.quantized import Quantized
from bitwright.verbs.terminal import Terminal

ASSETS = Path(__file__).parents[1] / "assets"
QUICK: dict[str, Any] = {"iterations": 60, "images": 32, "batch": 16}
#: Steps that learn, with what makes their default settings quick.
METHODS = [
    name for name, row in STEPS.items() if {"iterations", "rounds"} & set(row.load().__dataclass_fields__)
]  # fmt: skip


# --- what is written, by every method


@cache
def digits(*settings: str) -> State:
    data = dict(np.load(ASSETS / "digits_calib.npz"))
    return bw.quantize(str(ASSETS / "digits.onnx"), {"image": data["image"]}, set=settings, limit=32).state


def quick(name: str, **more: Any) -> Any:
    """A step at a few iterations and images, every part of it at work."""
    row = STEPS[name].load()
    settings = {
        "iterations": 10,
        "step_iterations": 10,
        "correction": 2,
        "images": 16,
        "batch": 16,
        "candidates": 4,
        **more,
    }
    return row(**{key: value for key, value in settings.items() if key in row.__dataclass_fields__})


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_writes_is_served_code_by_code(name: str) -> None:
    state = digits("W=pow2-3,A=pow2-4" if name == "rapq" else "W=3,A=4")
    test = np.load(ASSETS / "digits.npz")["image"]
    batches = data_for(state.model, {"image": test[:16]}, Terminal())
    found = quick(name)(state, batches)
    assert any(
        (e.codes is not None) or not torch.equal(e.scale, state.encodings[s].scale)
        for s, e in found.encodings.items()
    ) or found.overlay != state.overlay  # fmt: skip
    assert Quantized(state=found).verify({"image": test[:4]}).proven


# --- a small network


def network() -> nn.Module:
    torch.manual_seed(5)
    made = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    for parameter in made.parameters():  # so that values, and errors beside the regulariser, are of order one
        parameter.data.mul_(3.0)
    made(images())  # statistics of its batch norm
    return made.eval()


def images() -> Tensor:
    coarse = torch.randn(48, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")


@cache
def calibrated(setting: str = "W=2,A=4") -> State:
    data = {"input": images().numpy()}
    example = torch.zeros(2, 2, 8, 8)
    return bw.quantize(network(), data, example=example, recipe="int8", set=[setting], ends=0).state


def batches() -> Batches:
    return data_for(calibrated().model, {"input": images().numpy()}, Terminal())


def outputs(state: State) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return float_program(calibrated()).module(images())[0], simulated_program(state).module(images())[0]


def error(state: State) -> float:
    expected, y = outputs(state)
    return float((y - expected).square().mean() / expected.square().mean())


@pytest.mark.parametrize(
    ("step", "setting"),
    [
        (PDQuant(**QUICK, correction=0), "W=2,A=4"), (FlexRound(**QUICK, rate=1e-2), "W=2,A=4"),
        (AttentionRound(**QUICK), "W=2,A=4"), (NWQ(**QUICK, rate=5e-2), "W=2,A=4"),
        (AQuant(**QUICK), "W=2,A=4"), (ADMM(**QUICK), "W=2,A=4"),
        (RAPQ(**QUICK, step_iterations=30), "W=pow2-3,A=pow2-4"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)  # fmt: skip
def test_each_gives_less_error_than_rounding_to_nearest(step: Any, setting: str) -> None:
    state = calibrated(setting)
    assert error(step(state, batches())) < 0.8 * error(state)


def same(first: State, second: State) -> bool:
    return all(
        torch.equal(e.scale, second.encodings[s].scale)
        and torch.equal(e.zero_point, second.encodings[s].zero_point)
        and (e.codes is None) == (second.encodings[s].codes is None)
        and (e.codes is None or torch.equal(e.codes, second.encodings[s].codes))  # type: ignore[arg-type]
        for s, e in first.encodings.items()
    )


def test_without_prediction_and_correction_pd_quant_is_qdrop() -> None:
    settings = {**QUICK, "iterations": 20}
    plain = PDQuant(**settings, correction=0, prediction_weight=0.0, rate=0.1)(calibrated(), batches())
    assert same(plain, QDrop(**settings, rate=0.1)(calibrated(), batches()))
    with_prediction = PDQuant(**settings, correction=0, prediction_weight=10.0, rate=0.1)(calibrated(), batches())
    assert not same(plain, with_prediction)
    moved = PDQuant(**settings, correction=5, prediction_weight=0.0, rate=0.1)(calibrated(), batches())
    assert not same(plain, moved)


def test_easyquant_turns_outputs_back_and_finds_nothing_to_do_at_8_bits() -> None:
    state = calibrated("W=3,A=4")
    found = EasyQuant(images=16, candidates=12, rounds=2)(state, batches())
    before, after = found.log[-1].facts["cosine"]
    assert 1 - after < 0.97 * (1 - before)
    again = EasyQuant(images=16, candidates=12, rounds=1, narrowest=0.999, widest=1.001)(found, batches())
    assert again.log[-1].facts["cosine"][1] >= after - 1e-6
    assert all(torch.equal(e.zero_point, found.encodings[s].zero_point) for s, e in state.encodings.items())
    fine = calibrated("W=7,A=8")
    before, after = EasyQuant(images=16, candidates=5, rounds=1)(fine, batches()).log[-1].facts["cosine"]
    assert 0.999 < before <= after + 1e-6
    with pytest.raises(InputError, match="narrowest"):
        EasyQuant(narrowest=2.0, widest=1.0)


# --- distribution correction


def test_statistics_are_those_of_the_unfolded_batch_norm() -> None:
    u = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    bn = BatchNorm(
        gamma=torch.tensor([2.0, -0.5]), beta=torch.tensor([1.0, 3.0]), mean=torch.tensor([0.3, -0.2]),
        var=torch.tensor([4.0, 0.25]), eps=0.0,
    )  # fmt: skip
    y = nn.functional.batch_norm(u, bn.mean, bn.var, bn.gamma, bn.beta, eps=0.0)
    flat = u.flatten(2)
    spread = (flat.var(2, correction=0) + 1e-6).sqrt()
    expected = ((flat.mean(2) - bn.mean).square() + (spread - bn.var.sqrt()).square()).sum() / 3
    assert torch.allclose(distance_from_statistics(y, bn), expected, rtol=1e-4)


def test_a_channel_that_says_nothing_and_a_map_of_one_position_are_no_nan() -> None:
    bn = BatchNorm(gamma=torch.zeros(1), beta=torch.ones(1), mean=torch.ones(1), var=torch.ones(1), eps=0.0)
    assert float(distance_from_statistics(torch.ones(2, 1, 3), bn)) == 0
    y = torch.ones(2, 1, 1, 1, requires_grad=True)
    distance_from_statistics(y, dataclasses.replace(bn, gamma=torch.ones(1))).backward()
    assert y.grad is not None and torch.isfinite(y.grad).all()


def test_correction_comes_nearer_to_the_statistics_the_less_it_must_stay() -> None:
    from bitwright.ptq.reconstruct.correct import corrected
    from bitwright.ptq.reconstruct.method import Method
    from bitwright.ptq.reconstruct.rows import Budget, Rows
    from bitwright.ptq.reconstruct.units import find_units

    state = calibrated()
    unit = find_units(state.model, "block")[0]
    x = images()[:16] * 2 + 1
    rows = {"input": Rows(16, (2, 8, 8), Budget())}
    name = unit.output.name or ""
    rows["input"].write(0, x)
    y = float_program(state, inputs=["input"], outputs=[name]).module(x)[0]
    rows[name] = Rows(16, tuple(y.shape[1:]), Budget())
    rows[name].write(0, y)
    found = []
    for closeness in (0.0, 1e4):
        method = Method(name="pd_quant", correction=40, correction_rate=1e-2, closeness=closeness)
        moved = corrected(state, unit, rows, method, [torch.arange(10), torch.arange(10, 16)], Budget())
        assert moved is not None
        found.append((moved.after / moved.before, float((moved.floats["input"][torch.arange(16)] - x).abs().mean())))
        given = float_program(state, inputs=["input"], outputs=[name]).module(moved.floats["input"][torch.arange(16)])
        assert torch.allclose(moved.output[torch.arange(16)], given[0], atol=1e-5)
    (free, far), (held, near) = found
    assert free < 0.8 and free < held <= 1.01 and near < far


# --- roundings


def grid(bits: int = 3, *, axis: int | None = None, format: str = "affine") -> Encoding:
    spec = QSpec(bits=bits, axis=axis, format=format)
    scale = torch.tensor(0.125) if axis is None else torch.tensor([0.125, 0.25])
    return Encoding(spec=spec, scale=scale, zero_point=torch.full_like(scale, 3, dtype=torch.int32))


WEIGHT = torch.linspace(-0.6, 0.9, 36).reshape(2, 2, 3, 3)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("kind", [DividedRounding, AnnealingRounding, AttentionRounding, AlternatingRounding])
def test_a_rounding_begins_near_the_weight_and_ends_on_its_grid(kind: Any, axis: int | None) -> None:
    encoding = grid(axis=axis)
    settings = {"spread": 0.0} if kind is AttentionRounding else {}
    rounding = kind(WEIGHT, encoding, 0.01, **settings)
    scale, _ = encoding.parameters(WEIGHT)
    inside = encoding.quantize(WEIGHT).clamp(1, 6) == encoding.quantize(WEIGHT)
    away = ((rounding(WEIGHT).detach() - WEIGHT) / scale)[inside].abs()
    assert float(away.max()) <= (0.501 if kind in (DividedRounding, AttentionRounding) else 0.05)
    found = rounding.rounded()
    assert found.codes is not None and found.codes.dtype == torch.int32 and found.codes.shape == WEIGHT.shape
    assert int(found.codes.min()) >= 0 and int(found.codes.max()) <= 7
    if kind is not AlternatingRounding:  # at the beginning all are rounded to nearest
        assert torch.equal(found.codes, encoding.quantize(WEIGHT))
    rounding.time = 1.0
    if kind is AnnealingRounding:
        assert torch.allclose(rounding(WEIGHT), found.dequantize(found.codes), atol=0.02)


def test_division_moves_large_weights_more_and_past_their_neighbours() -> None:
    weight = torch.tensor([[0.1, 0.4]])
    rounding = DividedRounding(weight, dataclasses.replace(grid(8), scale=torch.tensor(0.01)))
    rounding(weight).sum().backward()
    gradient = rounding.factor.grad
    assert gradient is not None and float(gradient[0, 1] / gradient[0, 0]) == pytest.approx(4.0)
    with torch.no_grad():
        rounding.factor[0, 1] = 0.1
    codes = rounding.rounded().codes
    assert codes is not None and codes.tolist() == [[13, 3 + 36]]  # 0.4 / e^0.1 = 0.362, from 40


def test_attention_draws_near_codes_more_often_and_each_run_the_same() -> None:
    weight = torch.full((4000,), 0.125 * 2)
    drawn = AttentionRounding(weight, grid(4), spread=0.5, seed=1).rounded().codes
    again = AttentionRounding(weight, grid(4), spread=0.5, seed=1).rounded().codes
    other = AttentionRounding(weight, grid(4), spread=0.5, seed=2).rounded().codes
    assert drawn is not None and again is not None and other is not None
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)
    share = [float((drawn == 5 + k).float().mean()) for k in (0, 1, 2)]
    assert share == pytest.approx([0.6827, 0.1573, 0.0013], abs=0.02)


def test_annealing_leaves_out_codes_beyond_the_grid() -> None:
    rounding = AnnealingRounding(torch.tensor([-9.0, 9.0]), grid(), 0.0)
    with torch.no_grad():
        rounding.v.copy_(torch.tensor([[9.0, 8.0], [0.0, 0.0], [0.0, 9.0], [0.0, 9.0]]))
    assert rounding.rounded().codes is not None
    assert rounding.rounded().codes.tolist() == [0, 6]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("grid_", "start", "scale", "codes", "error_"),
    [
        (Affine(bits=4, signed=True, narrow=True), 1.3 / 8.75, 0.186076, [5, -1, 2, -7, 0], 0.009684),
        (Affine(bits=2, signed=True, narrow=True), 0.58, 0.883333, [1, 0, 1, -1, 0], 0.404167),
    ],
)
def test_scale_and_codes_by_turns(
    grid_: Affine, start: float, scale: float, codes: list[int], error_: float
) -> None:  # fmt: skip
    w = torch.tensor([[0.9, -0.2, 0.45, -1.3, 0.05]])
    a, q = nearest_multiple(w, torch.tensor([[start]]), torch.zeros(1), grid_)
    assert float(a) == pytest.approx(scale, abs=1e-6) and q.tolist() == [codes]
    assert float((w - a * q).square().sum()) == pytest.approx(error_, abs=1e-6)


def test_the_best_start_wins_and_zeros_keep_their_scale() -> None:
    w = torch.cat([torch.linspace(-1, 1, 50), torch.tensor([6.0])])[None]
    signed = Affine(bits=3, signed=True, narrow=True)
    starts = torch.tensor([[6.0 / 3], [0.3], [0.05]])
    alone = [nearest_multiple(w, s[None], torch.zeros(1), signed) for s in starts]
    errors = [float((w - a[:, None] * q).square().sum()) for a, q in alone]
    a, q = nearest_multiple(w, starts, torch.zeros(1), signed)
    assert float((w - a[:, None] * q).square().sum()) == min(errors) < max(errors)
    a, q = nearest_multiple(torch.zeros(1, 4), torch.tensor([[0.5]]), torch.zeros(1), signed)
    assert float(a) == 0.5 and q.tolist() == [[0, 0, 0, 0]]


def test_exponents_are_whole_whatever_was_learned() -> None:
    encoding = grid(3, axis=0, format="pow2")
    rounding = ExponentRounding(WEIGHT, encoding, 0.01, settle=0.5)
    with torch.no_grad():
        rounding.exponent.copy_(torch.tensor([3.0, -3.0]))
    rounding(WEIGHT).sum().backward()
    assert rounding.exponent.grad is not None
    rounding.time = 0.5
    rounding(WEIGHT).square().sum().backward()
    found = rounding.rounded()
    assert torch.equal(torch.log2(found.scale), torch.round(torch.log2(found.scale)))
    assert float(found.scale[0] / found.scale[1]) in (1.0, 2.0, 4.0) and found.codes is not None
    step = LearnedExponent(grid(4, format="pow2"), learned=True)
    assert float(step.moved().scale) == 0.125 and int(step.moved().zero_point) == 3
    with torch.no_grad():
        step.step.sub_(3)
    assert float(step.moved().scale) == 0.0625 and int(step.moved().zero_point) == 6
    step.time, x = 1.0, torch.linspace(-1, 2, 50)
    assert torch.equal(step(x), step.moved().fake_quantize(x))
    step(x).square().sum().backward()
    assert step.step.grad is not None


# --- activations


def test_a_coin_may_change() -> None:
    coin = Coin(0.5, torch.Generator().manual_seed(0))
    coin.keep = 1.0
    assert bool(coin(torch.empty(100)).all())
    coin.keep = 0.0
    assert not bool(coin(torch.empty(100)).any())


def test_a_border_is_a_part_of_the_bias() -> None:
    """`ceil(v / s - B)` of a layer with a ReLU is what it gives with another bias, rounded to nearest."""
    encoding = Encoding(spec=QSpec(bits=4), scale=torch.tensor(0.25), zero_point=torch.tensor(0))
    step = LearnedStep(encoding, learned=True)
    bias = BorderedBias(torch.zeros(3), step, shared=False)
    assert torch.equal(bias(torch.ones(3)), torch.ones(3))
    borders = torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad():
        bias.shift.copy_(torch.logit(borders))
    v = torch.linspace(-1, 5, 997)[:, None].expand(-1, 3)
    expected = torch.ceil(v.clamp(min=0) / 0.25 - borders).clamp(0, 15) * 0.25
    assert torch.equal(step((v + bias(torch.zeros(3))).clamp(min=0)), expected)
    assert BorderedBias(torch.zeros(3), step, shared=True).change().shape == (3,)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (AQuant(border="function"), "cannot be served"), (NWQ(coldest=0.0), "nwq.coldest"),
        (AttentionRound(spread=-1.0), "attention_round.spread"), (ADMM(turns=0), "admm.turns"),
        (RAPQ(settle=2.0), "rapq.settle"), (RAPQ(), "powers of two"), (PDQuant(temperature=0.0), "temperature"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)  # fmt: skip
def test_what_cannot_be_is_said(step: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        step(calibrated(), batches())
