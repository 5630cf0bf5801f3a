"""The table OPS: every row resolves, and its function takes what the ONNX standard gives it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import onnx
import onnxscript
import pytest
import torch
from onnx import defs

from bitwright.execute import OPS

OPSET = 21
# Attributes that later opsets added and that mean nothing before.
NEWER = {
    "Cast": {"round_mode"},
    "CastLike": {"round_mode"},
    "DequantizeLinear": {"output_dtype"},
    "QuantizeLinear": {"precision"},
    "SpaceToDepth": {"mode"},
}
#: Ops of ONNX's own domain; the others have no schema in the onnx package.
STANDARD = [op for op in OPS if "." not in op]
NUMBER_OF_OUTPUTS = {"Attention", "MaxPool", "LayerNormalization", "Dropout", "Split"}


def schema_of(op: str) -> defs.OpSchema:
    try:
        return defs.get_schema(op, OPSET)
    except defs.SchemaError:
        return defs.get_schema(op)  # newer than the opset: one row runs it all the same


@pytest.mark.parametrize("op", OPS)
def test_row_resolves_to_a_documented_function(op: str) -> None:
    function = OPS[op].load()
    assert callable(function)
    assert function.__doc__
    assert OPS[op].help


@pytest.mark.parametrize("op", STANDARD)
def test_attributes_have_the_names_and_defaults_of_the_standard(op: str) -> None:
    parameters = inspect.signature(OPS[op].load()).parameters.values()
    ours = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    schema = schema_of(op)
    extra = ours.keys() - schema.attributes.keys()
    assert extra == NEWER.get(op, set()) | ({"num_outputs"} if op in NUMBER_OF_OUTPUTS - {"Split"} else set())
    assert ours.keys() >= schema.attributes.keys()
    for name, attribute in schema.attributes.items():
        if attribute.required:
            assert ours[name] is inspect.Parameter.empty, name
        elif attribute.default_value.type == onnx.AttributeProto.UNDEFINED:
            # without a default in the schema, the text of the standard says what it is
            assert ours[name] in (None, 0), name
        else:
            default = onnx.helper.get_attribute_value(attribute.default_value)
            default = default.decode() if isinstance(default, bytes) else default
            ours_now = list(ours[name]) if isinstance(default, list) else ours[name]
            assert ours_now == (pytest.approx(default) if isinstance(default, float) else default), name


@pytest.mark.parametrize("op", STANDARD)
def test_inputs_are_positional_in_the_order_of_the_standard(op: str) -> None:
    schema = schema_of(op)
    parameters = [p for p in inspect.signature(OPS[op].load()).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    if schema.inputs and schema.inputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic:
        assert [p.kind for p in parameters] == [inspect.Parameter.VAR_POSITIONAL]
        return
    assert len(parameters) == len(schema.inputs)
    optional = [i.option == defs.OpSchema.FormalParameterOption.Optional for i in schema.inputs]
    assert [p.default is not p.empty for p in parameters] == optional


#: Ops that PyTorch's exporters can write and that have no row, by what they are for. Sequences of known length become
#: slices when the network is opened, others are refused; all else runs in ONNX Runtime.
WITHOUT_ROW = {
    "sequences": {
        "SequenceMap", "SplitToSequence", "SequenceEmpty", "SequenceInsert", "ConcatFromSequence", "SequenceAt",
        "SequenceLength", "SequenceErase", "SequenceConstruct", "OptionalHasElement", "OptionalGetElement",
    },
    "random numbers": {
        "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    },
    "recurrent networks": {"GRU", "LSTM", "RNN"},
    "sound": {"BlackmanWindow", "HammingWindow", "HannWindow", "STFT", "DFT"},
    "detection": {"NonMaxSuppression", "RoiAlign", "MaxRoiPool"},
    "training": {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"},
    "other": {"Unique", "Col2Im", "AffineGrid"},
    "spellings of old operator sets, converted": {"Upsample", "Scatter", "DynamicSlice", "ConstantFill"},
}  # fmt: skip


def test_what_pytorchs_exporters_write_has_rows() -> None:
    """Both exporters, read from their sources: vision CNN, ViT and BERT exports use none of the ops without a row."""
    newer = [*Path(onnxscript.__file__).parent.glob("function_libs/torch_lib/ops/*.py")]
    newer += Path(torch.onnx.__file__).parent.glob("_internal/exporter/_torchlib/**/*.py")
    older = [*Path(torch.onnx.__file__).parent.glob("**/symbolic_opset*.py")]
    written = {op for file in newer for op in re.findall(r"\bop\d*\.([A-Z]\w+)\(", file.read_text())}
    written |= {op for file in older for op in re.findall(r'g\.op\(\s*"([A-Z]\w+)"', file.read_text())}
    assert len(written & OPS.keys()) >= 110
    assert written - OPS.keys() <= set().union(*WITHOUT_ROW.values())


def test_the_table_costs_no_torch() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; import bitwright.execute; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.split() == [b"False"]
