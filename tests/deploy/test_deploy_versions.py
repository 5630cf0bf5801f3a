"""The oldest ONNX Runtime for a file: rows that were found by loading such files into every release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest

import bitwright as bw
from bitwright.deploy.runtimes.versions import IR_VERSIONS, OPSETS, needs
from bitwright.graph.open import NEWEST_OPSET

Made = Callable[..., ir.Model]


@pytest.fixture
def made() -> Made:
    """`made(opset, ir_version, stored type, op that reads it, domain)`: a graph of one op."""

    def build(
        opset: int = 21, version: int = 10, stored: ir.DataType | None = None, op: str = "Cast", domain: str = ""
    ) -> ir.Model:
        x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
        nodes = [ir.Node(domain, "Relu", [x])]
        weights = []
        if stored is not None:
            weight = ir.Value(name="w", type=ir.TensorType(stored), shape=ir.Shape([4]))
            weights.append(weight)
            nodes.append(ir.Node("", op, [weight]))
        graph = ir.Graph([x], nodes[0].outputs, nodes=nodes, initializers=[], opset_imports={"": opset})
        for weight in weights:
            weight.const_value = ir.tensor([0] * 4, dtype=ir.DataType.INT8, name="w")
            graph.initializers["w"] = weight
        return ir.Model(graph, ir_version=version)

    return build


@pytest.mark.parametrize(
    ("given", "least"),
    [
        ({}, "1.18"),
        ({"opset": 17, "version": 8}, "1.14"),
        ({"opset": 20}, "1.18"),
        ({"opset": 22}, "1.21"),
        ({"opset": 23, "version": 11}, "1.23"),
        ({"opset": 25, "version": 13}, "1.24"),
        ({"opset": 26, "version": 13}, "1.25"),
        ({"version": 11}, "1.23"),
        ({"stored": ir.DataType.UINT4}, "1.23"),
        ({"stored": ir.DataType.INT4, "op": "DequantizeLinear"}, "1.19"),
        ({"stored": ir.DataType.INT8}, "1.18"),
        ({"opset": 25, "version": 13, "stored": ir.DataType.INT2}, "1.24"),
        ({"domain": "com.microsoft"}, "1.18"),
    ],
)
def test_the_least_version(given: dict[str, Any], least: str, made: Made) -> None:
    assert needs(made(**given)) == {"onnxruntime": f">={least}"}


def test_ops_that_the_runtime_does_not_have(made: Made) -> None:
    assert needs(made(domain="qonnx.custom_op.general")) == {}


def test_every_version_that_files_can_have_is_in_the_tables(made: Made) -> None:
    assert max(OPSETS) == NEWEST_OPSET
    here = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    assert all(row <= here for row in (*OPSETS.values(), *IR_VERSIONS.values()))
    for table in (OPSETS, IR_VERSIONS):
        assert list(table) == sorted(table) and list(table.values()) == sorted(table.values())


def test_written_files_say_it(assets: Path) -> None:
    int8 = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", limit=16)
    four = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", limit=16, set=["W=4"])
    assert needs(int8.model()) == {"onnxruntime": ">=1.18"}
    assert needs(four.model()) == {"onnxruntime": ">=1.23"}


def test_files_for_openvino_need_a_version_of_it_too(made: Made) -> None:
    assert needs(made(), "openvino") == {"onnxruntime": ">=1.18", "openvino": ">=2024.4"}
    assert needs(made(), "tensorrt") == {"onnxruntime": ">=1.18"}
