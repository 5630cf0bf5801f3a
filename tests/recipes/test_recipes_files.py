"""Recipes: those that come with bitwright, those of a user, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitwright as bw
from bitwright.errors import InputError
from bitwright.mixed.sensitivity.msq import Msq
from bitwright.plan.spec import QSpec
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.gptq import Gptq
from bitwright.ptq.place import Place
from bitwright.recipes.recipe import (
    Recipe,
    checked_settings,
    load_recipe,
    make_steps,
    parse_settings,
    recipe_names,
)
from bitwright.verbs.quantize import Quantize

GOOD = "help: mine\nsteps:\n  - fold_batchnorm\n  - place: {ends: 0, set: ['W=4']}\n  - calibrate: {percentile: 99}\n"
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(text)`: the path of a recipe's file."""

    def file(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return file


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_makes_steps(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.help and "\n" not in recipe.help
    steps = make_steps(recipe, {"place": {"target": "onnxruntime-x64-avx2"}})
    assert len(steps) == len(recipe.steps)
    assert "encodings" in set().union(*(step.gives for step in steps)), (
        "a recipe ends in a network that can be written"
    )
    (place,) = (step for step in steps if isinstance(step, Place))
    assert place.target == "onnxruntime-x64-avx2"


def test_int8_is_min_max() -> None:
    assert "int8" in recipe_names() and "int8-percentile" in recipe_names()
    assert make_steps(load_recipe("int8"), {}) == [FoldBatchNorm(), Place(), Calibrate()]
    last = make_steps(load_recipe("int8-percentile"), {})[-1]
    assert last == Calibrate(activations="percentile", percentile=99.99)


def test_a_recipe_of_ones_own(write: Write) -> None:
    path = write(GOOD)
    recipe = load_recipe(path)
    assert recipe == Recipe(
        name=path, help="mine",
        steps=(("fold_batchnorm", {}), ("place", {"ends": 0, "set": ["W=4"]}), ("calibrate", {"percentile": 99})),
    )  # fmt: skip
    assert make_steps(recipe, {}) == [FoldBatchNorm(), Place(ends=0, set=("W=4",)), Calibrate(percentile=99.0)]


def test_settings_are_laid_over_those_of_the_recipe(write: Write) -> None:
    settings: dict[str, dict[str, Any]] = {"place": {"set": ["W=8"]}, "calibrate": {"activations": "mse"}}
    assert make_steps(load_recipe(write(GOOD)), settings)[1:] == [
        Place(ends=0, set=("W=8",)), Calibrate(activations="mse", percentile=99.0),
    ]  # fmt: skip


def test_recipes_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = {
        "int9": "recipe 'int9': there is no recipe of this name; did you mean 'int8'",
        "nothing": f"recipe 'nothing': there is no recipe of this name; choose from {', '.join(recipe_names())}",
        "int8.yaml": "recipe 'int8.yaml': no such file; did you mean 'int8'",
    }
    for name, text in told.items():
        with pytest.raises(InputError) as caught:
            load_recipe(name)
        assert str(caught.value).startswith(text)


def test_a_folder_and_bytes_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bytes.yml").write_bytes(b"help: \xff\xfe\n")
    with pytest.raises(InputError, match="no such file"):
        load_recipe(str(tmp_path / "folder.yaml"))
    with pytest.raises(
        InputError, match=r"bytes\.yml: cannot be read as text \('utf-8' codec.*; expected a YAML file"
    ):
        load_recipe(str(tmp_path / "bytes.yml"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no list of steps; expected help: ...; steps: [fold_batchnorm, place, calibrate]"),
        ("- place\n", "has no list of steps"),
        ("help: x\n", "has no list of steps"),
        ("steps: place\n", "has no list of steps"),
        ("steps: []\n", "has no list of steps"),
        ("steps: [\n", "is not YAML: while parsing a flow"),
        ("steps: [place]\nhlp: x\n", "there is no key 'hlp'; did you mean 'help'?"),
        ("steps: [place]\n1: x\n", "there is no key '1'; choose from help, steps"),
        ("steps: [place, 3]\n", "step 2: is 3; expected a step's name, or {name: {setting: value}}"),
        ("steps: [{place: {}, calibrate: {}}]\n", "step 1: is {'place': {}, 'calibrate': {}}; expected a step's name"),
        ("steps: [{place: 8}]\n", "step 1: is {'place': 8}; expected a step's name"),
    ],
)
def test_files_that_are_no_recipe(text: str, told: str, write: Write) -> None:
    path = write(text)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert str(caught.value).removeprefix(path).lstrip(": ").startswith(told)


def test_a_list_holds_what_its_default_holds() -> None:
    assert checked_settings(Msq, {"pools": [1, 2, 3, 6]}, "msq") == {"pools": (1, 2, 3, 6)}
    for wrong in (["1"], [True], [1.5]):
        with pytest.raises(InputError, match=r"msq\.pools: is .* expected a list of whole numbers"):
            checked_settings(Msq, {"pools": wrong}, "msq")


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("[fold_batchnorm, plce]", "step 'plce': there is no step of this name; did you mean 'place'?"),
        ("[{place: {end: 8}}]", "place: there is no setting 'end'; did you mean 'ends'?"),
        ("[{place: {8: 8}}]", "place: there is no setting 8; choose from ends, granularity, plan, set, target"),
        ("[{place: {ends: '8'}}]", "place.ends: is '8' (str); expected a int, like 8"),
        ("[{place: {ends: true}}]", "place.ends: is True (bool); expected a int, like 8"),
        ("[{place: {ends: 8.0}}]", "place.ends: is 8.0 (float); expected a int, like 8"),
        ("[{place: {set: 'W=4'}}]", "place.set: is 'W=4' (str); expected a tuple, like ()"),
        ("[{place: {set: [4]}}]", "place.set: is [4]; expected a list of texts"),
        ("[{calibrate: {percentile: high}}]", "calibrate.percentile: is 'high' (str); expected a float, like 99.99"),
        ("[calibrate]", "step 1 (Calibrate): needs plan; expected a step before it that gives this"),
        ("[place, fold_batchnorm]", "step 1 (Place): needs folded; expected a step before it that gives this"),
    ],
)
def test_steps_that_cannot_be_made(steps: str, told: str, write: Write) -> None:
    path = write(f"steps: {steps}\n")
    with pytest.raises(InputError) as caught:
        make_steps(load_recipe(path), {})
    assert str(caught.value).removeprefix(f"recipe {path}: ").startswith(told)


def test_settings_of_steps_that_the_recipe_lacks() -> None:
    with pytest.raises(InputError, match="recipe int8: has no step 'calibrat'; did you mean 'calibrate'"):
        make_steps(load_recipe("int8"), {"calibrat": {}})


def test_settings_from_the_command_line() -> None:
    texts = ["calibrate.percentile=99.9", "calibrate.activations=percentile", "place.set=[W=4, 'fc:W=8']", "a.b.c=x=y"]
    expected: dict[str, dict[str, Any]] = {
        "calibrate": {"percentile": 99.9, "activations": "percentile"}, "place": {"set": ["W=4", "fc:W=8"]},
        "a": {"b.c": "x=y"},
    }  # fmt: skip
    assert parse_settings(texts) == expected


@pytest.mark.parametrize("text", ["", "calibrate", "calibrate=8", "calibrate.percentile", "calibrate.=8"])
def test_settings_that_are_not_understood(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_settings([text])
    expected = "is not understood; expected STEP.SETTING=VALUE, as calibrate.percentile=99.9"
    assert str(caught.value) == f"--step {text!r}: {expected}"


def test_values_that_are_no_yaml() -> None:
    with pytest.raises(
        InputError, match=r"--step 'calibrate.percentile=\[': its value is not YAML; expected a number"
    ):
        parse_settings(["calibrate.percentile=["])


def test_recipes_may_set_widths_and_flags_come_after(assets: Path) -> None:
    model, data = assets / "digits.onnx", assets / "digits_calib.npz"
    quantized = bw.quantize(model, data, recipe="w4a8", set=["inverted.conv.2:W=3"], limit=32)
    bits = {spec.bits for site, spec in quantized.plan.sites.items() if isinstance(spec, QSpec) and "weight" in site}
    assert {3, 4} <= bits, "the recipe's width, and the one that was said"
    with pytest.raises(InputError, match="--plan: says every width, and recipe w4a8 sets W=4,A=8"):
        bw.quantize(model, data, recipe="w4a8", plan=quantized.plan, limit=32)


def test_the_default_recipe(assets: Path) -> None:
    assert make_steps(load_recipe("fast"), {}) == [FoldBatchNorm(), Place(), Calibrate(), Gptq()]
    assert Quantize.__dataclass_fields__["recipe"].default == "fast"
