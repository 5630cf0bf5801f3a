"""The float graph with pairs of QuantizeLinear and DequantizeLinear in it, int8, as TensorRT reads it.

Activations pass a pair with zero point 0; weights lie in the file as int8 codes behind a DequantizeLinear with one
scale a channel; biases are float32. The runtime fuses pairs and ops as it sees fit.

Source: ONNX operators QuantizeLinear and DequantizeLinear; NVIDIA TensorRT, Working with Quantized Types (explicit
quantization, quantized weights), https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
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
from bitwright.deploy.names import codes_name, real_name, scale_name, zero_point_name
from bitwright.errors import InputError, UnsupportedError
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan
from bitwright.plan.spec import QSpec


def _parameters(out: GraphWriter, site: str, encoding: Encoding) -> list[ir.Value]:
    """Scale and int8 zero point, with the shape of the scale."""
    spec = encoding.spec
    if spec.has_levels or spec.bits != 8 or not spec.signed or bool(encoding.zero_point.any()):
        raise UnsupportedError(
            f"site {site!r}",
            f"{spec.bits}-bit {spec.format} codes, zero points {encoding.zero_point.unique().tolist()}",
            "8 signed bits with zero point 0", "this form holds nothing else",
        )  # fmt: skip
    zeros = np.zeros(tuple(encoding.scale.shape), dtype=np.int8)
    return [out.constant(scale_name(site), encoding.scale.numpy()), out.constant(zero_point_name(site), zeros)]


def _activation(out: GraphWriter, real: ir.Value, site: str, encoding: Encoding, name: str) -> ir.Value:
    parameters = _parameters(out, site, encoding)
    codes = out.node("QuantizeLinear", [real, *parameters], {}, codes_name(name))
    codes.shape, codes.dtype = real.shape, ir.DataType.INT8
    return out.node("DequantizeLinear", [codes, *parameters], {}, name)


def _weight(out: GraphWriter, name: str, codes: Tensor, encoding: Encoding) -> ir.Value:
    axis = encoding.spec.axis
    stored = out.constant(name, codes.to(torch.int8).numpy())
    attributes = {} if axis is None else {"axis": ir.AttrInt64("axis", axis)}
    return out.node("DequantizeLinear", [stored, *_parameters(out, name, encoding)], attributes, real_name(name))


def _bias(out: GraphWriter, name: str, codes: Tensor, scale: Tensor) -> ir.Value:
    raise UnsupportedError(
        f"bias {name!r}", "an integer bias", "a float one", "this form is for targets whose biases stay float"
    )


def _write(state: State) -> ir.Model:
    return float_form(state, Quantizers(activation=_activation, weight=_weight, bias=_bias))


def _encodings(plan: Plan, constants: set[str], stored: Mapping[str, np.ndarray], where: str) -> dict[str, Encoding]:
    found: dict[str, Encoding] = {}
    for site, spec in plan.sites.items():
        if not isinstance(spec, QSpec):
            continue
        try:
            scale = torch.from_numpy(stored[scale_name(site)].copy())
            zero_point = torch.from_numpy(stored[zero_point_name(site)].astype(np.int32))
            codes = torch.from_numpy(stored[site].astype(np.int32)) if site in constants else None
        except KeyError as error:
            raise InputError(
                f"{where}: site {site!r}", f"{error} is missing from the file", "an unchanged file"
            ) from error
        found[site] = Encoding(spec=spec, scale=scale, zero_point=zero_point, codes=codes)
    return found


QDQ_FLOAT = Form(write=_write, encodings=_encodings, packings=("int8",), has_codes=False)
