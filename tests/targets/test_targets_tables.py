"""Targets as data: everything that a row names is there, and what it says of widths can be stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from bitwright.deploy.packing import PACKINGS
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.execute.nodes import op_function
from bitwright.placement.checks import CHECKS
from bitwright.targets import TARGETS
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64, ONNXRUNTIME_X64_AVX2
from bitwright.targets.target import OpRule, Target

WITH_WEIGHTS = {"Conv", "DepthwiseConv", "Gemm"}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    found = TARGETS[request.param].load()
    assert isinstance(found, Target) and found.name == request.param
    return found


def test_what_a_target_names_is_there(target: Target) -> None:
    assert target.runtime in RUNTIMES
    assert {check for rule in target.rules for check in rule.checks} <= set(CHECKS)
    assert set(target.weight_packing.values()) <= set(PACKINGS)
    assert target.source.startswith("https://")


def test_widths_fit_into_what_stores_them(target: Target) -> None:
    for bits, packing in target.weight_packing.items():
        assert bits <= PACKINGS[packing].bits
    assert target.bias_bits == 32 and set(target.activation_bits) <= set(range(1, 9))
    assert 8 in target.activation_bits and target.widest_weight == max(target.weight_packing) <= 8


def test_rules_are_one_a_kind_and_make_sense(target: Target) -> None:
    kinds = [rule.kind for rule in target.rules]
    assert len(set(kinds)) == len(kinds)
    for rule in target.rules:
        assert rule.how in ("kernel", "codes", "join")
        assert (rule.weight_axis is not None) == (rule.kind in WITH_WEIGHTS)
        assert ("constant weight" in rule.checks) == (rule.kind in WITH_WEIGHTS)
        assert "float32" in rule.checks, "other types have other kernels"
        assert callable(op_function("Conv" if rule.kind == "DepthwiseConv" else rule.kind))


def test_rules_are_found_by_kind(target: Target) -> None:
    assert all(target.rule(rule.kind) is rule for rule in target.rules)
    assert target.rule("ConvTranspose") is None and target.rule("conv") is None


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
