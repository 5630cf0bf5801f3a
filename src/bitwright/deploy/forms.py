"""The forms of written files: how each spells quantization, and how its numbers are read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bitwright.lookup import Row
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to write a state as a file.

    Attributes:
        write: the model of a state that has a plan and encodings, both embedded.
        encodings: `(plan, names of the network's constants, constants of the file, name of the file)` -> encodings of
            all quantized sites.
        packings: how the form can store weights; a target chooses among them by format and width.
        has_codes: regions compute on codes, with the formulas of `execute/integer.py`; else the file is a float graph
            with quantizers in it, and what its runtime makes of them is the runtime's own.
    """

    write: Callable[[State], ir.Model]
    encodings: Callable[[Plan, set[str], Mapping[str, np.ndarray], str], dict[str, Encoding]]
    packings: tuple[str, ...]
    has_codes: bool


FORMS: dict[str, Row] = {
    "qdq": Row("bitwright.deploy.reader:QDQ", "codes between QuantizeLinear and DequantizeLinear, integer kernels"),
    "qdq-float": Row(
        "bitwright.deploy.qdq_float:QDQ_FLOAT", "a float graph with pairs of QuantizeLinear and DequantizeLinear"
    ),
    "qonnx": Row("bitwright.deploy.qonnx:QONNX", "a float graph with QONNX's Quant nodes, of any width"),
}
