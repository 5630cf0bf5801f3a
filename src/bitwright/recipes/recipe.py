"""Read a recipe and make its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bitwright.errors import InputError, first_line
from bitwright.lookup import did_you_mean, lookup
from bitwright.pipeline import Step, check_chain
from bitwright.ptq import STEPS
from bitwright.recipes.conditions import met, parse_condition


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named chain.

    Attributes:
        name: of the recipe.
        help: what it is for, one line.
        steps: `(step, its settings)` in order.
        when: `{place in steps: conditions}` of the steps that run only where all of these hold (`conditions.py`).
    """

    name: str
    help: str
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    when: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def under(self, hold: Collection[str]) -> Recipe:
        """The recipe without the steps whose conditions do not hold, and without conditions.

        Example:
            >>> recipe = Recipe(name="r", help="", steps=(("place", {}), ("calibrate", {})), when={1: ("data",)})
            >>> recipe.under([]).steps, recipe.under(["data"]).when
            ((('place', {}),), {})
        """
        kept = [entry for i, entry in enumerate(self.steps) if met(self.when.get(i, ()), hold)]
        return dataclasses.replace(self, steps=tuple(kept), when={})


def recipe_names() -> list[str]:
    """The recipes that come with bitwright."""
    folder = resources.files("bitwright.recipes")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe of that name, or in the file of that path.

    Raises:
        InputError: there is none, or it is no recipe.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"recipe {name!r}", "no such file", fix=did_you_mean(path.stem, recipe_names()))
        where = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(where, f"cannot be read as text ({error})", "a YAML file") from error
    else:
        known = recipe_names()
        if name not in known:
            raise InputError(f"recipe {name!r}", "there is no recipe of this name", fix=did_you_mean(name, known))
        text, where = (resources.files("bitwright.recipes") / f"{name}.yaml").read_text(), f"recipe {name}"
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(where, f"is not YAML: {first_line(error)}", "help and steps") from error
    return _recipe(name, content, where)


def _recipe(name: str, content: Any, where: str) -> Recipe:
    if not isinstance(content, Mapping) or not isinstance(content.get("steps"), list) or not content["steps"]:
        raise InputError(where, "has no list of steps", "help: ...; steps: [fold_batchnorm, place, calibrate]")
    unknown = sorted(str(key) for key in content if key not in ("help", "steps"))
    if unknown:
        raise InputError(where, f"there is no key {unknown[0]!r}", fix=did_you_mean(unknown[0], ["help", "steps"]))
    steps, when = [], {}
    for i, entry in enumerate(content["steps"]):
        place, given = f"{where}: step {i + 1}", entry
        if isinstance(entry, Mapping) and "when" in entry:
            when[i] = _conditions(entry["when"], place)
            given = {key: value for key, value in entry.items() if key != "when"}
        step, settings = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else (given, {})
        if not isinstance(step, str) or not isinstance(settings, Mapping | None):
            raise InputError(place, f"is {entry!r}", "a step's name, or {name: {setting: value}}")
        steps.append((step, dict(settings or {})))
    return Recipe(name=name, help=str(content.get("help", "")), steps=tuple(steps), when=when)


def _conditions(given: Any, where: str) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise InputError(where, f"has when: {given!r}", "a condition, or a list of conditions")
    for text in texts:
        parse_condition(text, where)
    return tuple(texts)


def make_steps(
    recipe: Recipe, settings: Mapping[str, Mapping[str, Any]], hold: Collection[str] | None = None
) -> list[Step]:
    """The recipe's steps, with `settings[step]` laid over the recipe's own.

    Args:
        recipe: the chain.
        settings: `{step: {setting: value}}`; steps that are left out for their conditions may have some.
        hold: conditions that hold (`conditions.holding`); None for all steps, whatever their conditions.

    Raises:
        InputError: an unknown step or setting, a setting of the wrong type, a chain whose needs are unmet.
    """
    for name, _ in recipe.steps:
        lookup(STEPS, name, "step")
    absent = sorted(set(settings) - {name for name, _ in recipe.steps})
    if absent:
        used = [name for name, _ in recipe.steps]
        raise InputError(f"recipe {recipe.name}", f"has no step {absent[0]!r}", fix=did_you_mean(absent[0], used))
    steps = []
    for name, own in (recipe if hold is None else recipe.under(hold)).steps:
        cls = lookup(STEPS, name, "step").load()
        merged = {**own, **settings.get(name, {})}
        steps.append(cls(**checked_settings(cls, merged, f"recipe {recipe.name}: {name}")))
    check_chain(steps)
    return steps


def steps_having(recipes: Sequence[Recipe], setting: str) -> list[str]:
    """Steps of the recipes that have a setting of this name, each once.

    Example:
        >>> steps_having([load_recipe("int8"), load_recipe("whitepaper")], "memory")
        ['adaround']
    """
    steps = dict.fromkeys(name for recipe in recipes for name, _ in recipe.steps)
    return [name for name in steps if setting in lookup(STEPS, name, "step").load().__dataclass_fields__]


def shared_settings(recipe: Recipe, shared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of every step of a recipe that has a field of a shared setting's name.

    Args:
        recipe: the chain.
        shared: `{setting: value}`; the value of `work` is a folder, in which each step gets one of its own.

    Raises:
        InputError: no step has such a setting; `seed` alone may be of no use.

    Example:
        >>> recipe = Recipe(name="r", help="", steps=(("place", {}), ("adaround", {})))
        >>> shared_settings(recipe, {"memory": "4GiB", "work": "w"})
        {'adaround': {'memory': '4GiB', 'work': 'w/adaround'}}
    """
    found: dict[str, dict[str, Any]] = {}
    for key, value in shared.items():
        having = steps_having([recipe], key)
        if not having and key != "seed":
            raise InputError(
                f"--{'resume' if key == 'work' else key}", f"is of no use: no step of recipe {recipe.name} has it",
                "a recipe that learns, such as learned", "leave it out, or choose another --recipe",
            )  # fmt: skip
        for name in having:
            found.setdefault(name, {})[key] = f"{value}/{name}" if key == "work" else value
    return found


def checked_settings(cls: type, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings that are fields of `cls`, of the types of their defaults.

    Raises:
        InputError: an unknown setting, or one of the wrong type; errors call the settings `where`.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    checked = {}
    for key, value in settings.items():
        if key not in fields:
            raise InputError(where, f"there is no setting {key!r}", fix=did_you_mean(str(key), fields))
        default = fields[key].default
        if isinstance(default, tuple) and isinstance(value, Sequence) and not isinstance(value, str):
            value = tuple(value)
            kind, told = (int, "whole numbers") if default and isinstance(default[0], int) else (str, "texts")
            if not all(type(entry) is kind for entry in value):
                raise InputError(f"{where}.{key}", f"is {list(value)!r}", f"a list of {told}")
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if default is not dataclasses.MISSING and default is not None and type(value) is not type(default):
            raise InputError(
                f"{where}.{key}",
                f"is {value!r} ({type(value).__name__})",
                f"a {type(default).__name__}, like {default!r}",
            )
        checked[key] = value
    return checked


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read `calibrate.activations=percentile`; values are YAML.

    Example:
        >>> parse_settings(["calibrate.percentile=99.9"])
        {'calibrate': {'percentile': 99.9}}
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        step, dot, key = left.partition(".")
        if not equals or not dot or not key:
            raise InputError(
                f"--step {text!r}", "is not understood", "STEP.SETTING=VALUE, as calibrate.percentile=99.9"
            )
        try:
            found.setdefault(step, {})[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--step {text!r}", "its value is not YAML", "a number, a word, [a, list]") from error
    return found
