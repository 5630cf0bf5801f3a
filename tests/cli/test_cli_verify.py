"""`bitwright verify`: a written file is proven, a file that serves something else is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

import bitwright as bw
from bitwright.deploy.runtimes.onnxruntime import products_saturate


def shifted(path: Path, folder: Path) -> tuple[Path, str]:
    """A copy in which one 3x3 convolution pads on the other side, so it serves a shifted picture; and its site."""
    proto = onnx.load(path)
    node = next(n for n in proto.graph.node if n.op_type == "Conv" and n.output[0] != proto.graph.node[0].output[0])
    pads = next(a for a in node.attribute if a.name == "pads")
    assert list(pads.ints) == [1, 1, 1, 1]
    pads.ints[:] = [2, 2, 0, 0]
    onnx.save(proto, folder / "shifted.onnx")
    return folder / "shifted.onnx", node.output[0].removesuffix("/sum")


def test_a_written_file_is_proven(cli: Any, int8_file: Path, test_images: Path) -> None:
    ran = cli("verify", int8_file, "--data", test_images, "--limit", 64)
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "proven: what is simulated is what is served"
    found = cli("verify", int8_file, "--data", test_images, "--limit", 64, "--json").json
    # Codes of one image: input 64; stem and residual block 4 x 24x8x8; stride 2 and projection 3 x 48x4x4; expansion
    # 2 x 96x4x4; pooled and flattened 2 x 48; logits 10.
    one = 64 + 4 * 1536 + 3 * 768 + 2 * 1536 + 2 * 48 + 10
    assert (found["images"], found["codes"]) == (64, 64 * one)
    assert (found["mismatches"], found["first_mismatch"], found["top1_agreement"], found["proven"]) == (
        0,
        None,
        1,
        True,
    )
    assert found["tensors"] == 13 and found["float_kernels"] == {}


def test_the_kernels_are_those_of_integers(cli: Any, int8_file: Path, test_images: Path) -> None:
    found = cli("verify", int8_file, "--data", test_images, "--limit", 10, "--json").json
    assert found["kernels"]["QLinearConv"] == 7 and found["kernels"]["QLinearAdd"] == 2
    assert not {"Conv", "Gemm", "Add"} & set(found["kernels"])


def test_a_file_that_serves_something_else_is_not(
    cli: Any, int8_file: Path, test_images: Path, tmp_path: Path
) -> None:
    path, site = shifted(int8_file, tmp_path)
    arguments = ["verify", path, "--data", test_images, "--limit", 16]
    found = cli(*arguments, "--json")
    assert found.code == 1 and not found.json["proven"]
    assert found.json["first_mismatch"] == site and list(found.json["by_tensor"]) == [site]
    assert found.json["mismatches"] == found.json["by_tensor"][site] > 0
    ran = cli(*arguments)
    assert ran.code == 1 and ran.out.splitlines()[-1] == "NOT proven"
    assert site in ran.out


def test_precise_kernels_prove_it_too(cli: Any, int8_file: Path, test_images: Path) -> None:
    assert cli("verify", int8_file, "--data", test_images, "--limit", 32, "--precise").code == 0


def test_a_file_for_other_processors_is_told_apart(
    cli: Any, float_file: Path, assets: Path, test_images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "vnni.onnx"
    bw.quantize(float_file, assets / "digits_calib.npz", target="onnxruntime-x64").save(path)
    ran = cli("verify", path, "--data", test_images)
    found = cli("verify", path, "--data", test_images, "--json").json
    assert found["saturates"] == products_saturate()
    assert ("--target onnxruntime-x64-avx2" in ran.out) == (found["saturates"] and found["mismatches"] > 0)
    assert ran.code == (0 if found["proven"] else 1)
    assert cli("verify", path, "--data", test_images, "--limit", 60, "--precise").code == 0


def test_a_float_file_is_refused(cli: Any, float_file: Path, test_images: Path) -> None:
    ran = cli("verify", float_file, "--data", test_images)
    assert ran.code == 2 and "was not written by bitwright; expected a file of `bitwright quantize`" in ran.err


def test_a_file_keeps_its_proof_wherever_it_lies(
    cli: Any, int8_file: Path, test_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(int8_file, tmp_path / "elsewhere.onnx")
    shutil.copy(test_images, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli("verify", "elsewhere.onnx", "--data", "digits.npz", "--limit", 8).code == 0
