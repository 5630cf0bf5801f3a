"""Rules that hold for every network, tried on random ones: layers, sums, copies, concats, float ops."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

import bitwright as bw
from bitwright.errors import GoalError, UnsupportedError
from bitwright.graph.regions import Region, find_regions
from bitwright.placement.overrides import Override
from bitwright.placement.place import Placement, integer_regions, place
from bitwright.placement.separate import separate_constants
from bitwright.plan.plan import plan_from_json
from bitwright.plan.spec import Derived, Float, QSpec, Shared
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64_AVX2 as TARGET

Network = Callable[..., ir.Model]
WINDOW: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
#: Ops that keep the shape [N, 4, 6, 6], with the number of values that they read. A Join is a concat and a layer.
OPS = {
    "Conv": 1, "Relu": 1, "Clip": 1, "Tanh": 1, "MaxPool": 1, "AveragePool": 1, "Transpose": 1, "Add": 2, "Mul": 2,
    "Join": 2, "Slices": 1,
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    "lo": np.float32(0), "hi": np.float32(0.5), "zero": np.array([0]), "two": np.array([2]), "four": np.array([4]),
    "axis": np.array([1]),
}  # fmt: skip


SETTINGS: dict[str, dict[str, Any]] = {"Transpose": {"perm": [0, 1, 3, 2]}, "MaxPool": WINDOW, "AveragePool": WINDOW}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Nodes and constants of a network from `x` to `y`; some layers share their weights, no node is there twice."""
    values = ["v0"]
    nodes: list[tuple[Any, ...]] = [("Conv", "x w0 b0", "v0", WINDOW)]
    constants: dict[str, Any] = {"w0": (4, 4, 3, 3), "b0": (4,)}
    seen: set[str] = set()
    for i in range(1, draw(st.integers(2, 9))):
        op = draw(st.sampled_from(sorted(OPS)))
        recent = values[-3:]  # mostly deep, with short ways around
        reads = [draw(st.sampled_from(recent)), draw(st.sampled_from([*recent, "x"]))][: OPS[op]]
        if op == "Conv":
            reads += [draw(st.sampled_from(["w0", f"w{i}"])), draw(st.sampled_from(["b0", f"b{i}"]))]
        if (written := f"{op} {' '.join(sorted(reads))}") not in seen:
            seen.add(written)
            constants |= {f"w{i}": (4, 8, 1, 1) if op == "Join" else (4, 4, 3, 3), f"b{i}": (4,)}
            nodes.extend(step(op, " ".join(reads), i))
            values.append(f"v{i}")
    nodes.append(("Relu", values[-1], "y"))
    return nodes, constants | CONSTANTS


def step(op: str, reads: str, i: int) -> list[tuple[Any, ...]]:
    """The nodes that compute `v{i}`."""
    if op == "Join":
        return [("Concat", reads, f"c{i}", {"axis": 1}), ("Conv", f"c{i} w{i}", f"v{i}")]
    if op == "Slices":
        parts = [("Slice", f"{reads} zero two axis", f"p{i}"), ("Slice", f"{reads} two four axis", f"q{i}")]
        return [*parts, ("Concat", f"q{i} p{i}", f"v{i}", {"axis": 1})]
    if op == "Conv":
        return [("Conv", reads, f"v{i}", WINDOW)]
    return [(op, f"{reads} lo hi" if op == "Clip" else reads, f"v{i}", SETTINGS.get(op, {}))]


def opened(network: Network, graph: tuple[list[tuple[Any, ...]], dict[str, Any]]) -> ir.Model:
    model = network(*graph, inputs={"x": ["N", 4, 6, 6]})
    return separate_constants(model, {}, TARGET)[0]


def placed(model: ir.Model, overrides: list[Override]) -> Placement:
    try:
        return place(model, TARGET, overrides=overrides)
    except UnsupportedError:
        return assume(False)  # nothing is integer once these regions are kept in float


def own_sites(region: Region) -> list[ir.Value]:
    return [v for v in (*region.inputs, region.weight, region.bias, region.output) if v is not None]


@given(data=st.data())
@settings(max_examples=150)
def test_invariants_of_every_plan(data: st.DataObject, network: Network) -> None:
    model = opened(network, data.draw(graphs()))
    regions = find_regions(model)
    kept = data.draw(st.lists(st.sampled_from([r.name for r in regions]), max_size=2, unique=True))
    found = placed(model, [Override(pattern=name, keep_float=True) for name in kept])
    plan = found.plan
    assert set(plan.sites) == {v.name for r in regions for v in own_sites(r)}
    assert set(plan.regions) == {r.name for r in regions}
    integer = {r.name: rule for r, rule in found.integer.items()}
    refused = plan.refused
    assert refused == {r.name: reason for r, reason in found.refused.items()}
    assert integer.keys() | refused.keys() == plan.regions.keys() and not integer.keys() & refused.keys()
    assert not integer.keys() & set(kept)
    for region in regions:
        specs = [plan.sites[v.name or ""] for v in own_sites(region)]
        if region.name in integer:
            assert not any(isinstance(spec, Float) for spec in specs)
            roots = {plan.resolve(v.name or "")[0] for v in (*region.inputs, region.output)}
            assert len(roots) == 1 or integer[region.name].how == "kernel"
        else:
            constants = [plan.sites[v.name or ""] for v in (region.weight, region.bias) if v is not None]
            assert all(isinstance(spec, Float) for spec in constants) and refused[region.name]
        if region.bias is not None and region.name in integer:
            assert region.weight is not None
            expected = Derived(region.inputs[0].name or "", region.weight.name or "")
            assert plan.sites[region.bias.name or ""] == expected
    for site, spec in plan.sites.items():
        if isinstance(spec, Shared):
            assert isinstance(plan.resolve(site)[1], QSpec)
        if isinstance(spec, Float):
            name, _, reason = spec.reason.partition(": ")
            assert refused[name] == reason


@given(data=st.data())
def test_the_plan_alone_says_what_is_integer(data: st.DataObject, network: Network) -> None:
    """What is written into a file and read back: the same regions run in integers."""
    model = opened(network, data.draw(graphs()))
    names = [r.name for r in find_regions(model)]
    kept = data.draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    found = placed(model, [Override(pattern=name, keep_float=True) for name in kept])
    again = plan_from_json(json.loads(found.plan.dumps()))
    assert [r.name for r in integer_regions(model, again, TARGET)] == [r.name for r in found.integer]


@given(data=st.data())
@settings(max_examples=25)
def test_every_network_is_served_as_it_is_simulated(data: st.DataObject, network: Network) -> None:
    model = network(*data.draw(graphs()), inputs={"x": ["N", 4, 6, 6]})
    images = {"x": np.random.default_rng(0).standard_normal((4, 4, 6, 6)).astype(np.float32)}
    first = find_regions(model)[data.draw(st.integers(0, 3)) % len(find_regions(model))].name
    texts = data.draw(st.sampled_from([[], ["W=4,A=5"], [f"{first}:float"]]))
    try:
        quantized = bw.quantize(model, images, target=TARGET.name, set=texts)
    except UnsupportedError:
        reject()  # nothing else was integer
    try:
        found = quantized.verify(images, threads=1)
    except GoalError as error:
        # Where the runtime merges two ops into one, it cannot be watched, and verify says so.
        assert "reading codes out changes the kernels" in str(error)
        reject()
    assert found.proven and found.tensors > 0, found
    if not texts:  # a wrong scale or bias gives less, even in deep networks
        assert (quantized.evaluate(images).sqnr_db or 0) > 8
