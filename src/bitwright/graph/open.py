"""Open a trained network: an ONNX file, a `.pt2`, `module:callable`, an `nn.Module` or an `onnx_ir.Model`."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from bitwright.errors import BitwrightError, InputError, UnsupportedError, first_line
from bitwright.graph.export import from_exported_program, from_module, quiet
from bitwright.graph.weights import check_data, damaged_text

#: The oldest operator set that is read, and the newest (ONNX Runtime 1.31 reads no newer).
OLDEST_OPSET, NEWEST_OPSET = 7, 26


def open_model(source: Any, example: Any = None) -> ir.Model:
    """The network behind `source`, checked but not yet normalised.

    Args:
        source: path of an `.onnx` or `.pt2` file, `"module:callable"` (returning an `nn.Module`, or a pair of
            module and example batch), an `nn.Module` (with `example`), or an `onnx_ir.Model`.
        example: one batch (tensor or tuple of tensors) for an `nn.Module`.

    Raises:
        InputError: the file is missing, no ONNX, truncated, fails the checker, or lacks its external data.
        UnsupportedError: an operator set that is not read, or a module that cannot be exported.
    """
    if isinstance(source, ir.Model):
        _check_opsets("model", source.graph.opset_imports)
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
        raise InputError(str(path), "no such file", "an ONNX file, a .pt2 file or module:callable", "check the path")
    if path.is_dir():
        raise InputError(str(path), "is a folder", "an ONNX file", "name the .onnx file inside it")
    if not path.is_file():
        raise InputError(str(path), "is not a regular file", "an ONNX file", "check the path")
    if not os.access(path, os.R_OK):
        raise InputError(str(path), "cannot be read", "a readable file", "check the file's permissions")


def _open_onnx(path: Path) -> ir.Model:
    _existing_file(path)
    proto = _parse(path)
    check_data(path, proto)
    _check_opsets(str(path), {o.domain: o.version for o in proto.opset_import})
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise InputError(
            str(path), f"the ONNX checker says: {first_line(error)}", "a valid model", "export it again"
        ) from error
    model = ir.load(str(path), format="protobuf")
    # Up to IR version 3 constants were listed as inputs, with their value as default.
    RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 4)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    with path.open("rb") as stream:
        head = stream.read(1)
    if not head:
        raise InputError(str(path), "the file is empty", "an ONNX model", "copy or export it again")
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:
        # Every exporter writes ir_version (field 1, a varint) first: the byte 0x08.
        if head == b"\x08":
            raise InputError(
                str(path), f"the ONNX model ends or breaks off inside a message ({path.stat().st_size:,} bytes)",
                "a complete file", "copy or export it again",
            ) from error  # fmt: skip
        raise InputError(
            str(path), "is not an ONNX file", "a serialized ONNX ModelProto", "name the network's .onnx file"
        ) from error
    damaged = damaged_text(proto)
    if damaged is not None:
        raise InputError(
            str(path), f"has text that is not UTF-8: {damaged!r}", "an undamaged file", "copy or export it again"
        )
    if not proto.ir_version or not proto.graph.ByteSize() or not proto.graph.node or not proto.opset_import:
        lacks = [
            word
            for word, there in (
                ("IR version", proto.ir_version), ("graph", proto.graph.node), ("operator set", proto.opset_import)
            )
            if not there
        ]  # fmt: skip
        raise InputError(
            str(path), f"is not a whole ONNX model: it has no {' and no '.join(lacks)}",
            "a serialized ONNX ModelProto", "copy or export it again",
        )  # fmt: skip
    return proto


def _check_opsets(where: str, opsets: Mapping[str, int]) -> None:
    version = opsets.get("", opsets.get("ai.onnx", 0))
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise UnsupportedError(
            where, f"operator set {version}", f"{OLDEST_OPSET} to {NEWEST_OPSET}", "export it with another opset"
        )


def _open_pt2(path: Path) -> ir.Model:
    import torch

    _existing_file(path)
    expected, fix = "a file written by torch.export.save", "write it again with torch.export.save"
    if not zipfile.is_zipfile(path):
        raise InputError(str(path), "is not a .pt2 archive", expected, fix)
    try:
        with quiet():
            program = torch.export.load(str(path))
    except Exception as error:
        raise InputError(str(path), "is an archive that torch.export.load cannot read", expected, fix) from error
    return from_exported_program(program, where=str(path))


def _from_callable(text: str, example: Any) -> ir.Model:
    module = call_named(text, kind="model")
    if isinstance(module, tuple | list) and len(module) == 2:
        module, example = module
    if not hasattr(module, "state_dict"):
        raise InputError(
            text, f"returned {type(module).__name__}", "an nn.Module, or (nn.Module, example batch)",
            "return one of these",
        )  # fmt: skip
    return from_module(module, example, where=text)


def call_named(text: str, kind: str) -> Any:
    """Call `"module:callable"` without arguments; the current folder is searched first.

    Raises:
        InputError: the module or the callable does not exist, or raises an error.
    """
    target = find_named(text, f"a {kind}'s path or module:callable", kind)
    try:
        return target()
    except BitwrightError:
        raise
    except Exception as error:
        raise InputError(
            text, f"calling it raised {type(error).__name__}: {first_line(error)}",
            f"a callable without arguments that returns a {kind}", "mend that first",
        ) from error  # fmt: skip


def find_named(text: str, expected: str, kind: str) -> Callable[..., Any]:
    """What `"module:callable"` names; the current folder is searched first.

    Args:
        text: the name.
        expected: what errors about the module say should have been there.
        kind: what the callable is for.

    Raises:
        InputError: the module or the callable does not exist, or importing it raises an error.
    """
    module_name, _, attribute = text.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            text, f"no such file, and no Python module {error.name!r}", expected, "check the spelling and the folder"
        ) from error
    except Exception as error:  # an import runs the user's code
        raise InputError(
            text, f"importing {module_name!r} raised {type(error).__name__}: {first_line(error)}", expected,
            "mend that first",
        ) from error  # fmt: skip
    target: Callable[..., Any] | None = getattr(module, attribute, None)
    if target is None or not callable(target):
        raise InputError(
            text, f"module {module_name!r} has no callable {attribute!r}", f"module:callable for a {kind}",
            "check the spelling",
        )  # fmt: skip
    return target
