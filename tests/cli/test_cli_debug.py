"""`bitwright debug`: the flow as a program, with labels and without, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bitwright as bw
from bitwright.verbs import pace


@pytest.fixture(scope="module")
def ranges(assets: Path) -> list[Any]:
    """Images that set ranges, and little learning."""
    little = ["--step", "adaround.iterations=10", "--step", "qdrop.iterations=10"]
    return ["--data", assets / "digits_calib.npz", "--images", 64, *little]


@pytest.fixture
def unlabelled(test_images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "unlabelled.npz"
    np.savez(path, image=np.load(test_images)["image"][:48])
    return path


def test_it_finds_scans_repairs_and_writes(
    cli: Any, float_file: Path, ranges: list[Any], test_images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "best.onnx"
    arguments = [*ranges, "--eval-data", test_images, "--limit", 48, "--set", "W=3,A=4", "--top", 4]
    found = cli("debug", float_file, *arguments, "-o", output, "--json").json
    assert (found["images"], found["calibration_images"], found["labelled"]) == (48, 64, True)
    assert found["sound"] and found["bypassed"]["accuracy"] == found["float_accuracy"]
    assert found["both"]["sqnr_db"] < found["activations"]["sqnr_db"] < found["bypassed"]["sqnr_db"]
    assert found["guilty"] == "weights" and found["weights"]["sqnr_db"] < found["activations"]["sqnr_db"]
    assert len(found["layers"]) == 4 and {f["site"] for f in found["findings"]} <= {x["site"] for x in found["layers"]}
    assert [row["only"]["sqnr_db"] for row in found["sites"]] == sorted(r["only"]["sqnr_db"] for r in found["sites"])
    kept = [row for row in found["remedies"] if row["kept"]]
    assert kept and all(row["after"]["sqnr_db"] > row["before"]["sqnr_db"] for row in kept)
    for before, after in zip(found["remedies"], found["remedies"][1:], strict=False):
        assert after["before"] == (before["after"] if before["kept"] else before["before"])
    assert found["served_after"] == kept[-1]["after"] != found["served_before"]
    assert output.stat().st_size == found["bytes"]
    served = bw.load(output)
    assert served.verify(test_images, limit=32).proven
    again = cli("evaluate", output, "--data", test_images, "--limit", 48, "--against", float_file, "--json").json
    assert again["sqnr_db"] == pytest.approx(found["served_after"]["sqnr_db"])


def test_without_labels_noise_is_measured(cli: Any, float_file: Path, ranges: list[Any], unlabelled: Path) -> None:
    ran = cli("debug", float_file, *ranges, "--eval-data", unlabelled, "--top", 2, "--json")
    assert "note: no labels of the network's classes" in ran.err
    found = ran.json
    assert (found["labelled"], found["float_accuracy"], found["both"]["accuracy"]) == (False, None, None)
    assert found["both"]["kl"] > 0 and found["both"]["sqnr_db"] > 20


def test_people_read_every_part(cli: Any, float_file: Path, ranges: list[Any], test_images: Path) -> None:
    arguments = [*ranges, "--eval-data", test_images, "--limit", 32, "--set", "W=4,A=4", "--top", 2]
    shown = cli("debug", float_file, *arguments, "--quiet").out
    for text in (
        "quantizers on", "none (the float file)", "alone", "all but it", "weights or values", "cause", "remedy",
        "signal to noise", "18 more sites with --json, or --top 20",
    ):  # fmt: skip
        assert text in shown, text


def test_a_network_that_is_simulated_wrongly_is_not_repaired(
    cli: Any, float_file: Path, ranges: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.ptq.diagnosis import scan

    monkeypatch.setattr(scan, "SAME_DB", 1000.0)
    ran = cli("debug", float_file, *ranges, "--limit", 16, "--top", 1, "--set", "W=4")
    assert ran.code == 1 and "NOT SOUND" in ran.out and "remedy" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--top", 0], "--top: is 0; expected a whole number from 1 on"),
        (["--limit", -1], "--limit: is -1; expected a whole number from 0 on"),
        (["--images", -2], "--images: is -2; expected a whole number from 0 on"),
        (["--recipe", "int9"], "recipe 'int9': there is no recipe of this name; did you mean 'int8'"),
        (
            ["--step", "calibrat.percentile=9"],
            "--step calibrat: no recipe here has this step; did you mean 'calibrate'",
        ),
        (["--set", "gone:W=4"], "--set 'gone': matches no region and no site"),
        (["-o", "missing/out.onnx"], "missing/out.onnx: folder 'missing' does not exist"),
    ],
)
def test_what_it_refuses(
    arguments: list[Any], told: str, cli: Any, float_file: Path, ranges: list[Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ran = cli("debug", float_file, *ranges, *arguments, "--quiet")
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith(f"bitwright: {told}"), ran.err
    assert ran.err.count("\n") == 1


def test_labels_of_other_classes_are_refused(
    cli: Any, float_file: Path, ranges: list[Any], test_images: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "other.npz", image=np.load(test_images)["image"][:8], labels=np.arange(8) + 5)
    ran = cli("debug", float_file, *ranges, "--eval-data", tmp_path / "other.npz", "--quiet")
    assert ran.code == 2
    assert "other.npz: has labels from 5 to 12; expected classes 0 to 9 of the network" in ran.err


def test_the_network_itself_is_not_overwritten(cli: Any, float_file: Path, ranges: list[Any], tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(onnx.load(float_file), model)
    before = model.read_bytes()
    ran = cli("debug", model, *ranges, "-o", model)
    assert ran.code == 2 and "is the float network itself" in ran.err and model.read_bytes() == before


def test_remedies_that_do_not_fit_into_the_time_are_not_begun(
    cli: Any, float_file: Path, ranges: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pace.passes
    monkeypatch.setattr(
        pace, "passes", lambda steps, images: 1e9 if "AdaRound" in repr(steps) else real(steps, images)
    )  # fmt: skip
    arguments = [*ranges, "--limit", 16, "--top", 2, "--set", "W=3", "--minutes", 5]
    ran = cli("debug", float_file, *arguments, "--json")
    skipped = {row["remedy"]: row["reason"] for row in ran.json["remedies"] if row["skipped"]}
    assert list(skipped) == ["adaround"] and "are left of --minutes" in skipped["adaround"]
    assert any(row["after"] is not None for row in ran.json["remedies"])
    assert "adaround: skipped: would take about" in ran.err and ran.json["served_after"]["sqnr_db"] > 0
    refused = cli("debug", float_file, *ranges, "--minutes", -1)
    assert refused.code == 2 and "--minutes: is -1; expected minutes, or 0 for any time" in refused.err


def test_sites_at_the_targets_widest_are_not_raised(cli: Any, float_file: Path, ranges: list[Any]) -> None:
    arguments = [*ranges, "--limit", 16, "--top", 20, "--target", "onnxruntime-x64-avx2", "--json"]
    found = cli("debug", float_file, *arguments).json
    assert {site["bits"] for site in found["sites"]} == {7, 8}
    assert "raise" not in [row["remedy"] for row in found["remedies"]]
    assert {finding["cause"] for finding in found["findings"]}.isdisjoint({"end", "sensitive", "coarse-weights"})
