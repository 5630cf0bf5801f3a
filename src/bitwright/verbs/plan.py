"""`bitwright plan show`, `plan diff` and `plan edit`: read, compare and change how a network is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Group, RenderableType

from bitwright.deploy.reader import is_written, read_model
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError
from bitwright.graph.open import open_model
from bitwright.graph.regions import find_regions
from bitwright.lookup import lookup
from bitwright.pipeline import State
from bitwright.placement.given import edit, weight_sites
from bitwright.placement.overrides import parse_override
from bitwright.plan.diff import diff, width_text
from bitwright.plan.plan import Plan, read_plan
from bitwright.plan.spec import Float, QSpec, Shared
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place
from bitwright.targets import TARGETS
from bitwright.verbs.preparing import check_output, existing_file, float_network
from bitwright.verbs.quantize import ShapeFlag
from bitwright.verbs.quantized import placing_of
from bitwright.verbs.tables import columns, facts
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, option


@dataclass(frozen=True, kw_only=True)
class Show(ShapeFlag):
    """Show how each region is quantized: by a plan's JSON file, in a file written by quantize, or as placement would.

    For a float network, the plan that quantize would make with the same --target, --set and --ends.
    """

    file: str = argument("a plan's JSON file, a file written by quantize, or a float network")
    target: str = option("auto", "of a float network: what it is for; auto: this machine")
    set: tuple[str, ...] = option((), "of a float network: widths, as in quantize")
    ends: int | None = option(None, "of a float network: bits of its ends, 8 if not given; 0: as elsewhere")

    def run(self, terminal: Terminal) -> Outcome:
        """Show."""
        plan, model = self._opened(terminal)
        kinds = {} if model is None else {region.name: region.kind for region in find_regions(model)}
        regions = region_rows(plan, kinds)
        placement = lookup(TARGETS, plan.target, "target").load().placement
        json = {"target": plan.target, "placement": placement, "regions": regions, "plan": plan.to_json()}
        return Outcome(json=json, text=_text(self.file, plan, regions))

    def _opened(self, terminal: Terminal) -> tuple[Plan, ir.Model | None]:
        """The plan, and the network where there is one."""
        opened = None if self.file.endswith(".json") else open_model(self.file)
        if opened is None or is_written(opened):
            for flag in ("target", "set", "ends", "shape"):
                if getattr(self, flag) != type(self).__dataclass_fields__[flag].default:
                    raise InputError(
                        f"--{flag}", f"is given, but {self.file} says how it is quantized", "a float network",
                        "change a plan's widths with bitwright plan edit",
                    )  # fmt: skip
        if opened is None:
            return read_plan(self.file), None
        if is_written(opened):
            state = read_model(opened, self.file)
            assert state.plan is not None
            return state.plan, state.model
        network = float_network(opened, shapes=self.shape, where=self.file)
        folded = FoldBatchNorm()(State(model=network, reference=network))
        placed = Place(**placing_of(self.target, self.set, self.ends, None, terminal))(folded)
        assert placed.plan is not None
        return placed.plan, placed.model


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Compare two plans site by site; the exit code is 0 where they say the same, and 1 where they differ."""

    before: str = argument("a plan's JSON file, or a file written by quantize")
    after: str = argument("the one to compare with it")

    def run(self, terminal: Terminal) -> Outcome:
        """Compare."""
        found = diff(plan_of(self.before), plan_of(self.after))
        lines = [] if found.targets[0] == found.targets[1] else [f"target: {found.targets[0]} -> {found.targets[1]}"]
        lines += [change.words() for change in found.regions] + [change.words() for change in found.sites]
        text = "\n".join(lines) if lines else "the plans are equal"
        return Outcome(json=found.to_json(), text=text, exit_code=0 if found.equal else 1)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Change the widths of a plan and write it as JSON, for quantize --plan.

    Sites that share an encoding change together, and biases follow their layer's input and weight. What is float stays
    float: that is decided where a network is placed.
    """

    file: str = argument("a plan's JSON file, or a file written by quantize, whose plan is taken")
    set: tuple[str, ...] = option((), "widths of regions or sites: 'layer4.*:W=4,A=8', '*:W=log2-4'; none to copy")
    output: str = option("", "the JSON file to write", "--output", "-o")

    def run(self, terminal: Terminal) -> Outcome:
        """Edit."""
        if not self.output:
            raise InputError("--output", "is missing", "the JSON file to write")
        output = Path(self.output)
        if output.suffix != ".json":
            raise InputError(self.output, f"ends in {output.suffix or 'nothing'!r}", "a name that ends in .json")
        check_output(output, {self.file: "the plan to edit"})
        before = plan_of(self.file)
        target = lookup(TARGETS, before.target, "target").load()
        after = edit(before, [parse_override(text) for text in self.set], target)
        write_bytes(output, after.dumps().encode())
        found = diff(before, after)
        lines = [change.words() for change in found.sites] or ["nothing changed"]
        return Outcome(json={"output": self.output, **found.to_json()}, text="\n".join([*lines, f"wrote {output}"]))


def plan_of(path: str) -> Plan:
    """The plan in a JSON file, or of a file that quantize wrote.

    Raises:
        InputError: no such file, or no plan in it.
    """
    if path.endswith(".json"):
        return read_plan(path)
    existing_file(path)
    plan = read_model(open_model(path), path).plan
    assert plan is not None
    return plan


def region_rows(plan: Plan, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each region in order, and before them the sites that belong to none: the inputs of the network.

    A row has the region's `name`, its `kind` (None where no network is at hand), the width of its `weight` and of its
    output (`activation`), the site whose encoding the output `shares`, and the `reason` for float, where `mode` says
    how weights are quantized nevertheless.

    Example:
        >>> sites = {"x": QSpec(bits=8), "w": QSpec(bits=4, axis=0), "y": Shared("x")}
        >>> plan = Plan(target="t", sites=sites, regions={"conv": ("w", "y")})
        >>> [(row["name"], row["weight"], row["activation"], row["shares"]) for row in region_rows(plan, {})]
        [('x', None, '8', None), ('conv', '4', '8', 'x')]
    """
    inside = {site for sites in plan.regions.values() for site in sites}
    weights = set(weight_sites(plan))
    rows = [_row(plan, site, "input", None, site) for site in plan.sites if site not in inside]
    for region, sites in plan.regions.items():
        weight = next((site for site in sites if site in weights), None)
        rows.append(_row(plan, region, kinds.get(region), weight, sites[-1] if sites else None))
    return rows


def _row(plan: Plan, name: str, kind: str | None, weight: str | None, output: str | None) -> dict[str, Any]:
    spec = None if output is None else plan.sites[output]
    return {
        "name": name,
        "kind": kind,
        "weight": _width(plan, weight),
        "activation": _width(plan, output),
        "shares": spec.site if isinstance(spec, Shared) else None,
        "mode": plan.modes.get(name),
        "reason": plan.refused.get(name) or (spec.reason if isinstance(spec, Float) else None),
    }


def _width(plan: Plan, site: str | None) -> str | None:
    spec: QSpec | None = None if site is None else plan.qspec(site)
    return None if spec is None else width_text(spec)


def _text(path: str, plan: Plan, rows: list[dict[str, Any]]) -> RenderableType:
    quantized = sum(plan.qspec(site) is not None for site in plan.sites)
    floats = plan.float_sites()
    placement = lookup(TARGETS, plan.target, "target").load().placement
    about = facts([("plan", path), ("target", plan.target), ("placement", placement)])
    about.add_row("sites", f"{quantized} quantized, {len(floats)} float, {len(plan.sites)} with biases")
    lines = [
        (
            row["name"], row["kind"] or "", row["weight"] or "", row["activation"] or "float",
            row["shares"] or "", row["reason"] or "",
        )
        for row in rows
    ]  # fmt: skip
    table = columns(("region", "kind", ">W", ">A", "shares with", "in float, because"), lines)
    return Group(about, "", table, "", "W, A: width of the weight and of the output, in bits, with the format's name")
