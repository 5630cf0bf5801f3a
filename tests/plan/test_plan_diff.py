"""What differs between two plans: found site by site, told in words, and nothing where nothing does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import InputError
from bitwright.plan.diff import RegionChange, SiteChange, described, diff, width_text
from bitwright.plan.plan import Plan, plan_from_json, read_plan
from bitwright.plan.spec import Derived, Float, QSpec, Shared, SiteSpec

W8 = QSpec(bits=8, signed=True, symmetric=True, narrow=True, axis=0)
SITES: dict[str, SiteSpec] = {
    "x": QSpec(bits=8), "w": W8, "b": Derived("x", "w"), "y": QSpec(bits=8), "z": Shared("y"), "v": Float("no kernel"),
}  # fmt: skip
PLAN = Plan(target="t", sites=SITES, regions={"conv": ("w", "b", "y"), "pool": ("z",), "soft": ("v",)},
            refused={"soft": "no kernel"})  # fmt: skip


def changed(**sites: SiteSpec) -> Plan:
    """The plan with some sites changed or added."""
    return dataclasses.replace(PLAN, sites={**PLAN.sites, **sites})


@pytest.mark.parametrize("other", [PLAN, plan_from_json(PLAN.to_json()), dataclasses.replace(PLAN)])
def test_equal_plans_do_not_differ(other: Plan) -> None:
    found = diff(PLAN, other)
    assert found.equal and not found.sites and not found.regions
    assert found.to_json() == {"equal": True, "targets": ["t", "t"], "sites": [], "regions": []}


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (changed(x=QSpec(bits=4)), "x: 8 bits, asymmetric, one scale -> 4 bits"),
        (
            changed(w=QSpec(bits=4, axis=0)),
            "w: 8 bits, symmetric, signed, narrow, a scale for each index of axis 0 -> 4 bits, asymmetric",
        ),
        (
            changed(w=QSpec(bits=4, format="log2", axis=0)),
            "w: 8 bits, symmetric, signed, narrow, a scale for each index of axis 0 -> log2-4",
        ),
        (changed(w=dataclasses.replace(W8, axis=None)), "w: .* -> 8 bits, one scale"),
        (changed(x=QSpec(bits=8, format="pow2")), "x: 8 bits, asymmetric, one scale -> pow2-8"),
        (changed(z=QSpec(bits=1)), "z: shares with 'y' -> 1 bit, asymmetric, one scale"),
        (changed(y=Float("kept")), r"y: 8 bits, asymmetric, one scale -> float \(kept\)"),
        (changed(b=Derived("z", "w")), "b: a bias, derived from 'x' and 'w' -> a bias, derived from 'z' and 'w'"),
        (changed(v=Float("because")), r"v: float \(no kernel\) -> float \(because\)"),
        (changed(n=QSpec(bits=2)), "n: absent -> 2 bits, asymmetric, one scale"),
    ],
)
def test_each_change_is_told_from_both_sides(after: Plan, words: str) -> None:
    import re

    found = diff(PLAN, after)
    assert not found.equal and len(found.sites) == 1
    assert re.fullmatch(words, found.sites[0].words()), found.sites[0].words()
    back = diff(after, PLAN)
    assert (back.sites[0].before, back.sites[0].after) == (found.sites[0].after, found.sites[0].before)


def test_a_site_of_only_one_plan() -> None:
    fewer = dataclasses.replace(PLAN, sites={s: spec for s, spec in SITES.items() if s != "v"})
    assert diff(PLAN, fewer).sites == (SiteChange(site="v", before=Float("no kernel"), after=None),)
    assert diff(PLAN, fewer).sites[0].words() == "v: float (no kernel) -> absent"


def test_regions_and_targets() -> None:
    regions = {"conv": PLAN.regions["conv"], "pool": ("z",), "new": ()}
    other = dataclasses.replace(PLAN, target="u", regions=regions, refused={"conv": "kept"}, modes={"conv": "weights"})
    found = diff(PLAN, other)
    assert found.targets == ("t", "u") and not found.equal and not found.sites
    assert found.regions == (
        RegionChange(region="conv", before="integers", after="weights"),
        RegionChange(region="soft", before="float: no kernel", after=None),
        RegionChange(region="new", before=None, after="integers"),
    )
    assert found.regions[1].words() == "soft: float: no kernel -> absent"


def test_the_json_can_be_written_and_has_the_specs_of_plans() -> None:
    after = changed(x=QSpec(bits=4))
    content = json.loads(json.dumps(diff(PLAN, after).to_json()))
    assert content["sites"] == [{
        "site": "x", "before": PLAN.to_json()["sites"]["x"], "after": after.to_json()["sites"]["x"],
        "words": "x: 8 bits, asymmetric, one scale -> 4 bits",
    }]  # fmt: skip


def test_widths_are_written_as_set_reads_them() -> None:
    from bitwright.placement.overrides import parse_override

    for spec in (QSpec(bits=8), QSpec(bits=4, format="log2"), QSpec(bits=3, format="codebook")):
        width = parse_override(f"W={width_text(spec)}").weights
        assert width is not None and (width.bits, width.format) == (spec.bits, spec.format)
    assert described(QSpec(bits=1, format="binary", axis=1)) == "binary-1, a scale for each index of axis 1"


# Reading a file.


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(PLAN.dumps())
    assert read_plan(path) == PLAN == read_plan(str(path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", r"p\.json: is no JSON \(.*\); expected a plan's JSON file; write one with bitwright plan edit"),
        (b"\xff\xfe\x00", r"p\.json: is no JSON"),
        (b"[" * 100_000, r"p\.json: is no JSON"),
        (b"", r"p\.json: is no JSON"),
        (b"[]", r"p\.json: is not a plan"),
        (json.dumps({**PLAN.to_json(), "version": 2}).encode(), r"p\.json: is of version 2"),
    ],
)
def test_what_is_no_plan_file(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_plan(tmp_path / "p.json")


@pytest.mark.parametrize(("name", "told"), [("gone.json", "no such file"), (".", "is a folder")])
def test_no_file_at_all(name: str, told: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{told}; expected a plan's JSON file"):
        read_plan(name)
