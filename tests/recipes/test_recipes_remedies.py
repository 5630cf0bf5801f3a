"""Remedies as changes of a recipe, and the ladder as a table of recipes."""

from __future__ import annotations

import pytest

from bitwright.ptq import STEPS
from bitwright.recipes.ladder import LADDER
from bitwright.recipes.recipe import Recipe, load_recipe, make_steps
from bitwright.recipes.remedies import REMEDIES, Remedy, remedied

INT8 = load_recipe("int8")


def test_every_remedy_makes_steps_of_int8() -> None:
    for name, remedy in REMEDIES.items():
        assert remedy.help and "\n" not in remedy.help
        recipe = remedied(INT8, remedy)
        if recipe is None:
            assert remedy.raises or name == "minmax-activations" or name == "per-channel", name
            continue
        assert make_steps(recipe, {}) != make_steps(INT8, {}), name
        assert {step for step, _ in recipe.steps} <= set(STEPS)
        assert remedied(recipe, remedy) is None, f"{name} changes nothing the second time"


def test_settings_and_steps_are_added_where_they_belong() -> None:
    remedy = Remedy(help="x", settings={"calibrate": {"percentile": 99.0}}, insert={"place": ("fold_batchnorm", {})})
    bare = Recipe(name="r", help="", steps=(("fold_batchnorm", {}), ("calibrate", {})), when={1: ("data",)})
    found = remedied(bare, remedy)
    assert found is not None
    assert found.steps == (("fold_batchnorm", {}), ("place", {}), ("calibrate", {"percentile": 99.0}))
    assert found.when == {2: ("data",)}
    assert bare.steps[1] == ("calibrate", {})  # as it was


def test_a_remedy_takes_the_place_of_what_does_the_same() -> None:
    remedy = Remedy(help="x", insert={"place": ("fold_batchnorm", {"ends": 4})}, instead_of=("calibrate",))
    bare = Recipe(name="r", help="", steps=(("fold_batchnorm", {}), ("calibrate", {})))
    found = remedied(bare, remedy)
    assert found is not None and found.steps == (("fold_batchnorm", {}), ("place", {"ends": 4}))


@pytest.mark.parametrize(
    "remedy",
    [
        Remedy(help="a step that the recipe lacks", settings={"gptq": {"damping": 0.1}}),
        Remedy(help="nothing to stand after", insert={"calibrate": ("equalise", {})}),
        Remedy(help="what it says already", settings={"calibrate": {"activations": "minmax", "percentile": 99.99}}),
    ],
)
def test_remedies_that_have_no_place_change_nothing(remedy: Remedy) -> None:
    bare = Recipe(name="r", help="", steps=INT8.steps)
    if "calibrate" in remedy.insert:
        bare = Recipe(name="r", help="", steps=INT8.steps[:2])
    assert remedied(bare, remedy) is None


def test_the_ladder_is_recipes_from_the_first_on() -> None:
    names = [rung.name for rung in LADDER]
    assert len(set(names)) == len(names) and LADDER[0].recipe == "int8"
    raising = [bool(rung.raises) for rung in LADDER]
    assert raising == sorted(raising), "bits are raised last"
    for rung in LADDER:
        assert rung.help and bool(rung.recipe) != bool(rung.raises)
        if rung.recipe:
            make_steps(load_recipe(rung.recipe), {})
