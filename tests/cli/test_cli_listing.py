"""`bitwright recipes` and `bitwright targets`: they tell what the tables hold, no more and no less."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bitwright.deploy.runtimes.onnxruntime import products_saturate
from bitwright.placement.checks import CHECKS
from bitwright.ptq import STEPS
from bitwright.recipes.recipe import load_recipe, make_steps, recipe_names
from bitwright.targets import TARGETS


def test_every_recipe_with_every_setting(cli: Any) -> None:
    found = {recipe["name"]: recipe for recipe in cli("recipes", "--json").json["recipes"]}
    assert list(found) == recipe_names() and "int8" in found
    text = cli("recipes").out
    for name, told in found.items():
        recipe = load_recipe(name)
        assert told["help"] == recipe.help and f"{name}: {recipe.help}" in text
        assert [entry["step"] for entry in told["steps"]] == [step for step, _ in recipe.steps]
        for entry, step in zip(told["steps"], make_steps(recipe, {}), strict=True):
            assert entry["help"] == STEPS[entry["step"]].help
            flags = {flag.removeprefix("--").replace("-", "_") for flag in entry["flags"]}
            assert set(entry["settings"]) | flags == {field.name for field in dataclasses.fields(step)}  # type: ignore[arg-type]
            for key, value in entry["settings"].items():
                own = getattr(step, key)
                assert value == (list(own) if isinstance(own, tuple) else own)


def test_settings_that_flags_decide_are_told_apart(cli: Any) -> None:
    (recipe,) = cli("recipes", "int8", "--json").json["recipes"]
    place = next(entry for entry in recipe["steps"] if entry["step"] == "place")
    assert place["flags"] == ["--target", "--set", "--ends", "--plan"]
    calibrate = next(entry for entry in recipe["steps"] if entry["step"] == "calibrate")
    assert calibrate["settings"]["activations"] == "minmax" and calibrate["flags"] == []


def test_a_recipe_of_ones_own(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("help: mine\nsteps: [fold_batchnorm, place, {calibrate: {activations: mse}}]\n")
    (recipe,) = cli("recipes", path, "--json").json["recipes"]
    assert recipe["steps"][2]["settings"]["activations"] == "mse"
    path.write_text("help: mine\nsteps: [fold_batchnorm, {calibrate: {activation: mse}}]\n")
    ran = cli("recipes", path)
    assert ran.code == 2 and "there is no setting 'activation'; did you mean 'activations'" in ran.err


def test_every_target_with_its_rules(cli: Any) -> None:
    found = cli("targets", "--json").json
    assert [target["name"] for target in found["targets"]] == list(TARGETS)
    text = cli("targets").out
    for told in found["targets"]:
        target = TARGETS[told["name"]].load()
        assert told["help"] == TARGETS[told["name"]].help and told["help"] in text
        assert [(r["kind"], r["how"], tuple(r["checks"])) for r in told["rules"]] == [
            (rule.kind, rule.how, rule.checks) for rule in target.rules
        ]
        assert {check for rule in told["rules"] for check in rule["checks"]} <= set(CHECKS)
        assert told["weight_packing"].keys() == target.weight_packing.keys()
        assert told["weight_packing"]["affine"].keys() == {str(bits) for bits in target.weight_packing["affine"]}
        assert tuple(told["activation_bits"]) == target.activation_bits


def test_auto_is_the_target_of_this_machine(cli: Any) -> None:
    here = "onnxruntime-x64-avx2" if products_saturate() else "onnxruntime-x64"
    found = cli("targets", "auto", "--json").json
    assert found["auto"] == here and [target["name"] for target in found["targets"]] == [here]
    assert found["targets"][0]["auto"] is True
    assert f"{here} (auto means this one here): " in cli("targets").out


def test_rules_that_two_targets_share_are_shown_once(cli: Any) -> None:
    both = cli("targets", "onnxruntime-x64", "onnxruntime-x64-avx2").out
    assert both.count("DepthwiseConv") == 1 and "as on onnxruntime-x64\n" in both
    assert "DepthwiseConv" in cli("targets", "onnxruntime-x64-avx2").out
