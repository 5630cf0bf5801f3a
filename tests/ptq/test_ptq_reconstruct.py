"""The engine of reconstruction: roundings and steps, cached rows, units, budgets, resuming, diverging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import QSpec
from bitwright.ptq.adaquant import AdaQuant
from bitwright.ptq.adaround import AdaRound
from bitwright.ptq.brecq import BRECQ
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.ptq.qdrop import QDrop
from bitwright.ptq.reconstruct import engine
from bitwright.ptq.reconstruct.activations import LearnedStep
from bitwright.ptq.reconstruct.learn import learn
from bitwright.ptq.reconstruct.loss import output_error as output_error_of
from bitwright.ptq.reconstruct.loss import prediction_difference
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.moments_error import moments_error
from bitwright.ptq.reconstruct.rows import Budget, Rows
from bitwright.ptq.reconstruct.rows_error import rows_error
from bitwright.ptq.reconstruct.soft import SoftRounding
from bitwright.ptq.second_moments import layer_of
from bitwright.ptq.tune_biases import TuneBiases
from bitwright.verbs.preparing import data_for
from bitwright.verbs.terminal import Terminal

IMAGES = 48
QUICK: dict[str, Any] = {"iterations": 60, "images": 32, "batch": 16}


def network() -> nn.Module:
    torch.manual_seed(5)
    made = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    for parameter in made.parameters():  # so that values, and errors beside the regulariser, are of order one
        parameter.data.mul_(3.0)
    return made


def images() -> np.ndarray:
    """Smooth, so that neighbouring inputs of a convolution go together, as in pictures."""
    coarse = torch.randn(IMAGES, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear").numpy()


@pytest.fixture(scope="module")
def calibrated() -> State:
    data = {"input": images()}
    return bw.quantize(network(), data, example=torch.zeros(2, 2, 8, 8), set=["W=3,A=4"], ends=0, recipe="int8").state


@pytest.fixture(scope="module")
def batches(calibrated: State) -> Batches:
    return data_for(calibrated.model, {"input": images()}, Terminal())


def outputs(state: State, reference: State) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(images())
    with torch.no_grad():
        return float_program(reference).module(x)[0], simulated_program(state).module(x)[0]


def output_error(expected: torch.Tensor, y: torch.Tensor) -> float:
    return float((y - expected).square().mean())


def layer_errors(state: State, reference: State) -> list[float]:
    """Of each layer's output, weights alone quantized, everything before it in float."""
    assert state.plan is not None
    x, found = torch.from_numpy(images()), []
    sites = [s for s in state.plan.sites if state.plan.qspec(s) is not None]
    for weight in (s for s in sites if s in state.model.graph.initializers):
        region = next(r for r, members in state.plan.regions.items() if weight in members)
        off = {s: nn.Identity() for s in state.plan.sites if s != weight}
        output = state.plan.regions[region][-1]
        with torch.no_grad():
            y = simulated_program(state, outputs=[output], quantizers=off).module(x)[0]
            found.append(float((y - float_program(reference, outputs=[output]).module(x)[0]).square().mean()))
    return found


# --- rounding and steps


def grid(bits: int = 3) -> Encoding:
    spec = QSpec(bits=bits, signed=False)
    return Encoding(spec=spec, scale=torch.tensor(0.1), zero_point=torch.tensor(3, dtype=torch.int32))


def test_a_weight_begins_where_it_is_and_ends_at_a_neighbour() -> None:
    weight = torch.linspace(-0.6, 0.7, 41)
    rounding = SoftRounding(weight, grid(), 0.01)
    inside = (weight > -0.3) & (weight < 0.4)
    assert torch.allclose(rounding(weight)[inside], weight[inside], atol=1e-6)
    codes = rounding.rounded().codes
    assert codes is not None
    assert torch.equal(codes[~inside], grid().quantize(weight)[~inside])  # beyond the grid: its ends
    with torch.no_grad():
        rounding.v.copy_(torch.where(torch.arange(41) % 2 == 0, 9.0, -9.0))
    codes = rounding.rounded().codes
    assert codes is not None
    assert float((grid().dequantize(codes) - weight)[inside].abs().max()) <= 0.1 + 1e-6
    assert rounding.settled() and rounding.undecided() == 0.0


def test_levels_of_a_table_are_rounded_to_the_levels_on_either_side() -> None:
    levels = torch.tensor([-4, -2, -1, 0, 1, 2, 4], dtype=torch.int32)
    spec = QSpec(bits=3, format="log2")
    table = Encoding(spec=spec, scale=torch.tensor(1.0), zero_point=torch.tensor(0), levels=levels)
    rounding = SoftRounding(torch.tensor([2.5, -3.9, 0.3, 5.0]), table, 0.01)
    assert torch.allclose(rounding(torch.zeros(4)), torch.tensor([2.5, -3.9, 0.3, 4.0]), atol=1e-5)
    assert rounding.rounded().codes is not None
    assert table.dequantize(rounding.rounded().codes).tolist() == [2.0, -4.0, 0.0, 4.0]  # type: ignore[arg-type]


def test_the_regulariser_enters_by_its_gradient() -> None:
    weight = torch.tensor([0.02, 0.05, 0.13, 0.27])
    rounding = SoftRounding(weight, grid(), 0.5)
    rounding.beta = 3.0
    rounding(weight).square().sum().backward()
    v = rounding.v.detach().clone().requires_grad_(True)
    h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
    told = (rounding.value + rounding.gap * h).square().sum() + 0.5 * (1 - (2 * h - 1).abs() ** 3.0).sum()
    told.backward()
    assert rounding.v.grad is not None and v.grad is not None
    assert torch.allclose(rounding.v.grad, v.grad, atol=1e-6)


def test_steps_have_the_gradients_of_lsq() -> None:
    spec = QSpec(bits=2, signed=True)
    encoding = Encoding(spec=spec, scale=torch.tensor(0.5), zero_point=torch.tensor(0))
    for value, quantized, to_step, to_value in (
        (-3.0, -1.0, -2.0, 0.0), (-0.9, -1.0, -0.2, 1.0), (-0.3, -0.5, -0.4, 1.0), (0.24, 0.0, -0.48, 1.0),
        (0.26, 0.5, 0.48, 1.0), (0.8, 0.5, 1.0, 0.0),
    ):  # fmt: skip
        step = LearnedStep(encoding, learned=True)
        x = torch.tensor([value], requires_grad=True)
        y = step(x)
        y.sum().backward()
        assert step.step.grad is not None and x.grad is not None
        assert y.item() == pytest.approx(quantized) and x.grad.item() == to_value
        assert step.step.grad.item() == pytest.approx(to_step / 3**0.5, rel=1e-5)  # g = 1 / sqrt(1 * 3)


def test_rows_in_a_file_are_those_in_memory() -> None:
    values = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0))
    budget = Budget(limit=0)
    for encoding in (None, grid(8)):
        inside, outside = Rows(7, (3, 2), Budget(), encoding), Rows(7, (3, 2), budget, encoding)
        for rows in (inside, outside):
            rows.write(0, values[:4])
            rows.write(4, values[4:])
        index = torch.tensor([5, 0, 5, 6])
        assert torch.equal(inside[index], outside[index])
        expected = values if encoding is None else encoding.fake_quantize(values)
        assert torch.equal(inside[index], expected[index])
    assert budget.used == 0 and budget.spilled == 7 * 6 * (4 + 1)


# --- methods


def test_learned_rounding_lowers_the_error_of_every_layer(calibrated: State, batches: Batches) -> None:
    method = Method(name="adaround", inputs="float", iterations=300, images=32, batch=16)
    rounded = engine.reconstruct(calibrated, batches, method)
    before, after = layer_errors(calibrated, calibrated), layer_errors(rounded, calibrated)
    assert all(b <= a * 1.02 for a, b in zip(before, after, strict=True)), (before, after)
    assert sum(after) < 0.7 * sum(before)
    for site, encoding in rounded.encodings.items():
        if encoding.codes is not None:  # each weight at one of the two codes beside it
            real = encoding.dequantize(encoding.codes) - calibrated.tensor(site)
            scale, _ = encoding.parameters(real)
            near = (encoding.codes > 0) & (encoding.codes < encoding.spec.grid.qmax)
            assert float((real.abs() / scale)[near].max()) <= 1.001


def test_where_inputs_are_independent_nearest_is_best_and_kept(batches: Batches) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(2, 4, 1))
    signs = torch.randint(0, 2, (64, 2, 4, 4), generator=torch.Generator().manual_seed(2)) * 2.0 - 1
    data = {"input": signs.numpy()}
    state = bw.quantize(layer, data, example=signs[:2], set=["W=3"], ends=0, recipe="int8").state
    rounded = AdaRound(iterations=400, images=64)(state, data_for(state.model, data, Terminal()))
    (weight,) = (s for s, e in rounded.encodings.items() if e.codes is not None)
    nearest = state.encodings[weight].quantize(state.tensor(weight))
    assert torch.equal(rounded.encodings[weight].codes, nearest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "step",
    [
        AdaRound(**QUICK),
        BRECQ(**QUICK, step_iterations=30),
        QDrop(**QUICK),
        AdaQuant(iterations=60, images=32, batch=16, rate=1e-3, step_rate=1e-2),
        TuneBiases(iterations=60, images=32, batch=16),
    ],
    ids=lambda step: type(step).__name__,
)
def test_methods_lower_the_error_of_the_output(step: Any, calibrated: State, batches: Batches) -> None:
    error = prediction_difference if isinstance(step, TuneBiases) else output_error
    assert error(*outputs(step(calibrated, batches), calibrated)) < error(*outputs(calibrated, calibrated))


def test_leaving_nothing_out_is_joint_and_leaving_all_out_learns_weights_alone(
    calibrated: State, batches: Batches
) -> None:
    few: dict[str, Any] = {"iterations": 20, "images": 16, "batch": 8}
    joint = engine.reconstruct(
        calibrated, batches,
        Method(name="joint", unit="block", activations=True, learn_steps=True, **few),
    )  # fmt: skip
    kept = QDrop(keep=1.0, **few)(calibrated, batches)
    for site, encoding in joint.encodings.items():
        assert torch.equal(encoding.scale, kept.encodings[site].scale)
        assert encoding.codes is None or torch.equal(encoding.codes, kept.encodings[site].codes)  # type: ignore
    nothing = QDrop(keep=0.0, **few)(calibrated, batches)
    assert all(torch.equal(e.scale, calibrated.encodings[s].scale) for s, e in nothing.encodings.items())


@pytest.mark.parametrize("strides, pads", [(1, 1), (2, 0)])
def test_the_error_of_rows_is_that_of_the_output(strides: int, pads: int) -> None:
    torch.manual_seed(3)
    layer = nn.Sequential(nn.Conv2d(3, 5, 3, stride=strides, padding=pads), nn.ReLU6())
    x = torch.randn(6, 3, 7, 6) * 3
    state = bw.quantize(layer, {"input": x.numpy()}, example=x[:2], set=["W=3"], ends=0, recipe="int8").state
    data = data_for(state.model, {"input": x.numpy()}, Terminal())
    walk = engine._Walk(state, data, Method(name="adaround", batch=4))
    walk._enter(None)
    walk._pass_float(walk.units[0])
    work = walk._work(0)
    (region,) = work.unit.regions
    found = []
    for loss in (output_error_of(work), rows_error(work, layer_of(region))):
        (rounding,) = work.weights.values()
        error = loss(torch.tensor([4, 0, 5]))
        (gradient,) = torch.autograd.grad(error, list(rounding.groups().values()))
        found.append((error.detach(), gradient))
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5, abs=1e-9)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_the_error_of_moments_is_that_of_the_output_over_all_images(calibrated: State, batches: Batches) -> None:
    """Of the last layer, which no activation follows."""
    walk = engine._Walk(calibrated, batches, Method(name="adaround", batch=16))
    walk._enter(None)
    for unit in walk.units:
        walk._pass_float(unit)
        walk._pass_quantized(unit)
    work = walk._work(len(walk.units) - 1)
    (rounding,) = work.weights.values()
    (v,) = rounding.groups().values()
    by_images = output_error_of(work)(torch.arange(len(work.target)))
    (gradient,) = torch.autograd.grad(by_images, v)
    by_moments = moments_error(work).step()
    assert by_moments == pytest.approx(float(by_images.detach()), rel=1e-3, abs=1e-5)
    assert v.grad is not None and float(gradient.abs().max()) > 0
    assert torch.allclose(v.grad, gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()))


def test_reconstruction_needs_the_float_biases(calibrated: State) -> None:
    for step in (AdaRound, AdaQuant, BRECQ, QDrop):
        assert step.clashes == {"corrected biases"}


# --- budgets, resuming, diverging


def test_rows_beyond_the_memory_give_the_same_result(
    calibrated: State, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = AdaRound(**QUICK)(calibrated, batches)
    monkeypatch.setattr(engine._Walk, "_budget", lambda self: 0)
    outside = AdaRound(**QUICK)(calibrated, batches)
    facts = outside.log[-1].facts
    assert facts["spilled"] > 0 and inside.log[-1].facts["spilled"] == 0
    for site, encoding in inside.encodings.items():
        assert encoding.codes is None or torch.equal(encoding.codes, outside.encodings[site].codes)  # type: ignore


def test_too_little_memory_says_the_least(calibrated: State, batches: Batches) -> None:
    with pytest.raises(
        InputError, match=r"adaround.memory: is 1MiB; expected at least \d+\.\d+GiB, which the process and 1 images"
    ):
        AdaRound(**QUICK, memory="1MiB")(calibrated, batches)


def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(
    calibrated: State, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = QDrop(**QUICK)(calibrated, batches)
    calls: list[Any] = []

    def killed(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return learn(*given)

    monkeypatch.setattr(engine, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        QDrop(**QUICK, work=str(tmp_path))(calibrated, batches)
    resumed = QDrop(**QUICK, work=str(tmp_path))(calibrated, batches)
    learned = len(unbroken.log[-1].facts["units"])
    assert len(calls) == 3 + learned - 2  # two units were finished
    for site, encoding in unbroken.encodings.items():
        assert torch.equal(encoding.scale, resumed.encodings[site].scale)
        assert encoding.codes is None or torch.equal(encoding.codes, resumed.encodings[site].codes)  # type: ignore
    with pytest.raises(InputError, match="finished units of another network, data or settings"):
        QDrop(**{**QUICK, "iterations": 61}, work=str(tmp_path))(calibrated, batches)


def test_a_unit_that_diverges_keeps_its_rounding_and_is_named(
    calibrated: State, batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    found = AdaQuant(iterations=5, images=16, batch=8, bias_rate=1e38)(calibrated, batches)
    diverged = found.log[-1].facts["diverged"]
    assert diverged and f"the loss of unit {diverged[0]} became" in caplog.text
    assert "keeps the rounding that it had" in caplog.text
    assert calibrated.plan is not None
    for unit in diverged:
        for site in set(calibrated.plan.regions[unit]).intersection(calibrated.model.graph.initializers):
            assert site not in found.encodings or found.encodings[site].codes is None


def test_bad_settings_and_data(calibrated: State, batches: Batches) -> None:
    with pytest.raises(InputError, match=r"adaround.iterations: is 0; expected a whole number from 1 on"):
        AdaRound(iterations=0)(calibrated, batches)
    with pytest.raises(InputError, match=r"adaround.memory: is '4 apples'"):
        AdaRound(memory="4 apples")(calibrated, batches)
    with pytest.raises(InputError, match="adaround: no data; expected at least 2 images"):
        AdaRound()(calibrated, None)
    with pytest.raises(InputError, match="adaround: 1 image; expected at least 2 images"):
        AdaRound()(calibrated, batches.take(1))
    with pytest.raises(InputError, match="run the steps 'place' and 'calibrate' before it"):
        AdaRound()(calibrated.but(encodings={}), batches)
    with pytest.raises(InputError, match=r"adaquant.inputs: is 'both'; expected quantized or float"):
        AdaQuant(inputs="both")(calibrated, batches)
