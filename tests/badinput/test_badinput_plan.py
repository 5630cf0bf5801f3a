"""Plans that cannot be read, edited or followed, and metrics that are none: one line, and not a byte written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitwright as bw

Refused = Callable[..., str]
Arguments = Callable[..., list[object]]


@pytest.fixture(scope="module")
def content(assets: Path) -> dict[str, Any]:
    """The plan of the digits network, as JSON."""
    return bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", limit=16).plan.to_json()


@pytest.fixture
def plan(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def written(content: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """`written(edit)`: the plan with something edited."""

    def write(edit: Callable[[dict[str, Any]], Any]) -> Path:
        changed = json.loads(json.dumps(content))
        edit(changed)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(changed))
        return path

    return write


# quantize --plan


def test_plans_that_are_none(
    refused: Refused, quantize: Arguments, digits: Path, images: Path, tmp_path: Path
) -> None:
    refused(
        quantize(digits, "--plan", tmp_path / "gone.json"), r"gone\.json: no such file; expected a plan's JSON file"
    )
    refused(quantize(digits, "--plan", tmp_path), "is a folder; expected a plan's JSON file")
    refused(quantize(digits, "--plan", digits), r"digits\.onnx: is no JSON .*write one with bitwright plan edit")
    refused(quantize(digits, "--plan", images), r"digits_calib\.npz: is no JSON")
    (tmp_path / "list.json").write_text("[]")
    refused(
        quantize(digits, "--plan", tmp_path / "list.json"), r"list\.json: is not a plan; expected an object with vers"
    )
    (tmp_path / "cut.json").write_text('{"version": 1, "target": ')
    refused(quantize(digits, "--plan", tmp_path / "cut.json"), r"cut\.json: is no JSON \(Expecting value")


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown target": (
        lambda p: p.update(target="onnxruntime-x46"),
        "target 'onnxruntime-x46': there is no target of this name; did you mean",
    ),
    "another target": (lambda p: p.update(target="tensorrt"), r"changed\.json.*; expected"),
    "newer": (lambda p: p.update(version=9), r"changed\.json: is of version 9; expected at most"),
    "a site too many": (
        lambda p: p["sites"].update({"fc.wieght": p["sites"]["fc.weight"]}),
        r"changed\.json: site fc\.wieght: the network has no site of this name; did you mean 'fc\.weight'",
    ),
    "a site too few": (
        lambda p: (p["regions"].pop("fc"), p["sites"].pop("fc.bias")),
        r"changed\.json: says nothing of the site 'fc\.bias'; expected every site of the network",
    ),
    "a region too few": (lambda p: p["regions"].pop("fc"), r"changed\.json: says nothing of the region 'fc'"),
    "asymmetric weight": (
        lambda p: p["sites"]["fc.weight"].update(symmetric=False),
        r"changed\.json: fc\.weight: . bits, asymmetric, signed.*; expected . bits, symmetric, signed, narrow",
    ),
    "narrow and unsigned": (
        lambda p: p["sites"]["image"].update(narrow=True), r"changed\.json: image: narrow: an unsigned grid"
    ),
    "float without its region": (
        lambda p: p["sites"].update({"fc.weight": {"kind": "float", "reason": "so"}}),
        r"changed\.json: fc\.weight: float \(so\); expected . bits",
    ),
    "width": (
        lambda p: p["sites"]["fc.weight"].update(bits=16),
        r"fc\.weight': 16-bit weights; expected affine weights of .*--set W=",
    ),
    "format": (
        lambda p: p["sites"]["image"].update(format="log2", bits=4), "image': log2-4-bit activations; expected one of"
    ),
    "no number": (lambda p: p["sites"]["image"].update(bits="8"), r"changed\.json: image: bits is '8'; expected of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITS)
def test_plans_that_do_not_fit(
    kind: str, refused: Refused, quantize: Arguments, digits: Path, written: Callable[..., Path]
) -> None:
    edit, words = EDITS[kind]
    refused(quantize(digits, "--plan", written(edit)), words)


def test_a_plan_of_another_network(
    refused: Refused, quantize: Arguments, save: Any, plan: Path, tmp_path: Path
) -> None:
    import numpy as np
    from onnx.helper import make_node

    weights = {"w": np.ones((4, 1, 3, 3), np.float32)}
    other = save(
        "other.onnx", [make_node("Conv", ["image", "w"], ["y"])], {"image": ["N", 1, 8, 8]}, constants=weights
    )
    refused(quantize(other, "--plan", plan), r"plan\.json: site .*: the network has no site of this name")


def test_flags_beside_a_plan(refused: Refused, quantize: Arguments, digits: Path, plan: Path, content: Any) -> None:
    refused(
        quantize(digits, "--plan", plan, "--ends", "8"), "--ends: is 8, but --plan says every width; expected one of"
    )
    refused(quantize(digits, "--plan", plan, "--ends", "17"), "--ends: is 17; expected 1 to 16 bits")
    refused(
        quantize(digits, "--plan", plan, "--target", "tensorrt"), "--target: is 'tensorrt'; expected 'onnxr.*which"
    )
    refused(
        quantize(digits, "--plan", plan, "--set", "W=4"), "--set: names no region and no site, and a plan does not"
    )
    refused(quantize(digits, "--plan", plan, "--set", "fc:float"), "--set fc:float: would move the border")
    refused(quantize(digits, "--plan", plan, "--set", "gone.*:W=4"), r"--set 'gone\.\*': matches no region")
    refused(quantize(digits, "--plan", plan, "-o", plan), r"plan\.json: is the plan; expected another file")


# plan show, diff, edit


def test_what_has_no_plan(refused: Refused, digits: Path, images: Path, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    refused(["plan", "show", tmp_path / "gone.json"], r"gone\.json: no such file")
    refused(["plan", "show", tmp_path / "text.onnx"], r"text\.onnx: .*ONNX")
    refused(["plan", "show", digits, "--set", "W=many"], "--set 'W=many'")
    refused(["plan", "show", digits, "--ends", "17"], "--ends: is 17; expected 1 to 16 bits")
    refused(["plan", "show", digits, "--target", "tensorr"], "target 'tensorr': there is no target.*did you mean")
    refused(["plan", "show", plan, "--ends", "8"], "--ends: is given, but .*says how it is quantized")
    refused(["plan", "diff", plan, digits], r"digits\.onnx: was not written by bitwright; expected a file of")
    refused(["plan", "diff", plan, tmp_path], "is a folder")
    refused(["plan", "diff", plan], "AFTER|after")


def test_edits_that_are_refused(refused: Refused, digits: Path, plan: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.json"
    edit = ["plan", "edit", plan]
    refused(edit, "--output: is missing; expected the JSON file to write")
    refused([*edit, "-o", tmp_path / "new.onnx"], r"new\.onnx: ends in '\.onnx'; expected a name that ends in \.json")
    refused([*edit, "-o", tmp_path / "new"], "ends in 'nothing'|ends in nothing")
    refused([*edit, "-o", plan], r"plan\.json: is the plan to edit; expected another file; choose another --output")
    refused([*edit, "-o", tmp_path / "gone" / "new.json"], "folder '.*gone' does not exist; create it first")
    refused([*edit, "-o", "/proc/new.json"], "writable|written", "choose another --output")
    refused([*edit, "-o", new, "--set", "W=4"], "--set: names no region and no site.*'\\*:W=4' for all")
    refused([*edit, "-o", new, "--set", "fc:W=17"], "--set 'fc:W=17': 17 bits; expected 1 to 16 bits")
    refused([*edit, "-o", new, "--set", "fc:W=16"], r"site 'fc\.weight': 16-bit weights; expected affine weights of")
    refused([*edit, "-o", new, "--set", "fcc:W=4"], "--set 'fcc': matches no region and no site of the plan")
    refused(
        [*edit, "-o", new, "--set", "fc:float"], "--set fc:float: would move the border between integers and float"
    )
    refused([*edit, "-o", new, "--set", "fc.bias:W=4"], r"--set 'fc\.bias': names no weight that the plan quantizes")
    refused(["plan", "edit", digits, "-o", new], r"digits\.onnx: was not written by bitwright")


def test_an_unknown_target_in_a_plan(refused: Refused, written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(lambda p: p.update(target="elsewhere"))
    refused(["plan", "edit", path, "-o", tmp_path / "new.json"], "target 'elsewhere': there is no target of this name")


# evaluate --metric

METRICS = """
import numpy as np
wrong = 3
def few(outputs, labels): return np.zeros(3)
def fails(outputs, labels): raise ValueError("no such\\nthing")
def none(outputs): return 0
def undefined(outputs, labels): return np.full(len(outputs["logits"]), np.nan)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:score", "no_such_module:score: no such file, and no Python module 'no_such_module'"),
        ("{m}:absent", "module '{m}' has no callable 'absent'; expected module:callable for a metric"),
        ("{m}:wrong", "module '{m}' has no callable 'wrong'"),
        ("{m}", "--metric: is '{m}'; expected module:callable"),
        ("{m}:few", r"{m}:few: gave 'few' of shape \[3\]; expected \[32\], one score for each image"),
        ("{m}:fails", "{m}:fails: raised ValueError: no such; expected a callable"),
        ("{m}:none", "{m}:none: raised TypeError"),
        ("{m}:undefined", "{m}:undefined: gave NaN or infinity as 'undefined'; expected finite scores"),
        ("broken_metrics:score", "broken_metrics:score: importing 'broken_metrics' raised SyntaxError"),
    ],
)
def test_metrics(
    name: str, words: str, refused: Refused, digits: Path, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    module = f"bad_metrics_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(METRICS)
    (tmp_path / "broken_metrics.py").write_text("def score(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    arguments = ["evaluate", digits, "--data", images, "--metric", name.replace("{m}", module)]
    refused(arguments, words.replace("{m}", module))
