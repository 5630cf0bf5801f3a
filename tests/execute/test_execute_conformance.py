"""Every op against the node tests that ONNX itself ships, the refused forms, and the page that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitwright.errors import UnsupportedError
from bitwright.execute import OPS
from bitwright.execute.conformance import AS_THE_RUNTIME, check, is_run, node_tests, page, tally
from bitwright.execute.refused import REFUSED

# Collecting the node tests takes ten seconds: one worker does it.
pytestmark = pytest.mark.xdist_group("onnx_node_tests")
#: Types of the bar: every test whose inputs have them passes or is refused.
BAR = {"float32", "uint8", "int8", "int32", "int64", "bool"}


@pytest.mark.parametrize("op", OPS)
def test_onnx_node_tests(op: str) -> None:
    """Each passes, or is refused for a form that the table states."""
    found = tally(op)
    cases = node_tests().get(op, [])
    assert found.passed + found.refused.total() + found.others == len(cases)
    assert found.refused.keys() <= REFUSED.get(op, {}).keys()


def test_nothing_but_other_types_is_left_out() -> None:
    for op in OPS:
        for case in node_tests().get(op, []):
            inputs = [value for value in case.data_sets[0][0] if isinstance(value, np.ndarray)]
            whole = len(inputs) == len(case.data_sets[0][0])
            if whole and {value.dtype.name for value in inputs} <= BAR:
                assert is_run(case), case.name


def test_what_onnx_has_tests_for() -> None:
    names = {case.name for found in node_tests().values() for case in found}
    assert names >= AS_THE_RUNTIME.keys()
    # ONNX has node tests for all its ops but this one, which is compared with the runtime
    assert {op for op in OPS.keys() - node_tests().keys() if "." not in op} == {"GlobalLpPool"}


def test_a_wrong_answer_is_noticed() -> None:
    case = next(case for case in node_tests()["Conv"] if case.name == "test_basic_conv_with_padding")
    inputs, outputs = case.data_sets[0]
    wrong = type(case)(**{**vars(case), "data_sets": [(inputs, [outputs[0] * np.float32(1.01)])]})
    with pytest.raises(AssertionError, match="test_basic_conv_with_padding"):
        check(wrong)


one, long = torch.ones(1, 1, 4, 4), torch.ones([1] * 6)
#: A node of each form that is refused.
EXAMPLES: dict[tuple[str, str], tuple[tuple[Any, ...], dict[str, Any]]] = {
    ("AveragePool", "number of spatial dimensions"): ((long,), {"kernel_shape": [1] * 4}),
    ("BatchNormalization", "training_mode"): ((one, *[one] * 4), {"training_mode": 1}),
    ("Cast", "to"): ((one,), {"to": 17}),
    ("Constant", "sparse_value"): ((), {"sparse_value": object()}),
    ("Constant", "value_string"): ((), {"value_string": "a"}),
    ("Constant", "value_strings"): ((), {"value_strings": ["a"]}),
    ("Conv", "number of spatial dimensions"): ((long, long), {}),
    ("ConvTranspose", "number of spatial dimensions"): ((long, long), {}),
    ("ConvTranspose", "output padding (given, or needed for output_shape)"): ((one, one), {"output_padding": [1, 0]}),
    ("DequantizeLinear", "dtype of the input"): ((one.to(torch.float8_e4m3fn), one.max()), {}),
    ("Dropout", "training_mode"): ((one, 0.5, torch.tensor(True)), {}),
    ("GridSample", "number of dimensions for mode cubic"): ((one[None], torch.ones(1, 1, 1, 1, 3)), {"mode": "cubic"}),
    ("LpPool", "number of spatial dimensions"): ((long,), {"kernel_shape": [1] * 4}),
    ("MaxPool", "number of spatial dimensions"): ((long,), {"kernel_shape": [1] * 4}),
    ("QuantizeLinear", "dtype of the zero point"): ((one, one.max(), one.max().to(torch.float8_e5m2)), {}),
    ("QuantizeLinear", "output_dtype"): ((one, one.max()), {"output_dtype": 17}),
}


def test_every_refused_form_has_an_example() -> None:
    assert EXAMPLES.keys() == {(op, form) for op, forms in REFUSED.items() for form in forms}


@pytest.mark.parametrize(("op", "form"), EXAMPLES)
def test_refused_forms_are_refused_by_name(op: str, form: str) -> None:
    inputs, attributes = EXAMPLES[op, form]
    with pytest.raises(UnsupportedError) as caught:
        OPS[op].load()(*inputs, **attributes)
    assert caught.value.where == op
    assert caught.value.found.startswith(f"{form} is ")


def test_the_page_is_the_one_that_is_printed(root: Path) -> None:
    assert (root / "docs" / "ops.md").read_text() == page(), (
        "run: python -m bitwright.execute.conformance > docs/ops.md"
    )
