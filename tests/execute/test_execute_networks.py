"""Whole float networks: the program gives what ONNX Runtime gives, to 1e-4 of the largest value of each output."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from bitwright.execute.observe import session_of
from bitwright.execute.program import build
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.models import MODELS, example
from bitwright.models import build as build_network
from bitwright.models.light import LIGHT, light_model

#: More than ten seconds, of which most go into weights of 240 MB and more.
LARGE = {"bvlc_alexnet", "zfnet512", "vgg19"}
#: The same blocks as in ResNet-20, more of them; and those of the table's own ResNet-50.
REPEATED, REPEATED_LIGHT = {"resnet56", "resnet110"}, {"resnet50"}


def slow_if(slow: AbstractSet[str], names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def compare(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> None:
    """The opened, normalised network on torch against the file as it is in the runtime.

    Probabilities say little where one class is certain: what a last Softmax reads is compared too.
    """
    model = normalise(ir.from_proto(proto))
    outputs = [value.name or "" for value in model.graph.outputs]
    last = model.graph.outputs[0].producer()
    if last is not None and last.op_type == "Softmax" and last.inputs[0] is not None:
        logits = last.inputs[0].name or ""
        proto.graph.output.append(onnx.ValueInfoProto(name=logits))
        outputs.append(logits)
    with torch.no_grad():
        program = build(model, {}, outputs=outputs)
        found = program.run({name: torch.from_numpy(array) for name, array in inputs.items()})
    served = session_of(proto.SerializeToString(), 1).run(outputs, inputs)
    for name, expected in zip(outputs, served, strict=True):
        assert found[name].shape == expected.shape
        assert np.isfinite(expected).all() and np.abs(expected).max() > 0
        apart = np.abs(found[name].numpy() - expected).max() / np.abs(expected).max()
        assert apart <= 1e-4, f"{name}: {apart:.1e} of the largest value"


@pytest.mark.parametrize("name", slow_if(REPEATED, MODELS))
def test_reference_networks(name: str) -> None:
    network = build_network(name)
    if network.input_shape[-1] == 224:
        network.input_shape = (3, 64, 64)  # quicker; only the pooling sees it
    file: Any = io.BytesIO()  # the annotation of the exporter knows paths only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter deprecates itself
        torch.onnx.export(
            network, (example(network),), file, dynamo=False, opset_version=17, input_names=["x"],
            do_constant_folding=False, dynamic_axes={"x": {0: "N"}},
        )  # fmt: skip
    compare(onnx.load_from_string(file.getvalue()), {"x": example(network, batch=3, seed=1).numpy()})


@pytest.mark.parametrize("name", ["small_squeeze_excite", pytest.param("small_vit", marks=pytest.mark.slow)])
def test_modules(name: str, exported: Callable[[str], Path]) -> None:
    """Through the newer exporter, against the module itself too."""
    network = build_network(name)
    model = ir.load(exported(name))
    x = example(network, batch=3, seed=1)
    compare(ir.to_proto(model), {model.graph.inputs[0].name or "": x.numpy()})
    with torch.no_grad():
        (found,) = build(normalise(model), {}).run({model.graph.inputs[0].name or "": x}).values()
        assert (found - network(x)).abs().max() <= 1e-4 * network(x).abs().max()


def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)


@pytest.mark.parametrize("name", slow_if(LARGE | REPEATED_LIGHT, LIGHT))
def test_light_networks(name: str) -> None:
    """The files of the onnx package with drawn weights."""
    proto = light_model(name)
    compare(proto, {proto.graph.input[0].name: image()})


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_light_networks_as_they_are(name: str) -> None:
    """Weights made by ConstantOfShape are folded; constants are inputs with a default, as in IR version 3."""
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    model = normalise(open_model(path))
    assert not {"ConstantOfShape", "Constant"} & {node.op_type for node in model.graph}
    (value,) = model.graph.inputs
    x = image()
    with torch.no_grad():
        (found,) = build(model, {}).run({value.name or "": torch.from_numpy(x)}).values()
    (expected,) = session_of(path.read_bytes(), 1).run(None, {value.name: x})
    assert np.abs(found.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
