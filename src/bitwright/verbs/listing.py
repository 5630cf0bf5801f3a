"""`bitwright recipes` and `bitwright targets`: what there is to choose from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding

from bitwright.deploy.forms import FORMS
from bitwright.deploy.simulate import is_served
from bitwright.lookup import lookup
from bitwright.ptq import STEPS
from bitwright.recipes.conditions import CONDITIONS, parse_condition
from bitwright.recipes.recipe import Recipe, load_recipe, make_steps, recipe_names
from bitwright.targets import TARGETS
from bitwright.targets.target import Target
from bitwright.verbs.preparing import resolve_target
from bitwright.verbs.quantize import Quantize
from bitwright.verbs.tables import columns, facts
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument

HOW = {"kernel": "integer kernel", "codes": "moves codes", "join": "joins codes", "passes": "passes values on"}


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """The recipes of quantize: their steps in order, with the settings that --step STEP.SETTING=VALUE changes."""

    names: tuple[str, ...] = argument("recipes, or YAML files; all that come with bitwright if none", default=())

    def run(self, terminal: Terminal) -> Outcome:
        """List."""
        listed = [described_recipe(load_recipe(name)) for name in self.names or recipe_names()]
        parts: list[RenderableType] = []
        for recipe in listed:
            branching = any(entry["when"] for entry in recipe["steps"])
            rows = [
                (entry["step"], entry["help"], *([", ".join(entry["when"])] if branching else []), _settings(entry))
                for entry in recipe["steps"]
            ]
            heads = ("step", "what it does", *(["only when"] if branching else []), "settings")
            parts.extend((f"{recipe['name']}: {recipe['help']}", Padding(columns(heads, rows), (0, 0, 0, 2)), ""))
        used = dict.fromkeys(
            name for recipe in listed for entry in recipe["steps"] for text in entry["when"]
            for _, name in parse_condition(text, "when")
        )  # fmt: skip
        parts.extend(f"{name}: {CONDITIONS[name].help}" for name in used)
        return Outcome(json={"recipes": listed}, text=Group(*(parts if used else parts[:-1])))


def described_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe with every setting of its steps: the recipe's value, else the step's default.

    A setting that has a flag of its own in quantize (`--target`) is named under `flags`: the flag decides it.

    Raises:
        InputError: the recipe's steps or settings are wrong.
    """
    flags = {field.name for field in dataclasses.fields(Quantize)}
    steps = []
    for i, ((name, _), step) in enumerate(zip(recipe.steps, make_steps(recipe, {}), strict=True)):
        fields = [field.name for field in dataclasses.fields(step)]  # type: ignore[arg-type]
        steps.append({
            "step": name,
            "help": lookup(STEPS, name, "step").help,
            "when": list(recipe.when.get(i, ())),
            "settings": {key: _plain(getattr(step, key)) for key in fields if key not in flags},
            "flags": [f"--{key.replace('_', '-')}" for key in fields if key in flags],
        })  # fmt: skip
    return {"name": recipe.name, "help": recipe.help, "steps": steps}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def _settings(entry: Mapping[str, Any]) -> str:
    return ", ".join([f"{key}={value}" for key, value in entry["settings"].items()] + entry["flags"])


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The targets of quantize: what each runs in integers, under which conditions, and at which widths."""

    names: tuple[str, ...] = argument("targets; all if none, auto for this machine's", default=())

    def run(self, terminal: Terminal) -> Outcome:
        """List."""
        here = resolve_target("auto", Terminal()).name
        names = [resolve_target(name, terminal).name for name in self.names] or list(TARGETS)
        targets = [lookup(TARGETS, name, "target").load() for name in dict.fromkeys(names)]
        json = {"targets": [described_target(target, here) for target in targets], "auto": here}
        return Outcome(json=json, text=_target_text(targets, here))


def described_target(target: Target, here: str) -> dict[str, Any]:
    """A target as JSON; `here` is the one that `auto` means on this machine."""
    return {
        "name": target.name,
        "help": TARGETS[target.name].help,
        "auto": target.name == here,
        "runtime": target.runtime,
        "activation_bits": list(target.activation_bits),
        "activation_formats": list(target.activation_formats),
        "weight_packing": {
            name: {str(bits): packing for bits, packing in sorted(widths.items())}
            for name, widths in target.weight_packing.items()
        },
        "bias_bits": target.bias_bits,
        "form": target.form,
        "simulated": not is_served(target),
        "saturates": target.saturates,
        "source": target.source,
        "rules": [{"kind": rule.kind, "how": rule.how, "checks": list(rule.checks)} for rule in target.rules],
    }


def _target_text(targets: list[Target], here: str) -> RenderableType:
    parts: list[RenderableType] = []
    told: dict[tuple[Any, ...], str] = {}
    for target in targets:
        mark = " (auto means this one here)" if target.name == here else ""
        weights = [
            (f"weights, {name}", ", ".join(f"{bits} bits ({packing})" for bits, packing in sorted(widths.items())))
            for name, widths in target.weight_packing.items()
        ]
        rows = [
            ("runtime", target.runtime if is_served(target) else f"{target.runtime}: not here, so simulated"),
            (
                f"activations, {', '.join(target.activation_formats)}",
                f"{', '.join(map(str, target.activation_bits))} bits",
            ),
            *weights,
            ("biases", "float" if target.bias_bits is None else f"{target.bias_bits} bits"),
            ("form", f"{target.form}: {FORMS[target.form].help}"),
            ("source", target.source),
        ]
        before = told.setdefault(target.rules, target.name)
        if before != target.name:
            rows.append(("regions", f"as on {before}"))
        parts.extend((f"{target.name}{mark}: {TARGETS[target.name].help}", Padding(facts(rows), (0, 0, 0, 2)), ""))
        if before == target.name:
            lines = [(rule.kind, HOW[rule.how], ", ".join(rule.checks)) for rule in target.rules]
            parts.extend((Padding(columns(("region", "runs as", "if it has"), lines), (0, 0, 0, 2)), ""))
    parts.append("every other region stays float; `bitwright inspect MODEL` tells which and why")
    return Group(*parts)
