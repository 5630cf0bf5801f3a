"""Targets as data: everything that a row names is there, and what it says of widths can be stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache

import onnx
import onnx_ir as ir
import pytest
import torch

import bitwright as bw
from bitwright.deploy.forms import FORMS as FORM_ROWS
from bitwright.deploy.forms import Form
from bitwright.deploy.packing import PACKINGS
from bitwright.deploy.reader import read_model
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.simulate import is_served
from bitwright.execute.nodes import op_function
from bitwright.formats import FORMATS
from bitwright.graph.export import from_module
from bitwright.placement.checks import CHECKS
from bitwright.plan.spec import QSpec
from bitwright.targets import TARGETS
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64, ONNXRUNTIME_X64_AVX2
from bitwright.targets.target import OpRule, Target

WITH_WEIGHTS = {"Conv", "DepthwiseConv", "ConvTranspose", "Gemm"}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    found = TARGETS[request.param].load()
    assert isinstance(found, Target) and found.name == request.param
    return found


def test_what_a_target_names_is_there(target: Target) -> None:
    form: Form = FORM_ROWS[target.form].load()
    assert is_served(target) == (target.runtime in RUNTIMES) == (target.form == "qdq"), "the others are simulated"
    assert {check for rule in target.rules for check in rule.checks} <= set(CHECKS)
    assert set(target.weight_packing) <= set(FORMATS) and set(target.activation_formats) <= set(FORMATS)
    assert {packing for widths in target.weight_packing.values() for packing in widths.values()} <= set(form.packings)
    assert target.source.startswith("https://")


def test_quantizers_are_said_as_the_form_can_spell_them(target: Target) -> None:
    assert target.quantizers in ("values", "inputs", "producers")
    assert target.symmetric_activations == (target.form == "qdq-float"), "the other forms hold uint8 and wider"
    placed_as_papers_do = target.quantizers == "producers"
    assert target.placement == ("paper" if placed_as_papers_do else "deployable")
    assert (target.bias_bits is None) == (target.form == "qdq-float" or placed_as_papers_do), (
        "a bias of integers is added to integers"
    )
    assert all(rule.fuses <= (rule.how == "kernel" and target.quantizers == "inputs") for rule in target.rules)


def test_widths_fit_into_what_stores_them(target: Target) -> None:
    most = 8 if is_served(target) else 16
    for name, widths in target.weight_packing.items():
        for bits, packing in widths.items():
            assert bits <= (PACKINGS[packing].bits if target.form == "qdq" else most)
            spec = QSpec(bits=bits, format=name)
            levels = getattr(spec.levels_format(), "levels", ()) if spec.has_levels else ()
            assert max(map(abs, levels), default=0) <= target.largest_level
    assert target.bias_bits in (32, None) and set(target.activation_bits) <= set(range(1, most + 1))
    assert 8 in target.activation_bits and target.widest_weight == min(8, max(target.weight_packing["affine"]))


def test_rules_are_one_a_kind_and_make_sense(target: Target) -> None:
    kinds = [rule.kind for rule in target.rules]
    assert len(set(kinds)) == len(kinds)
    for rule in target.rules:
        assert rule.how in ("kernel", "codes", "join", "passes")
        assert (rule.how == "passes") == (rule.kind in target.passing) and not (
            target.passing and rule.how in ("codes", "join")
        )
        assert (rule.weight_axis is not None) == (rule.kind in WITH_WEIGHTS)
        assert ("constant weight" in rule.checks) == (rule.kind in WITH_WEIGHTS)
        assert "float32" in rule.checks, "other types have other kernels"
        if rule.kind != "Table":  # several ops, each checked where one is met
            assert callable(op_function("Conv" if rule.kind == "DepthwiseConv" else rule.kind))
        assert (rule.when == "always") or rule.how == "kernel"


def test_rules_are_found_by_kind(target: Target) -> None:
    assert all(target.rule(rule.kind) is rule for rule in target.rules)
    assert target.rule("NonZero") is None and target.rule("conv") is None


@cache
def two_layers() -> tuple[ir.Model, torch.Tensor]:
    """A network, which takes a second to export, and images."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    return from_module(torch.nn.Sequential(*layers).eval(), x), x


def test_every_width_that_a_target_promises_is_placed_and_written(target: Target) -> None:
    """Weights and activations of each format and width: calibrated, written, checked, read back."""
    network, x = two_layers()
    promised = [f"W={name}-{bits}" for name, widths in target.weight_packing.items() for bits in widths]
    promised += [f"A={name}-{bits}" for name in target.activation_formats for bits in target.activation_bits]
    for setting in promised:
        said = setting.replace("binary-1", "binary").replace("ternary-2", "ternary")
        quantized = bw.quantize(network.clone(), {"input": x.numpy()}, target=target.name, set=[said], ends=0)
        asked = QSpec(bits=int(setting.rpartition("-")[2]), format=setting[2:].rpartition("-")[0])
        if asked == QSpec(bits=1) and setting.startswith("W"):
            asked = QSpec(bits=1, format="binary")
        specs = [spec for spec in quantized.plan.sites.values() if isinstance(spec, QSpec)]
        assert any((s.bits, s.format, s.axis is None) == (asked.bits, asked.format, setting[0] == "A") for s in specs)
        written = quantized.model()
        onnx.checker.check_model(ir.to_proto(written), full_check=True)
        read = read_model(written, said).encodings
        for site, encoding in quantized.state.encodings.items():
            assert torch.equal(read[site].scale, encoding.scale), (said, site)
            codes = read[site].codes
            if codes is not None:  # integers are compared: int8 is stored without its zero point
                expected = encoding.integers(encoding.codes_of(quantized.state.tensor(site)))
                assert torch.equal(read[site].integers(codes), expected), (said, site)


def test_the_two_x64_targets_differ_in_their_weights_alone() -> None:
    """Pairs of products must fit into int16 where they saturate: 2 * 255 * 63 does, 2 * 255 * 127 does not."""
    changes = {"name", "weight_packing", "saturates"}
    for field in dataclasses.fields(Target):
        same = getattr(ONNXRUNTIME_X64, field.name) == getattr(ONNXRUNTIME_X64_AVX2, field.name)
        assert same == (field.name not in changes)
    largest = 2 ** (ONNXRUNTIME_X64_AVX2.widest_weight - 1) - 1
    assert 2 * 255 * largest < 2**15 <= 2 * 255 * (2 ** (ONNXRUNTIME_X64.widest_weight - 1) - 1)


def test_targets_do_not_change() -> None:
    for value, name in ((ONNXRUNTIME_X64, "runtime"), (ONNXRUNTIME_X64.rules[0], "kind")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "x")
    assert isinstance(ONNXRUNTIME_X64.weight_packing, Mapping) and isinstance(ONNXRUNTIME_X64.rules[0], OpRule)
