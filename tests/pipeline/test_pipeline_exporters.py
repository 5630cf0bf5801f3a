"""Whoever exported a network: the same plan, and from the same numbers the same codes and the same file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import bitwright as bw
from bitwright.graph.export import quiet
from bitwright.models import build, example
from bitwright.models.initialise import Network
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, QSpec, Shared, SiteSpec

pytestmark = pytest.mark.xdist_group("exporters")  # they share what torch.export gave
#: torch.export takes seconds for each network.
NETWORKS = [
    "small_inverted_residual",
    pytest.param("small_residual", marks=pytest.mark.slow),
    pytest.param("digits_cnn", marks=pytest.mark.slow),
]
EVERY = ["small_inverted_residual", "small_residual", "digits_cnn"]
TARGET = "onnxruntime-x64-avx2"  # the same on every machine


@cache
def network(name: str) -> Network:
    return build(name)


def images(name: str, key: str = "x") -> dict[str, np.ndarray]:
    return {key: example(network(name), batch=8, seed=1).numpy()}


@cache
def from_module(name: str) -> bw.Quantized:
    return bw.quantize(network(name), images(name), example=example(network(name)), target=TARGET)


def without_metadata(quantized: bw.Quantized) -> bytes:
    proto: onnx.ModelProto = ir.to_proto(quantized.model())
    del proto.metadata_props[:]
    return proto.SerializeToString(deterministic=True)


def weight_codes(quantized: bw.Quantized) -> dict[str, torch.Tensor]:
    """Codes of every quantized weight, by site."""
    state = quantized.state
    sites = [s for s in state.encodings if s in state.model.graph.initializers]
    return {s: state.encodings[s].codes_of(state.tensor(s)) for s in sites}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_module_is_its_own_exported_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    with quiet():
        torch.onnx.export(
            network(name), (example(network(name)),), path, dynamo=True, optimize=False, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
    module, file = from_module(name), bw.quantize(path, images(name), target=TARGET)
    assert file.plan.dumps() == module.plan.dumps()
    ours, theirs = module.state.encodings, file.state.encodings
    assert list(ours) == list(theirs)
    for site, encoding in ours.items():
        assert torch.equal(encoding.scale, theirs[site].scale), site
        assert torch.equal(encoding.zero_point, theirs[site].zero_point), site
    found, expected = weight_codes(module), weight_codes(file)
    assert found and all(torch.equal(codes, expected[site]) for site, codes in found.items())
    assert without_metadata(module) == without_metadata(file)


# Another exporter: TorchScript, with batch norm kept or folded by it. It names values and nodes in its own way.


def traced(name: str, path: Path, fold: bool) -> Path:
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter deprecates itself
        torch.onnx.export(
            network(name), (example(network(name)),), str(path), dynamo=False, training=mode, input_names=["image"],
            do_constant_folding=fold, dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip
    kept = sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    assert (kept == 0) == fold
    return path


def form(plan: Plan, spec: SiteSpec) -> Any:
    """A spec without the names in it; of a shared one, the spec that it shares."""
    if isinstance(spec, Shared):
        return "shared", plan.sites[spec.site]
    if isinstance(spec, Derived):
        return "derived", plan.qspec(spec.input), plan.qspec(spec.weight)
    return spec


def regions(plan: Plan) -> list[tuple[str, list[Any]]]:
    """Regions in execution order: name, and what weight, bias and output are."""
    return [(region, [form(plan, plan.sites[s]) for s in sites]) for region, sites in plan.regions.items()]


def with_weights(plan: Plan) -> list[str]:
    return [region for region, sites in plan.regions.items() if len(sites) > 1]


@pytest.fixture(params=[False, True], ids=["batch norm kept", "batch norm folded"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: traced(name, tmp_path / "traced.onnx", request.param)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("widths", [(), ("W=4,A=6",)], ids=["eight bits", "four and six bits"])
def test_another_exporter_gives_the_same_plan(
    name: str, widths: tuple[str, ...], trace: Callable[[str], Path]
) -> None:
    options: dict[str, Any] = {"target": TARGET, "set": widths, "steps": ["calibrate.low_bit_weights=minmax"]}
    here = from_module(name) if not widths else bw.quantize(from_module(name).state.reference, images(name), **options)
    there = bw.quantize(trace(name), images(name, "image"), **options)
    assert with_weights(here.plan) == with_weights(there.plan) and len(with_weights(here.plan)) >= 8
    ours, theirs = regions(here.plan), regions(there.plan)
    # Flatten for one is Reshape for the other; neither has a weight, and both share the mean's encoding.
    assert [specs for _, specs in ours] == [specs for _, specs in theirs]
    different = [(a, b) for (a, _), (b, _) in zip(ours, theirs, strict=True) if a != b]
    assert different in ([], [("Reshape", "Flatten")])
    outputs = [[here.plan.qspec(s[-1]), there.plan.qspec(t[-1])] for s, t in
               zip(here.plan.regions.values(), there.plan.regions.values(), strict=True)]  # fmt: skip
    assert all(isinstance(a, QSpec) and a == b for a, b in outputs)
    assert len(here.plan.sites) == len(there.plan.sites)


@pytest.mark.parametrize("name", NETWORKS)
def test_another_exporter_gives_the_same_codes(name: str, tmp_path: Path) -> None:
    """With batch norm kept, every number is the same, so the codes are; the ranges too, up to the runtime's sums."""
    here = from_module(name)
    there = bw.quantize(traced(name, tmp_path / "traced.onnx", False), images(name, "image"), target=TARGET)
    ours, theirs = weight_codes(here), weight_codes(there)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(codes, theirs[site]) for site, codes in ours.items())
    for a, b in zip(here.plan.regions.values(), there.plan.regions.values(), strict=True):
        x, y = (q.state.encodings[q.plan.resolve(s[-1])[0]] for q, s in ((here, a), (there, b)))
        assert torch.allclose(x.scale, y.scale, rtol=1e-5, atol=0) and abs(int(x.zero_point - y.zero_point)) <= 1


@pytest.mark.parametrize("name", EVERY)
def test_files_of_another_exporter_are_proven(name: str, trace: Callable[[str], Path]) -> None:
    quantized = bw.quantize(trace(name), images(name, "image"), target=TARGET)
    found = quantized.verify(images(name, "image"), threads=1)
    assert found.proven and found.codes > 0
