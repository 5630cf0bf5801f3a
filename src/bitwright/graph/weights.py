"""A model's bytes before anything reads them: its text, and the data of weights in its file or beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from bitwright.errors import InputError


def check_data(path: Path, proto: onnx.ModelProto) -> None:
    """Check that every weight's data are there, whole, and inside the model's folder.

    Args:
        path: of the model.
        proto: the model, loaded without its external data.

    Raises:
        InputError: data outside the folder, missing, or too short; data that do not fit the weight's shape; an entry
            that says no place or size.
    """
    folder = path.resolve().parent
    for tensor in proto.graph.initializer:
        where = f"{path}: weight {tensor.name!r}"
        if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            continue  # no size to compare with; the checker speaks of them
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(where, folder, tensor)
        elif tensor.HasField("raw_data"):
            _check_size(where, tensor, len(tensor.raw_data))


def damaged_text(message: Message) -> bytes | None:
    """The first name or text in a model that is not UTF-8, which no other program could read."""
    if isinstance(message, onnx.TensorProto):  # its numbers would only be copied
        return message.name if isinstance(message.name, bytes) else None
    for field, value in message.ListFields():
        entries = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        for entry in entries if field.type in (field.TYPE_STRING, field.TYPE_MESSAGE) else ():
            found = damaged_text(entry) if isinstance(entry, Message) else entry
            if isinstance(found, bytes):
                return found
    return None


def _check_size(where: str, tensor: onnx.TensorProto, found: int) -> None:
    size = _bytes(tensor)
    if found != size:
        shape = "x".join(map(str, tensor.dims)) or "scalar"
        raise InputError(
            where, f"has {found:,} bytes of data", f"{size:,} for its shape {shape}", "save or export the model again"
        )


def _check_external(where: str, folder: Path, tensor: onnx.TensorProto) -> None:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    target = (folder / location).resolve()
    if not location or not target.is_relative_to(folder):
        raise InputError(
            where, f"its data lies outside the model's folder, at {location!r}", "a file beside the model",
            "save the model again with its data beside it",
        )  # fmt: skip
    if not target.is_file():
        raise InputError(
            where, f"its data file {location!r} is missing", "the file beside the model",
            f"put {location!r} into {str(folder)!r}",
        )  # fmt: skip
    size = _bytes(tensor)
    offset, length = _number(where, entries, "offset", 0), _number(where, entries, "length", size)
    _check_size(where, tensor, length)
    if target.stat().st_size < offset + size:
        raise InputError(
            where, f"its data file {location!r} has {target.stat().st_size:,} bytes", f"at least {offset + size:,}",
            "copy the data file again",
        )  # fmt: skip


def _bytes(tensor: onnx.TensorProto) -> int:
    bits = ir.DataType(tensor.data_type).bitwidth
    return math.ceil(math.prod(tensor.dims) * bits / 8)


def _number(where: str, entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not text.isdigit():
        raise InputError(
            where, f"the {key} of its data is {text!r}", "a whole number", "save or export the model again"
        )
    return int(text)
