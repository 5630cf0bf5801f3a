"""`bitwright quantize`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bitwright as bw


def test_what_it_says_is_what_it_wrote(cli: Any, float_file: Path, assets: Path, tmp_path: Path, scores: Any) -> None:
    output = tmp_path / "out.onnx"
    arguments = ["quantize", float_file, "--data", assets / "digits_calib.npz", "-o", output]
    found = cli(*arguments, "--eval-data", assets / "digits.npz", "--json").json
    assert found["output"] == str(output)
    assert found["bytes_before"] == float_file.stat().st_size and found["bytes_after"] == output.stat().st_size
    assert found["bytes_after"] < found["bytes_before"] / 3
    assert (found["integer_mac_share"], found["float_sites"], found["images_used"]) == (1, [], 256)
    # The same calibration as the fixture's: the same file, so the same answers.
    right = scores["int8"].argmax(1) == scores["labels"]
    assert found["accuracy"]["accuracy"] == right.mean()
    assert found["accuracy"]["reference"] == (scores["float"].argmax(1) == scores["labels"]).mean()
    assert found["accuracy"]["data"] == str(assets / "digits.npz")
    assert cli("verify", output, "--data", assets / "digits.npz", "--limit", 32).code == 0


def test_its_table(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    ran = cli("quantize", float_file, "--data", assets / "digits_calib.npz", "-o", output, "--set", "residual*:float")
    assert ran.code == 0
    size = f"{float_file.stat().st_size:,} -> {output.stat().st_size:,} ("
    assert any(line.startswith("bytes") and size in line for line in ran.out.splitlines())
    assert "measured on the calibration images; give --eval-data for others" in ran.out
    assert "ops compute in float (" in ran.out and "kept in float by --set residual*:float" in ran.out
    assert "target onnxruntime-x64" in ran.err


def test_without_labels_there_is_agreement_but_no_accuracy(cli: Any, float_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32))
    arguments = ["quantize", float_file, "--data", tmp_path / "x.npz", "-o", tmp_path / "out.onnx"]
    found = cli(*arguments, "--json").json
    assert found["accuracy"] is None and 0 <= found["agreement"] <= 1
    ran = cli(*arguments, "--eval-data", tmp_path / "x.npz")
    assert ran.code == 2 and "has no labels" in ran.err


def test_the_seed_decides_which_images_are_drawn(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    written = []
    for i, seed in enumerate((1, 1, 2)):
        output = tmp_path / f"{i}.onnx"
        few = ["--data", assets / "digits_calib.npz", "--limit", 16, "--seed", seed]
        assert cli("quantize", float_file, *few, "-o", output).code == 0
        written.append(output.read_bytes())
    assert written[0] == written[1] != written[2]


def test_settings_of_steps(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    common = ["quantize", float_file, "--data", assets / "digits_calib.npz", "-o"]
    assert cli(*common, tmp_path / "a.onnx", "--step", "calibrate.activations=percentile").code == 0
    assert cli(*common, tmp_path / "b.onnx", "--recipe", "int8-percentile").code == 0
    assert cli(*common, tmp_path / "c.onnx").code == 0
    a, b, c = ((tmp_path / f"{name}.onnx").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--output", "gone/out.onnx"], "folder 'gone' does not exist; create it first"),
        (["--output", "."], ".: is a folder; expected a file's name"),
        (["--output", "digits.onnx"], "digits.onnx: is the float network itself; expected another file"),
        (["--target", "onnxruntime-x46"], "target 'onnxruntime-x46': there is no target of this name; did you mean"),
        (["--recipe", "int9"], "recipe 'int9': there is no recipe of this name; did you mean 'int8'"),
        (["--step", "calibrate.activation=mse"], "there is no setting 'activation'; did you mean 'activations' or"),
        (["--step", "adaround.steps=5"], "recipe fast: has no step 'adaround'"),
        (["--set", "W=99"], "--set 'W=99': 99 bits; expected 1 to 16 bits"),
        (["--set", "nowhere.*:W=8"], "--set 'nowhere.*': matches no region and no site"),
        (["--ends", "99"], "--ends: is 99; expected 1 to 16 bits"),
        (["--scale", "many"], "--scale: is 'many'; expected a number"),
        (["--scale", "255"], "holds arrays, to which preprocessing does not apply"),
        (["--limit", "-1"], "is -1; expected a whole number from 1 on"),
    ],
)
def test_what_it_refuses_leaves_nothing_behind(
    flags: list[str], told: str, cli: Any, float_file: Path, assets: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.onnx").write_bytes(float_file.read_bytes())
    ran = cli("quantize", "digits.onnx", "--data", assets / "digits_calib.npz", *flags)
    assert ran.code == 2 and told in ran.err, ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]
    assert (tmp_path / "digits.onnx").read_bytes() == float_file.read_bytes()


def test_an_integer_network_is_refused(cli: Any, int8_file: Path, test_images: Path, tmp_path: Path) -> None:
    ran = cli("quantize", int8_file, "--data", test_images, "-o", tmp_path / "twice.onnx")
    assert ran.code == 2 and "is quantized already (node " in ran.err
    assert "give the float file it was made from" in ran.err


def test_a_network_without_anything_to_quantize_is_refused(cli: Any, onnx_file: Any, tmp_path: Path) -> None:
    path = onnx_file("y = LogSoftmax(x)", "(float[N, 3] x) => (float[N, 3] y)")
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3), np.float32))
    ran = cli("quantize", path, "--data", tmp_path / "x.npz", "-o", tmp_path / "out.onnx")
    assert ran.code == 2 and "has no quantizable op" in ran.err and "LogSoftmax has no integer kernel" in ran.err


def test_the_file_says_who_wrote_it(int8_file: Path) -> None:
    proto = onnx.load(int8_file)
    assert (proto.producer_name, proto.producer_version) == ("bitwright", bw.__version__)
