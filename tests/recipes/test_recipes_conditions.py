"""Conditions of a recipe's steps: how they are written, and when they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import bitwright as bw
from bitwright.errors import InputError
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place
from bitwright.recipes.conditions import CONDITIONS, Case, holding, met, parse_condition
from bitwright.recipes.recipe import load_recipe, make_steps

BRANCHING = """
help: branches
steps:
  - fold_batchnorm
  - place
  - calibrate: {activations: mse}
    when: [data, depthwise or per_tensor]
  - calibrate: {activations: kl}
    when: not depthwise
  - when: data
    calibrate:
"""


def network(group: int, batchnorm: bool) -> ir.Model:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], group=group)]
    if batchnorm:
        nodes.append(helper.make_node("BatchNormalization", ["c", "one", "zero", "zero", "one"], ["y"]))
    weight = np.ones((4, 4 // group, 1, 1), np.float32)
    constants = {"w": weight, "one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4, 5, 5]) for n in ("x", nodes[-1].output[0])]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(a, n) for n, a in constants.items()]
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize(
    ("group", "batchnorm", "data", "placing", "hold"),
    [
        (1, False, False, {}, set()),
        (1, True, True, {}, {"batchnorm", "data"}),
        (2, False, True, {"granularity": "channel"}, {"data"}),
        (4, False, False, {"granularity": "tensor"}, {"depthwise", "per_tensor"}),
    ],
)
def test_when_conditions_hold(
    group: int, batchnorm: bool, data: bool, placing: dict[str, Any], hold: set[str]
) -> None:
    assert holding(Case(network=network(group, batchnorm), data=data, placing=placing)) == hold


def test_every_condition_says_what_it_is() -> None:
    for condition in CONDITIONS.values():
        assert condition.help and "\n" not in condition.help


@pytest.mark.parametrize(
    ("texts", "hold", "expected"),
    [
        ([], [], True),
        (["data"], ["data"], True),
        (["data"], [], False),
        (["not data"], [], True),
        (["data", "batchnorm"], ["data"], False),
        (["data or batchnorm"], ["batchnorm"], True),
        (["data  or  not batchnorm"], [], True),
        (["not data or depthwise", "batchnorm"], ["data", "depthwise", "batchnorm"], True),
        (["not data or depthwise", "batchnorm"], ["data", "batchnorm"], False),
    ],
)
def test_all_texts_and_one_alternative_of_each_must_hold(texts: list[str], hold: list[str], expected: bool) -> None:
    assert met(texts, hold) is expected


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def file(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return file


def test_a_recipe_takes_the_branches_that_hold(write: Callable[[str], str]) -> None:
    recipe = load_recipe(write(BRANCHING))
    assert recipe.when == {2: ("data", "depthwise or per_tensor"), 3: ("not depthwise",), 4: ("data",)}
    head = [FoldBatchNorm(), Place()]
    mse, kl, plain = Calibrate(activations="mse"), Calibrate(activations="kl"), Calibrate()
    assert make_steps(recipe, {}) == [*head, mse, kl, plain]
    assert make_steps(recipe, {}, ["data", "depthwise"]) == [*head, mse, plain]
    assert make_steps(recipe, {}, ["data"]) == [*head, kl, plain]
    assert make_steps(recipe, {}, ["depthwise"]) == head
    assert make_steps(recipe, {"calibrate": {"percentile": 99.0}}, ["depthwise"]) == head
    assert recipe.under(["data"]).when == {}


def test_quantize_takes_the_branch_of_the_network(write: Callable[[str], str], assets: Path) -> None:
    """The digits network has a depthwise convolution and data."""
    q = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", recipe=write(BRANCHING), limit=16)
    ran = [event.step.partition("(")[0] for event in q.state.log]
    assert ran == ["FoldBatchNorm", "Place", "Calibrate", "Calibrate"]
    assert "activations='mse'" in q.state.log[2].step and "activations='minmax'" in q.state.log[3].step


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("dta", "step 1: there is no condition 'dta'; did you mean 'data'?"),
        ("[data, depthwise and data]", "step 1: there is no condition 'depthwise and data'"),
        ("[data or]", "step 1: there is no condition ''; choose from"),
        ("not", "step 1: there is no condition ''; choose from batchnorm, data, depthwise, per_tensor"),
        ("not not data", "step 1: there is no condition 'not data'"),
        ("[]", "step 1: has when: []; expected a condition, or a list of conditions"),
        ("{data: true}", "step 1: has when: {'data': True}; expected a condition, or a list of conditions"),
        ("[3]", "step 1: has the condition 3; expected texts of data, batchnorm, depthwise, per_tensor, not, or"),
        ("['']", "step 1: has the condition ''"),
    ],
)
def test_conditions_that_are_none(when: str, told: str, write: Callable[[str], str]) -> None:
    path = write(f"steps:\n  - fold_batchnorm:\n    when: {when}\n")
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert str(caught.value).removeprefix(path).lstrip(": ").startswith(told)


def test_an_entry_needs_one_step_beside_its_conditions(write: Callable[[str], str]) -> None:
    for entry in ("{when: data}", "{place: {}, calibrate: {}, when: data}"):
        with pytest.raises(InputError, match=r"expected a step's name, or \{name: \{setting: value\}\}"):
            load_recipe(write(f"steps:\n  - {entry}\n"))
    assert parse_condition("data", "x") == ((True, "data"),)
