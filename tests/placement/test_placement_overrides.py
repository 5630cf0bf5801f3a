"""Widths that a user sets, by glob of regions and sites; and the ends of the network, which keep 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import pytest

from bitwright.errors import InputError, UnsupportedError
from bitwright.placement.overrides import Override, Width, parse_override
from bitwright.placement.place import integer_regions, place
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Float, QSpec
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64, ONNXRUNTIME_X64_AVX2
from bitwright.targets.target import Target

Network = Callable[..., ir.Model]


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("W=4", Override(weights=Width(bits=4))),
        ("A=6", Override(activations=Width(bits=6))),
        ("W=4,A=8", Override(weights=Width(bits=4), activations=Width(bits=8))),
        (" W=4 , A=8", Override(weights=Width(bits=4), activations=Width(bits=8))),
        ("layer4.*:W=8", Override(pattern="layer4.*", weights=Width(bits=8))),
        ("a:b:A=2", Override(pattern="a:b", activations=Width(bits=2))),
        ("onnx::Conv_1:W=4", Override(pattern="onnx::Conv_1", weights=Width(bits=4))),
        ("W=log2-4", Override(weights=Width(bits=4, format="log2"))),
        ("fc:W=ternary", Override(pattern="fc", weights=Width(bits=2, format="ternary"))),
        ("head.*:float", Override(pattern="head.*", keep_float=True)),
        ("W=1,A=16", Override(weights=Width(bits=1, format="binary"), activations=Width(bits=16))),
    ],
)
def test_overrides_are_read(text: str, override: Override) -> None:
    assert parse_override(text) == override


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (":W=4", "names no site before the colon; expected 'W=4,A=8'"),
        ("float", "names no region to keep in float"),
        (":float", "names no site before the colon"),
        ("", "'' is not understood"),
        ("4", "'4' is not understood"),
        ("B=4", "'B=4' is not understood"),
        ("W=4,W=8", "'W=8' is not understood"),
        ("W=4;A=8", "'4;A=8' is no number of bits; expected 1 to 16"),
        ("layer1:W", "'W' is not understood"),
        ("W=four", "'four' is no number of bits; expected 1 to 16"),
        ("W=0", "0 bits; expected 1 to 16 bits"),
        ("A=17", "17 bits; expected 1 to 16 bits"),
        ("A=-1", "'-1' is no number of bits; expected 1 to 16"),
    ],
)
def test_what_is_no_override(text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_override(text)
    assert str(caught.value).startswith(f"--set {text!r}: {told}")


@pytest.fixture
def model(network: Network) -> ir.Model:
    """A stem, a residual block `block`, two branches that are concatenated, and a head."""
    pad = {"pads": [1, 1, 1, 1]}
    nodes: list[tuple[Any, ...]] = [
        ("Conv", "x stem.weight stem.bias", "s", pad), ("Relu", "s", "stem_out"),
        ("Conv", "stem_out block.conv1.weight", "c1", pad), ("Conv", "c1 block.conv2.weight", "c2", pad),
        ("Add", "c2 stem_out", "sum"),
        ("Conv", "sum left.weight", "l"), ("Conv", "sum right.weight", "r"), ("Concat", "l r", "cat", {"axis": 1}),
        ("GlobalAveragePool", "cat", "mean"), ("Flatten", "mean", "flat"),
        ("Gemm", "flat head.weight head.bias", "y", {"transB": 1}),
    ]  # fmt: skip
    sizes = {
        "stem.weight": (4, 3, 3, 3), "stem.bias": (4,), "block.conv1.weight": (4, 4, 3, 3),
        "block.conv2.weight": (4, 4, 3, 3), "left.weight": (4, 4, 1, 1), "right.weight": (4, 4, 1, 1),
        "head.weight": (10, 8), "head.bias": (10,),
    }  # fmt: skip
    return network(nodes, sizes)


def plan(model: ir.Model, texts: Sequence[str] = (), ends: int | None = 8, target: Target = ONNXRUNTIME_X64) -> Plan:
    return place(model, target, overrides=[parse_override(text) for text in texts], ends=ends).plan


def bits(placed: Plan) -> dict[str, int]:
    """Width of every site that has an encoding of its own."""
    return {site: spec.bits for site, spec in placed.sites.items() if isinstance(spec, QSpec)}


EIGHT = dict.fromkeys(
    ["x", "stem_out", "stem.weight", "c1", "block.conv1.weight", "c2", "block.conv2.weight", "sum", "left.weight",
     "right.weight", "cat", "mean", "y", "head.weight"], 8,
)  # fmt: skip
#: Network input, first and last weights, the last layer's input, the logits. `mean` speaks for `flat`.
ENDS = {"x", "stem.weight", "mean", "head.weight", "y"}


def test_eight_bits_if_nothing_is_said(model: ir.Model) -> None:
    assert bits(plan(model)) == bits(plan(model, ends=None)) == EIGHT


def test_weights_are_as_wide_as_the_target_allows(model: ir.Model) -> None:
    found = bits(plan(model, target=ONNXRUNTIME_X64_AVX2))
    assert found == {site: 7 if site.endswith("weight") else 8 for site in EIGHT}


def test_widths_for_all_spare_the_ends(model: ir.Model) -> None:
    found = bits(plan(model, ["W=4,A=6"]))
    assert found == {s: 8 if s in ENDS else 4 if s.endswith("weight") else 6 for s in EIGHT}


def test_ends_as_elsewhere(model: ir.Model) -> None:
    assert bits(plan(model, ["W=4,A=6"], ends=None)) == {s: 4 if s.endswith("weight") else 6 for s in EIGHT}


def test_ends_of_another_width(model: ir.Model) -> None:
    found = bits(plan(model, ["W=4,A=6"], ends=7))
    assert {found[s] for s in ENDS} == {7} and found["c1"] == 6
    avx2 = bits(plan(model, ["W=4,A=6"], target=ONNXRUNTIME_X64_AVX2))
    assert avx2["stem.weight"] == avx2["head.weight"] == 7 and avx2["x"] == avx2["y"] == 8


def test_regions_by_glob_set_their_weight_and_their_output(model: ir.Model) -> None:
    found = bits(plan(model, ["block.*:W=4,A=5"]))
    assert found == {**EIGHT, "block.conv1.weight": 4, "block.conv2.weight": 4, "c1": 5, "c2": 5}


def test_sites_by_glob(model: ir.Model) -> None:
    assert bits(plan(model, ["c?:A=5", "*conv1.weight:W=4"])) == {**EIGHT, "c1": 5, "c2": 5, "block.conv1.weight": 4}
    assert bits(plan(model, ["x:A=5"])) == {**EIGHT, "x": 5}, "the network's input is a site too"


def test_what_is_named_wins_over_the_ends_and_over_what_is_set_for_all(model: ir.Model) -> None:
    found = bits(plan(model, ["head:W=4", "left:W=8", "W=4,A=6"]))
    assert found["head.weight"] == 4 and found["left.weight"] == 8 and found["right.weight"] == 4


def test_later_ones_win(model: ir.Model) -> None:
    assert bits(plan(model, ["W=8,A=8", "W=4,A=6"], ends=None)) == bits(plan(model, ["W=4,A=6"], ends=None))
    assert bits(plan(model, ["block.*:A=5", "block.conv2:A=7"])) == {**EIGHT, "c1": 5, "c2": 7}


def test_weights_of_few_bits_are_asymmetric(model: ir.Model) -> None:
    placed = plan(model, ["W=4"])
    assert placed.sites["left.weight"] == QSpec(bits=4, axis=0)
    assert placed.sites["stem.weight"] == QSpec(bits=8, signed=True, symmetric=True, narrow=True, axis=0)


@pytest.mark.parametrize("site", ["l", "r", "cat"])
def test_a_group_has_one_width_whichever_of_its_sites_is_named(site: str, model: ir.Model) -> None:
    assert bits(plan(model, [f"{site}:A=5"])) == {**EIGHT, "cat": 5}


@pytest.mark.parametrize("texts", [["left:A=5", "right:A=6"], ["left:A=5", "cat:A=8"], ["[lr]:A=5", "r:A=6"],
                                   ["[lr]:A=5", "l:A=6"]])  # fmt: skip
def test_two_widths_in_a_group_are_refused(texts: list[str], model: ir.Model) -> None:
    with pytest.raises(InputError, match=r"site '\w+' shares its encoding with '\w+', set to A=(5|6); expected one"):
        plan(model, texts)


def test_a_group_can_be_set_anew_as_a_whole(model: ir.Model) -> None:
    assert bits(plan(model, ["[lr]:A=5", "left:A=6", "right:A=6"])) == {**EIGHT, "cat": 6}


def test_a_layer_is_kept_in_float_by_region_by_output_or_by_weight(model: ir.Model) -> None:
    for pattern in ("block.conv2", "c2", "block.conv2.weight"):
        placed = plan(model, [f"{pattern}:float"])
        reason = Float(f"block.conv2: kept in float by --set {pattern}:float")
        assert placed.sites["block.conv2.weight"] == reason
        assert placed.sites["c1"] == QSpec(bits=8), "what it reads is quantized for others"
        assert isinstance(placed.sites["c2"], Float), "and the sum of float values is a float sum"


def test_a_head_is_kept_in_float(model: ir.Model) -> None:
    placed = plan(model, ["head:float"])
    assert set(placed.float_sites()) == {"head.weight", "head.bias", "y"}
    assert placed.qspec("flat") == QSpec(bits=8)


@pytest.mark.parametrize("region", ["sum", "mean", "flat", "cat"])
def test_what_stands_between_integer_ops_is_kept_in_float_too(region: str, model: ir.Model) -> None:
    """All its sites are quantized, for the ops around it; so the plan names the region itself."""
    placed = plan(model, [f"{region}:float"])
    assert placed.refused == {region: f"kept in float by --set {region}:float"} and not placed.float_sites()
    integer = [r.name for r in integer_regions(model, placed, ONNXRUNTIME_X64)]
    assert integer == [name for name in placed.regions if name != region]


def test_a_copy_that_is_kept_in_float_shares_no_encoding(model: ir.Model) -> None:
    placed = plan(model, ["flat:float", "flat:A=5"])
    assert placed.sites["mean"] == QSpec(bits=8) and placed.sites["flat"] == QSpec(bits=5)
    assert plan(model, ["cat:float"]).sites["l"] == QSpec(bits=8)


@pytest.mark.parametrize("text", ["layer9.*:W=4", "blok.*:float", "STEM:A=4"])
def test_a_pattern_that_matches_nothing(text: str, model: ir.Model) -> None:
    with pytest.raises(InputError, match=r"matches no region and no site; expected a glob of one of \d+ names; "):
        plan(model, [text])
    with pytest.raises(InputError, match=r"did you mean 'block\.conv1'"):
        plan(model, ["blok.conv1:W=4"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sum:W=4", "'sum': names no weight that is quantized"),
        ("c1:W=4", "'c1': names no weight that is quantized"),
        ("left.weight:A=4", "'left.weight': names no activation that is quantized"),
        ("x:float", "'x': names no region, nor what one gives"),
    ],
)
def test_what_would_have_no_effect(text: str, told: str, model: ir.Model) -> None:
    with pytest.raises(InputError, match=f"--set {told}"):
        plan(model, [text])


def test_widths_of_what_stays_float_have_no_effect(model: ir.Model) -> None:
    with pytest.raises(InputError, match="--set 'head': names no weight that is quantized"):
        plan(model, ["head:float", "head:W=4"])


@pytest.mark.parametrize(
    ("target", "text", "told"),
    [
        (
            ONNXRUNTIME_X64,
            "W=9",
            "'block.conv1.weight': 9-bit weights; expected affine weights of 2, 3, 4, 5, 6, 7, 8 bits on ",
        ),
        (
            ONNXRUNTIME_X64_AVX2,
            "left:W=8",
            "'left.weight': 8-bit weights; expected affine weights of 2, 3, 4, 5, 6, 7 bits on onnxruntime-x64-",
        ),
        (
            ONNXRUNTIME_X64,
            "A=9",
            "'stem_out': 9-bit activations; expected one of 1, 2, 3, 4, 5, 6, 7, 8 on onnxruntime",
        ),
        (ONNXRUNTIME_X64, "c1:A=16", "'c1': 16-bit activations; expected one of"),
    ],
)
def test_widths_that_the_target_lacks(target: Target, text: str, told: str, model: ir.Model) -> None:
    with pytest.raises(UnsupportedError, match=f"site {told}"):
        plan(model, [text], target=target)


def test_ends_that_the_target_lacks(model: ir.Model) -> None:
    with pytest.raises(UnsupportedError, match="site 'x': 16-bit activations"):
        plan(model, ends=16)


def test_a_network_with_several_first_and_last_layers(network: Network) -> None:
    """Every layer that an input reaches first is a first layer, every layer that reaches an output last a last one."""
    nodes = [
        ("MaxPool", "x", "p", {"kernel_shape": [2, 2]}), ("Conv", "p a.weight", "a"), ("Conv", "x b.weight", "b"),
        ("Conv", "a m.weight", "m"), ("Conv", "m c.weight", "c"), ("Relu", "c", "y"), ("Conv", "m d.weight", "z"),
        ("GlobalAveragePool", "b", "w"),
    ]  # fmt: skip
    model = network(nodes, {f"{n}.weight": (3, 3, 1, 1) for n in "abmcd"}, ["y", "z", "w"])
    found = bits(plan(model, ["W=4,A=6"]))
    assert {s for s, n in found.items() if n == 8} == {
        "x", "a.weight", "b.weight", "m", "c.weight", "y", "d.weight", "z", "b", "w"
    }  # fmt: skip
    assert {s for s, n in found.items() if n < 8} == {"a", "m.weight"}
