"""Scans, looks at layers, findings: on networks whose fault is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bitwright import quantize
from bitwright.data.opening import open_data
from bitwright.errors import InputError, UnsupportedError
from bitwright.pipeline import State, run_chain
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.diagnosis.findings import CAUSES, Finding, findings, remedies
from bitwright.ptq.diagnosis.layers import ActivationLook, Layer, WeightLook, channel_look, look
from bitwright.ptq.diagnosis.scan import SAME_DB, Measured, Scan, SiteScan, scan
from bitwright.ptq.diagnosis.switches import Switched
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.recipes.remedies import REMEDIES

Nodes = list[tuple[Any, ...]]
NODES: Nodes = [
    ("Conv", "x w1 b1", "c1", {"pads": [1, 1, 1, 1]}), ("Relu", "c1", "r1"), ("Conv", "r1 w2", "c2"),
    ("Relu", "c2", "r2"), ("GlobalAveragePool", "r2", "g"), ("Flatten", "g", "f"),
    ("Gemm", "f w3", "y", {"transB": 1}),
]  # fmt: skip


def constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w1": (5, 3, 3, 3), "b1": (5,), "w2": (7, 5, 1, 1), "w3": (4, 7)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


IMAGES = np.random.default_rng(1).normal(size=(11, 3, 6, 6)).astype(np.float32)


@pytest.fixture
def calibrated(placed: Callable[..., State], batches_of: Any) -> Callable[..., State]:
    """`calibrated(*widths, constants=...)`: the small network, placed and calibrated on IMAGES."""

    def make(*widths: str, values: Mapping[str, np.ndarray] | None = None, **settings: Any) -> State:
        state = placed(NODES, values or constants(), (3, 6, 6), *widths)
        return run_chain([Calibrate(**settings)], state, batches_of(state, IMAGES, 4))

    return make


def test_switches_off_is_float_and_on_is_the_simulation(calibrated: Any) -> None:
    state = calibrated("W=4,A=4")
    x, switched = {"x": torch.from_numpy(IMAGES)}, Switched(state)
    switched.turn(())
    assert torch.equal(switched.run(x)[0][0], float_program(state).run(x)["y"])
    switched.turn(switched.sites)
    assert torch.equal(switched.run(x)[0][0], simulated_program(state).run(x)["y"])
    assert switched.weights == ("w1", "w2", "w3") and set(switched.activations) >= {"x", "r1", "r2", "y"}


def test_a_run_that_goes_on_from_another_gives_what_a_whole_one_gives(calibrated: Any) -> None:
    x, switched = {"x": torch.from_numpy(IMAGES)}, Switched(calibrated("W=4,A=4"))
    for start in ((), switched.sites):
        switched.turn(start)
        _, before = switched.run(x)
        for site in switched.sites:
            switched.turn(set(switched.sites) - {site} if start else (site,))
            kept = switched.unchanged(before, site)
            assert 0 < len(kept) < len(before)
            assert torch.equal(switched.run(x, kept)[0][0], switched.run(x)[0][0]), site


def test_a_bias_goes_with_its_weight(calibrated: Any) -> None:
    state = calibrated()
    coarse = {**state.encodings, "x": dataclasses.replace(state.encodings["x"], scale=torch.tensor(3.0))}
    switched = Switched(state.but(encodings=coarse), outputs=("c1",))  # bias steps of three times those of the weight
    x = {"x": torch.zeros(1, 3, 6, 6)}
    switched.turn(())
    off = switched.run(x)[0][0]
    switched.turn({"w1"})
    assert not torch.equal(switched.run(x)[0][0], off)
    switched.turn({"w2"})
    assert torch.equal(switched.run(x)[0][0], off)


def test_the_scan_measures_what_its_formulas_say(calibrated: Any, batches_of: Any) -> None:
    state = calibrated("W=4,A=4")
    found = scan(state, batches_of(state, IMAGES, 4))
    x = {"x": torch.from_numpy(IMAGES)}
    y, q = float_program(state).run(x)["y"].double(), simulated_program(state).run(x)["y"].double()
    assert found.images == 11
    assert found.both.sqnr_db == pytest.approx(float(10 * torch.log10(y.square().sum() / (y - q).square().sum())))
    p = y.softmax(1)
    assert found.both.kl == pytest.approx(float((p * (y.log_softmax(1) - q.log_softmax(1))).sum() / 11), rel=1e-6)
    assert found.both.accuracy is None and found.float_accuracy is None
    assert found.sound and found.bypassed.sqnr_db > 100
    switched = Switched(state)
    assert [row.only.sqnr_db for row in found.sites] == sorted(row.only.sqnr_db for row in found.sites)
    assert {row.site for row in found.sites} == set(switched.sites)
    for row in found.sites[:2]:
        switched.turn(set(switched.sites) - {row.site})
        without = switched.run(x)[0][0].double()
        noise = float((y - without).square().sum() / (y - q).square().sum())
        assert row.repaired == pytest.approx(1 - noise, rel=1e-6)


def test_the_scan_finds_the_site_that_was_made_bad(calibrated: Any, batches_of: Any) -> None:
    for widths, site, guilty in (("w2:W=2", "w2", "weights"), ("r1:A=2", "r1", "activations")):
        state = calibrated(widths)
        found = scan(state, batches_of(state, IMAGES, 4))
        assert found.sites[0].site == site and found.sites[0].bits == 2
        assert max(found.sites, key=lambda row: row.repaired).site == site and found.sites[0].repaired > 0.9
        assert found.guilty == guilty


class Heads(nn.Module):
    """A trunk, a head for the scores of classes and one of maps; and the class itself."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.near, self.far = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.trunk(x).relu()
        scores = self.near(h).mean((2, 3))
        return scores, self.far(h), scores.argmax(1)


def test_all_outputs_count() -> None:
    state = quantize(Heads().eval(), {"x": IMAGES}, example=torch.zeros(2, 3, 6, 6), set=["W=4,A=4"]).state
    labels = (np.arange(11) % 4).astype(np.int64)
    batches = open_data({"x": IMAGES, "labels": labels}, {"x": ((None, 3, 6, 6), "float32")}, batch_size=4)
    found = scan(state, batches)
    parts, x = [], {"x": torch.from_numpy(IMAGES)}
    scores, maps, _ = (value.name or "" for value in state.model.graph.outputs)
    for name in (scores, maps):
        y, q = (program(state).run(x)[name].double() for program in (float_program, simulated_program))
        parts.append(float((y - q).square().sum() / y.square().sum()))
    assert found.both.noise == pytest.approx(sum(parts) / 2) and min(parts) > 0
    assert found.both.kl is None  # maps have no classes
    answers = float_program(state).run(x)[scores].argmax(1).numpy()
    assert found.float_accuracy == pytest.approx((answers == labels).mean())
    (far,) = (row for row in found.sites if row.site == "far.weight")
    assert 0 < far.only.noise < math.inf and far.repaired > 0


def test_labels_are_counted_and_the_last_batch_is_not_counted_twice(calibrated: Any, placed: Any) -> None:
    state = calibrated()
    y = float_program(state).run({"x": torch.from_numpy(IMAGES)})["y"].argmax(1).numpy()
    labels = np.where(np.arange(11) < 3, (y + 1) % 4, y)
    shape = (4, 3, 6, 6)
    batches = open_data({"x": IMAGES, "labels": labels}, {"x": (shape, "float32")})
    state.reference.graph.inputs[0].shape = None
    found = scan(state, batches, each=False)
    assert found.images == 11 and found.sites == ()
    assert found.float_accuracy == found.bypassed.accuracy == pytest.approx(8 / 11)
    assert scan(state, batches, labelled=False, each=False).float_accuracy is None


def test_a_network_that_steps_changed_is_told_from_the_float_file(calibrated: Any, batches_of: Any) -> None:
    state = calibrated()
    bent = state.but(overlay={**state.overlay, "w3": state.tensor("w3") * 1.01})
    found = scan(bent, batches_of(state, IMAGES, 4), each=False)
    assert found.sound and found.moved and found.bypassed.sqnr_db == pytest.approx(40, abs=0.5) and SAME_DB == 60
    assert not scan(state, batches_of(state, IMAGES, 4), each=False).moved


def test_what_cannot_be_switched_is_refused(placed: Any, batches_of: Any) -> None:
    state = placed(NODES, constants(), (3, 6, 6))
    with pytest.raises(InputError, match="switches: the network has no ranges; expected a calibrated network"):
        Switched(state)
    state = placed(NODES, constants(), (3, 6, 6), "y:A=dynamic")
    state = run_chain([Calibrate()], state, batches_of(state, IMAGES, 4))
    with pytest.raises(UnsupportedError, match="finds its activation range at run time"):
        Switched(state)


def test_stored_weights_of_a_float_layer_can_be_switched(placed: Any, batches_of: Any) -> None:
    state = placed(NODES, constants(), (3, 6, 6), "y:A=float", "y:W=2")
    state = run_chain([Calibrate()], state, batches_of(state, IMAGES, 4))
    found = scan(state, batches_of(state, IMAGES, 4))
    assert found.sound and found.sites[0].site == "w3"


def test_channels_of_a_weight() -> None:
    weight = torch.full((6, 8), 0.5)
    weight[0] *= 40
    weight[1] = 0
    weight[2, 1:] = 0.001
    seen = channel_look(weight, 0, False, 0.25)
    assert (seen.channels, seen.dead, seen.spread, seen.bias) == (6, 1, 40, 0.25)
    assert seen.tail == pytest.approx(math.sqrt(8), rel=1e-4)
    assert channel_look(weight.T, 1, False) == channel_look(weight, 0, False)
    assert channel_look(torch.zeros(3, 2), 0, True).dead == 3


def test_layers_are_seen_as_they_are(calibrated: Any, batches_of: Any) -> None:
    values = constants()
    values["w2"][3] *= 50
    state = calibrated(values=values)
    plan = state.plan
    per_tensor = dataclasses.replace(plan.sites["w2"], axis=None)
    state = state.but(plan=dataclasses.replace(plan, sites={**plan.sites, "w2": per_tensor}))
    batches = batches_of(state, IMAGES, 4)
    state = run_chain([Calibrate()], state, batches)
    weight, image = look(state, ["w2", "x"], batches)
    assert weight.region == "c2" and weight.weights is not None and weight.values is None
    assert not weight.weights.per_channel and weight.weights.spread > 20
    assert (image.region, image.sqnr_in_db, image.sqnr_out_db) == ("", None, None)
    assert image.values is not None and image.values.clipped == 0 and image.values.core > 0.9
    widths = {"w2": 8, "x": 8}
    found = findings(scan(state, batches), [weight, image], widths)
    assert {(f.site, f.cause) for f in found} >= {("w2", "outlier-channels")}
    assert "per-channel" in remedies(found) and not any(f.site == "x" for f in found)


def test_an_error_with_a_mean_is_told_from_one_without(calibrated: Any, batches_of: Any) -> None:
    """Weights that all round up, times inputs above zero: each channel is shifted. Centred inputs: none is."""
    values = constants()
    values["w2"] = np.full((7, 5, 1, 1), 1.4, np.float32)
    values["w2"][:, 0] = 10 * 127 / 127
    state = calibrated(values=values)
    batches = batches_of(state, IMAGES, 4)
    (layer,) = look(state, ["w2"], batches)
    (first,) = look(state, ["w1"], batches)
    assert layer.weights is not None and first.weights is not None
    assert layer.weights.bias > 0.4 > 0.1 > first.weights.bias


def test_clipped_and_unused_codes(calibrated: Any, batches_of: Any) -> None:
    state = calibrated()
    batches = batches_of(state, IMAGES, 4)
    encoding = state.encodings["r1"]
    seen: dict[float, ActivationLook] = {}
    for factor in (1, 1 / 8, 8):
        other = dataclasses.replace(encoding, scale=encoding.scale * factor)
        (layer,) = look(state.but(encodings={**state.encodings, "r1": other}), ["r1"], batches)
        assert layer.values is not None
        seen[factor] = layer.values
    assert seen[1].clipped == 0 and seen[1 / 8].clipped > 0.1 and seen[8].clipped == 0
    assert seen[8].core <= 1 / 8 + 2 / 256 and seen[8].used <= 1 / 8 + 2 / 256 < 0.4 < seen[1].core


def measured(sqnr: float) -> Measured:
    return Measured(sqnr_db=sqnr, kl=None, accuracy=None)


def scan_of(*rows: SiteScan, weights: float = 20, activations: float = 20, both: float = 17) -> Scan:
    return Scan(
        images=1, bypassed=measured(math.inf), simulated=measured(math.inf), float_accuracy=None,
        weights=measured(weights), activations=measured(activations), both=measured(both), sites=rows,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "activations", "both", "guilty"),
    [(20, 40, 19.9, "weights"), (40, 20, 19.9, "activations"), (20, 20, 17, "both"), (math.inf,) * 3 + ("none",)],
)
def test_who_is_guilty(weights: float, activations: float, both: float, guilty: str) -> None:
    assert scan_of(weights=weights, activations=activations, both=both).guilty == guilty


GOOD_WEIGHTS = WeightLook(channels=8, dead=0, spread=2.0, tail=3.0, per_channel=True, bias=0.0)
GOOD_VALUES = ActivationLook(clipped=0.0, used=1.0, core=0.9)


@pytest.mark.parametrize(
    ("change", "bits", "causes"),
    [
        ({}, 8, []),
        ({"spread": 20.0}, 8, []),  # each channel has a scale of its own
        ({"spread": 20.0, "per_channel": False}, 8, ["outlier-channels"]),
        ({"tail": 9.0}, 8, ["weight-tail"]),
        ({"dead": 2}, 8, ["dead-channels"]),
        ({"bias": 0.3}, 8, ["biased-error"]),
        ({}, 7, []),
        ({}, 4, ["coarse-weights"]),
    ],
)
def test_causes_of_weights(change: dict[str, Any], bits: int, causes: list[str]) -> None:
    weights = dataclasses.replace(GOOD_WEIGHTS, **change)
    layer = Layer(site="w", region="conv", sqnr_in_db=30.0, sqnr_out_db=20.0, weights=weights)
    assert [f.cause for f in findings(scan_of(), [layer], {"w": bits})] == causes


@pytest.mark.parametrize(
    ("change", "bits", "causes"),
    [
        ({}, 8, []),
        ({"clipped": 0.2}, 8, ["saturated"]),
        ({"core": 0.2, "used": 0.3}, 8, ["activation-tail"]),
        ({"used": 0.07}, 8, []),  # images of few grey levels, all over the range
        ({}, 4, ["coarse-activations"]),
    ],
)
def test_causes_of_values(change: dict[str, Any], bits: int, causes: list[str]) -> None:
    values = dataclasses.replace(GOOD_VALUES, **change)
    layer = Layer(site="x", region="conv", sqnr_in_db=30.0, sqnr_out_db=20.0, values=values)
    assert [f.cause for f in findings(scan_of(), [layer], {"x": bits})] == causes


def test_ends_and_sites_whose_repair_pays_off_ask_for_bits() -> None:
    row = SiteScan(
        site="x", kind="activation", region="", bits=4, only=measured(10), without=measured(15), repaired=0.5
    )  # fmt: skip
    layer = Layer(site="x", region="", sqnr_in_db=None, sqnr_out_db=None, values=GOOD_VALUES)
    found = findings(scan_of(row), [layer], {"x": 4})
    assert [f.cause for f in found] == ["coarse-activations", "sensitive"]
    assert found[1].evidence == "alone 10.0 dB; without it 50 % less noise"
    assert [f.cause for f in findings(scan_of(row), [layer], {"x": 4}, ends=["x"])][-1] == "end"
    assert findings(scan_of(row), [layer], {"x": 8}, ends=["x"]) == ()
    weak = scan_of(dataclasses.replace(row, repaired=0.01))
    assert [f.cause for f in findings(weak, [layer], {"x": 4})] == ["coarse-activations"]


def test_every_remedy_of_a_cause_is_in_the_table() -> None:
    asked = {name for cause in CAUSES.values() for name in cause.remedies}
    assert asked == set(REMEDIES)
    each = [Finding(site="w", region="", cause=cause, evidence="") for cause in CAUSES]
    assert sorted(remedies(each)) == sorted(REMEDIES)
