"""What a plan answers: whose encoding a site uses, which format it has, and which sites a glob names."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bitwright.formats.affine import Affine
from bitwright.formats.granularity import PerAxis, PerTensor
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, Float, QSpec, Shared

W4 = QSpec(bits=4, axis=0)
PLAN = Plan(
    target="onnxruntime-x64",
    sites={
        "x": QSpec(bits=8),
        "features.0.weight": W4,
        "features.0.bias": Derived("x", "features.0.weight"),
        "relu": Shared("pool"),
        "pool": Shared("cat"),
        "cat": QSpec(bits=7),
        "head.weight": Float("head: no kernel"),
        "y": Float("head: no kernel"),
    },
    regions={
        "features.0": ("features.0.weight", "features.0.bias", "relu"),
        "features.1": ("pool",),
        "head": ("head.weight", "y"),
    },
)


@pytest.mark.parametrize(
    ("site", "speaker", "spec"),
    [
        ("x", "x", QSpec(bits=8)),
        ("cat", "cat", QSpec(bits=7)),
        ("pool", "cat", QSpec(bits=7)),
        ("relu", "cat", QSpec(bits=7)),
        ("features.0.bias", "features.0.bias", Derived("x", "features.0.weight")),
        ("y", "y", Float("head: no kernel")),
    ],
)
def test_resolve_follows_shared_sites(site: str, speaker: str, spec: object) -> None:
    assert PLAN.resolve(site) == (speaker, spec)


@pytest.mark.parametrize(
    ("site", "bits"),
    [("x", 8), ("relu", 7), ("features.0.weight", 4), ("features.0.bias", None), ("y", None), ("?", None)],
)
def test_qspec(site: str, bits: int | None) -> None:
    spec = PLAN.qspec(site)
    assert (None if spec is None else spec.bits) == bits


def test_float_sites_say_why() -> None:
    assert PLAN.float_sites() == {"head.weight": "head: no kernel", "y": "head: no kernel"}


@pytest.mark.parametrize(
    ("pattern", "sites"),
    [
        ("x", ["x"]),
        ("features.0", ["features.0.weight", "features.0.bias", "relu"]),
        ("features.*", ["features.0.weight", "features.0.bias", "relu", "pool"]),
        ("*.weight", ["features.0.weight", "head.weight"]),
        ("[rp]*", ["relu", "pool"]),
        ("HEAD", []),
        ("*", list(PLAN.sites)),
    ],
)
def test_globs_name_sites_and_regions_in_order(pattern: str, sites: list[str]) -> None:
    assert PLAN.match(pattern) == sites


def test_plans_and_specs_do_not_change() -> None:
    for value, name in ((PLAN, "target"), (W4, "bits"), (Shared("x"), "site"), (Float("x"), "reason")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)


def test_a_spec_is_a_grid_and_a_granularity() -> None:
    spec = QSpec(bits=8, signed=True, symmetric=True, narrow=True, axis=1)
    assert spec.grid == Affine(bits=8, signed=True, narrow=True) and spec.granularity == PerAxis(1)
    assert QSpec(bits=3).grid == Affine(bits=3, signed=False) and QSpec(bits=3).granularity == PerTensor()


def test_an_encoding_for_each_channel_of_any_axis() -> None:
    """Codes on paper: x / s + z with s = 0.5 and z = 1 in channel 0, s = 2 and z = 8 in channel 1."""
    x = torch.tensor([[-0.5, 1.0, 9.0], [-4.0, 0.0, 100.0]])
    for axis in (0, 1):
        values = x if axis == 0 else x.T
        encoding = Encoding(
            spec=QSpec(bits=4, axis=axis), scale=torch.tensor([0.5, 2.0]),
            zero_point=torch.tensor([1, 8], dtype=torch.int32),
        )  # fmt: skip
        codes = encoding.quantize(values)
        assert (codes if axis == 0 else codes.T).tolist() == [[0, 3, 15], [6, 8, 15]]
        real = [[-0.5, 1.0, 7.0], [-4.0, 0.0, 14.0]]
        assert (encoding.dequantize(codes) if axis == 0 else encoding.dequantize(codes).T).tolist() == real
        assert torch.equal(encoding.fake_quantize(values), encoding.dequantize(codes))


def test_chosen_codes_win_over_the_nearest() -> None:
    x = torch.tensor([0.4, 0.6])
    nearest = Encoding(spec=QSpec(bits=8), scale=torch.tensor(1.0), zero_point=torch.tensor(0, dtype=torch.int32))
    chosen = dataclasses.replace(nearest, codes=torch.tensor([1, 0], dtype=torch.int32))
    assert nearest.codes_of(x).tolist() == [0, 1] and chosen.codes_of(x).tolist() == [1, 0]
