"""Plans that were given: edited by overrides, and checked against the network that they are to quantize.

A plan carries no graph. What an edit can do is change the width of a site that is quantized; whatever moves the border
between integers and float is a matter of placing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from bitwright.errors import InputError
from bitwright.lookup import did_you_mean
from bitwright.placement.overrides import Override, Width, what_would_match
from bitwright.placement.place import place
from bitwright.placement.widths import activation_spec, weight_spec
from bitwright.plan.diff import described
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, Float, QSpec, SiteSpec
from bitwright.targets.target import Target


def weight_sites(plan: Plan) -> list[str]:
    """Quantized weights: what a region names first and that has what activations have not.

    That is a scale for each channel, a narrow grid, levels, or a bias that is derived from it.
    """
    firsts = {sites[0] for sites in plan.regions.values() if len(sites) > 1}
    biased = {spec.weight for spec in plan.sites.values() if isinstance(spec, Derived)}
    specs = {site: spec for site, spec in plan.sites.items() if site in firsts and isinstance(spec, QSpec)}
    return [s for s, spec in specs.items() if spec.axis is not None or spec.narrow or spec.has_levels or s in biased]


def edit(plan: Plan, overrides: Sequence[Override], target: Target) -> Plan:
    """A plan with other widths at the sites that overrides name; later ones win.

    Sites that share an encoding get the width together; biases follow their input and weight.

    Args:
        plan: the plan, which is left as it is.
        overrides: widths for globs of regions or sites.
        target: what the plan was made for; its widths bound the new ones.

    Raises:
        InputError: an override names no glob, matches nothing or nothing that is quantized, keeps a region in float,
            or gives different widths to sites that share an encoding.
        UnsupportedError: a width that the target lacks.

    Example:
        >>> from bitwright.placement.overrides import parse_override
        >>> from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64
        >>> from bitwright.plan.spec import Shared
        >>> sites = {"x": QSpec(bits=8), "y": Shared("x")}
        >>> plan = Plan(target="onnxruntime-x64", sites=sites, regions={"pool": ("y",)})
        >>> edit(plan, [parse_override("pool:A=4")], ONNXRUNTIME_X64).qspec("y").bits
        4
    """
    weights = weight_sites(plan)
    chosen: dict[str, Width] = {}
    said: dict[str, dict[str, Width]] = {}
    for override in overrides:
        found = _named(plan, override)
        own = [s for s in found if s in weights] if override.weights else []
        values = [s for s in found if s not in weights and plan.qspec(s) is not None] if override.activations else []
        for missing, what in (
            (override.weights and not own, "weight"),
            (override.activations and not values, "activation"),
        ):
            if missing:
                raise InputError(
                    f"--set {override.pattern!r}", f"names no {what} that the plan quantizes",
                    "a glob of what it is to set", "a plan's float sites become integers only where it is placed",
                )  # fmt: skip
        if override.weights:
            chosen.update(dict.fromkeys(own, override.weights))
        if override.activations:
            for site in values:
                said.setdefault(plan.resolve(site)[0], {})[site] = override.activations
    for speaker, widths in said.items():
        chosen[speaker] = _agreed(widths)
    changed = {
        site: _spec_of(site, plan.sites[site], width, site in weights, target) for site, width in chosen.items()
    }
    return dataclasses.replace(plan, sites={**plan.sites, **changed})


def _named(plan: Plan, override: Override) -> list[str]:
    """The sites that an override names."""
    if override.keep_float or override.mode:
        said = "float" if override.keep_float else "A=dynamic" if override.mode == "dynamic" else "A=float"
        raise InputError(
            f"--set {override.pattern}:{said}", "would move the border between integers and float, which a plan fixes",
            "widths, as 'layer4.*:W=8'", "place anew: quantize with this --set and without --plan",
        )  # fmt: skip
    if not override.pattern:
        raise InputError(
            "--set", "names no region and no site, and a plan does not tell which sites are the network's ends",
            "a glob before the colon", "say '*:W=4' for all",
        )  # fmt: skip
    found = plan.match(override.pattern)
    if not found:
        names = list(plan.regions)
        raise InputError(
            f"--set {override.pattern!r}", "matches no region and no site of the plan",
            f"a glob of one of {len(names) + len(plan.sites)} names",
            what_would_match(override.pattern, names, list(plan.sites)),
        )  # fmt: skip
    return found


def _agreed(widths: Mapping[str, Width]) -> Width:
    (first, width), *others = widths.items()
    for site, other in others:
        if other != width:
            raise InputError(
                f"--set ...:A={other}", f"site {site!r} shares its encoding with {first!r}, set to {width}",
                "one width for both", "set both to the same width",
            )  # fmt: skip
    return width


def _spec_of(site: str, spec: SiteSpec, width: Width, weight: bool, target: Target) -> QSpec:
    """The format that placement gives a site at a width."""
    assert isinstance(spec, QSpec)
    return weight_spec(site, width, target, spec.axis) if weight else activation_spec(site, width, target)


def check_plan(plan: Plan, model: ir.Model, target: Target, where: str = "plan") -> Plan:
    """The plan, its sites in the network's order, when the network can be quantized so.

    It can when placement, told which regions to keep in float and which widths to give, says the same of every site.

    Args:
        plan: as read.
        model: normalised, batch norm folded, each layer with constants of its own.
        target: what the network is to be quantized for.
        where: what errors call the plan.

    Raises:
        InputError: another target, a site or region that the network has not or the plan lacks, a site that is
            quantized, shared, derived or float otherwise than the target does it.
        UnsupportedError: a width that the target lacks.
    """
    if plan.target != target.name:
        raise InputError(where, f"was made for {plan.target!r}", f"the target {target.name!r}", "place anew for it")
    able = place(model, target).plan
    _same_names(list(plan.sites), list(able.sites), "site", where)
    _same_names(list(plan.regions), list(able.regions), "region", where)
    for region, reason in able.refused.items():
        if region not in plan.refused:
            raise InputError(
                f"{where}: region {region}", f"runs in integers there, but stays float on {target.name} ({reason})",
                "a plan that refuses it", "place anew, or edit the plan of this very network",
            )  # fmt: skip
    kept = _kept_in_float(plan, able)
    expected = place(model, target, overrides=kept).plan if kept else able
    for region in dict.fromkeys([*plan.modes, *expected.modes]):
        given, wanted = plan.modes.get(region), expected.modes.get(region)
        if given != wanted:
            raise InputError(f"{where}: mode of {region}", f"is {given!r}", f"{wanted!r}, as on {target.name}")
    weights = set(weight_sites(expected))
    for site, spec in expected.sites.items():
        own = plan.sites[site]
        if isinstance(own, QSpec) and isinstance(spec, QSpec):
            width = Width(bits=own.bits, format=own.format)
            spec = _spec_of(f"{where}: {site}", spec, width, site in weights, target)
            if own == dataclasses.replace(spec, axis=None):  # a weight may have one scale in all
                continue
        if own != spec and not (isinstance(own, Float) and isinstance(spec, Float)):
            raise InputError(f"{where}: {site}", described(own), f"{described(spec)}, as on {target.name}")
    for region, sites in expected.regions.items():
        if plan.regions[region] != sites:
            found = ", ".join(plan.regions[region]) or "nothing"
            raise InputError(f"{where}: region {region}", f"has the sites {found}", ", ".join(sites))
    return dataclasses.replace(
        plan, sites={s: plan.sites[s] for s in expected.sites}, regions={r: plan.regions[r] for r in expected.regions}
    )


def in_float(plan: Plan, regions: Sequence[str], model: ir.Model, target: Target) -> Plan:
    """The plan with more regions in float, and with them what is not worth its kernel any more; widths stay.

    Args:
        plan: of this network.
        regions: names.
        model: normalised, batch norm folded.
        target: what the plan was made for.

    Raises:
        InputError: no region of such a name.
        UnsupportedError: nothing is left that is quantized.
    """
    kept = [*_kept_in_float(plan, place(model, target).plan), *(
        Override(pattern=_literal(region), keep_float=True) for region in regions if region not in plan.refused
    )]  # fmt: skip
    found = place(model, target, overrides=kept).plan
    weights = set(weight_sites(plan))
    sites: dict[str, SiteSpec] = {}
    for site, spec in found.sites.items():
        own = plan.qspec(site)
        if isinstance(spec, QSpec) and own is not None:
            given = _spec_of(site, spec, Width(bits=own.bits, format=own.format), site in weights, target)
            spec = dataclasses.replace(given, axis=own.axis)  # a weight may have one scale in all
        sites[site] = spec
    return dataclasses.replace(found, sites=sites)


def _kept_in_float(plan: Plan, able: Plan) -> list[Override]:
    """What tells placement which regions a plan does not run in integers, though the target could."""
    return [
        Override(pattern=_literal(r), mode=plan.modes.get(r, ""), keep_float=r not in plan.modes)
        for r in plan.refused if r not in able.refused
    ]  # fmt: skip


def _same_names(given: Sequence[str], known: Sequence[str], what: str, where: str) -> None:
    for name in given:
        if name not in set(known):
            raise InputError(
                f"{where}: {what} {name}", f"the network has no {what} of this name", fix=did_you_mean(name, known)
            )
    for name in known:
        if name not in set(given):
            raise InputError(
                where, f"says nothing of the {what} {name!r}", f"every {what} of the network",
                "take the plan of a file that was made from this network",
            )  # fmt: skip


def _literal(name: str) -> str:
    """A glob that matches one name and no other.

    Example:
        >>> _literal("conv[1]*")
        'conv[[]1][*]'
    """
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
