"""How weights of b bits lie in a file, and the constant expression that makes int8 integers of them.

Whatever integer expression of constants gives int8 is folded when a session starts: the file has its true size, the
runtime one int8 kernel. What reaches DequantizeLinear is what the kernel multiplies by, `code - zero_point` or the
level of the code, so the kernel is the symmetric one.

- `int8`: the integers themselves.
- `uint4`: UINT4 codes; Cast, Sub of the zero points, Cast.
- `planes`: codes of 1 to 7 bits cut into planes of 4, 2 and 1 bits (3 = 2 + 1), each plane packed into bytes. A byte
  is an index into a table of 256 rows that hold its parts; where one plane is all, they hold the levels themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.deploy.graph_writer import GraphWriter
from bitwright.formats.packing import pack, unpack
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import QSpec


@dataclass(frozen=True)
class Packing:
    """One way to store a weight.

    Attributes:
        write: `(writer, weight name, codes, encoding)` -> value of the int8 integers.
        read: `(constants of the file, weight name, spec)` -> codes (int32), zero points (int32, flat; one for each
            scale, or one in all) and levels (int32; None for affine integers).
        bits: most bits that a weight can have.
    """

    write: Callable[[GraphWriter, str, Tensor, Encoding], ir.Value]
    read: Callable[[Mapping[str, np.ndarray], str, QSpec], tuple[Tensor, Tensor, Tensor | None]]
    bits: int


def _cast(writer: GraphWriter, value: ir.Value, to: ir.DataType) -> ir.Value:
    return writer.constant_node("Cast", [value], {"to": ir.AttrInt64("to", to.value)})


def _centred(writer: GraphWriter, name: str, wide: ir.Value, centre: Tensor) -> ir.Value:
    """int8 `wide - centre`, from int32; a centre that all channels have is stored once."""
    one = centre.flatten()[:1]
    stored = writer.constant(f"{name}/centre", _int32(one if bool((centre == one).all()) else centre))
    return _cast(writer, writer.constant_node("Sub", [wide, stored], {}), ir.DataType.INT8)


def _int32(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.numpy().astype(np.int32)
    return array


def _read_int32(stored: np.ndarray) -> Tensor:
    return torch.from_numpy(stored.astype(np.int32))


def _write_int8(writer: GraphWriter, name: str, codes: Tensor, encoding: Encoding) -> ir.Value:
    return writer.constant(name, encoding.integers(codes).to(torch.int8).numpy())


def _read_int8(stored: Mapping[str, np.ndarray], name: str, spec: QSpec) -> tuple[Tensor, Tensor, None]:
    return _read_int32(stored[name]), torch.zeros(1, dtype=torch.int32), None


def _write_uint4(writer: GraphWriter, name: str, codes: Tensor, encoding: Encoding) -> ir.Value:
    stored = writer.constant(name, codes.numpy().astype(ml_dtypes.uint4))
    wide = _cast(writer, stored, ir.DataType.INT32)
    return _centred(writer, name, wide, encoding.parameters(codes)[1])


def _read_uint4(stored: Mapping[str, np.ndarray], name: str, spec: QSpec) -> tuple[Tensor, Tensor, None]:
    return _read_int32(stored[name]), _read_int32(stored[f"{name}/centre"]).flatten(), None


def plane_widths(bits: int) -> tuple[int, ...]:
    """Bits of the planes of a code, lowest first: its binary digits, from 4 down.

    Example:
        >>> plane_widths(7), plane_widths(3), plane_widths(2)
        ((4, 2, 1), (2, 1), (2,))
    """
    return tuple(width for width in (4, 2, 1) if bits & width)


def plane_name(site: str, plane: int) -> str:
    """Bytes of a plane."""
    return f"{site}/plane{plane}"


def _levels_name(site: str, spec: QSpec) -> str:
    """Levels that are fitted belong to one weight, the others to all weights of a format and width."""
    return f"{site}/levels" if spec.format == "codebook" else f"levels/{spec.format}{spec.bits}"


def _byte_table(parts: np.ndarray) -> np.ndarray:
    """`[256, 8 / width]`: what each byte holds, where code c stands for `parts[c]`; width is log2 of their number."""
    width = len(parts).bit_length() - 1
    byte = np.arange(256)[:, None]
    table: np.ndarray = parts[(byte >> (width * np.arange(8 // width))) & (len(parts) - 1)].astype(np.int8)
    return table


def _write_planes(writer: GraphWriter, name: str, codes: Tensor, encoding: Encoding) -> ir.Value:
    spec, levels = encoding.spec, encoding.levels
    index = codes if levels is not None else codes - spec.grid.qmin
    flat = torch.nn.functional.pad(index.flatten(), (0, -index.numel() % 8))
    widths = plane_widths(spec.bits)
    if levels is not None and len(widths) == 1:
        # Codes that do not occur stand for the last level, so that the table is ascending.
        full = torch.nn.functional.pad(levels, (0, (1 << spec.bits) - len(levels)), value=int(levels[-1]))
        table = writer.constant(_levels_name(name, spec), _byte_table(full.numpy()))
        value = _plane(writer, name, 0, pack(flat, spec.bits), table)
    else:
        value = _sum_of_planes(writer, name, flat, widths)
    if flat.numel() != index.numel():
        ends = [writer.constant(f"int64/{n}", np.array([n], dtype=np.int64)) for n in (0, index.numel())]
        value = writer.constant_node("Slice", [value, *ends], {})
    shape = writer.constant(f"{name}/shape", np.array(codes.shape, dtype=np.int64))
    value = writer.constant_node("Reshape", [value, shape], {})
    if levels is None:
        return _centred(writer, name, value, encoding.parameters(codes)[1] - spec.grid.qmin)
    if len(widths) == 1:
        return value
    table = writer.constant(_levels_name(name, spec), levels.numpy().astype(np.int8))
    return writer.constant_node("Gather", [table, value], {})


def _sum_of_planes(writer: GraphWriter, name: str, flat: Tensor, widths: tuple[int, ...]) -> ir.Value:
    """int32 codes of all planes."""
    value, shift = None, 0
    for i, width in enumerate(widths):
        table = writer.constant(f"planes/{width}<<{shift}", _byte_table(np.arange(1 << width) << shift))
        octets = pack((flat >> shift) & ((1 << width) - 1), width)
        part = _cast(writer, _plane(writer, name, i, octets, table), ir.DataType.INT32)
        value = part if value is None else writer.constant_node("Add", [value, part], {})
        shift += width
    assert value is not None
    return value


def _plane(writer: GraphWriter, name: str, plane: int, octets: Tensor, table: ir.Value) -> ir.Value:
    """What the bytes of a plane stand for, in one dimension."""
    stored = writer.constant(plane_name(name, plane), octets.numpy())
    row = _cast(writer, stored, ir.DataType.INT32)
    found = writer.constant_node("Gather", [table, row], {})
    everything = writer.constant("int64/-1", np.array([-1], dtype=np.int64))
    return writer.constant_node("Reshape", [found, everything], {})


def _read_planes(stored: Mapping[str, np.ndarray], name: str, spec: QSpec) -> tuple[Tensor, Tensor, Tensor | None]:
    shape = [int(n) for n in stored[f"{name}/shape"]]
    count = int(np.prod(shape))
    index, shift = torch.zeros(count, dtype=torch.int32), 0
    for i, width in enumerate(plane_widths(spec.bits)):
        octets = torch.from_numpy(stored[plane_name(name, i)].copy())
        index += unpack(octets, width, octets.numel() * 8 // width)[:count] << shift
        shift += width
    index = index.reshape(shape)
    if spec.has_levels:
        table = stored[_levels_name(name, spec)]
        levels = _read_int32(table[: 1 << spec.bits, 0] if table.ndim == 2 else table)
        return index, torch.zeros(1, dtype=torch.int32), levels[: spec.levels_format().qmax + 1]
    centre = _read_int32(stored[f"{name}/centre"]).flatten()
    return index + spec.grid.qmin, centre + spec.grid.qmin, None


PACKINGS: dict[str, Packing] = {
    "int8": Packing(write=_write_int8, read=_read_int8, bits=8),
    "uint4": Packing(write=_write_uint4, read=_read_uint4, bits=4),
    "planes": Packing(write=_write_planes, read=_read_planes, bits=7),
}
