"""Open a trained network: an ONNX file, a `.pt2`, `module:callable`, an `nn.Module` or an `onnx_ir.Model`."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from bitwright.errors import InputError, UnsupportedError
from bitwright.graph.export import from_exported_program, from_module

#: The oldest operator set that is read, and the newest (ONNX Runtime 1.31 reads no newer).
OLDEST_OPSET, NEWEST_OPSET = 7, 26
#: Operator domains whose meaning bitwright knows.
KNOWN_DOMAINS = {"", "ai.onnx", "com.microsoft"}


def open_model(source: Any, example: Any = None) -> ir.Model:
    """The network behind `source`, checked but not yet normalised.

    Args:
        source: path of an `.onnx` or `.pt2` file, `"module:callable"` (returning an `nn.Module`, or a pair of
            module and example batch), an `nn.Module` (with `example`), or an `onnx_ir.Model`.
        example: one batch (tensor or tuple of tensors) for an `nn.Module`.

    Raises:
        InputError: the file is missing, no ONNX, truncated, fails the checker, or lacks its external data.
    """
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if not Path(text).exists() and ":" in text and not text.endswith((".onnx", ".pt2")):
            return _from_callable(text, example)
        if text.endswith(".pt2"):
            return _open_pt2(Path(text))
        return _open_onnx(Path(text))
    return from_module(source, example)


def _existing_file(path: Path) -> None:
    if not path.exists():
        raise InputError(str(path), "no such file", "an ONNX file, a .pt2 file or module:callable")
    if not path.is_file():
        raise InputError(str(path), "is a folder", "an ONNX file", "name the .onnx file inside it")
    if not os.access(path, os.R_OK):
        raise InputError(str(path), "cannot be read", fix="check the file's permissions")


def _open_onnx(path: Path) -> ir.Model:
    _existing_file(path)
    head = path.open("rb").read(1)
    if not head:
        raise InputError(str(path), "the file is empty", "an ONNX model", "export it again")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        # Every exporter writes ir_version (field 1, a varint) first: the byte 0x08.
        if head == b"\x08":
            raise InputError(
                str(path), f"the ONNX model ends or breaks off inside a message ({path.stat().st_size:,} bytes)",
                "a complete file", "copy or export it again",
            ) from error  # fmt: skip
        raise InputError(str(path), "is not an ONNX file", "a serialized ONNX ModelProto") from error
    if not proto.ir_version or not proto.graph.ByteSize():
        raise InputError(str(path), "is not an ONNX model", "a serialized ONNX ModelProto with a graph")
    _check_external_data(path, proto)
    _check_opsets(str(path), {o.domain: o.version for o in proto.opset_import})
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(str(path), f"the ONNX checker says: {reason}", "a valid model", "export it again") from error
    return ir.load(str(path))


def _check_opsets(where: str, opsets: Mapping[str, int]) -> None:
    version = opsets.get("", opsets.get("ai.onnx", 0))
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise UnsupportedError(
            where, f"operator set {version}", f"{OLDEST_OPSET} to {NEWEST_OPSET}", "export it with another opset"
        )


def _check_external_data(path: Path, proto: onnx.ModelProto) -> None:
    folder = path.resolve().parent
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        target = (folder / location).resolve()
        if not location or not target.is_relative_to(folder):
            raise InputError(
                f"{path}: weight {tensor.name!r}", f"its data lies outside the model's folder, at {location!r}",
                "a file beside the model", "save the model again with its data beside it",
            )  # fmt: skip
        if not target.is_file():
            raise InputError(
                f"{path}: weight {tensor.name!r}", f"its data file {location!r} is missing",
                fix=f"put {location!r} beside the model",
            )  # fmt: skip
        need = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if target.stat().st_size < need:
            raise InputError(
                f"{path}: weight {tensor.name!r}",
                f"its data file {location!r} has {target.stat().st_size:,} bytes", f"at least {need:,}",
                "copy the data file again",
            )  # fmt: skip


def _open_pt2(path: Path) -> ir.Model:
    import torch

    _existing_file(path)
    if not zipfile.is_zipfile(path):
        raise InputError(str(path), "is not a .pt2 archive", "a file written by torch.export.save")
    try:
        program = torch.export.load(str(path))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(str(path), f"torch.export.load says: {reason}", "a file of torch.export.save") from error
    return from_exported_program(program, where=str(path))


def _from_callable(text: str, example: Any) -> ir.Model:
    made = call_named(text, kind="model")
    module = made
    if isinstance(made, Sequence) and len(made) == 2:
        module, example = made
    if not hasattr(module, "state_dict"):
        raise InputError(text, f"returned {type(made).__name__}", "an nn.Module, or (nn.Module, example batch)")
    return from_module(module, example, where=text)


def call_named(text: str, kind: str) -> Any:
    """Call `"module:callable"` without arguments; the current folder is searched first.

    Raises:
        InputError: the module or the callable does not exist.
    """
    module_name, _, attribute = text.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            text, f"no such file, and no Python module {error.name!r}", f"a {kind}'s path or module:callable"
        ) from error
    target = getattr(module, attribute, None)
    if not callable(target):
        raise InputError(text, f"module {module_name!r} has no callable {attribute!r}", f"module:callable for a {kind}")
    return target()
