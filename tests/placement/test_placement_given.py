"""Plans that are given: edited at the sites that overrides name, and refused where they do not fit the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from bitwright.errors import InputError, UnsupportedError
from bitwright.placement.given import check_plan, edit, in_float, weight_sites
from bitwright.placement.overrides import parse_override
from bitwright.placement.place import place
from bitwright.plan.diff import diff
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Float, QSpec, Shared
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64 as TARGET
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64_AVX2

WEIGHTS = {"a.weight": (4, 3, 3, 3), "a.bias": (4,), "b.weight": (4, 4, 1, 1), "c.weight": (4, 8, 1, 1)}
NODES = [
    ("Conv", "x a.weight a.bias", "a", {"pads": [1, 1, 1, 1]}),
    ("MaxPool", "a", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Conv", "p b.weight", "b"),
    ("Concat", "p b", "j", {"axis": 1}),
    ("Conv", "j c.weight", "c"),
    ("LogSoftmax", "c", "y", {"axis": 1}),
]


@pytest.fixture(scope="module")
def model(network: Callable[..., ir.Model]) -> ir.Model:
    """Two convolutions whose outputs a concat joins across a pool, a third one, and an op that stays float."""
    return network(NODES, WEIGHTS)


@pytest.fixture(scope="module")
def plan(model: ir.Model) -> Plan:
    return place(model, TARGET).plan


def edited(plan: Plan, *texts: str, target: Any = TARGET) -> Plan:
    return edit(plan, [parse_override(text) for text in texts], target)


# Editing.


@pytest.mark.parametrize(
    "texts",
    [
        ["a:W=4"], ["*:W=4"], ["c:W=log2-4"], ["?.weight:W=binary"], ["c:A=5", "a:W=7"], ["*:A=4"],
        ["b.weight:W=codebook-3"], ["*:W=4", "a:W=8"], ["a:A=6", "b:A=6"], ["x:A=7"],
    ],
)  # fmt: skip
def test_an_edit_says_what_placement_says_with_the_same_overrides(
    texts: list[str], model: ir.Model, plan: Plan
) -> None:
    overrides = [parse_override(text) for text in texts]
    # The same ends: an override with a glob wins over them, so that only sites that none names are compared.
    assert edit(plan, overrides, TARGET).sites == place(model, TARGET, overrides=overrides).plan.sites


@pytest.mark.parametrize("regions", [["a"], ["b"], ["c"], ["a", "b"], ["b", "c"]], ids="".join)
def test_a_plan_with_regions_in_float_says_what_placement_says(regions: list[str], model: ir.Model) -> None:
    widths = [parse_override(text) for text in ("*:W=4", "c:W=log2-4", "x:A=6")]
    before = place(model, TARGET, overrides=widths).plan
    found = in_float(before, regions, model, TARGET)
    kept = [parse_override(f"{region}:float") for region in regions]
    expected = place(model, TARGET, overrides=kept).plan
    assert found.refused == expected.refused and found.regions == expected.regions
    for site, spec in expected.sites.items():
        assert type(found.sites[site]) is type(spec), site
        if isinstance(spec, QSpec):  # the widths are those of the plan before
            assert found.qspec(site) == before.qspec(site), site
    assert check_plan(found, model, TARGET) == found
    assert in_float(found, regions, model, TARGET) == found


def test_no_plan_has_everything_in_float(model: ir.Model, plan: Plan) -> None:
    with pytest.raises(UnsupportedError, match="model: has no quantizable op"):
        in_float(plan, ["a", "b", "c"], model, TARGET)


def test_the_given_plan_is_left_as_it_was(plan: Plan) -> None:
    before = plan.to_json()
    assert edited(plan, "*:W=4,A=4").to_json() != before and plan.to_json() == before


def test_sites_that_share_change_together(plan: Plan) -> None:
    roots = {plan.resolve(site)[0] for site in ("a", "p", "b", "j")}
    assert len(roots) == 1
    after = edited(plan, "p:A=5")
    assert {after.qspec(site) for site in ("a", "p", "b", "j")} == {QSpec(bits=5)}
    assert [change.site for change in diff(plan, after).sites] == sorted(roots)


def test_biases_follow_by_themselves(plan: Plan) -> None:
    assert edited(plan, "a:W=4").sites["a.bias"] == plan.sites["a.bias"]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["W=4"], "--set: names no region and no site.*ends.*say '\\*:W=4' for all"),
        (["a:float"], "--set a:float: would move the border between integers and float.*without --plan"),
        (["a:A=float"], "--set a:A=float: would move the border"),
        (["a:A=dynamic"], "--set a:A=dynamic: would move the border"),
        (["q:W=4"], "--set 'q': matches no region and no site of the plan; expected a glob of one of"),
        (["c.weigth:W=4"], "'c.weigth': matches no region.*did you mean 'c.weight'"),
        (["p:W=4"], "--set 'p': names no weight that the plan quantizes"),
        (["y:A=4"], "--set 'y': names no activation that the plan quantizes"),
        (["a.bias:W=4"], "--set 'a.bias': names no weight that the plan quantizes"),
        (["a.weight:A=4"], "names no activation"),
        (["a:A=4", "b:A=5"], "site 'b' shares its encoding with 'a', set to 4; expected one width for both"),
    ],
)
def test_edits_that_cannot_be(texts: list[str], told: str, plan: Plan) -> None:
    with pytest.raises(InputError, match=told):
        edited(plan, *texts)


def test_widths_that_the_target_lacks(plan: Plan) -> None:
    with pytest.raises(
        UnsupportedError, match=r"site 'a\.weight': 16-bit weights; expected affine weights of .*--set W="
    ):
        edited(plan, "a:W=16")
    with pytest.raises(UnsupportedError, match=r"site '.*': 16-bit activations; expected one of .*--set A="):
        edited(plan, "a:A=16")
    with pytest.raises(
        UnsupportedError, match=r"8-bit weights; expected affine weights of .* on onnxruntime-x64-avx2"
    ):
        edited(plan, "a:W=8", target=ONNXRUNTIME_X64_AVX2)


def test_weights_are_told_from_activations(plan: Plan) -> None:
    assert weight_sites(plan) == ["a.weight", "b.weight", "c.weight"]


# Checking.


def test_what_placement_made_fits(model: ir.Model, plan: Plan) -> None:
    assert check_plan(plan, model, TARGET) == plan
    for texts in (["W=4,A=4"], ["b:float"], ["b:float", "c:W=log2-4,A=6"], ["c:A=float"], ["W=3,A=float"]):
        other = place(model, TARGET, overrides=[parse_override(text) for text in texts], ends=None).plan
        assert check_plan(other, model, TARGET) == other, texts
        assert check_plan(turned_round(other), model, TARGET) == other
    assert list(check_plan(turned_round(plan), model, TARGET).sites) == list(plan.sites)


def turned_round(plan: Plan) -> Plan:
    """The same plan, its sites in another order."""
    return dataclasses.replace(plan, sites={site: plan.sites[site] for site in reversed(list(plan.sites))})


def with_site(plan: Plan, **sites: Any) -> Plan:
    return dataclasses.replace(plan, sites={**plan.sites, **{s.replace("_", "."): spec for s, spec in sites.items()}})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: dataclasses.replace(p, target="tensorrt"), "plan: was made for 'tensorrt'; expected the target"),
        (lambda p: with_site(p, a2=QSpec(bits=8)), "plan: site a2: the network has no site of this name; did you"),
        (
            lambda p: dataclasses.replace(p, sites={s: v for s, v in p.sites.items() if s != "c.weight"}),
            "plan: says nothing of the site 'c.weight'; expected every site of the network",
        ),
        (
            lambda p: dataclasses.replace(p, regions={**p.regions, "d": ()}),
            "plan: region d: the network has no region of this name",
        ),
        (
            lambda p: dataclasses.replace(p, regions={r: s for r, s in p.regions.items() if r != "b"}),
            "plan: says nothing of the region 'b'",
        ),
        (
            lambda p: dataclasses.replace(p, regions={**p.regions, "b": ("b",)}),
            r"plan: region b: has the sites b; expected b\.weight, b",
        ),
        (
            lambda p: dataclasses.replace(p, refused={}),
            r"runs in integers there, but stays float on onnxruntime-x64 \(LogSoftmax has no integer kernel",
        ),
        (lambda p: with_site(p, y=QSpec(bits=8)), r"plan: y: 8 bits, asymmetric, one scale; expected float"),
        (lambda p: with_site(p, c=Float("so")), r"plan: c: float \(so\); expected 8 bits"),
        (lambda p: with_site(p, p=QSpec(bits=8)), "plan: p: 8 bits, asymmetric, one scale; expected shares with"),
        (lambda p: with_site(p, c=Shared("x")), "plan: c: shares with 'x'; expected 8 bits"),
        (
            lambda p: with_site(p, c_weight=QSpec(bits=8)),
            "plan: c.weight: 8 bits, asymmetric, one scale; expected 8 bits, symmetric, signed, narrow, a scale for",
        ),
        (
            lambda p: dataclasses.replace(p, refused={**p.refused, "b": "kept"}),
            r"plan: .*: .*; expected float",
        ),
        (
            lambda p: dataclasses.replace(p, refused={**p.refused, "p": "kept"}, modes={"p": "weights"}),
            "plan: mode of p: is 'weights'; expected None",
        ),
        (
            lambda p: with_site(p, c_weight=QSpec(bits=16, axis=0)),
            r"site 'plan: c\.weight': 16-bit weights; expected affine weights of",
        ),
    ],
)  # fmt: skip
def test_plans_that_do_not_fit(change: Callable[[Plan], Plan], told: str, model: ir.Model, plan: Plan) -> None:
    with pytest.raises(InputError, match=told):
        check_plan(change(plan), model, TARGET)


def test_a_plan_of_another_network(model: ir.Model, network: Callable[..., ir.Model], plan: Plan) -> None:
    other = network([("Conv", "x d.weight", "y")], {"d.weight": (4, 3, 3, 3)})
    with pytest.raises(InputError, match=r"p\.json: site .*: the network has no site of this name"):
        check_plan(plan, other, TARGET, "p.json")


def test_names_that_are_globs_name_themselves(network: Callable[..., ir.Model]) -> None:
    """A float region called `a[1]*` is kept in float, and none that the glob would match."""
    weights = {"u.weight": (4, 3, 1, 1), "v.weight": (4, 4, 1, 1)}
    odd = network(
        [("Conv", "x u.weight", "a1x"), ("Add", "a1x a1x", "a[1]*"), ("Conv", "a[1]* v.weight", "y")], weights
    )
    plan = place(odd, TARGET, overrides=[parse_override("a[[]1][*]:float")]).plan
    assert "u" not in plan.refused and len(plan.refused) == 1
    assert check_plan(plan, odd, TARGET) == plan
