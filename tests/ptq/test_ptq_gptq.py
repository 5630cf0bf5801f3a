"""Closed-form rounding: the sheet's vector, where it helps and where it changes nothing, on every kind of layer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bitwright as bw
from bitwright.data.batches import Batches
from bitwright.errors import BitwrightError, InputError, UnsupportedError
from bitwright.execute.program import build
from bitwright.pipeline import State, run_chain
from bitwright.ptq import gptq, second_moments
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.gptq import Gptq, damped, feedback, round_columns, row_errors, shifted
from bitwright.ptq.reading import in_passes

Placed = Callable[..., State]
BatchesOf = Callable[..., Batches]
GENERATOR = np.random.default_rng(59)


def quarters(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.round(x / 0.25).int(), torch.round(x / 0.25) * 0.25


def codes_of(state: State, name: str) -> Tensor:
    """The codes that were chosen."""
    codes = state.encodings[name].codes
    assert codes is not None
    return codes


def correlated(rows: int, columns: int, noise: float) -> Tensor:
    """Rows whose columns are nearly multiples of one another."""
    common = torch.randn(rows, 1) * torch.rand(1, columns).add(0.5)
    return common + noise * torch.randn(rows, columns)


def test_the_vector_of_the_sheet() -> None:
    """w = [.4, .39], s = .25: the second weight makes up for the first."""
    moment = torch.tensor([[[4.0, 2.0], [2.0, 4.0]]])
    stable = damped(moment, 0.01)
    assert torch.allclose(stable, torch.tensor([[[4.04, 2.0], [2.0, 4.04]]], dtype=torch.float64))
    upper = torch.linalg.cholesky(torch.linalg.inv(stable), upper=True)[0]
    assert torch.allclose(upper, torch.tensor([[0.572608, -0.283469], [0, 0.497519]], dtype=torch.float64), atol=1e-6)
    back = feedback(stable)
    assert torch.allclose(back[0, 0, 1].double(), -upper[0, 1] / upper[0, 0]), "the paper's factor of the inverse"
    moved: list[float] = []

    def watched(x: Tensor) -> tuple[Tensor, Tensor]:
        moved.append(x.item())
        return quarters(x)

    weight = torch.tensor([[[0.4, 0.39]]])
    codes, values = round_columns(weight, back, watched)
    assert values.flatten().tolist() == [0.5, 0.25] and codes.flatten().tolist() == [2, 1]
    assert moved == pytest.approx([0.4, 0.340495], abs=1e-6)
    half = moment / 2
    assert row_errors(values - weight, half).item() == pytest.approx(0.0312, abs=1e-6)
    assert row_errors(quarters(weight)[1] - weight, half).item() == pytest.approx(0.0662, abs=1e-6)


def by_the_book(weight: Tensor, stable: Tensor) -> Tensor:
    """Algorithm 1 of the paper, column by column, with the Cholesky factor of the inverse."""
    upper = torch.linalg.cholesky(torch.linalg.inv(stable), upper=True)
    left, values = weight.double().clone(), torch.zeros_like(weight)
    for i in range(weight.shape[1]):
        values[:, i] = quarters(left[:, i].float())[1]
        error = (left[:, i] - values[:, i]) / upper[i, i]
        left[:, i:] -= error[:, None] * upper[i, i:]
    return values


@pytest.mark.parametrize("block", [1, 7, 32, 1000])
def test_it_is_the_papers_algorithm_at_every_block(block: int) -> None:
    x = correlated(400, 70, 0.3)
    stable = damped((x.t() @ x)[None], 0.01)
    weight = torch.randn(5, 70)
    _, values = round_columns(weight[None], feedback(stable), quarters, block=block)
    assert torch.equal(values[0], by_the_book(weight, stable[0]))


def test_columns_without_correlation_are_rounded_to_nearest() -> None:
    weight = torch.randn(2, 3, 9)
    stable = damped(torch.diag_embed(torch.rand(2, 9) + 0.1), 0.01)
    assert torch.equal(round_columns(weight, feedback(stable), quarters)[1], quarters(weight)[1])


@pytest.mark.parametrize(("noise", "most"), [(0.02, 0.1), (1.0, 0.9)])
def test_correlated_columns_make_up_for_one_another(noise: float, most: float) -> None:
    """The stronger the correlation the more: a tenth of the error is left at most where columns are nearly equal."""
    x = correlated(2000, 64, noise)
    moment = (x.t() @ x)[None] / 2000
    weight = torch.randn(1, 16, 64)
    _, values = round_columns(weight, feedback(damped(moment, 0.01)), quarters)
    errors = (row_errors(v - weight, moment).sum() for v in (values, quarters(weight)[1]))
    assert next(errors) < most * next(errors)


def test_zeros_stay_zero_and_dead_columns_are_rounded_to_nearest() -> None:
    x = correlated(100, 6, 0.1)
    x[:, 2] = 0
    weight = torch.randn(1, 4, 6)
    weight[:, :2, 3] = 0
    _, values = round_columns(weight, feedback(damped((x.t() @ x)[None], 0.01)), quarters)
    assert (values[:, :2, 3] == 0).all() and (values[:, 2:, 3] != 0).any()
    assert torch.equal(values[..., 2], quarters(weight[..., 2])[1])


def test_moments_without_a_factor_are_refused() -> None:
    with pytest.raises(InputError, match=r"weight 'w': second moments .* raise gptq.damping"):
        feedback(damped(torch.ones(1, 3, 3), 0.0), "weight 'w'")


def test_the_shifted_target_is_the_best_layer_behind_other_inputs() -> None:
    """Least squares of `W x` in `x^` gives the same weight."""
    x = torch.randn(500, 6).double()
    other = x + 0.3 * torch.randn(500, 6)
    weight = torch.randn(2, 6).double()
    expected = torch.linalg.lstsq(other, x @ weight.t()).solution.t()
    h, c = other.t() @ other, x.t() @ other
    found = shifted(weight.float()[None], h[None], c[None], h[None])
    assert torch.allclose(found[0].double(), expected, atol=1e-5)
    assert torch.equal(shifted(weight[None], h[None], h[None], h[None]).float(), weight.float()[None])


LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv": ((3, 6, 7), (4, 3, 3, 3), {"pads": [1, 0, 2, 1]}),
    "strided": ((3, 7, 6), (4, 3, 3, 2), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilated": ((2, 8, 8), (4, 2, 3, 3), {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    "same": ((2, 7, 7), (4, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "grouped": ((4, 6, 6), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((4, 6, 6), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    "one dimension": ((3, 9), (4, 3, 3), {"strides": [2], "pads": [1, 1]}),
}


def im2col(x: np.ndarray, kernel: tuple[int, ...], settings: dict[str, Any], out: tuple[int, ...]) -> np.ndarray:
    """Rows `[positions, channels * kernel]`, by loops over images, outputs, channels and taps."""
    rank = len(kernel)
    strides, dilations = settings.get("strides", [1] * rank), settings.get("dilations", [1] * rank)
    begin = settings.get("pads", [0] * 2 * rank)[:rank]
    if "auto_pad" in settings:  # the odd one goes to the end
        spans = zip(x.shape[2:], out, strides, kernel, strict=True)
        begin = [max((o - 1) * s + k - n, 0) // 2 for n, o, s, k in spans]
    rows = []
    for image in x:
        for place in itertools.product(*(range(n) for n in out)):
            row = []
            for channel in image:
                for tap in itertools.product(*(range(n) for n in kernel)):
                    at = [
                        p * s + t * d - b for p, s, t, d, b in zip(place, strides, tap, dilations, begin, strict=True)
                    ]
                    inside = all(0 <= a < n for a, n in zip(at, channel.shape, strict=True))
                    row.append(channel[tuple(at)] if inside else 0.0)
            rows.append(row)
    return np.array(rows)


def of_layer(state: State) -> second_moments.Layer:
    (layer,) = Gptq().layers(state)
    return layer


@pytest.mark.parametrize("kind", LAYERS)
def test_moments_of_convolutions(kind: str, placed: Placed, batches_of: BatchesOf, monkeypatch: Any) -> None:
    """Against loops; the layer then multiplies as its convolution does."""
    shape, weight_shape, settings = LAYERS[kind]
    monkeypatch.setattr(second_moments, "CHUNK_BYTES", 4000)  # several chunks
    weight = GENERATOR.standard_normal(weight_shape).astype(np.float32)
    state = placed([("Conv", "x w", "y", settings)], {"w": weight}, shape, "W=4", ends=0)
    x = GENERATOR.standard_normal((5, *shape)).astype(np.float32)
    out = build(state.model, {}).run({"x": torch.from_numpy(x)})["y"]
    layer = of_layer(state)
    rows = im2col(x, weight_shape[2:], settings, tuple(out.shape[2:])).reshape(-1, layer.groups, layer.columns)
    found = torch.cat(list(layer.rows(torch.from_numpy(x), 10**6, torch.Generator())))
    assert torch.equal(found, torch.from_numpy(rows).float()), kind
    product = torch.einsum("rgd,god->rgo", found, layer.matrix(state.tensor("w"))).flatten(1)
    assert torch.allclose(product, out.movedim(1, -1).flatten(0, -2), atol=1e-5)
    summed = second_moments.Moments(layer=layer)
    for part in layer.rows(torch.from_numpy(x), 10**6, torch.Generator()):
        summed.add(part)
    expected = torch.einsum("rga,rgb->gab", found, found) / len(found)
    assert torch.allclose(summed.mean()[0], expected, atol=1e-5)
    fewer = torch.cat(list(layer.rows(torch.from_numpy(x), 2, torch.Generator())))
    assert len(fewer) == 2 * len(x), "two outputs of each image"
    assert all((found == row).all(dim=(1, 2)).any() for row in fewer)


def calibrated(state: State, batches: Batches) -> State:
    return run_chain([Calibrate()], state, batches)


def output_error(state: State, batches: Batches) -> float:
    """Mean square of what rounding the weights alone changes at `y`, over all positions."""
    total = 0.0
    weights = {s: e.dequantize(e.codes_of(state.tensor(s))) for s, e in state.encodings.items() if s in ("w", "v")}
    for batch in batches:
        x = {"x": torch.from_numpy(batch.inputs["x"])}
        plain, rounded = (build(state.model, w).run(x)["y"] for w in ({}, weights))
        total += float(((plain - rounded) ** 2).sum())
    return total


def smooth_images(shape: tuple[int, ...], n: int = 24) -> np.ndarray:
    """Images whose neighbours and channels are alike, and not centred."""
    noise = GENERATOR.standard_normal((n, 1, *(1 for _ in shape[1:])))
    found: np.ndarray = (noise + 0.2 * GENERATOR.standard_normal((n, *shape)) + 1).astype(np.float32)
    return found


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layers_error_falls(kind: str, placed: Placed, batches_of: BatchesOf) -> None:
    """By the convolution itself: strongly on correlated inputs, and the log says how much."""
    shape, weight_shape, settings = LAYERS[kind]
    weight = GENERATOR.standard_normal(weight_shape).astype(np.float32)
    state = placed([("Conv", "x w", "y", settings)], {"w": weight}, shape, "W=4", ends=0)
    images = batches_of(state, smooth_images(shape), batch=8)
    before = calibrated(state, images)
    after = Gptq(rows=10**6)(before, images)
    errors = output_error(before, images), output_error(after, images)
    assert errors[1] < 0.5 * errors[0]
    told = after.log[-1].facts["layer errors"]["w"]
    assert told[1] / told[0] == pytest.approx(errors[1] / errors[0], rel=1e-3)


@pytest.mark.parametrize(("transposed", "tokens"), [(False, False), (True, False), (True, True)])
def test_linear_layers(transposed: bool, tokens: bool, placed: Placed, batches_of: BatchesOf) -> None:
    """Weights `[O, I]` and `[I, O]`, images of one row and of several."""
    shape = (5, 40) if tokens else (40,)
    weight = GENERATOR.standard_normal((40, 6)).astype(np.float32)
    node = ("MatMul", "x w", "y") if transposed else ("Gemm", "x w", "y", {"transB": 1})
    state = placed([node], {"w": weight if transposed else weight.T.copy()}, shape, "W=4", ends=0)
    images = batches_of(state, smooth_images(shape), batch=8)
    before = calibrated(state, images)
    (name,) = [layer.weight for layer in Gptq().layers(before)]
    after = Gptq(act_order=True)(before, images)
    codes = codes_of(after, name)
    assert codes.shape == before.tensor(name).shape
    told = after.log[-1].facts["layer errors"][name]
    assert told[1] < 0.7 * told[0]
    kept = Gptq(rows=2)(before, images)
    assert not tokens or not torch.equal(codes_of(kept, name), codes)


def test_inputs_without_correlation_change_nothing(placed: Placed, batches_of: BatchesOf) -> None:
    state = placed([("Gemm", "x w", "y", {"transB": 1})], {"w": GENERATOR.standard_normal((6, 4))
                   .astype(np.float32)}, (4,), "W=4", ends=0)  # fmt: skip
    images = batches_of(state, np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32))
    before = calibrated(state, images)
    after = Gptq()(before, images)
    assert torch.equal(codes_of(after, "w"), before.encodings["w"].quantize(state.tensor("w")))


def test_taps_that_a_transposed_convolution_lacks_stay_zero(placed: Placed, batches_of: BatchesOf) -> None:
    weight = GENERATOR.standard_normal((3, 4, 3, 3)).astype(np.float32)
    state = placed([("ConvTranspose", "x w", "y", {"strides": [2, 2]})], {"w": weight}, (3, 6, 6), "W=4", ends=0)
    images = batches_of(state, smooth_images((3, 6, 6)))
    before = calibrated(state, images)
    after = Gptq()(before, images)
    (name,) = after.log[-1].facts["layer errors"]
    encoding, old = after.encodings[name], before.tensor(name)
    assert encoding.codes is not None and (old == 0).any()
    assert (encoding.dequantize(encoding.codes)[old == 0] == 0).all()
    assert not torch.equal(encoding.codes, encoding.quantize(old))


@pytest.mark.parametrize("width", ["W=pow2-4", "W=log2-4", "W=codebook-3", "W=apot-4", "W=ternary", "W=binary", "W=2"])
def test_every_format_of_few_bits(width: str, placed: Placed, batches_of: BatchesOf) -> None:
    weight = GENERATOR.standard_normal((4, 3, 3, 3)).astype(np.float32)
    state = placed([("Conv", "x w", "y")], {"w": weight}, (3, 6, 6), width, ends=0)
    images = batches_of(state, smooth_images((3, 6, 6)))
    before = calibrated(state, images)
    after = Gptq(rows=10**6)(before, images)
    assert output_error(after, images) < output_error(before, images)
    same = dataclasses.replace(after.encodings["w"], codes=before.encodings["w"].codes)
    assert torch.equal(same.scale, before.encodings["w"].scale), "scales stay"


TWO = [("Conv", "x w", "a", {"pads": [1, 1, 1, 1]}), ("Relu", "a", "b"), ("Conv", "b v", "y")]


def two_layers(placed: Placed, width: str) -> State:
    constants = {
        "w": GENERATOR.standard_normal((6, 3, 3, 3)).astype(np.float32),
        "v": GENERATOR.standard_normal((4, 6, 3, 3)).astype(np.float32),
    }
    return placed(TWO, constants, (3, 6, 6), width, ends=0)


def test_quantized_inputs_correct_the_error_of_earlier_layers(placed: Placed, batches_of: BatchesOf) -> None:
    """Towards the float network's output, whose error falls; towards the layer's own weight it falls less."""
    state = two_layers(placed, "W=2")
    images = batches_of(state, smooth_images((3, 6, 6), 64), batch=16)
    before = calibrated(state, images)
    errors = [
        output_error(step(before, images), images)
        for step in (Gptq(rows=36), Gptq(rows=36, inputs="quantized", correct_inputs=False),
                     Gptq(rows=36, inputs="quantized"))
    ]  # fmt: skip
    assert errors[2] < 0.9 * min(errors[:2]) and max(errors) < output_error(before, images)


def test_with_exact_inputs_both_kinds_are_one(placed: Placed, batches_of: BatchesOf) -> None:
    """One layer reads the network's input; only its 8 bits stand between."""
    state = placed([("Conv", "x w", "y")], {"w": GENERATOR.standard_normal((4, 3, 1, 1)).astype(np.float32)},
                   (3, 6, 6), "W=4", ends=0)  # fmt: skip
    x = GENERATOR.integers(0, 256, (8, 3, 6, 6)).astype(np.float32)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0, 255  # every value has a code of its own
    images = batches_of(state, x)
    before = calibrated(state, images)
    assert torch.equal(*(codes_of(Gptq(inputs=kind)(before, images), "w") for kind in gptq.INPUTS))


def test_wider_weights_are_left_and_cost_nothing(placed: Placed, batches_of: BatchesOf) -> None:
    state = two_layers(placed, "W=5")
    images = batches_of(state, smooth_images((3, 6, 6)))
    before = calibrated(state, images)
    assert Gptq()(before, None).encodings == before.encodings, "not even data are needed"
    wide = Gptq(most_bits=5)(before, images)
    assert all(wide.encodings[name].codes is not None for name in ("w", "v"))
    with pytest.raises(InputError, match="gptq: no data"):
        Gptq(most_bits=5)(before, None)


def test_passes_are_bounded_and_change_nothing(placed: Placed, batches_of: BatchesOf, monkeypatch: Any) -> None:
    state = two_layers(placed, "W=4")
    images = batches_of(state, smooth_images((3, 6, 6)))
    before = calibrated(state, images)
    layers = Gptq().layers(before)
    most = max(layer.moment_bytes for layer in layers)
    assert [len(group) for group in in_passes(layers)] == [2] and [len(g) for g in in_passes(layers, most)] == [1, 1]
    once = Gptq()(before, images)
    monkeypatch.setattr(gptq, "in_passes", lambda layers: in_passes(layers, most))
    twice = Gptq()(before, images)
    assert (once.log[-1].facts["passes"], twice.log[-1].facts["passes"]) == (1, 2)
    assert all(torch.equal(codes_of(once, n), codes_of(twice, n)) for n in ("w", "v"))


def test_rows_that_are_too_long_are_cut(placed: Placed, batches_of: BatchesOf, monkeypatch: Any) -> None:
    """Correlations between the parts are left out: worse than the whole, better than to nearest."""
    weight = GENERATOR.standard_normal((8, 3, 3, 3)).astype(np.float32)
    state = placed([("Conv", "x w", "y")], {"w": weight}, (3, 6, 6), "W=4", ends=0)
    images = batches_of(state, smooth_images((3, 6, 6)))
    before = calibrated(state, images)
    whole = Gptq()(before, images)
    monkeypatch.setattr(second_moments, "MOST_COLUMNS", 10)
    cut = Gptq()(before, images)
    errors = [output_error(s, images) for s in (whole, cut, before)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"inputs": "floats"}, "gptq.inputs: is 'floats'; expected float or quantized"),
        ({"damping": -0.1}, "gptq.damping: is -0.1"),
        ({"images": 0}, "gptq.images: is 0"),
        ({"rows": 0}, "gptq.rows: is 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(BitwrightError, match=told):
        Gptq(**settings)


def test_weights_of_other_ops_are_named(placed: Placed, batches_of: BatchesOf) -> None:
    weight = GENERATOR.standard_normal((3, 4, 3, 3)).astype(np.float32)
    state = placed([("ConvTranspose", "x w", "y")], {"w": weight}, (3, 6, 6), target="tensorrt")
    images = batches_of(state, smooth_images((3, 6, 6)))
    with pytest.raises(UnsupportedError, match=r"weight 'w': of ConvTranspose in region y.*gptq.most_bits"):
        Gptq(most_bits=8)(calibrated(state, images), images)


@pytest.mark.parametrize(("width", "inputs"), [("W=4,A=8", "float"), ("W=2,A=8", "quantized")])
def test_the_file_is_proven(width: str, inputs: str, assets: Path) -> None:
    calib, digits = assets / "digits_calib.npz", assets / "digits.onnx"
    quantized = bw.quantize(digits, calib, set=[width], steps=[f"gptq.inputs={inputs}"], limit=64)
    rounded = [s for s, e in quantized.state.encodings.items() if e.codes is not None]
    assert rounded
    found = quantized.verify(calib, limit=32)
    assert found.proven and found.mismatches == 0
    nearest = bw.quantize(digits, calib, set=[width], recipe="int8", limit=64)
    noise = [q.evaluate(calib, limit=64).sqnr_db for q in (quantized, nearest)]
    assert noise[0] is not None and noise[1] is not None and noise[0] > noise[1] + 2


def test_the_default_recipe_is_int8_where_nothing_is_narrow(assets: Path) -> None:
    calib, digits = assets / "digits_calib.npz", assets / "digits.onnx"
    plain, fast = bw.quantize(digits, calib, limit=32, recipe="int8"), bw.quantize(digits, calib, limit=32)
    assert [e.step.partition("(")[0] for e in fast.state.log] == ["FoldBatchNorm", "Place", "Calibrate", "Gptq"]
    assert plain.plan == fast.plan and "layer errors" not in fast.state.log[-1].facts
    for site, encoding in plain.state.encodings.items():
        other = fast.state.encodings[site]
        assert torch.equal(encoding.scale, other.scale) and encoding.codes is other.codes is None
