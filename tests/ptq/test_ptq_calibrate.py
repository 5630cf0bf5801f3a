"""Calibration: ranges as computed by hand, one for each group of sites, whatever the size of the batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bitwright as bw
from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.execute.integer import quantized_bias
from bitwright.execute.observe import Watch, observe
from bitwright.lookup import lookup
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import Derived, QSpec
from bitwright.ptq.calibrate import BIAS_LIMIT, Calibrate, fit_bias, sources
from bitwright.ranges import ESTIMATORS

Placed = Callable[..., State]
BatchesOf = Callable[..., Batches]


def f32(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def close(found: torch.Tensor, expected: Any) -> bool:
    """Equal to a part in a million."""
    return bool(torch.allclose(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=0))


# A network that fits on paper: a = [2 x - 1, -x + 0.5], b = relu(a), y = [b0 + 3 b1].

NODES = [
    ("Conv", "x c.weight c.bias", "a"), ("Relu", "a", "b"), ("GlobalAveragePool", "b", "p"), ("Flatten", "p", "f"),
    ("Gemm", "f g.weight", "y", {"transB": 1}),
]  # fmt: skip
WEIGHTS = {
    "c.weight": f32([[[2.0]]], [[[-1.0]]]), "c.bias": f32(-1.0, 0.5), "g.weight": f32([1.0, 3.0]),
}  # fmt: skip
#: Three images of two points; the plane's means of b are [1.5, 0], [0.5, 0.5] and [0, 2.5].
IMAGES = f32([[[0.5, 2.0]]], [[[1.0, -0.5]]], [[[-1.0, -3.0]]])


def test_ranges_are_those_computed_by_hand(placed: Placed, batches_of: BatchesOf) -> None:
    state = placed(NODES, WEIGHTS, (1, 1, 2))
    found = Calibrate()(state, batches_of(state, IMAGES)).encodings
    # x in [-3, 2]: s = 5/255, z = round(3 / s) = 153
    assert close(found["x"].scale, 5 / 255) and int(found["x"].zero_point) == 153
    # b: max(2x - 1) = 3 at x = 2, max(0.5 - x) = 3.5 at x = -3, never below 0
    assert close(found["b"].scale, 3.5 / 255) and int(found["b"].zero_point) == 0
    # p: the largest mean is (1.5 + 3.5) / 2 = 2.5 in the third image
    assert close(found["p"].scale, 2.5 / 255) and int(found["p"].zero_point) == 0
    # y = p0 + 3 p1: 1.5, 0.5 + 1.5, 7.5
    assert close(found["y"].scale, 7.5 / 255) and int(found["y"].zero_point) == 0
    # weights: each channel's own largest value over 127
    assert close(found["c.weight"].scale, [2 / 127, 1 / 127]) and found["c.weight"].zero_point.tolist() == [0, 0]
    assert close(found["g.weight"].scale, [3 / 127])
    assert set(found) == {"x", "b", "p", "y", "c.weight", "g.weight"}


def test_codes_of_weights_are_those_computed_by_hand(placed: Placed, batches_of: BatchesOf) -> None:
    state = placed(NODES, WEIGHTS, (1, 1, 2))
    state = Calibrate()(state, batches_of(state, IMAGES))
    codes = {s: state.encodings[s].codes_of(state.tensor(s)).flatten().tolist() for s in ("c.weight", "g.weight")}
    assert codes == {"c.weight": [127, -127], "g.weight": [42, 127]}  # 127 / 3 = 42.3


# Sites that share an encoding.

JOINED = [("Conv", "x a.weight", "a"), ("Conv", "x b.weight", "b"), ("Concat", "a b", "y", {"axis": 1})]
JOINED_WEIGHTS = {"a.weight": f32([[[1.0]]]), "b.weight": f32([[[-10.0]]])}


@pytest.mark.parametrize(("estimator", "expected"), [("minmax", (-20.0, 10.0)), ("ema", (-20.0, 10.0))])
def test_a_shared_group_takes_the_union(
    estimator: str, expected: tuple[float, float], placed: Placed, batches_of: BatchesOf
) -> None:
    """a in [-1, 2], b in [-20, 10]: each alone would need another grid. One batch: nothing is averaged yet."""
    state = placed(JOINED, JOINED_WEIGHTS, (1, 1, 2))
    x = f32([[[-1.0, 2.0]]])
    found = Calibrate(activations=estimator)(state, batches_of(state, x)).encodings
    scale = (expected[1] - expected[0]) / 255
    assert close(found["y"].scale, scale) and int(found["y"].zero_point) == round(-expected[0] / scale)
    assert "a" not in found and "b" not in found


def test_averages_of_a_group_are_of_its_batches_not_of_its_sites(placed: Placed, batches_of: BatchesOf) -> None:
    state = placed(JOINED, JOINED_WEIGHTS, (1, 1, 2))
    x = f32([[[-1.0, 2.0]]], [[[-3.0, 0.0]]])  # unions [-20, 10] and [-3, 30]
    found = Calibrate(activations="average")(state, batches_of(state, x, batch=1)).encodings["y"]
    assert close(found.scale, (20.0 + 11.5) / 255) and int(found.zero_point) == round(11.5 / (31.5 / 255))


def test_what_repeats_an_encoding_is_not_watched(placed: Placed) -> None:
    pool = {"kernel_shape": [1, 2]}
    nodes = [
        *JOINED[:2],
        ("MaxPool", "a", "p", pool),
        ("MaxPool", "b", "q", pool),
        ("Concat", "p q", "y", {"axis": 1}),
    ]
    state = placed(nodes, JOINED_WEIGHTS, (1, 1, 2))
    assert state.plan is not None
    assert sources(state, state.plan) == {"x": "x", "a": "y", "b": "y"}
    state = placed(nodes, JOINED_WEIGHTS, (1, 1, 2), "y:float")
    assert state.plan is not None
    assert sources(state, state.plan) == {"x": "x", "a": "a", "b": "b"}


def test_pools_keep_the_range_of_what_they_read(placed: Placed, batches_of: BatchesOf) -> None:
    """The pool's own values are in [2, 2], but its codes are those of `a`."""
    nodes = [("Conv", "x a.weight", "a"), ("MaxPool", "a", "y", {"kernel_shape": [1, 2]})]
    state = placed(nodes, {"a.weight": f32([[[1.0]]])}, (1, 1, 2))
    found = Calibrate()(state, batches_of(state, f32([[[-1.0, 2.0]]]))).encodings
    assert close(found["a"].scale, 3 / 255) and "y" not in found


# How the data come.


def encodings_equal(a: State, b: State) -> bool:
    return a.encodings.keys() == b.encodings.keys() and all(
        torch.equal(e.scale, b.encodings[s].scale) and torch.equal(e.zero_point, b.encodings[s].zero_point)
        for s, e in a.encodings.items()
    )


@pytest.fixture(scope="module")
def digits(assets: Path) -> tuple[State, Callable[[int], Batches]]:
    """The digits network with a plan, and 48 images in batches of any size."""
    quantized = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", target="onnxruntime-x64", limit=1)
    data = assets / "digits_calib.npz"
    return dataclasses.replace(quantized.state, encodings={}), lambda batch: quantized._batches(data, batch, 48)


Digits = tuple[State, Callable[[int], Batches]]


@pytest.mark.parametrize("batch", [1, 7, 48])
def test_the_size_of_batches_does_not_matter(batch: int, digits: Digits) -> None:
    state, images = digits
    assert encodings_equal(Calibrate()(state, images(batch)), Calibrate()(state, images(32)))


def test_extremes_alone_give_what_all_values_give(digits: Digits) -> None:
    """Min-max lets the runtime reduce each value to two numbers; here it gets all of them."""
    state, images = digits
    found = Calibrate()(state, images(32))
    assert state.plan is not None
    ranges: dict[str, tuple[float, float]] = {}

    def consume(site: str, values: torch.Tensor) -> None:
        low, high = ranges.get(site, (0.0, 0.0))
        ranges[site] = min(low, float(values.min())), max(high, float(values.max()))

    observe(
        state.model, state.overlay, [Watch(site=s, extremes=False) for s in sources(state, state.plan)], images(32),
        consume,
    )  # fmt: skip
    for site, (low, high) in ranges.items():
        encoding = found.encodings[site]
        assert close(encoding.scale, (high - low) / 255)
        assert int(encoding.zero_point) == round(-low / ((high - low) / 255))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_calibrates_and_always_the_same(name: str, placed: Placed, batches_of: BatchesOf) -> None:
    state = placed(NODES, WEIGHTS, (1, 8, 8))
    images = batches_of(state, np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32))
    step = Calibrate(activations=name, weights=name)
    first, second = step(state, images), step(state, images)
    assert encodings_equal(first, second)
    assert state.plan is not None
    quantized = {s for s, spec in state.plan.sites.items() if isinstance(spec, QSpec)}
    assert set(first.encodings) == quantized
    assert all(bool((e.scale > 0).all() and torch.isfinite(e.scale).all()) for e in first.encodings.values())
    assert not state.encodings, "the old state is as it was"


def test_percentiles_clip_and_reach_their_estimator(digits: Digits) -> None:
    state, images = digits
    whole = Calibrate(activations="minmax")(state, images(64)).encodings
    scales = {}
    for percentile in (99.0, 99.99):
        step = Calibrate(activations="percentile", percentile=percentile)
        scales[percentile] = step(state, images(64)).encodings["relu"].scale
    assert 0.3 * whole["relu"].scale < scales[99.0] < 0.9 * scales[99.99] < whole["relu"].scale


def test_weights_of_few_bits_have_an_estimator_of_their_own(placed: Placed, batches_of: BatchesOf) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 64, 1, 1)).astype(np.float32)
    weight[:, 0] = 6.0  # an outlier, which squared error clips
    x = generator.standard_normal((2, 64, 2, 2)).astype(np.float32)

    def scale(setting: str, **estimators: Any) -> torch.Tensor:
        state = placed([("Conv", "x c.weight", "y")], {"c.weight": weight}, (64, 2, 2), setting, ends=0)
        return Calibrate(**estimators)(state, batches_of(state, x)).encodings["c.weight"].scale

    assert bool((scale("W=4") < scale("W=4", low_bit_weights="minmax")).all())
    assert torch.equal(scale("W=8"), scale("W=8", low_bit_weights="minmax"))
    clipped: dict[str, Any] = {"weights": "percentile", "percentile": 90.0}
    assert bool((scale("W=8", **clipped) < 0.9 * scale("W=8")).all())
    assert torch.equal(scale("W=4", **clipped), scale("W=4"))


# Biases.


@pytest.mark.parametrize("bits", [8, 4])
def test_a_dead_channel_keeps_its_bias_within_int32(bits: int, placed: Placed, batches_of: BatchesOf) -> None:
    """A channel of zeros would get the smallest scale of all, and its bias a code beyond int32."""
    weights = {"c.weight": f32([[[1.0]]], [[[0.0]]], [[[1e-20]]]), "c.bias": f32(0.1, 5.0, -7.0)}
    state = placed([("Conv", "x c.weight c.bias", "y")], weights, (1, 1, 2), f"c:W={bits}")
    x = f32([[[-0.01, 0.02]]])
    encodings = Calibrate()(state, batches_of(state, x)).encodings
    codes = quantized_bias(torch.from_numpy(weights["c.bias"]), encodings["x"], encodings["c.weight"])
    assert codes.abs().max() <= BIAS_LIMIT == 2**30
    assert codes[1:].abs().min() > 2**29, "no coarser than it must be"
    bias_scale = encodings["x"].scale.double() * encodings["c.weight"].scale.double()
    assert torch.allclose(codes * bias_scale, torch.from_numpy(weights["c.bias"]).double(), rtol=1e-5, atol=1e-4)
    assert close(encodings["c.weight"].scale[:1], [1 / 127]) or bits == 4, "the live channel is as it was"


def test_biases_that_fit_leave_the_scale_alone() -> None:
    spec = QSpec(bits=8, signed=True, symmetric=True, narrow=True, axis=0)
    zero = torch.zeros(2, dtype=torch.int32)
    weight = Encoding(spec=spec, scale=torch.tensor([0.01, 1e-8]), zero_point=zero)
    x = Encoding(spec=QSpec(bits=8), scale=torch.tensor(0.5), zero_point=torch.tensor(0, dtype=torch.int32))
    bias = torch.tensor([30.0, -30.0])
    fitted = fit_bias(weight, bias, x.scale)
    assert fitted.scale[0] == weight.scale[0] and fitted.scale[1] > weight.scale[1]
    assert quantized_bias(bias, x, fitted).tolist()[0] == 6000
    assert 0.99 * BIAS_LIMIT < -quantized_bias(bias, x, fitted).tolist()[1] <= BIAS_LIMIT


def test_a_bias_is_fitted_to_the_encoding_that_its_input_shares(placed: Placed, batches_of: BatchesOf) -> None:
    nodes = [("MaxPool", "x", "p", {"kernel_shape": [1, 1]}), ("Conv", "p c.weight c.bias", "y")]
    state = placed(nodes, {"c.weight": f32([[[0.0]]]), "c.bias": f32(1e3)}, (1, 1, 2))
    assert state.plan is not None and state.plan.sites["c.bias"] == Derived("p", "c.weight")
    encodings = Calibrate()(state, batches_of(state, f32([[[-1.0, 1.0]]]))).encodings
    assert quantized_bias(torch.tensor([1e3]), encodings["x"], encodings["c.weight"]).abs().max() <= BIAS_LIMIT


# What goes wrong.


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("site", "told"),
    [("c.weight", "weight 'c.weight': NaN or infinity"), ("c.bias", "'c.bias': NaN or infinity"),
     ("g.weight", "weight 'g.weight': NaN or infinity")],
)  # fmt: skip
def test_bad_constants_are_named(bad: float, site: str, told: str, placed: Placed, batches_of: BatchesOf) -> None:
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights[site].flat[0] = bad
    state = placed(NODES, weights, (1, 1, 2))
    with pytest.raises(InputError, match=told):
        Calibrate()(state, batches_of(state, IMAGES))


@pytest.mark.parametrize("estimator", ["minmax", "percentile"])
def test_values_that_overflow_are_named_with_their_images(
    estimator: str, placed: Placed, batches_of: BatchesOf
) -> None:
    state = placed(NODES, {**WEIGHTS, "c.weight": f32([[[3e38]]], [[[0.0]]])}, (1, 1, 2))
    with pytest.raises(
        InputError, match=r"site 'b': NaN or infinity.* in images .*\[0\] \.\. .*\[1\]; expected finite"
    ):
        Calibrate(activations=estimator)(state, batches_of(state, IMAGES))


def test_calibration_needs_a_plan_and_data(placed: Placed) -> None:
    state = placed(NODES, WEIGHTS, (1, 1, 2))
    with pytest.raises(InputError, match="calibrate: no data; expected images to set activation ranges from; give --"):
        Calibrate()(state)
    with pytest.raises(InputError, match="calibrate: the network has no plan; run the step 'place' before it"):
        Calibrate()(state.but(plan=None))


@pytest.mark.parametrize("field", ["activations", "weights"])
def test_estimators_that_there_are_not(field: str, placed: Placed, batches_of: BatchesOf) -> None:
    state = placed(NODES, WEIGHTS, (1, 1, 2))
    with pytest.raises(
        InputError, match="estimator 'min-max': there is no estimator of this name; did you mean 'minmax'"
    ):
        settings: dict[str, Any] = {field: "min-max"}
        Calibrate(**settings)(state, batches_of(state, IMAGES))
    assert lookup(ESTIMATORS, "minmax", "estimator").help


def test_progress_counts_images(placed: Placed, batches_of: BatchesOf) -> None:
    state = placed(NODES, WEIGHTS, (1, 1, 2))
    told: list[int] = []
    Calibrate()(state, batches_of(state, IMAGES, batch=2), told.append)
    assert told == [2, 1]


def test_the_overlay_is_what_is_calibrated(placed: Placed, batches_of: BatchesOf) -> None:
    state = placed(NODES, WEIGHTS, (1, 1, 2))
    changed = state.but(overlay={"c.weight": torch.tensor([[[[4.0]]], [[[-1.0]]]])})
    found = Calibrate()(changed, batches_of(state, IMAGES)).encodings
    assert close(found["c.weight"].scale, [4 / 127, 1 / 127]) and close(found["b"].scale, 7 / 255)
    assert isinstance(state.model, ir.Model) and not state.encodings
