"""What holds for every row of FORMATS."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from bitwright.formats import FORMATS
from bitwright.formats.affine import Affine
from bitwright.formats.apot import APoT
from bitwright.formats.codebook import Codebook
from bitwright.formats.format import Format
from bitwright.formats.log2 import Log2
from bitwright.formats.packing import pack, unpack
from bitwright.formats.pow2 import PowerOfTwo

# The rows with their default width where they have one, and the other widths and modes worth a visit.
MORE: list[Format] = [
    Affine(bits=8, signed=False),
    Affine(bits=3, signed=True, narrow=True),
    Affine(bits=1, signed=False),
    PowerOfTwo(bits=4, signed=False, rounding="nearest"),
    PowerOfTwo(bits=5, rounding="floor"),
    PowerOfTwo(bits=8, narrow=True, rounding="ceil"),
    Log2(bits=2),
    Log2(bits=3, rounding="linear"),
    Log2(bits=6),
    Log2(bits=1, signed=False),
    Log2(bits=4, signed=False),
    Log2(bits=5, signed=False, rounding="linear"),
    APoT(bits=2),
    APoT(bits=3),
    APoT(bits=5),
    Codebook(bits=1),
    Codebook(bits=2),
    Codebook(bits=7),
]
NEEDS_ARGUMENTS = {"affine": {"bits": 4, "signed": True}}
ROWS: list[Format] = [row.load()(**NEEDS_ARGUMENTS.get(name, {})) for name, row in FORMATS.items()]


@pytest.fixture(params=ROWS + MORE, ids=repr)
def number_format(request: pytest.FixtureRequest) -> Format:
    return request.param


def data(rows: int = 3, n: int = 400) -> Tensor:
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(rows * n)) ** 3
    return x * torch.tensor([1.0, 1e-3, 40.0])[:rows, None]


def every_code(number_format: Format) -> Tensor:
    return torch.arange(number_format.qmin, number_format.qmax + 1, dtype=torch.int32).expand(3, -1)


def test_is_a_frozen_value(number_format: Format) -> None:
    assert dataclasses.replace(number_format) == number_format  # type: ignore[type-var]
    with pytest.raises(dataclasses.FrozenInstanceError):
        number_format.anything = 1  # type: ignore[attr-defined]


def test_codes_fit_the_width(number_format: Format) -> None:
    assert 1 <= number_format.qmax - number_format.qmin < 2**number_format.bits


def test_shapes_and_types(number_format: Format) -> None:
    x = data()
    parameters = number_format.fit(x)
    codes = number_format.encode(x, *parameters)
    y = number_format.decode(codes, *parameters)
    assert (codes.dtype, codes.shape) == (torch.int32, x.shape)
    assert (y.dtype, y.shape) == (torch.float32, x.shape)
    assert (parameters[0].dtype, parameters[0].shape) == (torch.float32, (3,))
    assert bool((parameters[0] > 0).all())
    assert int(codes.min()) >= number_format.qmin and int(codes.max()) <= number_format.qmax


def test_every_code_survives_the_way_to_its_value_and_back(number_format: Format) -> None:
    parameters = number_format.fit(data())
    codes = every_code(number_format)
    values = number_format.decode(codes, *parameters)
    assert bool((values.diff(dim=1) > 0).all())
    assert torch.equal(number_format.encode(values, *parameters), codes)


def test_idempotent_and_monotone(number_format: Format) -> None:
    parameters = number_format.fit(data())
    x = torch.cat([data(), torch.zeros(3, 1), data() * 10], dim=1).sort(1).values
    codes = number_format.encode(x, *parameters)
    assert bool((codes.diff(dim=1) >= 0).all())
    again = number_format.encode(number_format.decode(codes, *parameters), *parameters)
    assert torch.equal(again, codes)


def test_beyond_the_range_the_outermost_codes(number_format: Format) -> None:
    parameters = number_format.fit(data())
    top = torch.full((3, 1), 1e6)
    assert bool((number_format.encode(top, *parameters) == number_format.qmax).all())
    assert bool((number_format.encode(-top, *parameters) == number_format.qmin).all())


def test_the_error_is_at_most_the_gap_between_the_levels(number_format: Format) -> None:
    parameters = number_format.fit(data())
    levels = number_format.decode(every_code(number_format), *parameters)
    x = data()
    code = number_format.encode(x, *parameters)
    y = number_format.decode(code, *parameters)
    index = (code - number_format.qmin).long()
    width = levels.shape[1]
    gap_below = levels.gather(1, index) - levels.gather(1, (index - 1).clamp(min=0))
    gap_above = levels.gather(1, (index + 1).clamp(max=width - 1)) - levels.gather(1, index)
    gap = torch.where(x < y, gap_below, gap_above)
    inside = (x >= levels[:, :1]) & (x <= levels[:, -1:])
    assert bool(((x - y).abs() <= gap * 1.0001)[inside].all())


def test_rows_keep_their_own_scale(number_format: Format) -> None:
    small, large = data(3)[0] * 1e-3, data(3)[0]
    scale = number_format.fit(torch.stack([small, large]))[0]
    assert scale[1].item() / scale[0].item() == pytest.approx(
        1000, rel=0.05 if "Power" not in repr(number_format) else 0.5
    )


def test_a_row_of_zeros_stays_finite(number_format: Format) -> None:
    x = torch.zeros(2, 5)
    parameters = number_format.fit(x)
    y = number_format.decode(number_format.encode(x, *parameters), *parameters)
    assert bool(torch.isfinite(parameters[0]).all())
    assert bool((y.abs() <= 1e-6).all())


def test_data_are_left_alone_and_the_fit_repeats(number_format: Format) -> None:
    x = data()
    kept = x.clone()
    first, second = number_format.fit(x), number_format.fit(x)
    number_format.encode(x, *first)
    assert torch.equal(x, kept)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_codes_pack_into_their_width(number_format: Format) -> None:
    if number_format.bits > 8:
        pytest.skip("packing ends at 8 bits")
    x = data(3, 7)
    codes = number_format.encode(x, *number_format.fit(x))
    signed = number_format.qmin < 0
    stored = pack(codes, number_format.bits, signed=signed)
    assert stored.numel() == -(-21 * number_format.bits // 8)
    assert torch.equal(unpack(stored, number_format.bits, 21, signed=signed).view(3, 7), codes)
