from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import InputError
from bitwright.formats.packing import pack, packed_size, unpack


def by_bits(codes: list[int], bits: int) -> list[int]:
    """The layout written out: one long whole number, least significant bit first."""
    stream = sum((code % (1 << bits)) << (i * bits) for i, code in enumerate(codes))
    return list(stream.to_bytes((len(codes) * bits + 7) // 8, "little"))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip_and_layout(bits: int, signed: bool, data: st.DataObject) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = data.draw(st.lists(st.integers(low, high), max_size=41))
    stored = pack(torch.tensor(codes, dtype=torch.int32), bits, signed=signed)
    assert stored.dtype == torch.uint8
    assert stored.tolist() == by_bits(codes, bits)
    assert stored.numel() == packed_size(len(codes), bits)
    assert unpack(stored, bits, len(codes), signed=signed).tolist() == codes


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_byte_survives(bits: int) -> None:
    octets = torch.arange(256).repeat(bits).to(torch.uint8)  # a whole number of codes for every width
    codes = unpack(octets, bits, 256 * 8)
    assert torch.equal(pack(codes, bits), octets)


@pytest.mark.parametrize(
    ("kind", "bits", "signed"),
    [("UINT4", 4, False), ("INT4", 4, True), ("UINT2", 2, False), ("INT2", 2, True)],
)
def test_is_the_layout_of_onnx(kind: str, bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    codes = torch.tensor([low + i % 2**bits for i in (0, 3, 1, 2, 5, 7, 15, 9, 4)])
    tensor = onnx.TensorProto(
        data_type=onnx.TensorProto.DataType.Value(kind),
        dims=[9],
        raw_data=bytes(pack(codes, bits, signed=signed).tolist()),
    )
    assert onnx.numpy_helper.to_array(tensor).astype(np.int32).tolist() == codes.tolist()


def test_rows_are_packed_in_order_without_gaps() -> None:
    codes = torch.arange(6).view(2, 3)
    assert torch.equal(pack(codes, 3), pack(codes.flatten(), 3))
    assert torch.equal(pack(codes.t(), 3), pack(torch.tensor([0, 3, 1, 4, 2, 5]), 3))


@pytest.mark.parametrize("bits", [1, 3, 4, 7])
def test_chunks_do_not_show(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 2**bits, (1001,), generator=torch.Generator().manual_seed(bits))
    whole = pack(codes, bits)
    monkeypatch.setattr("bitwright.formats.packing._CHUNK", 16)
    assert torch.equal(pack(codes, bits), whole)
    assert torch.equal(unpack(whole, bits, 1001), codes.int())


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"codes: codes from 0 to 4; expected 0 to 3 for 2 unsigned bits"):
        pack(torch.tensor([0, 4]), 2)
    with pytest.raises(InputError, match=r"codes: codes from -3 to 0; expected -2 to 1 for 2 signed bits"):
        pack(torch.tensor([0, -3]), 2, signed=True)
    with pytest.raises(InputError, match="codes: float32 numbers; expected integers"):
        pack(torch.tensor([0.0]), 2)
    for bits in (0, 9, True):
        with pytest.raises(InputError, match=f"bits: a width of {bits}; expected a whole number from 1 to 8"):
            pack(torch.tensor([0]), bits)
    with pytest.raises(InputError, match=r"packed codes: uint8 \[2\]; expected uint8 \[1\] for 2 codes of 4 bits"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, 2)
    with pytest.raises(InputError, match=r"packed codes: int32 \[1\]; expected uint8 \[1\]"):
        unpack(torch.zeros(1, dtype=torch.int32), 4, 2)
