"""Files as they come: old and new operator sets, halves, fixed batches, open sizes, functions, sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bitwright.errors import InputError, UnsupportedError
from bitwright.graph.fold import input_shapes
from bitwright.graph.normalise import OPSET, normalise
from bitwright.graph.open import open_model

Node = helper.make_node
Make = Callable[..., onnx.ModelProto]
Normal = Callable[..., np.ndarray]
Check = Callable[..., ir.Model]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def as_old(opset: int, op: str, inputs: list[str], output: str, constants: dict[str, Any], **settings: Any) -> Any:
    """A node whose settings were attributes before some operator set, and are inputs since."""
    since = {"Clip": 11, "Pad": 11, "Upsample": 9, "ReduceMean": 18, "Unsqueeze": 13, "Squeeze": 13, "Slice": 10}[op]
    kind = {"Clip": np.float32, "Upsample": np.float32}.get(op, np.int64)
    if opset < since:
        return Node(op, inputs, [output], **settings)
    names = [f"{output}_{key}" for key in settings]
    constants |= {name: np.array(value, kind) for name, value in zip(names, settings.values(), strict=True)}
    if op == "Upsample" and opset >= 10:
        names = names if opset == 10 else ["", *names]
        places = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if opset > 10 else {}
        if opset in (11, 12):
            names[0], constants["roi"] = "roi", np.zeros(0, np.float32)
        return Node("Resize", [*inputs, *names], [output], mode="nearest", **places)
    return Node(op, [*inputs, *names], [output])


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 17, 20, 21, 22, 24, 26])
def test_operator_sets(opset: int, make: Make, normal: Normal, normalised: Check) -> None:
    constants: dict[str, Any] = {
        "w": normal(4, 3, 3, 3), "gamma": normal(4), "beta": normal(4), "mean": normal(4), "var": normal(4) ** 2 + 0.1,
        "fc": normal(4, 5), "bias": normal(5),
    }  # fmt: skip
    nodes = [
        Node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        Node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], epsilon=1e-3),
        as_old(opset, "Clip", ["n"], "r", constants, min=0.0, max=6.0),
        as_old(opset, "Upsample", ["r"], "u", constants, scales=[1.0, 1.0, 2.0, 2.0]),
        as_old(opset, "Pad", ["u"], "p", constants, pads=[0, 0, 1, 0, 0, 0, 0, 1]),
        as_old(opset, "Slice", ["p"], "s", constants, starts=[1, 1], ends=[9, 9], axes=[2, 3]),
        Node("Dropout", ["s"], ["d", "unread"] if opset < 12 else ["d"]),
        as_old(opset, "ReduceMean", ["d"], "a", constants, axes=[2, 3]),
        as_old(opset, "Squeeze", ["a"], "q", constants, axes=[2, 3]),
        Node("Gemm", ["q", "fc", "bias"], ["y0"]),
        Node("Softmax", ["y0"], ["y"], axis=1),
    ]
    ir_version = {7: 3, 8: 3, 9: 4}.get(opset, 7 if opset < 19 else 10)
    proto = make(
        nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]}, constants, opset=opset, ir_version=ir_version, listed=opset < 9
    )
    model = normalised(proto, {"x": normal(1, 3, 8, 8)}, {"x": normal(3, 3, 8, 8)})
    assert model.graph.opset_imports[""] == max(opset, OPSET)
    assert model.ir_version >= 10
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert ops(model) == [
        "Conv", "BatchNormalization", "Clip", "Resize", "Pad", "Slice", "GlobalAveragePool", "Squeeze", "Gemm",
        "Softmax",
    ]  # fmt: skip


def test_outputs_that_training_had_are_dropped(make: Make, normal: Normal, normalised: Check) -> None:
    statistics = {"gamma": normal(3), "beta": normal(3), "mean": normal(3), "var": normal(3) ** 2 + 0.1}

    def network(outputs: list[str]) -> onnx.ModelProto:
        node = Node("BatchNormalization", ["x", *statistics], outputs)
        return make([node], {"x": ["N", 3, 2, 2]}, {"y": ["N", 3, 2, 2]}, statistics, opset=9, ir_version=4)

    model = normalise(ir.from_proto(network(["y", "mean2", "var2", "mean3", "var3"])))
    assert [len(node.outputs) for node in model.graph] == [1]
    x = {"x": normal(2, 3, 2, 2)}
    normalised(model, x)
    assert ir.to_proto(model).graph == ir.to_proto(normalised(network(["y"]), x)).graph


def test_a_fixed_batch_stays(make: Make, normal: Normal, normalised: Check) -> None:
    nodes = [
        Node("Shape", ["x"], ["s"]), Node("Gather", ["s", "zero"], ["n"]), Node("Unsqueeze", ["n", "axis"], ["n1"]),
        Node("Concat", ["n1", "rest"], ["t"], axis=0), Node("Reshape", ["x", "t"], ["y"]),
    ]  # fmt: skip
    constants = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    model = normalised(make(nodes, {"x": [4, 3, 2]}, {"y": [4, 6]}, constants), {"x": normal(4, 3, 2)})
    assert ops(model) == ["Reshape"]
    assert [*model.graph.inputs[0].shape] == [4, 3, 2] and [*model.graph.outputs[0].shape] == [4, 6]  # type: ignore[misc]


@pytest.mark.parametrize("half", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_halves_become_float32(half: int, make: Make, normal: Normal, normalised: Check) -> None:
    kind = helper.tensor_dtype_to_np_dtype(half)
    nodes = [
        Node("Conv", ["x", "w"], ["c"]), Node("Cast", ["c"], ["c32"], to=TensorProto.FLOAT),
        Node("Relu", ["c32"], ["r"]), Node("Cast", ["r"], ["r16"], to=half), Node("Mul", ["r16", "k"], ["y"]),
    ]  # fmt: skip
    constants = {"w": normal(4, 3, 3, 3).astype(kind), "k": np.array(0.5, kind)}
    proto = make(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 4, 6, 6]}, constants, dtype=half)
    inputs = [{"x": normal(2, 3, 8, 8).astype(kind)}] if half == TensorProto.FLOAT16 else []
    model = normalised(proto, *inputs, tolerance=3e-3)
    assert ops(model) == ["Conv", "Relu", "Mul"]
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    assert {value.dtype for value in values} == {ir.DataType.FLOAT}
    weight = model.graph.initializers["w"].const_value
    assert weight is not None and np.array_equal(weight.numpy(), constants["w"].astype(np.float32))


def open_sizes(make: Make, normal: Normal) -> onnx.ModelProto:
    nodes = [Node("Conv", ["image", "w"], ["c"]), Node("GlobalAveragePool", ["c"], ["y"])]
    return make(nodes, {"image": ["N", 3, "h", "w_"]}, {"y": ["N", 4, 1, 1]}, {"w": normal(4, 3, 3, 3)})


def test_open_sizes_are_given(make: Make, normal: Normal, normalised: Check) -> None:
    proto = open_sizes(make, normal)
    model = normalised(proto, {"image": normal(2, 3, 9, 7)}, shapes={"image": (None, 3, 9, 7)})
    assert [str(node.outputs[0].shape) for node in model.graph] == ["[batch,4,7,5]", "[batch,4,1,1]"]
    fixed = normalised(proto, {"image": normal(2, 3, 9, 7)}, shapes={"image": (2, 3, 9, 7)})
    assert [str(node.outputs[0].shape) for node in fixed.graph] == ["[2,4,7,5]", "[2,4,1,1]"]


def test_open_sizes_that_are_not_given_are_refused(make: Make, normal: Normal) -> None:
    model = ir.from_proto(open_sizes(make, normal))
    with pytest.raises(
        InputError, match=r"input 'image': has shape Nx3xhxw_; .*batch\) open; give --shape image=Nx3x224"
    ):
        normalise(model)
    with pytest.raises(InputError, match=r"input 'image': has shape Nx3xhxw_; expected the given Nx1x9x9; correct"):
        normalise(model, {"image": (None, 1, 9, 9)})
    with pytest.raises(InputError, match="expected the given Nx9x9"):
        normalise(model, {"image": (None, 9, 9)})
    with pytest.raises(InputError, match="--shape img: the model has no input of this name; did you mean 'image'"):
        normalise(model, {"img": (None, 3, 9, 9)})


def test_an_input_without_a_shape_needs_one(make: Make) -> None:
    proto = make([Node("Relu", ["x"], ["y"])], {"x": ["N", 3]}, {"y": ["N", 3]})
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    model = ir.from_proto(proto)
    with pytest.raises(InputError, match="input 'x': the file does not state its shape; give --shape x=Nx3x224x224"):
        input_shapes(model, {})
    assert input_shapes(model, {"x": (None, 3)}) == {"x": (None, 3)}
    assert str(normalise(model, {"x": (None, 3)}).graph.outputs[0].shape) == "[batch,3]"


def test_several_inputs(make: Make, normal: Normal, normalised: Check) -> None:
    nodes = [Node("Add", ["a", "b"], ["s"]), Node("Flatten", ["s"], ["y"])]
    proto = make(nodes, {"a": ["N", 3, 4], "b": ["N", 3, 4]}, {"y": ["N", 12]})
    model = normalised(proto, {"a": normal(2, 3, 4), "b": normal(2, 3, 4)})
    assert ops(model) == ["Add", "Reshape"]


def test_external_data_are_read_where_they_lie(make: Make, normal: Normal, tmp_path: Path, normalised: Check) -> None:
    proto = make([Node("Conv", ["x", "w"], ["y"])], {"x": ["N", 3, 8, 8]}, {"y": ["N", 4, 6, 6]},
                 {"w": normal(4, 3, 3, 3)}, opset=13)  # fmt: skip
    x = {"x": normal(2, 3, 8, 8)}
    path = tmp_path / "network.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    proto = onnx.load(path)
    model = normalised(normalise(open_model(path)), x)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    assert np.array_equal(weight.numpy(), onnx.numpy_helper.to_array(proto.graph.initializer[0]))


def test_functions_are_inlined(make: Make, normal: Normal, normalised: Check) -> None:
    function = helper.make_function(
        "local", "Swish", ["a"], ["b"], [Node("Sigmoid", ["a"], ["s"]), Node("Mul", ["a", "s"], ["b"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    nodes = [Node("Swish", ["x"], ["h"], domain="local"), Node("Swish", ["h"], ["y"], domain="local")]
    proto = make(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, opsets={"local": 1}, functions=[function])
    assert ops(normalised(proto, {"x": normal(3, 4)})) == ["Sigmoid", "Mul", "Sigmoid", "Mul"]


def test_unknown_domains_are_refused_by_name(make: Make) -> None:
    node = Node("Deform", ["x"], ["y"], domain="mmcv", name="backbone/offset")
    proto = make([node], {"x": ["N", 4]}, {"y": ["N", 4]}, opsets={"mmcv": 1}, check=False)
    with pytest.raises(
        UnsupportedError, match=r"net\.onnx: node 'backbone/offset' is Deform of the domain 'mmcv'; .*export"
    ):
        normalise(ir.from_proto(proto), where="net.onnx")


def test_the_default_domain_has_two_names(make: Make, normal: Normal, normalised: Check) -> None:
    proto = make([Node("Sum", ["x", "x"], ["y"], domain="ai.onnx")], {"x": ["N", 4]}, {"y": ["N", 4]}, check=False)
    proto.opset_import[0].domain = "ai.onnx"
    assert ops(normalised(proto, {"x": normal(3, 4)})) == ["Add"]


SPLITS: dict[str, tuple[list[int] | None, dict[str, Any]]] = {
    "sizes": ([3, 5], {}),
    "parts": (None, {"num_outputs": 2}),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_splits_are_slices(kind: str, make: Make, normal: Normal, normalised: Check) -> None:
    sizes, settings = SPLITS[kind]
    constants = {} if sizes is None else {"sizes": np.array(sizes)}
    nodes = [
        Node("Split", ["x", *constants], ["a", "b"], axis=1, name="/net/Split", **settings),
        Node("Concat", ["b", "a"], ["y"], axis=1),
    ]  # fmt: skip
    model = normalised(make(nodes, {"x": ["N", 8, 2]}, {"y": ["N", 8, 2]}, constants), {"x": normal(3, 8, 2)})
    assert ops(model) == ["Slice", "Slice", "Concat"]
    assert {v.name for node in model.graph for v in node.outputs} == {"a", "b", "y"}


@pytest.mark.parametrize(("size", "positions"), [(3, [0, 2]), ([2, 6], [-1, 0]), (None, [7, 1])])
def test_sequences_of_known_length_are_slices(
    size: Any, positions: list[int], make: Make, normal: Normal, normalised: Check
) -> None:
    constants = {f"p{i}": np.array(p) for i, p in enumerate(positions)}
    constants |= {} if size is None else {"sizes": np.array(size)}
    nodes = [
        Node("SplitToSequence", ["x", *(["sizes"] if size is not None else [])], ["parts"], axis=1),
        *(Node("SequenceAt", ["parts", f"p{i}"], [f"part{i}"]) for i in range(2)),
        Node("Concat", ["part0", "part1"], ["y"], axis=1),
    ]
    model = normalised(make(nodes, {"x": ["N", 8, 2]}, {"y": ["N", None, 2]}, constants), {"x": normal(3, 8, 2)})
    assert ops(model) == ["Slice", "Slice", "Concat"]


def test_other_sequences_are_refused_by_name(make: Make) -> None:
    nodes = [
        Node("SplitToSequence", ["x"], ["parts"], axis=0, name="each_image"),
        Node("SequenceAt", ["parts", "zero"], ["y"]),
    ]
    proto = make(nodes, {"x": ["N", 8]}, {"y": [1, 8]}, {"zero": np.array(0)})
    with pytest.raises(UnsupportedError, match=r"node 'each_image' \(SplitToSequence\) makes a sequence"):
        normalise(ir.from_proto(proto))


def test_text_is_refused_by_name(make: Make) -> None:
    node = Node("Cast", ["x"], ["y"], to=TensorProto.STRING, name="to_text")
    proto = make([node], {"x": ["N", 8]}, {"y": ["N", 8]}, check=False)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(UnsupportedError, match=r"node 'to_text' \(Cast\) gives text; expected numbers"):
        normalise(ir.from_proto(proto))


def test_models_in_memory_are_checked_too(make: Make) -> None:
    model = ir.from_proto(make([Node("Relu", ["x"], ["y"])], {"x": ["N", 3]}, {"y": ["N", 3]}))
    assert open_model(model) is model
    model.graph.opset_imports[""] = 3
    with pytest.raises(
        UnsupportedError, match="model: operator set 3; expected 7 to 26; export it with another opset"
    ):
        open_model(model)


def test_an_operator_set_that_cannot_be_converted(make: Make) -> None:
    """Before operator set 9, batch norm could keep statistics for each pixel."""
    constants = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
    node = Node("BatchNormalization", ["x", *constants], ["y"], spatial=0)
    proto = make([node], {"x": ["N", 3, 2, 2]}, {"y": ["N", 3, 2, 2]}, constants, opset=7, ir_version=3, listed=True)
    with pytest.raises(
        UnsupportedError, match=r"operator set 7 could not be converted to 21.*; export it with opset 21"
    ):
        normalise(ir.from_proto(proto))
