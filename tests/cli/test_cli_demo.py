"""`bitwright demo`: what it leaves behind works with the other commands, and an unproven file is told."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from bitwright.cli import rendered
from bitwright.deploy.verify import verify
from bitwright.verbs import demo as module

pytestmark = pytest.mark.xdist_group("demo")  # they share what it trained


def test_its_numbers(demo: Any, cli: Any) -> None:
    ran, folder = demo
    found = ran.json
    float_file, written, test = folder / "digits.onnx", folder / "digits.int8.onnx", folder / "test.npz"
    assert sorted(path.name for path in folder.iterdir()) == sorted(found["files"])
    assert found["bytes_before"] == float_file.stat().st_size and found["bytes_after"] == written.stat().st_size
    assert found["bytes_after"] < found["bytes_before"] / 2
    assert (found["integer_mac_share"], found["mismatches"], found["proven"]) == (1, 0, True)
    again = cli("evaluate", written, "--data", test, "--against", float_file, "--json").json
    assert found["accuracy"] == again["drop"] and again["images"] == 360
    assert found["accuracy"]["reference"] > 0.8  # two of the ten epochs
    proof = cli("verify", written, "--data", test, "--json")
    assert proof.code == 0 and proof.json["codes"] == found["codes"]


def test_what_it_suggests_works(demo: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, _ = demo
    monkeypatch.chdir(tmp_path)
    text = rendered(module._text(ran.json))
    lines = [line.strip() for line in text.partition("try next:")[2].splitlines() if line.strip()]
    assert [line.split()[1] for line in lines] == ["inspect", "quantize", "verify"]
    for line in lines:
        assert cli(*line.split()[1:]).code == 0


def test_its_table(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran, folder = demo
    lines = rendered(module._text(ran.json)).splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == ["accuracy, float", "accuracy, integers", "drop", "bytes"]
    assert "proven: what is simulated is what is served" in lines
    assert f"  bitwright inspect {folder / 'digits.onnx'}" in lines  # in one piece, however long


def test_its_files_say_nothing_of_this_machine(demo: Any) -> None:
    _, folder = demo
    proto = onnx.load(folder / "digits.onnx")
    assert not any(node.metadata_props for node in proto.graph.node)
    assert str(Path(module.__file__).parent.parent).encode() not in (folder / "digits.onnx").read_bytes()


def test_a_mismatch_is_exit_code_1(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train_digits", lambda *a, **k: None)
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "verify", lambda *a, **k: dataclasses.replace(verify(*a, **k), mismatches=3))
    ran = cli("demo", "--output", tmp_path / "out")
    assert ran.code == 1
    assert "NOT proven" in ran.out.splitlines() and "mismatching codes   3" in ran.out
    assert "training a network" in ran.err


def test_without_scikit_learn(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    ran = cli("demo", "--output", tmp_path / "out")
    assert ran.code == 2 and not (tmp_path / "out").exists()
    assert (
        "scikit-learn, which holds them, is not installed; install it with: pip install 'bitwright[demo]'" in ran.err
    )


def test_a_folder_that_cannot_be_made(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    ran = cli("demo", "--output", tmp_path / "file")
    assert ran.code == 2 and "cannot be made a folder: File exists; choose another --output" in ran.err
    ran = cli("demo", "--output", tmp_path / "gone" / "out")
    assert ran.code == 2 and "cannot be made a folder: No such file or directory" in ran.err
    ran = cli("demo", "--target", "nowhere", "--output", tmp_path / "out")
    assert ran.code == 2 and "there is no target of this name" in ran.err and not (tmp_path / "out").exists()
