"""How weights of b bits lie in a file, and the constant expression that makes int8 codes of them.

Whatever integer expression of constants gives int8 is folded when a session starts: the file has its true size, the
runtime one int8 kernel. The codes that reach DequantizeLinear are centred, `code - zero_point`, so the kernel is the
symmetric one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.deploy.graph_writer import GraphWriter
from bitwright.plan.encoding import Encoding


@dataclass(frozen=True)
class Packing:
    """One way to store a weight.

    Attributes:
        write: `(writer, weight name, codes, encoding)` -> value of centred int8 codes.
        read: `(initializer array, zero point that broadcasts)` -> codes (int32).
        bits: bits of one weight in the file.
    """

    write: Callable[[GraphWriter, str, Tensor, Encoding], ir.Value]
    read: Callable[[np.ndarray, Tensor], Tensor]
    bits: int


def _write_int8(writer: GraphWriter, name: str, codes: Tensor, encoding: Encoding) -> ir.Value:
    centred = codes - encoding.parameters(codes)[1]
    return writer.constant(name, centred.to(torch.int8).numpy())


def _read_int8(stored: np.ndarray, zero_point: Tensor) -> Tensor:
    return torch.from_numpy(stored.astype(np.int32)) + zero_point


def _write_uint4(writer: GraphWriter, name: str, codes: Tensor, encoding: Encoding) -> ir.Value:
    stored = writer.constant(name, codes.numpy().astype(ml_dtypes.uint4))
    wide = writer.node("Cast", [stored], {"to": ir.AttrInt64("to", ir.DataType.INT32.value)}, f"{name}/wide")
    zero = writer.constant(f"{name}/centre", encoding.parameters(codes)[1].numpy().astype(np.int32))
    centred = writer.node("Sub", [wide, zero], {}, f"{name}/centred")
    return writer.node("Cast", [centred], {"to": ir.AttrInt64("to", ir.DataType.INT8.value)}, f"{name}/int8")


def _read_uint4(stored: np.ndarray, zero_point: Tensor) -> Tensor:
    return torch.from_numpy(stored.astype(np.int32))


PACKINGS: dict[str, Packing] = {
    "int8": Packing(write=_write_int8, read=_read_int8, bits=8),
    "uint4": Packing(write=_write_uint4, read=_read_uint4, bits=4),
}
