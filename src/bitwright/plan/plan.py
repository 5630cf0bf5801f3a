"""Plan: for every site, whether and how it is quantized. JSON, no tensors, diffable."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitwright.errors import InputError
from bitwright.plan.spec import Float, QSpec, Shared, SiteSpec, spec_from_json, spec_to_json

#: Version of the JSON form; a reader refuses a newer one.
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`{site: spec}` for a target.

    Attributes:
        target: row of `TARGETS` that the plan was made for.
        sites: spec of every activation, weight and bias, in execution order.
        regions: `{region: sites}`, so that an override can name a region.
    """

    target: str
    sites: Mapping[str, SiteSpec]
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
        """As plain JSON values."""
        return {
            "version": VERSION,
            "target": self.target,
            "sites": {s: spec_to_json(spec) for s, spec in self.sites.items()},
            "regions": {r: list(s) for r, s in self.regions.items()},
        }

    def dumps(self) -> str:
        """As text, one site a line, for files and diffs."""
        sites = [f"    {json.dumps(s)}: {json.dumps(spec_to_json(spec))}" for s, spec in self.sites.items()]
        regions = [f"    {json.dumps(r)}: {json.dumps(list(s))}" for r, s in self.regions.items()]
        head = f'{{\n  "version": {VERSION},\n  "target": {json.dumps(self.target)},\n'
        return f'{head}  "sites": {{\n{_lines(sites)}  }},\n  "regions": {{\n{_lines(regions)}  }}\n}}\n'


def _lines(entries: list[str]) -> str:
    return ",\n".join(entries) + "\n" if entries else ""


def plan_from_json(data: Any, where: str = "plan") -> Plan:
    """The plan that `Plan.to_json` wrote.

    Raises:
        InputError: no plan, a newer version, an unknown kind of site, or a site that shares with none.
    """
    if not isinstance(data, dict) or not isinstance(data.get("sites"), dict) or "target" not in data:
        raise InputError(where, "is not a plan", "an object with version, target and sites")
    if data.get("version", 0) > VERSION:
        raise InputError(where, f"is of version {data['version']}", f"at most {VERSION}", "upgrade bitwright")
    sites = {s: spec_from_json(entry, f"{where}: {s}") for s, entry in data["sites"].items()}
    for site, spec in sites.items():
        seen = {site}
        while isinstance(spec, Shared):
            if spec.site not in sites or spec.site in seen:
                raise InputError(f"{where}: {site}", f"shares with {spec.site!r}", "a quantized site of the plan")
            seen.add(spec.site)
            spec = sites[spec.site]
    regions = {r: tuple(s) for r, s in data.get("regions", {}).items()}
    return Plan(target=str(data["target"]), sites=sites, regions=regions)
