"""Forms of listed ops that the standard allows and their rows refuse, each with its reason."""

from __future__ import annotations

_TRAINING = "training: the statistics and masks of a batch; what is quantized has been trained"
_FLOATS = "8- and 4-bit floats: torch computes with none"
_RANK = "more than 3: torch has no such kernel"

#: `{op: {attribute, or property of an input: what is refused, and why}}`. All other forms of a listed op run.
REFUSED: dict[str, dict[str, str]] = {
    "AveragePool": {"number of spatial dimensions": _RANK},
    "BatchNormalization": {"training_mode": _TRAINING},
    "Cast": {"to": f"{_FLOATS}; text: not a tensor of numbers"},
    "Constant": {
        "sparse_value": "sparse: torch's rows take dense tensors",
        "value_string": "text: not a tensor of numbers",
        "value_strings": "text: not a tensor of numbers",
    },
    "Conv": {"number of spatial dimensions": _RANK},
    "ConvTranspose": {
        "number of spatial dimensions": _RANK,
        "output padding (given, or needed for output_shape)": "as large as both stride and dilation: torch has no "
        "such kernel",
    },
    "DequantizeLinear": {"dtype of the input": _FLOATS},
    "Dropout": {"training_mode": _TRAINING},
    "GridSample": {"number of dimensions for mode cubic": "3 spatial dimensions: torch has no such kernel"},
    "LpPool": {"number of spatial dimensions": _RANK},
    "MaxPool": {"number of spatial dimensions": _RANK},
    "QuantizeLinear": {"dtype of the zero point": _FLOATS, "output_dtype": _FLOATS},
}
