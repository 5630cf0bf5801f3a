"""Plan: for every site, whether and how it is quantized. JSON, no tensors, diffable."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitwright.errors import InputError, first_line
from bitwright.plan.spec import Derived, Float, QSpec, Shared, SiteSpec, spec_from_json, spec_to_json

#: Version of the JSON form; a reader refuses a newer one.
VERSION = 1
#: How a region with quantized weights computes where its activations have no calibrated ranges.
MODES = ("weights", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`{site: spec}` for a target.

    Attributes:
        target: row of `TARGETS` that the plan was made for.
        sites: spec of every activation, weight and bias, in execution order.
        regions: `{region: sites}`, so that an override can name a region.
        refused: `{region: reason}` of the regions that run in float, though all their sites may be quantized for the
            integer regions around them.
        modes: `{region: mode}` of refused regions whose weights are quantized nevertheless: `weights` computes in
            float, `dynamic` in integers with activation ranges found at run time.
    """

    target: str
    sites: Mapping[str, SiteSpec]
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, str] = field(default_factory=dict)

    def resolve(self, site: str) -> tuple[str, SiteSpec]:
        """The site whose encoding `site` uses, following shared specs, and its spec."""
        spec = self.sites[site]
        while isinstance(spec, Shared):
            site = spec.site
            spec = self.sites[site]
        return site, spec

    def qspec(self, site: str) -> QSpec | None:
        """The number format at `site`, or None when it is float (or no site at all)."""
        if site not in self.sites:
            return None
        spec = self.resolve(site)[1]
        return spec if isinstance(spec, QSpec) else None

    def float_sites(self) -> dict[str, str]:
        """`{site: reason}` of all that stays float."""
        return {s: spec.reason for s, spec in self.sites.items() if isinstance(spec, Float)}

    def match(self, pattern: str) -> list[str]:
        """Sites that a glob names, by their own name or by their region's."""
        found = {s for s in self.sites if fnmatch.fnmatchcase(s, pattern)}
        for region, sites in self.regions.items():
            if fnmatch.fnmatchcase(region, pattern):
                found.update(sites)
        return [s for s in self.sites if s in found]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `modes` is left out where there are none."""
        content = {
            "version": VERSION,
            "target": self.target,
            "sites": {s: spec_to_json(spec) for s, spec in self.sites.items()},
            "regions": {r: list(s) for r, s in self.regions.items()},
            "refused": dict(self.refused),
        }
        return content | ({"modes": dict(self.modes)} if self.modes else {})

    def dumps(self) -> str:
        """As text, one site a line, for files and diffs."""
        content = self.to_json()
        head = f'{{\n  "version": {VERSION},\n  "target": {json.dumps(self.target)}'
        named = (part for part in ("sites", "regions", "refused", "modes") if part in content)
        parts = [f'  "{part}": {{\n{_lines(content[part])}  }}' for part in named]
        return ",\n".join([head, *parts]) + "\n}\n"


def _lines(entries: Mapping[str, Any]) -> str:
    lines = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
    return ",\n".join(lines) + "\n" if lines else ""


def read_plan(path: str | Path) -> Plan:
    """The plan in a JSON file.

    Raises:
        InputError: no such file, no JSON, or no plan (see `plan_from_json`).
    """
    if not Path(path).is_file():
        raise InputError(str(path), "is a folder" if Path(path).is_dir() else "no such file", "a plan's JSON file")
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(
            str(path), f"is no JSON ({first_line(error)})", "a plan's JSON file", "write one with bitwright plan edit"
        ) from error
    return plan_from_json(data, str(path))


def plan_from_json(data: Any, where: str = "plan") -> Plan:
    """The plan that `Plan.to_json` wrote.

    Raises:
        InputError: no plan, a newer version, a spec that cannot be, a site that shares with none that is quantized, a
            bias of no input or weight, a region of unknown sites, or a reason for no region.
    """
    expected = "an object with version, target, sites, regions and refused"
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("sites"), dict)
        or not isinstance(data.get("target"), str)
    ):
        raise InputError(where, "is not a plan", expected)
    modes = data.get("modes", {})
    for name, found, form in (
        ("version", data.get("version"), int), ("regions", data.get("regions"), dict),
        ("refused", data.get("refused"), dict), ("modes", modes, dict),
    ):  # fmt: skip
        if not isinstance(found, form):
            raise InputError(where, f"has {name} of another form", expected)
    if data["version"] > VERSION:
        raise InputError(where, f"is of version {data['version']}", f"at most {VERSION}", "upgrade bitwright")
    sites = {s: spec_from_json(entry, f"{where}: {s}") for s, entry in data["sites"].items()}
    for site, spec in sites.items():
        if isinstance(spec, Shared):
            _check_shared(site, spec, sites, where)
        elif isinstance(spec, Derived):
            for other in (spec.input, spec.weight):
                if other not in sites:
                    raise InputError(f"{where}: {site}", f"is derived from {other!r}", "sites of the plan")
    for region, members in data["regions"].items():
        if not isinstance(members, list) or any(s not in list(sites) for s in members):
            raise InputError(f"{where}: region {region}", f"is {members!r}", "a list of sites of the plan")
    for region, reason in data["refused"].items():
        if region not in data["regions"] or not isinstance(reason, str):
            raise InputError(f"{where}: refused {region}", f"is {reason!r}", "a region of the plan, and the reason")
    for region, mode in modes.items():
        if region not in data["refused"] or mode not in MODES:
            expected = f"{' or '.join(MODES)}, of a refused region of the plan"
            raise InputError(f"{where}: mode of {region}", f"is {mode!r}", expected)
    regions = {r: tuple(s) for r, s in data["regions"].items()}
    return Plan(target=data["target"], sites=sites, regions=regions, refused=dict(data["refused"]), modes=dict(modes))


def _check_shared(site: str, spec: Shared, sites: Mapping[str, SiteSpec], where: str) -> None:
    seen = {site}
    last: SiteSpec = spec
    while isinstance(last, Shared):
        if last.site not in sites or last.site in seen:
            break
        seen.add(last.site)
        last = sites[last.site]
    if not isinstance(last, QSpec):
        raise InputError(f"{where}: {site}", f"shares with {spec.site!r}", "a quantized site of the plan")
