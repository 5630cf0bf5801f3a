"""Packing of b-bit codes into bytes.

Code i takes the bits `i b .. i b + b - 1` of the stream; bit k of the stream is bit `k mod 8` of byte `k div 8`.
The last byte is filled with zeros. For b = 4 and 2 that is the layout of ONNX INT4, UINT4, INT2 and UINT2: the
first code in the low bits. Signed codes are stored in two's complement of b bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.errors import InputError

_CHUNK = 1 << 20  # codes in 64-bit words at a time, a multiple of 8


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes take.

    Example:
        >>> packed_size(9, 4), packed_size(3, 3)
        (5, 2)
    """
    _check_width(bits)
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int, *, signed: bool = False) -> Tensor:
    """Bytes, uint8 `[packed_size]`, of the codes in row-major order.

    Args:
        codes: integers of any shape, `0 .. 2^b - 1`, or `-2^(b-1) .. 2^(b-1) - 1` when signed.
        bits: b, 1 to 8.
        signed: two's complement.

    Raises:
        InputError: another width, a code that does not fit, or codes that are no integers.

    Example:
        >>> pack(torch.tensor([1, 2, 15]), 4).tolist()
        [33, 15]
        >>> pack(torch.tensor([-1, 0, 1]), 2, signed=True).tolist()
        [19]
    """
    _check_width(bits)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise InputError("codes", f"{str(codes.dtype).removeprefix('torch.')} numbers", "integers")
    flat = codes.flatten().long()
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if flat.numel() and (int(flat.min()) < low or int(flat.max()) > high):
        found = f"codes from {int(flat.min())} to {int(flat.max())}"
        raise InputError("codes", found, f"{low} to {high} for {bits} {'signed' if signed else 'unsigned'} bits")
    octets = torch.cat([_octets(part & ((1 << bits) - 1), bits) for part in torch.split(flat, _CHUNK)])
    return octets[: packed_size(flat.numel(), bits)]


def unpack(octets: Tensor, bits: int, count: int, *, signed: bool = False) -> Tensor:
    """The `count` codes that `pack` stored, int32 `[count]`.

    Args:
        octets: uint8, `[packed_size(count, bits)]`.
        bits: b, 1 to 8.
        count: how many codes.
        signed: two's complement.

    Raises:
        InputError: another width, not bytes, or another number of bytes.

    Example:
        >>> unpack(torch.tensor([33, 15], dtype=torch.uint8), 4, 3).tolist()
        [1, 2, 15]
    """
    size = packed_size(count, bits)
    if octets.dtype != torch.uint8 or octets.shape != (size,):
        found = f"{str(octets.dtype).removeprefix('torch.')} {list(octets.shape)}"
        raise InputError("packed codes", found, f"uint8 [{size}] for {count} codes of {bits} bits")
    codes = torch.cat([_codes(part, bits) for part in torch.split(octets, _CHUNK // 8 * bits)])[:count]
    return codes - ((codes >> (bits - 1)) << bits) if signed else codes


def _octets(codes: Tensor, bits: int) -> Tensor:
    """Eight codes are b bytes: one word of at most 64 bits."""
    eights = torch.nn.functional.pad(codes, (0, -codes.numel() % 8)).view(-1, 8)
    lanes = torch.arange(8, device=codes.device)
    words = (eights << (lanes * bits)).sum(1)
    return ((words[:, None] >> (8 * lanes[:bits])) & 255).to(torch.uint8).flatten()


def _codes(octets: Tensor, bits: int) -> Tensor:
    """The way back from b bytes to eight codes."""
    groups = torch.nn.functional.pad(octets.long(), (0, -octets.numel() % bits)).view(-1, bits)
    lanes = torch.arange(8, device=octets.device)
    words = (groups << (8 * lanes[:bits])).sum(1)
    return ((words[:, None] >> (lanes * bits)) & ((1 << bits) - 1)).flatten().to(torch.int32)


def _check_width(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise InputError("bits", f"a width of {bits!r}", "a whole number from 1 to 8")
