"""Mean absolute errors to five digits, per format, width and range.

`tests/golden/formats_mae.json` is reviewed as a diff. To write it anew:
`PYTHONPATH=src python tests/formats/test_formats_golden.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from bitwright.formats import FORMATS
from bitwright.formats.affine import Affine, fake_quantize, scale_and_zero_point
from bitwright.formats.format import Format
from bitwright.ranges.minmax import MinMax
from bitwright.ranges.mse import MSE

GOLDEN = Path(__file__).parents[1] / "golden" / "formats_mae.json"


def weights() -> Tensor:
    """Two rows without a random number in them: a Laplace and a shifted normal distribution, by quantiles."""
    u = (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024
    laplace = -(u - 0.5).sign() * torch.log1p(-2 * (u - 0.5).abs())
    normal = 2**0.5 * torch.erfinv(2 * u - 1) + 0.25
    return torch.stack([laplace, normal]).float()


def affine_error(grid: Affine, symmetric: bool, estimator: MinMax | MSE, x: Tensor) -> float:
    state = estimator.update(estimator.init(), x)  # type: ignore[arg-type]
    lo, hi = estimator.finish(state, grid, symmetric=symmetric)  # type: ignore[arg-type]
    scale, zero_point = scale_and_zero_point(lo, hi, grid, symmetric=symmetric)
    return (x - fake_quantize(x, scale[:, None], zero_point[:, None], grid)).double().abs().mean().item()


def format_error(number_format: Format, x: Tensor) -> float:
    parameters = number_format.fit(x)
    return (x - number_format.decode(number_format.encode(x, *parameters), *parameters)).double().abs().mean().item()


def table() -> dict[str, str]:
    """Name -> error, five digits."""
    x, found = weights(), {}
    for bits in range(2, 17):
        for kind, grid, symmetric in (
            ("unsigned asymmetric", Affine(bits=bits, signed=False), False),
            ("signed symmetric", Affine(bits=bits, signed=True), True),
            ("narrow symmetric", Affine(bits=bits, signed=True, narrow=True), True),
        ):
            found[f"affine {bits} {kind} minmax"] = affine_error(grid, symmetric, MinMax(), x)
            if bits <= 8:
                found[f"affine {bits} {kind} mse"] = affine_error(grid, symmetric, MSE(), x)
    for name, row in FORMATS.items():
        if name != "affine":
            number_format = row.load()()
            found[f"{name} {number_format.bits}"] = format_error(number_format, x)
    return {name: f"{error:.4e}" for name, error in found.items()}


def test_errors_are_those_written_down() -> None:
    assert table() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(table(), indent=1) + "\n")
