"""The rows of `OPS` against the node tests that ONNX itself ships: `python -m bitwright.execute.conformance`.

A node test is one node with inputs and the outputs that ONNX's reference gives. Every test of a listed op whose inputs
are tensors of `DTYPES` runs on torch: it passes, or its row refuses the form, for a reason that `REFUSED` states. The
expanded forms, which repeat an op as a graph of others, are left out. What is printed is `docs/ops.md`.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from onnx.backend.test.case import base as onnx_base
from onnx.backend.test.case import node as onnx_cases

from bitwright.errors import UnsupportedError
from bitwright.execute import OPS
from bitwright.execute.refused import REFUSED

#: Types of inputs that torch computes with; other tests are counted, not run.
DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
#: Node tests whose expected values ONNX Runtime does not give either: there a row follows the runtime, which serves.
AS_THE_RUNTIME: dict[str, str] = {
    "test_resize_downsample_scales_linear_align_corners": "the size of the result is taken before it is rounded down",
    "test_resize_downsample_scales_cubic_align_corners": "the size of the result is taken before it is rounded down",
}


PAGE = """# Ops

The {ops} ops that bitwright runs on torch, and what became of the node tests that ONNX {onnx} ships for them:
{counts} have inputs of types that torch does not compute
with, or that are no tensors (uint16, uint32, uint64, bfloat16 and narrower numbers, text, sequences): they were not
run. This page is printed by `python -m bitwright.execute.conformance`.

Any other op, of ONNX's own domain, `com.microsoft` or `ai.onnx.ml`, runs in a session of ONNX Runtime of its own,
branches and loops too, and the log names it. It gives no gradient: a step that needs one through it says which node
ends it. An op that ONNX Runtime does not know is refused by name.

| op | what it computes | passed | refused | not run | forms that it refuses |
| --- | --- | ---: | ---: | ---: | --- |
{lines}

Ops without node tests (GlobalLpPool, and those of `com.microsoft`) are compared with ONNX Runtime in
`tests/execute/test_execute_runtime.py`. Where ONNX Runtime does not give ONNX's own values either, the row follows the
runtime, which serves:

{others}
"""


@dataclass(kw_only=True)
class Tally:
    """What the node tests of one op found.

    Attributes:
        passed: tests whose outputs agree.
        refused: how many tests were refused, by attribute.
        others: tests with an input of another type than `DTYPES`.
    """

    passed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    others: int = 0


@cache
def node_tests() -> dict[str, list[Any]]:
    """ONNX's node tests of one node by op, the expanded forms left out; takes ten seconds."""
    with (
        warnings.catch_warnings(),
        mock.patch.object(onnx_cases, "function_testcase_helper", lambda *_, **__: ([], 0)),  # the expanded forms
        mock.patch.object(onnx_base, "process_snippet", lambda _, name, __: (name, "")),  # for ONNX's documentation
    ):
        warnings.simplefilter("ignore")  # the collection divides by zero on purpose
        collected: list[Any] = onnx_cases.collect_testcases(None)
    found: dict[str, list[Any]] = {}
    for case in collected:
        nodes = case.model.graph.node
        if len(nodes) == 1 and not nodes[0].domain:
            found.setdefault(nodes[0].op_type, []).append(case)
    return found


def is_run(case: Any) -> bool:
    """Whether all inputs are tensors of `DTYPES`: no sequence, no optional, no text."""
    return all(
        value is not None and not isinstance(value, list) and array(value).dtype.name in DTYPES
        for value in case.data_sets[0][0]
    )


def array(value: Any) -> np.ndarray:
    """A tensor of a node test."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def computed(case: Any) -> list[torch.Tensor]:
    """The outputs of the row's function for the node's inputs and attributes.

    Raises:
        UnsupportedError: the row refuses this form.
    """
    node, given = case.model.graph.node[0], iter(case.data_sets[0][0])
    inputs = [torch.from_numpy(array(next(given)).copy()) if name else None for name in node.input]
    attributes = {proto.name: _attribute(proto) for proto in node.attribute}
    function = OPS[node.op_type].load()
    if "num_outputs" in inspect.signature(function).parameters:
        attributes["num_outputs"] = len(node.output)
    outputs = function(*inputs, **attributes)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output for output, name in zip(outputs, node.output, strict=True) if name]


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [item.decode() for item in value]
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    return value


def check(case: Any) -> None:
    """Compare a row with what a node test expects, within the test's own tolerance.

    Raises:
        AssertionError: shape, type or a value differs.
        UnsupportedError: the row refuses this form.
    """
    expected = case.data_sets[0][1]
    if case.name in AS_THE_RUNTIME:
        session = ort.InferenceSession(case.model.SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = dict(zip([value.name for value in session.get_inputs()], case.data_sets[0][0], strict=True))
        expected = session.run(None, feeds)
    for found, wanted in zip(computed(case), map(array, expected), strict=True):
        np.testing.assert_equal(tuple(found.shape), wanted.shape, case.name)
        if wanted.dtype.name in DTYPES:
            np.testing.assert_equal(found.numpy().dtype, wanted.dtype, case.name)
        np.testing.assert_allclose(
            found.double().numpy(), wanted.astype(np.float64), case.rtol, case.atol, err_msg=case.name
        )


def tally(op: str) -> Tally:
    """Run the node tests of a listed op.

    Raises:
        AssertionError: a test fails.
        KeyError: a row refuses a form that `REFUSED` does not state.
    """
    result = Tally()
    for case in node_tests().get(op, []):
        if not is_run(case):
            result.others += 1
            continue
        try:
            check(case)
            result.passed += 1
        except UnsupportedError as error:
            form = next((form for form in REFUSED.get(op, {}) if error.found.startswith(f"{form} is ")), None)
            if form is None:
                raise KeyError(f"{op}: the table of refused forms does not state: {error.found}") from error
            result.refused[form] += 1
    return result


def page() -> str:
    """The text of `docs/ops.md`."""
    tallies = {op: tally(op) for op in OPS}
    passed = sum(t.passed for t in tallies.values())
    refused = sum(t.refused.total() for t in tallies.values())
    others = sum(t.others for t in tallies.values())
    lines = [_line(op, found) for op, found in tallies.items()]
    as_the_runtime = [f"- `{name}`: {reason}." for name, reason in AS_THE_RUNTIME.items()]
    counts = f"{passed} passed, {refused} refused with a reason, 0 failed. {others} more"
    return PAGE.format(
        ops=len(OPS), onnx=onnx.__version__, counts=counts, lines="\n".join(lines), others="\n".join(as_the_runtime)
    )


def _line(op: str, found: Tally) -> str:
    forms = "; ".join(f"`{form}`: {reason}" for form, reason in REFUSED.get(op, {}).items())
    help_text = OPS[op].help.replace("|", "\\|")
    return f"| {op} | {help_text} | {found.passed} | {found.refused.total()} | {found.others} | {forms} |"


if __name__ == "__main__":
    print(page(), end="")
