"""From what a user names to what the rooms below work on: network, data, target."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bitwright.data.batches import Batches, InputSpecs
from bitwright.data.opening import open_data
from bitwright.data.preprocess import Preprocess
from bitwright.deploy.runtimes.onnxruntime import products_saturate
from bitwright.errors import InputError
from bitwright.graph.fold import input_shapes
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.lookup import did_you_mean, lookup
from bitwright.targets import TARGETS
from bitwright.targets.target import Target
from bitwright.verbs.tables import dimensions
from bitwright.verbs.terminal import Terminal

#: Ops that only quantized networks have.
QUANTIZED_OPS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "QLinearAdd", "QGemm", "FakeQuantize", "MatMulNBits",
}  # fmt: skip


def float_network(source: Any, *, example: Any = None, shapes: Sequence[str] = (), where: str = "") -> ir.Model:
    """The normalised float network behind `source`, which errors call `where`.

    Raises:
        InputError: it cannot be opened, or is quantized already.
    """
    model = open_model(source, example)
    where = where or (str(source) if isinstance(source, str | os.PathLike) else "model")
    found = next((n for n in model.graph if n.op_type in QUANTIZED_OPS), None)
    if found is not None:
        raise InputError(
            where, f"is quantized already (node {found.name!r} is a {found.op_type})", "a float network",
            "give the float file it was made from",
        )  # fmt: skip
    return normalise(model, _shapes_of(model, shapes), where)


def served_network(path: str, *, shapes: Sequence[str] = ()) -> ir.Model:
    """An ONNX file as the runtime reads it, with the shapes that were given for its inputs.

    Raises:
        InputError: it is no ONNX file, or the shape of an input stays open.
    """
    existing_file(path)
    if path.endswith(".pt2"):
        raise InputError(path, "is a .pt2 file, which the runtime does not read", "an ONNX file", "quantize it first")
    model = open_model(path)
    known = input_shapes(model, _shapes_of(model, shapes))
    for value in model.graph.inputs:
        value.shape = ir.Shape(known[value.name or ""])
    return model


def existing_file(path: str) -> None:
    """Refuse what is no file.

    Raises:
        InputError: it does not exist, or is a folder.
    """
    if not os.path.isfile(path):
        raise InputError(path, "is a folder" if os.path.isdir(path) else "no such file", "an ONNX file")


def check_same_inputs(model: ir.Model, other: ir.Model, where: str) -> None:
    """Whether the images of `model` fit `other`, which errors call `where`.

    Raises:
        InputError: an input has another name, shape or type, or is missing.
    """
    specs, others = input_specs(model), input_specs(other)
    same = specs.keys() == others.keys() and all(
        others[name][0][1:] == shape[1:] and others[name][1] == dtype and others[name][0][0] in (None, shape[0])
        for name, (shape, dtype) in specs.items()
    )
    if not same:
        raise InputError(where, f"reads {_described(others)}", f"{_described(specs)}, as the file it is compared with")


def _described(specs: InputSpecs) -> str:
    return ", ".join(f"{name!r} {dimensions(shape)} {dtype}" for name, (shape, dtype) in specs.items())


def _shapes_of(model: ir.Model, texts: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """What `--shape` says of a network's inputs.

    Raises:
        InputError: it names none of them.
    """
    given = parse_shapes(texts)
    names = [value.name or "" for value in model.graph.inputs]
    for name in given:
        if name not in names:
            raise InputError(
                f"--shape {name}=...", "the network has no input of this name", fix=did_you_mean(name, names)
            )
    return given


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """Read `image=Nx3x224x224`; N is the batch.

    Example:
        >>> parse_shapes(["image=Nx3x224x224"])
        {'image': (None, 3, 224, 224)}
    """
    shapes: dict[str, tuple[int | None, ...]] = {}
    for text in texts:
        name, _, dims = text.rpartition("=")
        try:
            shape = tuple(None if d in ("N", "n") else int(d) for d in dims.split("x"))
        except ValueError:
            shape = ()
        if not name or not shape or any(d is not None and d < 1 for d in shape):
            raise InputError(f"--shape {text!r}", "is not understood", "INPUT=Nx3x224x224")
        shapes[name] = shape
    return shapes


def input_specs(model: ir.Model) -> InputSpecs:
    """Shape (None for the batch) and numpy type of every input."""
    specs: dict[str, tuple[tuple[int | None, ...], str]] = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None
        specs[value.name or ""] = (
            tuple(d if isinstance(d, int) else None for d in value.shape),
            str(value.dtype.numpy()),
        )
    return specs


def data_for(
    model: ir.Model, source: Any, terminal: Terminal, *, batch: int = 32, limit: int = 0, skip_bad: bool = False,
    preprocess: Mapping[str, Any] | None = None,
) -> Batches:  # fmt: skip
    """Batches of `source` for the inputs of `model`; says where preprocessing came from."""
    given = Preprocess.from_mapping(preprocess, "flags") if preprocess else None
    batches = open_data(
        source, input_specs(model), batch_size=batch, limit=limit or None, seed=terminal.seed, preprocess=given,
        skip_bad=skip_bad,
    )  # fmt: skip
    if batches.preprocess_source == "default":
        terminal.note(f"note: no preprocess.yaml for {source}: pixels are divided by 255 and nothing else")
    return batches


def digest_of(batches: Batches) -> str:
    """What tells one set of images from another: all names and labels, and the content of the first batch."""
    found = hashlib.sha256("\n".join(batches.names).encode())
    for key, array in sorted(next(iter(batches)).inputs.items()):
        found.update(key.encode() + array.tobytes())
    if batches.labels is not None:
        found.update(batches.labels.tobytes())
    return found.hexdigest()[:16]


def resolve_target(name: str, terminal: Terminal) -> Target:
    """The target called `name`; `auto` is the one for this machine, found by experiment.

    Raises:
        InputError: there is no such target.
    """
    if name == "auto":
        saturates = products_saturate()
        name = "onnxruntime-x64-avx2" if saturates else "onnxruntime-x64"
        why = "has no VNNI: its int8 products saturate in pairs, so weights get 7 bits" if saturates else "has VNNI"
        terminal.note(f"target {name}: this processor {why}")
    target: Target = lookup(TARGETS, name, "target").load()
    return target


def model_files(path: str | os.PathLike[str]) -> list[Path]:
    """An ONNX file and the files of its external data."""
    path = Path(path)
    model = ir.load(str(path), format="protobuf")
    others = {
        path.parent / v.const_value.location
        for v in model.graph.initializers.values()
        if isinstance(v.const_value, ir.ExternalTensor)
    }
    return [path, *sorted(others)]


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a model on disk, its external data included."""
    return sum(file.stat().st_size for file in model_files(path))


def same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Whether two paths name one existing file."""
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)


def check_output(output: Path, inputs: Mapping[str, str]) -> None:
    """Refuse to write where it cannot be, or over an input.

    Args:
        output: the file to write.
        inputs: `{path: what it is}`; what is no existing file is left out.

    Raises:
        InputError: it is an input or a folder, or its folder is missing or not writable.
    """
    for path, what in inputs.items():
        if path and os.path.isfile(path) and same_file(path, output):
            raise InputError(str(output), f"is {what}", "another file", "choose another --output")
    if not output.parent.is_dir():
        raise InputError(str(output), f"folder {str(output.parent)!r} does not exist", fix="create it first")
    if output.is_dir():
        raise InputError(str(output), "is a folder", "a file's name")
    if not os.access(output.parent, os.W_OK):
        raise InputError(str(output), f"folder {str(output.parent)!r} is not writable", fix="choose another --output")
