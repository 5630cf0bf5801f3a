"""Networks that cannot be read, and why."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

import bitwright
from bitwright.cli import main

Refused = Callable[..., str]
Arguments = Callable[..., list[object]]
Changed = Callable[[Callable[[onnx.ModelProto], None]], Path]
Save = Callable[..., Path]
Node = helper.make_node
COMMANDS = ("quantize", "evaluate", "verify", "inspect", "benchmark", "run")


def command(name: str, model: object, images: Path, output: Path) -> list[object]:
    extra: dict[str, list[object]] = {"quantize": ["--data", images, "-o", output], "inspect": [], "benchmark": []}
    return [name, model, *extra.get(name, [images] if name == "run" else ["--data", images])]


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_such_file(name: str, refused: Refused, images: Path, tmp_path: Path) -> None:
    model = tmp_path / "gone.onnx"
    refused(command(name, model, images, tmp_path / "out.onnx"), r"gone\.onnx: no such file; expected an ONNX file")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder(name: str, refused: Refused, images: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    refused(
        command(name, tmp_path / "folder.onnx", images, tmp_path / "out.onnx"), "is a folder; expected an ONNX file"
    )


NOT_ONNX = {
    "png": png(),
    "text": b"this is no network\n",
    "random": np.random.default_rng(0).bytes(5000),
    "zeros": bytes(100),
    "torch": b"PK\x03\x04" + bytes(50),
}


@pytest.mark.parametrize("kind", NOT_ONNX)
def test_not_onnx(kind: str, refused: Refused, quantize: Arguments, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(NOT_ONNX[kind])
    refused(
        quantize(tmp_path / "net.onnx"), r"net\.onnx: is not an ONNX file", "expected a serialized ONNX", "name the"
    )


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"benchmark"}))
def test_an_empty_file(name: str, refused: Refused, images: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    arguments = command(name, tmp_path / "net.onnx", images, tmp_path / "out.onnx")
    refused(arguments, r"net\.onnx: the file is empty; expected an ONNX model; copy or export it again")


@pytest.mark.parametrize("share", [0.00001, 0.0001, 0.001, 0.1, 0.5, 0.9, 0.999, 0.99999])
def test_a_truncated_file(share: float, refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    data = digits.read_bytes()
    (tmp_path / "net.onnx").write_bytes(data[: max(1, int(share * len(data)))])
    words = ["ends or breaks off|not a whole ONNX model", "copy or export it again"]
    refused(quantize(tmp_path / "net.onnx"), r"net\.onnx: ", *words)


def test_every_cut_is_told(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    """Cuts between the top-level fields leave a message that parses."""
    proto = onnx.load(digits)
    head = onnx.ModelProto(ir_version=proto.ir_version, producer_name="pytorch")
    (tmp_path / "net.onnx").write_bytes(head.SerializeToString())
    refused(quantize(tmp_path / "net.onnx"), "not a whole ONNX model: it has no graph and no operator set")
    head.graph.CopyFrom(proto.graph)
    (tmp_path / "net.onnx").write_bytes(head.SerializeToString())
    refused(quantize(tmp_path / "net.onnx"), "not a whole ONNX model: it has no operator set")


def test_the_checker_refuses(refused: Refused, quantize: Arguments, changed: Changed) -> None:
    def unknown_op(model: onnx.ModelProto) -> None:
        next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Relux"

    def cut_off(model: onnx.ModelProto) -> None:
        next(n for n in model.graph.node if n.op_type == "Relu").input[0] = "nowhere"

    def no_weights(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[1:]

    refused(quantize(changed(unknown_op)), r"changed\.onnx: the ONNX checker says: .*Relux", "export it again")
    refused(quantize(changed(cut_off)), "checker says: .*nowhere", "expected a valid model")
    refused(
        quantize(changed(no_weights)), r"changed\.onnx: weight 'stem.0.weight': has 864 bytes of data", "96 for its"
    )


def test_shapes_that_contradict_each_other(refused: Refused, quantize: Arguments, changed: Changed) -> None:
    """The checker lets them pass; the runtime does not."""

    def narrow(model: onnx.ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name == "fc.weight")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, :-1].copy(), "fc.weight"))

    refused(quantize(changed(narrow)), r"changed\.onnx|model", "node_linear|Gemm")


def test_text_that_is_damaged(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    data = digits.read_bytes().replace(b"node_relu_1", b"node_re\xffu_1", 1)
    (tmp_path / "net.onnx").write_bytes(data)
    refused(
        quantize(tmp_path / "net.onnx"), r"net\.onnx: has text that is not UTF-8: b'node_re", "copy or export it again"
    )


def test_a_batch_that_was_exported_as_a_number(
    refused: Refused, quantize: Arguments, save: Save, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file says that the batch is open, and reshapes to one image: it runs with a batch of one only."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.random((4, 1, 1, 1), np.float32), "fc": rng.random((256, 10), np.float32)}
    constants |= {"shape": np.array([1, 256])}
    nodes = [
        Node("Conv", ["image", "w"], ["c"]), Node("Reshape", ["c", "shape"], ["r"], name="flatten"),
        Node("Gemm", ["r", "fc"], ["y"]),
    ]  # fmt: skip
    path = save("net.onnx", nodes, {"image": ["N", 1, 8, 8]}, constants=constants, rank=2)
    refused(
        quantize(path), "ONNX Runtime .* cannot run it: .*flatten.*", r"takes image \[32, 1, 8, 8\]", "give --batch"
    )
    assert main([str(a) for a in [*quantize(path, "--batch", 1), "--quiet"]]) == 0


@pytest.mark.parametrize("version", [1, 6, 27, 99])
def test_operator_sets_that_are_not_read(
    version: int, refused: Refused, quantize: Arguments, changed: Changed
) -> None:
    def other(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    refused(
        quantize(changed(other)), rf"changed\.onnx: operator set {version}; expected 7 to 26; export it with another"
    )


@pytest.fixture
def external(digits: Path, tmp_path: Path) -> Path:
    """The network with its weights in a file beside it."""
    path = tmp_path / "net.onnx"
    onnx.save_model(onnx.load(digits), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_are_read(external: Path, quantize: Arguments, capfd: Any, tmp_path: Path) -> None:
    """The network behind the refusals below is a good one."""
    assert main([str(a) for a in [*quantize(external), "--json", "--quiet"]]) == 0
    assert (tmp_path / "out.onnx").stat().st_size < 100_000


def test_external_data_missing(external: Path, refused: Refused, quantize: Arguments, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").unlink()
    refused(
        quantize(external), r"net\.onnx: weight '.*': its data file 'weights.bin' is missing", "put 'weights.bin' into"
    )


def test_external_data_too_short(external: Path, refused: Refused, quantize: Arguments, tmp_path: Path) -> None:
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-100])
    refused(quantize(external), "weight '.*': its data file", "bytes; expected at least", "copy the data file again")


@pytest.mark.parametrize("place", ["../weights.bin", "/etc/passwd", ""])
def test_external_data_outside_the_folder(place: str, external: Path, refused: Refused, quantize: Arguments) -> None:
    set_entry(external, "location", place)
    refused(quantize(external), "weight '.*': its data lies outside the model's folder", "expected a file beside")


@pytest.mark.parametrize(("key", "value"), [("length", "12"), ("offset", "-5"), ("length", "many")])
def test_external_data_of_another_size(
    key: str, value: str, external: Path, refused: Refused, quantize: Arguments
) -> None:
    set_entry(external, key, value)
    refused(quantize(external), "weight '.*'", f"{value}", "save or export the model again")


def set_entry(path: Path, key: str, value: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
    path.write_bytes(model.SerializeToString())


def test_an_op_of_an_unknown_domain(refused: Refused, quantize: Arguments, save: Save) -> None:
    nodes = [Node("Deform", ["image"], ["y"], domain="mmcv", name="backbone.offset")]
    path = save("net.onnx", nodes, {"image": ["N", 1, 8, 8]}, domains=["mmcv"])
    refused(
        quantize(path),
        r"net\.onnx: node 'backbone.offset' is Deform of the domain 'mmcv'",
        "expected ops of",
        "export",
    )


def test_an_op_that_the_runtime_does_not_know(refused: Refused, quantize: Arguments, save: Save) -> None:
    nodes = [Node("FastGleu", ["image"], ["y"], name="choice", domain="com.microsoft")]
    path = save("odd.onnx", nodes, {"image": ["N", 1, 8, 8]}, domains=["com.microsoft"])
    refused(
        quantize(path),
        r"node 'choice': ONNX Runtime .* does not run com\.microsoft\.FastGleu",
        "expected an op that it knows",
        "export the network without this op",
    )


def test_no_quantizable_op(refused: Refused, quantize: Arguments, save: Save) -> None:
    path = save("net.onnx", [Node("Softmax", ["image"], ["y"], name="soft")], {"image": ["N", 1, 8, 8]})
    refused(
        quantize(path),
        "has no quantizable op; expected a convolution",
        "soft: Softmax: no integer op reads what it gives",
    )


def test_quantized_already(refused: Refused, quantize: Arguments, digits: Path, images: Path, tmp_path: Path) -> None:
    bitwright.quantize(str(digits), str(images), limit=16).save(tmp_path / "int8.onnx")
    refused(
        quantize(tmp_path / "int8.onnx"),
        r"int8\.onnx: is quantized already \(node '.*' is a QuantizeLinear\)",
        "float",
    )


def test_quantized_by_others(refused: Refused, quantize: Arguments, save: Save) -> None:
    constants = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": np.zeros((4, 1, 3, 3), np.int8)}
    nodes = [
        Node("QuantizeLinear", ["image", "s", "z"], ["q"], name="image_QuantizeLinear"),
        Node("DequantizeLinear", ["q", "s", "z"], ["d"]), Node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        Node("Conv", ["d", "wd"], ["y"]),
    ]  # fmt: skip
    path = save("qdq.onnx", nodes, {"image": ["N", 1, 8, 8]}, constants=constants)
    refused(quantize(path), r"qdq\.onnx: is quantized already \(node 'image_QuantizeLinear'", "give the float file")


def test_what_was_not_written_by_bitwright_is_not_verified(refused: Refused, digits: Path, images: Path) -> None:
    refused(["verify", digits, "--data", images], r"digits\.onnx: was not written by bitwright", "bitwright quantize")


@pytest.mark.parametrize("metadata", ["nonsense", "{}", '{"version": 1, "content": "AAAA"}', '{"version": 99}'])
def test_metadata_that_are_damaged(metadata: str, refused: Refused, images: Path, changed: Changed) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.metadata_props.add(key="bitwright", value=metadata)

    refused(["verify", changed(edit), "--data", images], r"changed\.onnx: .*metadata")


def test_sizes_that_the_file_leaves_open(refused: Refused, quantize: Arguments, changed: Changed) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    path = changed(edit)
    refused(
        quantize(path),
        r"input 'image': has shape .*xheight.*; expected only the first .* open; give --shape image=Nx1",
    )
    refused(quantize(path, "--shape", "image=Nx3x8x8"), "input 'image': has shape", "expected the given Nx3x8x8")
    refused(
        quantize(path, "--shape", "picture=Nx1x8x8"),
        "--shape picture",
        "has no input of this name",
        "choose from image",
    )
    refused(quantize(path, "--shape", "image=large"), "--shape 'image=large'.* is not understood; expected INPUT=N")


@pytest.mark.parametrize("content", [b"", b"no archive", "zip"])
def test_pt2_that_is_no_archive(content: Any, refused: Refused, quantize: Arguments, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    if content == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    else:
        path.write_bytes(content)
    refused(quantize(path), r"net\.pt2: ", "archive|torch.export.load", "torch.export.save")
    refused(quantize(tmp_path / "gone.pt2"), r"gone\.pt2: no such file")


MODULE = """
import torch

def number():
    return 3

def no_example():
    return torch.nn.Conv2d(1, 2, 3)

def wrong_example():
    return torch.nn.Conv2d(1, 2, 3), torch.zeros(2, 7, 8, 8)

def text_example():
    return torch.nn.Conv2d(1, 2, 3), "example"

def raises():
    raise RuntimeError("no weights here\\nnor there")

def wants(path):
    return path

value = 3
"""
CALLABLES = {
    "number": "returned int; expected an nn.Module",
    "no_example": "an nn.Module without an example batch",
    "wrong_example": r"PyTorch's exporter failed: .*channels.*\[2, 7, 8, 8\]",
    "text_example": "its example batch is a str",
    "raises": "calling it raised RuntimeError: no weights here; expected a callable without arguments",
    "wants": "calling it raised TypeError: .*path",
    "value": "module 'made_for_test' has no callable 'value'",
    "absent": "module 'made_for_test' has no callable 'absent'",
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's, in the folder that commands run in."""
    (tmp_path / "made_for_test.py").write_text(MODULE)
    (tmp_path / "broken_for_test.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.usefixtures("module")
def test_callables(name: str, refused: Refused, quantize: Arguments) -> None:
    refused(quantize(f"made_for_test:{name}"), f"made_for_test:{name}: ", CALLABLES[name])


@pytest.mark.usefixtures("module")
def test_modules_that_cannot_be_imported(refused: Refused, quantize: Arguments) -> None:
    refused(quantize("no_such_module:net"), "no_such_module:net: no such file, and no Python module 'no_such_module'")
    refused(quantize("broken_for_test:net"), "importing 'broken_for_test' raised ZeroDivisionError: division by zero")
    refused(quantize(":net"), ":net: ", "expected a model's path or module:callable")
