"""What changed from one plan to another, site by site, in words and as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, Float, QSpec, Shared, SiteSpec, spec_to_json


@dataclass(frozen=True, kw_only=True)
class SiteChange:
    """One site of which two plans say something else; None where a plan has no such site."""

    site: str
    before: SiteSpec | None
    after: SiteSpec | None

    def words(self) -> str:
        """For people.

        Example:
            >>> SiteChange(site="fc.weight", before=QSpec(bits=8, axis=0), after=QSpec(bits=4, axis=0)).words()
            'fc.weight: 8 bits, asymmetric, a scale for each index of axis 0 -> 4 bits'
        """
        if isinstance(self.before, QSpec) and isinstance(self.after, QSpec):
            return f"{self.site}: {described(self.before)} -> {_difference(self.before, self.after)}"
        return f"{self.site}: {_side(self.before)} -> {_side(self.after)}"


@dataclass(frozen=True, kw_only=True)
class RegionChange:
    """One region that two plans run otherwise.

    `before` and `after` say how: `integers`, `float: REASON`, or `weights` and `dynamic` (the modes of `Plan`); None
    is no such region.
    """

    region: str
    before: str | None
    after: str | None

    def words(self) -> str:
        """For people.

        Example:
            >>> RegionChange(region="fc", before="integers", after="float: kept in float by --set fc:float").words()
            'fc: integers -> float: kept in float by --set fc:float'
        """
        return f"{self.region}: {self.before or 'absent'} -> {self.after or 'absent'}"


@dataclass(frozen=True, kw_only=True)
class PlanDiff:
    """All that differs.

    Attributes:
        targets: of both plans.
        sites: changed sites, those of the first plan in its order, then the new ones.
        regions: regions that run otherwise, or that only one plan has.
    """

    targets: tuple[str, str]
    sites: tuple[SiteChange, ...]
    regions: tuple[RegionChange, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.targets[0] == self.targets[1] and not self.sites and not self.regions

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "equal": self.equal,
            "targets": list(self.targets),
            "sites": [
                {"site": c.site, "before": _json(c.before), "after": _json(c.after), "words": c.words()}
                for c in self.sites
            ],
            "regions": [
                {"region": c.region, "before": c.before, "after": c.after, "words": c.words()} for c in self.regions
            ],
        }


def diff(before: Plan, after: Plan) -> PlanDiff:
    """What `after` says otherwise than `before`.

    Example:
        >>> a = Plan(target="t", sites={"x": QSpec(bits=8), "y": Shared("x")})
        >>> b = Plan(target="t", sites={"x": QSpec(bits=4), "y": Shared("x")})
        >>> [change.words() for change in diff(a, b).sites], diff(a, a).equal
        (['x: 8 bits, asymmetric, one scale -> 4 bits'], True)
    """
    names = dict.fromkeys([*before.sites, *after.sites])
    sites = [SiteChange(site=s, before=before.sites.get(s), after=after.sites.get(s)) for s in names]
    regions = dict.fromkeys([*before.regions, *after.regions])
    ways = [RegionChange(region=r, before=_way(before, r), after=_way(after, r)) for r in regions]
    return PlanDiff(
        targets=(before.target, after.target),
        sites=tuple(c for c in sites if c.before != c.after),
        regions=tuple(c for c in ways if c.before != c.after),
    )


def described(spec: SiteSpec) -> str:
    """What a plan says of a site, in words.

    Example:
        >>> described(Shared("x")), described(QSpec(bits=4, format="log2", axis=0))
        ("shares with 'x'", 'log2-4, a scale for each index of axis 0')
    """
    if isinstance(spec, Shared):
        return f"shares with {spec.site!r}"
    if isinstance(spec, Derived):
        return f"a bias, derived from {spec.input!r} and {spec.weight!r}"
    if isinstance(spec, Float):
        return f"float ({spec.reason})"
    return ", ".join(part for part in _parts(spec).values() if part)


def _parts(spec: QSpec) -> Mapping[str, str]:
    grid = ""
    if not spec.has_levels:
        grid = "symmetric" if spec.symmetric else "asymmetric"
        grid += (", signed" if spec.signed else "") + (", narrow" if spec.narrow else "")
    return {
        "width": f"{spec.bits} bit{'s' if spec.bits > 1 else ''}" if spec.format == "affine" else width_text(spec),
        "grid": grid,
        "scales": "one scale" if spec.axis is None else f"a scale for each index of axis {spec.axis}",
    }


def width_text(spec: QSpec) -> str:
    """Format and bits in one word, as `--set` reads it.

    Example:
        >>> width_text(QSpec(bits=8)), width_text(QSpec(bits=4, format="log2"))
        ('8', 'log2-4')
    """
    return str(spec.bits) if spec.format == "affine" else f"{spec.format}-{spec.bits}"


def _difference(before: QSpec, after: QSpec) -> str:
    old, new = _parts(before), _parts(after)
    return ", ".join(part for name, part in new.items() if part and (name == "width" or part != old[name]))


def _side(spec: SiteSpec | None) -> str:
    return "absent" if spec is None else described(spec)


def _way(plan: Plan, region: str) -> str | None:
    if region not in plan.regions:
        return None
    if region in plan.modes:
        return plan.modes[region]
    return f"float: {plan.refused[region]}" if region in plan.refused else "integers"


def _json(spec: SiteSpec | None) -> dict[str, Any] | None:
    return None if spec is None else spec_to_json(spec)
