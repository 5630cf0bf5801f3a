"""`bitwright plan show`, `diff`, `edit`, and `quantize --plan`: from a file to a plan, changed, and back to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright as bw
from bitwright.plan.plan import read_plan
from bitwright.plan.spec import QSpec, Shared


@pytest.fixture
def plan_file(cli: Any, int8_file: Path, tmp_path: Path) -> Path:
    """The plan of the integer file, copied out."""
    path = tmp_path / "plan.json"
    assert cli("plan", "edit", int8_file, "-o", path).code == 0
    return path


# show


def test_a_written_file_shows_its_own_plan(cli: Any, int8_file: Path) -> None:
    found = cli("plan", "show", int8_file, "--json").json
    plan = bw.load(int8_file).plan
    assert found["plan"] == plan.to_json() and found["target"] == plan.target
    inside = {s for sites in plan.regions.values() for s in sites}
    assert [row["name"] for row in found["regions"]] == [s for s in plan.sites if s not in inside] + list(plan.regions)
    rows = {row["name"]: row for row in found["regions"]}
    for region, sites in plan.regions.items():
        own = plan.qspec(sites[-1])
        assert own is not None and rows[region]["activation"] == str(own.bits)
    assert rows["fc"]["kind"] == "Gemm" and rows["fc"]["weight"] in ("7", "8")
    assert rows["image"]["kind"] == "input" and rows["image"]["weight"] is None
    shared = {r: spec.site for r, s in plan.regions.items() if isinstance(spec := plan.sites[s[-1]], Shared)}
    assert shared and {row["name"]: row["shares"] for row in found["regions"] if row["shares"]} == shared


def test_the_same_plan_from_its_json_file_has_no_kinds(cli: Any, int8_file: Path, plan_file: Path) -> None:
    of_file, of_plan = (cli("plan", "show", path, "--json").json for path in (int8_file, plan_file))
    assert of_plan["plan"] == of_file["plan"]
    assert [{**row, "kind": None} for row in of_file["regions"] if row["kind"] != "input"] == [
        row for row in of_plan["regions"] if row["kind"] != "input"
    ]


def test_a_float_network_shows_what_quantize_would_do(
    cli: Any, float_file: Path, assets: Path, tmp_path: Path
) -> None:
    flags = ["--set", "W=4,A=4", "--set", "residual*:float", "--set", "down.0:W=log2-4", "--ends", "0"]
    shown = cli("plan", "show", float_file, *flags, "--json").json
    output = tmp_path / "out.onnx"
    assert cli("quantize", float_file, "--data", assets / "digits_calib.npz", *flags, "-o", output).code == 0
    assert shown == cli("plan", "show", output, "--json").json
    text = cli("plan", "show", float_file, *flags).out
    line = next(line for line in text.splitlines() if line.startswith("residual.conv1 "))
    assert "kept in float by --set residual*:float" in line
    assert "log2-4" in next(line for line in text.splitlines() if line.startswith("down.0 "))


def test_its_table_names_every_region(cli: Any, int8_file: Path) -> None:
    text = cli("plan", "show", int8_file).out
    plan = bw.load(int8_file).plan
    assert f"target     {plan.target}" in text
    assert all(any(line.startswith(f"{region} ") for line in text.splitlines()) for region in plan.regions)


@pytest.mark.parametrize(
    "flags", [["--target", "onnxruntime-x64"], ["--set", "W=4"], ["--ends", "8"], ["--shape", "x=Nx1"]]
)
def test_flags_of_placement_need_a_float_network(flags: list[str], cli: Any, int8_file: Path, plan_file: Path) -> None:
    for path in (int8_file, plan_file):
        ran = cli("plan", "show", path, *flags)
        assert (ran.code, ran.out) == (2, "")
        assert f"{flags[0]}: is given, but {path} says how it is quantized; expected a float network" in ran.err


# diff


def test_equal_plans(cli: Any, int8_file: Path, plan_file: Path) -> None:
    for pair in ((int8_file, int8_file), (int8_file, plan_file), (plan_file, int8_file)):
        ran = cli("plan", "diff", *pair)
        assert (ran.code, ran.out) == (0, "the plans are equal\n")
    assert cli("plan", "diff", int8_file, plan_file, "--json").json["equal"] is True


def test_a_difference_is_told_and_is_exit_code_1(cli: Any, int8_file: Path, plan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    assert cli("plan", "edit", plan_file, "--set", "residual.conv1:W=4,A=5", "-o", other).code == 0
    ran = cli("plan", "diff", int8_file, other)
    assert ran.code == 1 and ran.err == ""
    lines = ran.out.splitlines()
    assert len(lines) == 2 and any(line.startswith("residual.conv1.weight: ") for line in lines)
    assert any(line.endswith("8 bits, asymmetric, one scale -> 5 bits") for line in lines)
    found = cli("plan", "diff", int8_file, other, "--json")
    assert found.code == 1 and len(found.json["sites"]) == 2
    assert {entry["words"] for entry in found.json["sites"]} == set(lines)


# edit, and quantize with what it wrote


def test_from_a_file_through_an_edit_to_a_file(
    cli: Any, float_file: Path, int8_file: Path, assets: Path, tmp_path: Path
) -> None:
    edited, output = tmp_path / "edited.json", tmp_path / "out.onnx"
    ran = cli("plan", "edit", int8_file, "--set", "*.conv1*:W=4", "--set", "stem.*:A=5", "-o", edited)
    assert ran.code == 0 and f"wrote {edited}" in ran.out and "-> 5 bits" in ran.out
    data = assets / "digits_calib.npz"
    assert cli("quantize", float_file, "--data", data, "--plan", edited, "-o", output).code == 0
    assert bw.load(output).plan == read_plan(edited)
    assert cli("plan", "diff", edited, output).code == 0
    assert cli("verify", output, "--data", assets / "digits.npz", "--limit", 32, "--json").json["mismatches"] == 0
    # Placement, told the same, writes the same file.
    same = tmp_path / "same.onnx"
    flags = ["--set", "*.conv1*:W=4", "--set", "stem.*:A=5"]
    assert cli("quantize", float_file, "--data", data, *flags, "-o", same).code == 0
    assert same.read_bytes() == output.read_bytes()


def test_set_changes_what_a_plan_says(
    cli: Any, float_file: Path, plan_file: Path, assets: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.onnx"
    flags = ["--plan", plan_file, "--set", "fc:W=4"]
    assert cli("quantize", float_file, "--data", assets / "digits_calib.npz", *flags, "-o", output).code == 0
    spec = bw.load(output).plan.sites["fc.weight"]
    assert isinstance(spec, QSpec) and spec.bits == 4
    found = cli("plan", "diff", plan_file, output, "--json").json
    assert [entry["site"] for entry in found["sites"]] == ["fc.weight"] and found["regions"] == []


def test_a_plan_with_float_regions_is_followed(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    data, first, second = assets / "digits_calib.npz", tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert cli("quantize", float_file, "--data", data, "--set", "residual*:float", "-o", first).code == 0
    plan = tmp_path / "p.json"
    assert cli("plan", "edit", first, "-o", plan).code == 0
    assert cli("quantize", float_file, "--data", data, "--plan", plan, "-o", second).code == 0
    assert first.read_bytes() == second.read_bytes()


def test_from_python(float_file: Path, plan_file: Path, assets: Path) -> None:
    data = assets / "digits_calib.npz"
    by_path = bw.quantize(float_file, data, plan=plan_file)
    by_value = bw.quantize(float_file, data, plan=read_plan(plan_file))
    assert by_path.plan == by_value.plan == read_plan(plan_file)
    with pytest.raises(bw.InputError, match="--ends: is 8, but --plan says every width; expected one of them"):
        bw.quantize(float_file, data, plan=plan_file, ends=8)


def test_a_recipe_may_name_a_plan(float_file: Path, plan_file: Path, assets: Path) -> None:
    steps = {"place": {"plan": str(plan_file)}}
    target = read_plan(plan_file).target
    assert bw.quantize(float_file, assets / "digits_calib.npz", steps=steps, target=target).plan == read_plan(
        plan_file
    )
    with pytest.raises(bw.InputError, match=r"place\.plan: is 5; expected the path of a plan's JSON file"):
        bw.quantize(float_file, assets / "digits_calib.npz", steps={"place": {"plan": 5}}, target=target)


def test_a_plan_brings_its_target(cli: Any, float_file: Path, plan_file: Path, assets: Path, tmp_path: Path) -> None:
    plan = json.loads(plan_file.read_text())
    other = "onnxruntime-x64" if plan["target"] == "onnxruntime-x64-avx2" else "onnxruntime-x64-avx2"
    arguments = ["quantize", float_file, "--data", assets / "digits_calib.npz", "-o", tmp_path / "out.onnx"]
    found = cli(*arguments, "--plan", plan_file, "--target", plan["target"], "--json")
    assert (found.code, found.json["target"]) == (0, plan["target"])
    ran = cli(*arguments, "--plan", plan_file, "--target", other)
    assert (
        ran.code == 2
        and f"--target: is {other!r}; expected {plan['target']!r}, which {plan_file} was made for" in ran.err
    )


def test_networks_with_separate_copies_of_a_weight(cli: Any, onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    """Two layers read one weight, of which each gets its own: the plan names both."""
    path = onnx_file(
        "a = Conv(x, w) b = Conv(a, w) y = Flatten(b)",
        "(float[N, 1, 4, 4] x) => (float[N, 16] y) <float[1, 1, 1, 1] w = {0.5}>",
    )
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((8, 1, 4, 4), dtype=np.float32))
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert cli("quantize", path, "--data", tmp_path / "x.npz", "-o", first).code == 0
    assert cli("plan", "edit", first, "--set", "*:W=4", "-o", tmp_path / "p.json").code == 0
    ran = cli("quantize", path, "--data", tmp_path / "x.npz", "--plan", tmp_path / "p.json", "-o", second)
    assert ran.code == 0, ran.err
    weights = [s for s in read_plan(tmp_path / "p.json").sites if s.startswith("w")]
    assert len(weights) == 2 and bw.load(second).plan == read_plan(tmp_path / "p.json")
