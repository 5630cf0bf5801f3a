"""From what a user names to networks and shapes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from bitwright.deploy.runtimes.onnxruntime import products_saturate
from bitwright.errors import InputError
from bitwright.verbs.preparing import (
    check_same_inputs,
    file_bytes,
    float_network,
    parse_shapes,
    resolve_target,
    same_file,
    served_network,
)
from bitwright.verbs.terminal import Terminal


def network(shape: list[int | None], name: str = "x", dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph = ir.Graph([value], [], nodes=[], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("text", ["x", "x=", "x=Nx3xW", "x=Nx0x3", "x=3x-1", "=Nx3"])
def test_shapes_that_are_not_understood(text: str) -> None:
    with pytest.raises(InputError, match=r"--shape .* is not understood; expected INPUT=Nx3x224x224"):
        parse_shapes([text])


def test_shapes_of_several_inputs() -> None:
    assert parse_shapes(["a=Nx3", "b=2x4x5"]) == {"a": (None, 3), "b": (2, 4, 5)}


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        (network([None, 3]), network([None, 3]), True),
        (network([8, 3]), network([None, 3]), True),
        (network([8, 3]), network([8, 3]), True),
        (network([None, 3]), network([8, 3]), False),
        (network([4, 3]), network([8, 3]), False),
        (network([None, 3]), network([None, 4]), False),
        (network([None, 3]), network([None, 3], name="y"), False),
        (network([None, 3]), network([None, 3], dtype=ir.DataType.UINT8), False),
    ],
)
def test_whether_two_networks_read_the_same(first: ir.Model, second: ir.Model, fits: bool) -> None:
    if fits:
        check_same_inputs(first, second, "other")
        return
    with pytest.raises(InputError, match=r"other: reads .*; expected .*, as the file it is compared with"):
        check_same_inputs(first, second, "other")


def test_what_the_runtime_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.pt2: is a \.pt2 file, .*; expected an ONNX file; quantize it first"):
        served_network(str(tmp_path / "a.pt2"))
    with pytest.raises(InputError, match="is a folder; expected an ONNX file"):
        served_network(str(tmp_path))
    with pytest.raises(InputError, match="mod:net: no such file"):
        served_network("mod:net")


def test_a_network_of_this_process_is_named_as_the_caller_says(assets: Path) -> None:
    proto = ir.load(str(assets / "digits.onnx"))
    assert float_network(proto).graph.inputs[0].name == "image"
    with pytest.raises(InputError, match=r"--shape other=\.\.\.: the network has no input of this name"):
        float_network(proto, shapes=["other=Nx1x8x8"])


def test_the_target_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    target = resolve_target("auto", Terminal(quiet=False))
    assert target.saturates == products_saturate()
    assert capsys.readouterr().err.startswith(f"target {target.name}: this processor has ")
    assert resolve_target("auto", Terminal()) is target and capsys.readouterr().err == ""
    with pytest.raises(InputError, match="target 'x': there is no target of this name"):
        resolve_target("x", Terminal())


def test_sizes_and_identity_of_files(assets: Path, tmp_path: Path) -> None:
    path = assets / "digits.onnx"
    assert file_bytes(path) == path.stat().st_size
    (tmp_path / "link").symlink_to(path)
    assert same_file(path, tmp_path / "link") and not same_file(path, tmp_path / "gone")
