"""Plans as JSON: nothing is lost on the way, one site stands on a line, and what is no plan is refused by name."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import InputError
from bitwright.plan.plan import VERSION, Plan, plan_from_json
from bitwright.plan.spec import Derived, Float, QSpec, Shared, SiteSpec, spec_from_json, spec_to_json

# Names of all kinds: with quotes, line breaks and letters outside ASCII.
names = st.text(min_size=1, max_size=12)


@st.composite
def qspecs(draw: st.DrawFn) -> QSpec:
    bits = draw(st.integers(1, 16))
    signed = draw(st.booleans())
    return QSpec(
        bits=bits, signed=signed, symmetric=draw(st.booleans()), narrow=signed and bits > 1 and draw(st.booleans()),
        axis=draw(st.none() | st.integers(-2, 3)),
    )  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan: shared sites speak through others that are quantized, biases belong to sites of the plan."""
    sites = draw(st.lists(names, min_size=1, max_size=8, unique=True))
    specs: dict[str, SiteSpec] = {sites[0]: draw(qspecs())}
    for site in sites[1:]:
        quantized = [s for s, spec in specs.items() if isinstance(spec, QSpec | Shared)]
        choices: list[st.SearchStrategy[Any]] = [
            qspecs(), st.builds(Float, names), st.builds(Shared, st.sampled_from(quantized)),
            st.builds(Derived, st.sampled_from(quantized), st.sampled_from(quantized)),
        ]  # fmt: skip
        specs[site] = draw(st.one_of(choices))
    shuffled = dict(draw(st.permutations(list(specs.items()))))
    regions = draw(st.dictionaries(names, st.lists(st.sampled_from(sites), max_size=3).map(tuple), max_size=3))
    refused = draw(st.dictionaries(st.sampled_from(sorted(regions)), names)) if regions else {}
    return Plan(target=draw(names), sites=shuffled, regions=regions, refused=refused)


@given(plans())
def test_round_trip(plan: Plan) -> None:
    assert plan_from_json(plan.to_json()) == plan
    again = plan_from_json(json.loads(plan.dumps()))
    assert again == plan
    assert list(again.sites) == list(plan.sites) and list(again.regions) == list(plan.regions)


@given(plans())
def test_text_has_one_site_a_line(plan: Plan) -> None:
    text = plan.dumps()
    assert json.loads(text) == plan.to_json()
    lines = text.splitlines()
    content = plan.to_json()
    for name, entry in [pair for part in ("sites", "regions", "refused") for pair in content[part].items()]:
        line = f"    {json.dumps(name)}: {json.dumps(entry)}"
        assert line in lines or f"{line}," in lines
    # The braces, version and target, and what opens and closes sites, regions and refused.
    assert len(lines) == len(plan.sites) + len(plan.regions) + len(plan.refused) + 10


@given(qspecs())
def test_defaults_are_left_out(spec: QSpec) -> None:
    entry = spec_to_json(spec)
    assert entry["bits"] == spec.bits and spec_from_json(entry, "x") == spec
    defaults = {"signed": False, "symmetric": False, "narrow": False, "axis": None, "format": "affine"}
    assert not any(entry.get(name, "absent") == value for name, value in defaults.items())


def test_a_plan_as_text() -> None:
    sites: dict[str, SiteSpec] = {
        "x": QSpec(bits=8),
        "w": QSpec(bits=4, axis=0),
        "b": Derived("x", "w"),
        "y": Float("no kernel"),
    }
    assert Plan(target="t", sites=sites, regions={"conv": ("w", "b", "y")}, refused={"conv": "no kernel"}).dumps() == (
        '{\n  "version": 1,\n  "target": "t",\n  "sites": {\n'
        '    "x": {"kind": "quantized", "bits": 8},\n'
        '    "w": {"kind": "quantized", "bits": 4, "axis": 0},\n'
        '    "b": {"kind": "derived", "input": "x", "weight": "w"},\n'
        '    "y": {"kind": "float", "reason": "no kernel"}\n'
        '  },\n  "regions": {\n    "conv": ["w", "b", "y"]\n  },\n  "refused": {\n    "conv": "no kernel"\n  }\n}\n'
    )
    assert json.loads(Plan(target="t", sites={}).dumps()) == Plan(target="t", sites={}).to_json()


GOOD: dict[str, Any] = {
    "version": VERSION, "target": "t", "sites": {"x": {"kind": "quantized", "bits": 8}}, "regions": {"r": ["x"]},
    "refused": {},
}  # fmt: skip
QUANTIZED = {"kind": "quantized", "bits": 8}


@pytest.mark.parametrize("data", [None, [], {}, {**GOOD, "sites": []}, {**GOOD, "target": 3}])
def test_what_is_no_plan(data: Any) -> None:
    with pytest.raises(InputError, match=r"^p\.json: is not a plan; expected an object with version, target, sites"):
        plan_from_json(data, "p.json")


def test_other_versions() -> None:
    with pytest.raises(InputError, match=rf"p.json: is of version 99; expected at most {VERSION}; upgrade"):
        plan_from_json({**GOOD, "version": 99}, "p.json")
    for version in (None, "1"):
        with pytest.raises(InputError, match=r"p\.json: has version of another form"):
            plan_from_json({**GOOD, "version": version}, "p.json")


@pytest.mark.parametrize(
    ("regions", "told"),
    [
        ([], "p.json: has regions of another form"),
        ({"r": "x"}, "p.json: region r: is 'x'; expected a list of sites of the plan"),
        ({"r": ["y"]}, r"p.json: region r: is \['y'\]; expected a list of sites"),
        ({"r": [[]]}, r"p.json: region r: is \[\[\]\]; expected a list of sites"),
    ],
)
def test_wrong_regions(regions: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        plan_from_json({**GOOD, "regions": regions}, "p.json")


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (None, "p.json: has refused of another form"),
        ({"q": "no kernel"}, "p.json: refused q: is 'no kernel'; expected a region of the plan, and the reason"),
        ({"r": None}, "p.json: refused r: is None; expected a region of the plan, and the reason"),
    ],
)
def test_wrong_reasons(refused: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        plan_from_json({**GOOD, "refused": refused}, "p.json")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (8, "p.json: y: is 8; expected an object whose kind is one of quantized, shared, derived, float"),
        ({"bits": 8}, "p.json: y: is {'bits': 8}; expected an object whose kind"),
        ({"kind": []}, r"p.json: y: is {'kind': \[\]}; expected an object whose kind"),
        ({"kind": "quantised"}, "p.json: y: is {'kind': 'quantised'}; expected an object whose kind"),
        ({"kind": "quantized"}, "p.json: y: has no bits; expected bits, signed, symmetric, narrow, axis, format of a"),
        ({**QUANTIZED, "sign": True}, "p.json: y: there is no field 'sign'; did you mean 'signed'"),
        ({**QUANTIZED, "bits": "8"}, "p.json: y: bits is '8'; expected of type int"),
        ({**QUANTIZED, "bits": True}, "p.json: y: bits is True; expected of type int"),
        ({**QUANTIZED, "signed": 1}, "p.json: y: signed is 1; expected of type bool"),
        ({**QUANTIZED, "axis": "0"}, r"p.json: y: axis is '0'; expected of type int \| None"),
        ({**QUANTIZED, "bits": 17}, "p.json: y: bits: a width of 17; expected a whole number from 1 to 16"),
        ({**QUANTIZED, "narrow": True}, "p.json: y: narrow: an unsigned grid; expected a signed grid"),
        ({**QUANTIZED, "format": "log2"}, "p.json: y: log2 bits: a width of 8; expected 2 to 6"),
        ({**QUANTIZED, "format": "lg2"}, "p.json: y: format 'lg2': there is no format of this name"),
        ({"kind": "shared", "site": "z"}, "p.json: y: shares with 'z'; expected a quantized site of the plan"),
        ({"kind": "shared", "site": "y"}, "p.json: y: shares with 'y'; expected a quantized site of the plan"),
        ({"kind": "derived", "input": "x", "weight": "w"}, "p.json: y: is derived from 'w'; expected sites of the"),
        ({"kind": "derived", "input": "a", "weight": "x"}, "p.json: y: is derived from 'a'; expected sites of the"),
        ({"kind": "float"}, "p.json: y: has no reason; expected reason of a float site"),
    ],
)
def test_wrong_sites(entry: Any, told: str) -> None:
    data = copy.deepcopy(GOOD)
    data["sites"]["y"] = entry
    with pytest.raises(InputError, match=told):
        plan_from_json(data, "p.json")


@pytest.mark.parametrize("end", [{"kind": "float", "reason": "no kernel"}, {"kind": "shared", "site": "y"}])
def test_sharing_must_end_at_a_quantized_site(end: dict[str, str]) -> None:
    sites = {"y": {"kind": "shared", "site": "z"}, "z": end}
    with pytest.raises(InputError, match="plan: y: shares with 'z'; expected a quantized site"):
        plan_from_json({**GOOD, "sites": {**GOOD["sites"], **sites}})
