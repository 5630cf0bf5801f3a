"""Flags that ask for what there is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]
Arguments = Callable[..., list[object]]

FLAGS: dict[str, tuple[list[str], str]] = {
    "17 bits": (["--set", "W=17"], "--set 'W=17': 17 bits; expected 1 to 16 bits"),
    "0 bits": (["--set", "fc:A=0"], "--set 'fc:A=0': 0 bits; expected 1 to 16 bits"),
    "no number": (["--set", "W=many"], "--set 'W=many': 'many' is no number of bits; expected 1 to 16"),
    "fraction": (["--set", "W=4.5"], "'4.5' is no number of bits; expected 1 to 16"),
    "another letter": (["--set", "B=8"], "'B=8' is not understood; expected 'W=4,A=8'"),
    "nothing": (["--set", ""], "--set ''.* is not understood; expected 'W=4,A=8'"),
    "twice": (["--set", "W=4,W=8"], "'W=8' is not understood"),
    "no site": (["--set", ":W=4"], "names no site before the colon; expected"),
    "all float": (["--set", "float"], "names no region to keep in float; expected"),
    "no such region": (["--set", "layer9.*:W=8"], "--set 'layer9.*': matches no region and no site.*choose from"),
    "misspelt region": (
        ["--set", "residul.conv1:W=7"],
        "'residul.conv1': matches no region.*did you mean 'residual.con",
    ),
    "weights the target cannot do": (
        ["--target", "onnxruntime-x64", "--set", "fc:W=16"],
        "site 'fc.weight': 16-bit weights; expected affine weights of .* bits on onnxruntime-x64; .*--set W=",
    ),
    "activations the target cannot do": (
        ["--target", "onnxruntime-x64", "--set", "A=16"],
        "site '.*': 16-bit activations; expected one of .*--set A=",
    ),
    "all in float": (["--set", "*:float"], r"has no quantizable op; .*kept in float by --set \*:float"),
    "recipe": (["--recipe", "int9"], "recipe 'int9': there is no recipe of this name; did you mean 'int8'"),
    "recipe file": (["--recipe", "mine.yaml"], "recipe 'mine.yaml': no such file"),
    "target": (["--target", "onnxruntime-x46"], "target 'onnxruntime-x46'.*did you mean 'onnxruntime-x64'"),
    "step": (["--step", "adaroud.iters=3"], "recipe fast: has no step 'adaroud'"),
    "setting": (["--step", "calibrate.percentil=99"], "there is no setting 'percentil'; did you mean 'percentile'"),
    "value": (
        ["--step", "calibrate.percentile=most"],
        "calibrate.percentile: is 'most' .*expected a float, like 99.99",
    ),
    "value of a choice": (["--step", "calibrate.activations=mode"], "estimator 'mode': there is no estimator of this"),
    "no setting": (["--step", "calibrate"], "--step 'calibrate': is not understood; expected STEP.SETTING=VALUE"),
    "value out of range": (
        ["--step", "calibrate.activations=percentile", "--step", "calibrate.percentile=0"],
        "percentile.* 0",
    ),
    "yaml": (["--step", "calibrate.percentile=[1"], "--step 'calibrate.percentile=.1'.*YAML"),
    "ends": (["--ends", "17"], "--ends: is 17; expected 1 to 16 bits, or 0"),
    "batch": (["--batch", "0"], "batch.*0.*expected a whole number from 1"),
    "limit": (["--limit", "-1"], "limit.*-1.*expected a whole number"),
    "no such flag": (["--bits", "8"], "--bits"),
    "no number of images": (["--limit", "many"], "--limit.*many"),
}


@pytest.mark.parametrize("kind", FLAGS)
def test_flags(kind: str, refused: Refused, quantize: Arguments, digits: Path) -> None:
    flags, words = FLAGS[kind]
    refused(quantize(digits, *flags), words)


RECIPES: dict[str, tuple[str, str]] = {
    "no yaml": ("steps: [fold_batchnorm", "is not YAML"),
    "a list": ("- fold_batchnorm", "has no list of steps; expected help"),
    "no steps": ("help: nothing", "has no list of steps"),
    "unknown step": (
        "steps: [fold_batchnorn]",
        "step 'fold_batchnorn': there is no step of this name; did you mean 'fold_b",
    ),
    "unknown key": ("steps: [place]\nstep: [place]", "there is no key 'step'; did you mean 'steps'"),
    "unknown setting": ("steps: [{place: {bits: 3}}]", "there is no setting 'bits'"),
    "another order": ("steps: [calibrate, fold_batchnorm, place]", r"step 1 \(Calibrate\): needs plan"),
    "a number": ("steps: [3]", "step 1: is 3; expected a step's name"),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes(kind: str, refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    text, words = RECIPES[kind]
    (tmp_path / "mine.yaml").write_text(text)
    refused(quantize(digits, "--recipe", tmp_path / "mine.yaml"), words)


def test_commands(refused: Refused) -> None:
    refused(["quantise", "net.onnx"], "there is no command 'quantise'; did you mean 'quantize'")
    refused(["quantize"], "MODEL|model")
