"""What every refusal must be: one line on stderr that says what is wrong, exit code 2, and not a byte written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright.cli import main

Refused = Callable[..., str]


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, and the digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """`refused(["quantize", ...], "where", "found", ...)`: runs a command that must be refused; its one line.

    What the runtime writes past Python counts too. Words are regular expressions, in the order of the line.
    """

    def run(arguments: Sequence[object], *words: str, code: int = 2) -> str:
        before = snapshot(tmp_path)
        capfd.readouterr()
        found = main([str(a) for a in arguments] + ["--quiet"])
        out, err = capfd.readouterr()
        assert found == code, err or out
        assert out == "", "a refusal has no result"
        assert "Traceback" not in err
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("bitwright: "), err
        message = lines[0].removeprefix("bitwright: ")
        assert re.search(".*".join(words), message), f"{message!r} does not say {words}"
        assert snapshot(tmp_path) == before, "a refusal leaves every file as it was"
        return message

    return run


@pytest.fixture
def digits(assets: Path) -> Path:
    """The trained network."""
    return assets / "digits.onnx"


@pytest.fixture
def images(assets: Path) -> Path:
    """Its calibration images."""
    return assets / "digits_calib.npz"


@pytest.fixture
def quantize(images: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """`quantize(model, *flags)`: the arguments of a command that would write `tmp_path / "out.onnx"`."""

    def arguments(model: object, *flags: object) -> list[object]:
        output: list[object] = [] if "-o" in flags else ["-o", tmp_path / "out.onnx"]
        data: list[object] = [] if "--data" in flags else ["--data", images]
        return ["quantize", model, *data, *output, *flags]

    return arguments


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save(name, nodes, inputs, constants)`: a file, which need not be valid; all tensors are float32."""

    def write(
        name: str, nodes: Sequence[onnx.NodeProto], inputs: dict[str, list[int | str]], output: str = "y",
        constants: dict[str, np.ndarray] | None = None, domains: Sequence[str] = (), rank: int = 4,
    ) -> Path:  # fmt: skip
        graph = helper.make_graph(
            list(nodes), "network",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)],
            [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
        )  # fmt: skip
        imports = [helper.make_opsetid("", 21), *(helper.make_opsetid(d, 1) for d in domains)]
        path = tmp_path / name
        path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
        return path

    return write


@pytest.fixture
def changed(digits: Path, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Path]:
    """`changed(edit)`: the digits network with something edited."""

    def write(edit: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(digits)
        edit(model)
        path = tmp_path / "changed.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write
