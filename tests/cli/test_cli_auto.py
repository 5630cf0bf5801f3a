"""`bitwright auto`: climbing, budgets, going on after a stop, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright as bw
from bitwright.deploy.evaluate import Drop
from bitwright.ptq.calibrate import Calibrate
from bitwright.recipes.ladder import LADDER, Rung
from bitwright.recipes.recipe import recipe_names
from bitwright.verbs import auto, pace, trial
from bitwright.verbs.pace import passes

CHEAP = tuple(r for r in LADDER if r.recipe in ("int8", "int8-mse") or r.name in ("raise-1/8", "raise-1/2"))
TIMES = ("seconds", "attempted_seconds", "peak_memory_mb")


@pytest.fixture(autouse=True)
def _cheap_rungs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rungs that take a second each, and a scan of few images; files go to a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(auto, "LADDER", CHEAP)
    monkeypatch.setattr(auto, "SCANNED", 16)


@pytest.fixture
def data(assets: Path) -> list[Any]:
    return ["--data", assets / "digits_calib.npz", "--eval-data", assets / "digits.npz"]


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in found.items() if key not in TIMES}
    return {**rest, "attempts": [{k: v for k, v in a.items() if k != "seconds"} for a in found["attempts"]]}


def test_the_first_rung_that_holds_is_taken(cli: Any, float_file: Path, data: list[Any], tmp_path: Path) -> None:
    ran = cli("auto", float_file, *data, "--max-drop", 2, "-o", tmp_path / "out.onnx", "--json", "--quiet")
    found = ran.json
    assert ran.code == 0 and found["met"] and found["best"] == "int8" and found["next"] is None
    assert [a["name"] for a in found["attempts"]] == ["int8"] and found["skipped"] == []
    (attempt,) = found["attempts"]
    assert attempt["bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert attempt["upper"] <= 0.02 and attempt["drop"]["drop"] <= attempt["upper"]
    assert attempt["upper"] == pytest.approx(attempt["drop"]["high"])
    assert (found["images"], found["calibration_images"], found["same_images"]) == (360, 256, False)
    again = cli("evaluate", tmp_path / "out.onnx", "--data", data[3], "--against", float_file, "--json").json
    assert again["drop"] == attempt["drop"]


def test_it_climbs_until_bits_are_raised_and_the_file_is_proven(
    cli: Any, float_file: Path, data: list[Any], tmp_path: Path
) -> None:
    arguments = ["--set", "W=2,A=3", "--max-drop", 1, "-o", tmp_path / "out.onnx", "--json", "--quiet"]
    ran = cli("auto", float_file, *data, *arguments)
    found = ran.json
    raised = [a for a in found["attempts"] if a["name"].startswith("raise")]
    assert raised and [a["name"] for a in found["attempts"]][:2] == ["int8", "mse"]
    assert all(len(a["set"]) > 1 and a["set"][0] == "W=2,A=3" for a in raised)
    counts = [len(a["set"]) for a in raised]
    assert counts == sorted(set(counts)), "each rung raises more sites"
    uppers = [a["upper"] for a in found["attempts"]]
    assert ran.code == (0 if found["met"] else 1)
    assert found["met"] == (min(uppers) <= 0.01) and all(u > 0.01 for u in uppers[:-1])
    drops = {a["name"]: a["drop"]["drop"] for a in found["attempts"]}
    assert drops[found["best"]] == min(drops.values()) < drops["int8"]
    assert bw.load(tmp_path / "out.onnx").verify(data[3], limit=32).proven


def test_a_missed_goal_writes_the_best_and_names_what_comes_next(
    cli: Any, float_file: Path, data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "LADDER", CHEAP[:2])
    ran = cli("auto", float_file, *data, "--set", "W=1,A=2", "--max-drop", 1, "-o", tmp_path / "out.onnx", "--quiet")
    assert ran.code == 1 and (tmp_path / "out.onnx").exists()
    assert "GOAL MISSED" in ran.out and "quantization-aware training" in ran.out


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(
    cli: Any, float_file: Path, data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*data, "--set", "W=2,A=3", "--max-drop", 1, "--json", "--quiet"]
    whole = cli("auto", float_file, *arguments, "-o", tmp_path / "whole.onnx").json
    assert len(whole["attempts"]) >= 3
    work, ran = tmp_path / "work", []
    real = trial.run_trial

    def counted(bench: trial.Bench, recipe: Any, more: Any = ()) -> trial.Trial:
        ran.append(recipe.name)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return real(bench, recipe, more)

    monkeypatch.setattr(auto, "run_trial", counted)
    resumed = [*arguments, "--resume", work, "-o", tmp_path / "resumed.onnx"]
    assert cli("auto", float_file, *resumed).code == 130
    assert ran == ["int8", "int8-mse", whole["attempts"][2]["recipe"]] and not (tmp_path / "resumed.onnx").exists()
    monkeypatch.setattr(auto, "run_trial", real)
    found = cli("auto", float_file, *resumed).json
    assert without_times(found) == {**without_times(whole), "output": str(tmp_path / "resumed.onnx")}
    assert (tmp_path / "resumed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    monkeypatch.setattr(auto, "run_trial", None)  # all are kept: none runs again
    again = cli("auto", float_file, *resumed).json
    assert again["attempts"] == found["attempts"]
    other = cli("auto", float_file, *resumed, "--set", "W=3")
    assert other.code == 2 and "holds a run with another set: ['W=2,A=3']; expected ['W=2,A=3', 'W=3']" in other.err
    (work / "int8.json").write_text("{}")
    assert "int8.json: is no attempt that was kept" in cli("auto", float_file, *resumed).err


def test_time_is_a_budget(cli: Any, float_file: Path, data: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ran = cli("auto", float_file, *data, "--max-drop", 2, "--minutes", 0.0001, "--quiet")
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert "--minutes: is 0.0001; expected at least 0.1, for the first attempt" in ran.err
    dear = Rung(name="dear", recipe="int8-percentile", help="dear")
    monkeypatch.setattr(auto, "LADDER", (*CHEAP[:1], dear))
    monkeypatch.setattr(
        pace, "passes", lambda steps, images: 1e9 if "percentile" in repr(steps[-1]).split(",")[0] else 0.0
    )
    found = cli("auto", float_file, *data, "--set", "W=1,A=2", "--max-drop", 1, "--minutes", 1, "--json").json
    assert [a["name"] for a in found["attempts"]] == ["int8"]
    (skipped,) = found["skipped"]
    assert skipped["name"] == "dear" and "are left of --minutes" in skipped["reason"]
    assert "give more, with --resume" in found["next"]
    monkeypatch.setattr(auto, "LADDER", (CHEAP[0], CHEAP[-1]))
    monkeypatch.setattr(auto, "SCANNED", 10**9)  # a scan that does not fit is not begun
    found = cli("auto", float_file, *data, "--set", "W=1,A=2", "--max-drop", 1, "--minutes", 1, "--json").json
    assert [a["name"] for a in found["attempts"]] == ["int8"]
    assert [s["name"] for s in found["skipped"]] == [CHEAP[-1].name]


def test_steps_that_learn_are_estimated_by_their_iterations() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Learns(Calibrate):
        iterations: int = 100
        images: int = 64
        batch: int = 32

    assert passes([Calibrate()], 200) == 600
    assert passes([Learns()], 200) == 3 * 64 + 9 * 3200
    assert passes([Learns(images=500)], 200) == 600 + 9 * 3200


def test_what_cannot_be_tried_is_told_and_the_rest_goes_on(
    cli: Any, float_file: Path, data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.errors import UnsupportedError

    real = trial.run_trial

    def refusing(bench: trial.Bench, recipe: Any, more: Any = ()) -> trial.Trial:
        if recipe.name == "int8-mse":
            raise UnsupportedError("conv", "is odd", "an even one")
        return real(bench, recipe, more)

    monkeypatch.setattr(auto, "run_trial", refusing)
    arguments = ["--set", "W=2,A=2", "--max-drop", 1, "-o", tmp_path / "out.onnx", "--json", "--quiet"]
    found = cli("auto", float_file, *data, *arguments).json
    assert [a["failed"] for a in found["attempts"][:2]] == [None, "conv: is odd; expected an even one"]
    assert len(found["attempts"]) > 2 and found["attempts"][2]["recipe"] == "int8"


def test_nothing_to_raise_and_equal_steps_are_skipped(
    cli: Any, float_file: Path, data: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = Rung(name="twice", recipe="int8", help="again")
    monkeypatch.setattr(auto, "LADDER", (CHEAP[0], twice, CHEAP[-1]))
    monkeypatch.setattr(Drop, "upper", lambda self, confidence: 0.0 if self.images == 0 else 1.0)
    monkeypatch.setattr(auto, "check_enough", lambda *a: None)
    found = cli("auto", float_file, *data, "-o", tmp_path / "out.onnx", "--json", "--quiet").json
    assert {s["name"]: s["reason"] for s in found["skipped"]} == {
        "twice": "has the same steps as int8", CHEAP[-1].name: "no site has fewer than 8 bits",
    }  # fmt: skip
    assert not found["met"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--max-drop", 0], "--max-drop: is 0; expected percentage points, above 0 and up to 100"),
        (["--max-drop", -1], "--max-drop: is -1"),
        (["--max-drop", 101], "--max-drop: is 101"),
        (["--max-drop", "nan"], "--max-drop: is nan"),
        (["--confidence", 1], "--confidence: is 1; expected a fraction from 0 to below 1, as 0.95"),
        (["--minutes", -1], "--minutes: is -1; expected minutes, or 0 for any time"),
        (["--max-drop", 0.5], "expected at least 390 images; or a larger --max-drop"),
        (["--max-drop", 5, "--limit", 10], "10 images cannot show a drop within 5 points at a confidence of 0.95"),
        (["--step", "gone.x=1"], "--step gone: no recipe here has this step"),
        (["--max-drop", 5, "--set", "gone:W=4"], "--set 'gone': matches no region and no site"),
        (["-o", "missing/out.onnx"], "missing/out.onnx: folder 'missing' does not exist"),
    ],
)
def test_what_it_refuses(
    arguments: list[Any], told: str, cli: Any, float_file: Path, data: list[Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ran = cli("auto", float_file, *data, *arguments, "--quiet")
    assert (ran.code, ran.out) == (2, "") and told in ran.err, ran.err
    assert ran.err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_images_must_be_apart_labelled_and_of_the_networks_classes(
    cli: Any, float_file: Path, assets: Path, tmp_path: Path
) -> None:
    images = np.load(assets / "digits.npz")
    calibration = assets / "digits_calib.npz"
    np.savez(tmp_path / "unlabelled.npz", image=images["image"])
    np.savez(tmp_path / "other.npz", image=images["image"], labels=images["labels"] + 3)
    for path, told in (
        (calibration, "--eval-data: "),
        (tmp_path / "unlabelled.npz", "has no labels; expected a label for every image"),
        (tmp_path / "other.npz", "has labels from 3 to 12; expected classes 0 to 9 of the network"),
    ):
        ran = cli("auto", float_file, "--data", calibration, "--eval-data", path, "--max-drop", 2, "--quiet")
        assert ran.code == 2 and told in ran.err and ran.err.count("\n") == 1, ran.err
    ran = cli("auto", float_file, "--data", calibration, "--max-drop", 2, "-o", tmp_path / "out.onnx")
    assert ran.code == 0 and "flatters it" in ran.err and "measured on the calibration images" in ran.out


def test_confidence_is_that_of_the_interval() -> None:
    drop = Drop(reference=0.9, accuracy=0.9, drop=0.0, low=-0.01, high=0.01, images=400)
    assert drop.upper(0.95) == pytest.approx(0.01) and drop.upper(0) == 0
    assert 0.01 < drop.upper(0.99) == pytest.approx(0.01 * 2.5758 / 1.95996, rel=1e-4)


def test_a_folder_of_other_things_is_not_written_into(
    cli: Any, float_file: Path, data: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ran = cli("auto", float_file, *data, "--max-drop", 2, "--resume", tmp_path, "--quiet")
    assert ran.code == 2 and "holds other files, and no run" in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_every_recipe_of_the_ladder_is_shipped() -> None:
    assert {rung.recipe for rung in LADDER} - {""} <= set(recipe_names())
    assert json.dumps([rung.name for rung in LADDER])
