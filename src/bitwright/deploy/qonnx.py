"""QONNX: the float graph with `Quant` nodes in it, for any width from 1 to 16 bits.

    Quant(x, s, z, b)    y = s (clip(rint(x / s + z), qmin, qmax) - z)
    BipolarQuant(x, s)   y = s where x >= 0, else -s

in float32, `rint` half to even; `signed` and `narrow` give qmin and qmax as `Affine` does. Weights and biases lie in
the file as the values that their codes stand for. Quant gives weights back unchanged; a bias of more than 2^24 steps,
which float32 does not count, may move in its last place.

Our grid rounds before it adds the zero point, `clip(rint(x / s) + z)`. Where z is 0, as after every ReLU, that is the
same. Elsewhere a tie falls to the even sum instead of the even quotient, and the sum is rounded to float32 before:
with power-of-two scales, where ties are common, 2 to 3 codes in 100 differed at odd zero points. So an activation
whose zero point is not 0 passes two nodes: one of 24 signed bits with zero point 0, which rounds, and then its own,
which finds whole steps, adds the zero point and clips. Codes of equal inputs are then equal. What remains is that
whoever runs the graph adds up convolutions in an order of its own, which moves codes near a tie: the wider the code,
the oftener.

Source: https://github.com/fastmachinelearning/qonnx/tree/main/docs/qonnx-custom-ops (IntQuant, BipolarQuant version
1); Pappalardo et al., QONNX: Representing Arbitrary-Precision Quantized Neural Networks, 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.deploy.float_form import Quantizers, float_form
from bitwright.deploy.forms import Form
from bitwright.deploy.graph_writer import GraphWriter
from bitwright.deploy.names import real_name, scale_name, zero_point_name
from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, QSpec

DOMAIN, OPSET = "qonnx.custom_op.general", 1
#: Width of the Quant nodes of biases: that of the accumulator.
BIAS_BITS = 32
#: Width of the Quant node that only rounds: whole numbers that float32 holds, far beyond the grid behind it.
ROUNDING_BITS = 24


def _quant(
    out: GraphWriter, real: ir.Value, scale: ir.Value, zero_point: ir.Value, bits: int, signed: bool, narrow: bool,
    name: str,
) -> ir.Value:  # fmt: skip
    inputs = [real, scale, zero_point, out.constant(f"bits/{bits}", np.array(bits, dtype=np.float32))]
    attributes = {
        "signed": ir.AttrInt64("signed", int(signed)),
        "narrow": ir.AttrInt64("narrow", int(narrow)),
        "rounding_mode": ir.AttrString("rounding_mode", "ROUND"),
    }
    return out.node("Quant", inputs, attributes, name, DOMAIN)


def _activation(out: GraphWriter, real: ir.Value, site: str, encoding: Encoding, name: str) -> ir.Value:
    scale, zero_point = _parameters(out, site, encoding.scale, encoding.zero_point)
    if bool(encoding.zero_point.any()):
        zero = out.constant("zero", np.array(0, dtype=np.float32))
        rounded = _quant(out, real, scale, zero, ROUNDING_BITS, True, False, f"{name}/rounded")
        rounded.shape, rounded.type = real.shape, real.type
        real = rounded
    grid = encoding.spec.grid
    return _quant(out, real, scale, zero_point, grid.bits, grid.signed, grid.narrow, name)


def _parameters(out: GraphWriter, site: str, scale: Tensor, zero_point: Tensor) -> tuple[ir.Value, ir.Value]:
    return (
        out.constant(scale_name(site), scale.numpy()),
        out.constant(zero_point_name(site), zero_point.float().numpy()),
    )


def _weight(out: GraphWriter, name: str, codes: Tensor, encoding: Encoding) -> ir.Value:
    stored = out.constant(name, encoding.dequantize(codes).numpy())
    scale, zero_point = encoding.parameters(codes)
    spec = encoding.spec
    if spec.format == "binary":
        return out.node(
            "BipolarQuant", [stored, out.constant(scale_name(name), scale.numpy())], {}, real_name(name), DOMAIN
        )
    # The levels of ternary are those of two signed, narrow bits.
    signed, narrow = (True, True) if spec.has_levels else (spec.grid.signed, spec.grid.narrow)
    return _quant(out, stored, *_parameters(out, name, scale, zero_point), spec.bits, signed, narrow, real_name(name))


def _bias(out: GraphWriter, name: str, codes: Tensor, scale: Tensor) -> ir.Value:
    stored = out.constant(name, (codes * scale.double()).float().numpy())
    parameters = _parameters(out, name, scale, torch.zeros_like(scale))
    return _quant(out, stored, *parameters, BIAS_BITS, True, False, real_name(name))


def _write(state: State) -> ir.Model:
    domains = ((DOMAIN, OPSET),)
    return float_form(state, Quantizers(activation=_activation, weight=_weight, bias=_bias, domains=domains))


def _encodings(plan: Plan, constants: set[str], stored: Mapping[str, np.ndarray], where: str) -> dict[str, Encoding]:
    found: dict[str, Encoding] = {}
    for site, spec in plan.sites.items():
        if not isinstance(spec, QSpec | Derived):
            continue
        try:
            scale = torch.from_numpy(stored[scale_name(site)].copy())
            zero = stored.get(zero_point_name(site), np.zeros(scale.shape)).astype(np.int32)
            values = torch.from_numpy(stored[site].copy()) if site in constants else None
        except KeyError as error:
            raise InputError(
                f"{where}: site {site!r}", f"{error} is missing from the file", "an unchanged file"
            ) from error
        zero_point = torch.from_numpy(zero)
        if isinstance(spec, Derived):
            assert values is not None
            wide = QSpec(bits=16, signed=True, symmetric=True, axis=0 if scale.ndim else None)
            codes = torch.round(values.double() / scale.double())
            found[site] = Encoding(spec=wide, scale=scale, zero_point=zero_point, codes=codes)
            continue
        levels = torch.tensor(spec.levels_format().levels, dtype=torch.int32) if spec.has_levels else None
        shape = (-1,) if spec.axis is not None else ()
        encoding = Encoding(spec=spec, scale=scale.reshape(shape), zero_point=zero_point.reshape(shape), levels=levels)
        chosen = None if values is None else encoding.quantize(values)
        found[site] = Encoding(
            spec=spec, scale=encoding.scale, zero_point=encoding.zero_point, codes=chosen, levels=levels
        )
    return found


QONNX = Form(write=_write, encodings=_encodings, packings=("grid",), has_codes=True)
