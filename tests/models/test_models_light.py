"""The light networks of the onnx package: drawn weights in the structure of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bitwright.errors import InputError
from bitwright.models.light import LIGHT, light_model

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
#: The others have weights of 240 MB and more.
QUICK = ("squeezenet", "shufflenet", "inception_v1", "densenet121", "inception_v2", "resnet50")


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in found.items() if array.dtype == np.float32}


def test_every_file_has_a_name() -> None:
    assert sorted(LIGHT) == sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("light_*.onnx"))


@pytest.mark.parametrize("name", QUICK)
def test_the_structure_is_that_of_the_file(name: str) -> None:
    ours, theirs = light_model(name), onnx.load(FOLDER / f"light_{name}.onnx")
    onnx.checker.check_model(ours, full_check=True)
    kept = [node for node in theirs.graph.node if node.op_type != "ConstantOfShape"]
    assert [n.SerializeToString() for n in ours.graph.node] == [n.SerializeToString() for n in kept]
    constants = {tensor.name for tensor in theirs.graph.initializer}
    assert [v.name for v in ours.graph.input] == [v.name for v in theirs.graph.input if v.name not in constants]


@pytest.mark.parametrize("name", QUICK)
def test_weights_are_scaled_to_their_inputs_and_variances_are_positive(name: str) -> None:
    model = light_model(name)
    arrays = weights(model)
    assert all(array.size == 1 or array.std() > 0.01 for array in arrays.values())
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = arrays[node.input[1]]
            gain = float(weight.astype(np.float64).var()) * np.prod(weight.shape[1:])
            assert 0.7 < gain < 2.6, node.input[1]  # 1 or 2, by chance more or less
        if node.op_type == "BatchNormalization":
            assert arrays[node.input[4]].min() >= 0.8
            assert arrays[node.input[1]].min() >= 0.4


def test_weights_follow_the_seed() -> None:
    first, again, other = (weights(light_model("squeezenet", seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(
        InputError, match=r"light network 'resnet5': does not exist; expected .*; did you mean 'resnet50"
    ):
        light_model("resnet5")
