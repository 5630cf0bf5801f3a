"""Files as users have them, from opening to proof: operator sets, half precision, several inputs, a fixed batch."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import bitwright as bw
from bitwright.errors import InputError
from bitwright.graph.export import quiet
from bitwright.models import build, example
from bitwright.models.light import light_model

TARGET = "onnxruntime-x64-avx2"  # the same on every machine
#: Of each operator set, networks that the older exporter can write in it.
SETS = {
    7: ("small_residual", "small_conv_transpose"),
    9: ("small_inverted_residual", "small_unet"),
    11: ("digits_cnn", "small_squeeze_excite"),
    13: ("small_inception", "small_vit"),
    17: ("small_residual", "small_shuffle"),
}


def traced(module: torch.nn.Module, batch: tuple[torch.Tensor, ...], opset: int = 17, **names: Any) -> onnx.ModelProto:
    """Through the older exporter, by TorchScript."""
    file: Any = io.BytesIO()  # the annotation of the exporter knows paths only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter deprecates itself
        torch.onnx.export(module, batch, file, dynamo=False, opset_version=opset, **names)
    return onnx.load_from_string(file.getvalue())


def proven(model: Any, data: dict[str, np.ndarray], sqnr: float = 20, **options: Any) -> bw.Quantized:
    """Quantized, proven on all of its data, and the same function as the float network."""
    quantized = bw.quantize(model, data, target=TARGET, **options)
    found = quantized.verify(data, batch=4)
    assert found.proven and found.mismatches == 0 and found.codes > 0, found.by_tensor
    assert found.images == quantized.images_used == len(next(iter(data.values())))
    assert (quantized.evaluate(data).sqnr_db or 0) > sqnr
    return quantized


@pytest.mark.parametrize(("opset", "name"), [(opset, name) for opset, names in SETS.items() for name in names])
def test_operator_sets(opset: int, name: str, tmp_path: Path) -> None:
    network = build(name)
    proto = traced(network, (example(network),), opset, input_names=["image"], dynamic_axes={"image": {0: "N"}})
    assert proto.opset_import[0].version == opset
    onnx.save(proto, tmp_path / "net.onnx")
    proven(tmp_path / "net.onnx", {"image": example(network, batch=6, seed=1).numpy()})


# Half precision.


@cache
def halves() -> onnx.ModelProto:
    network = build("small_residual")
    batch = (example(network).half(),)
    # Batch norm is kept: the exporter would fold it in half precision, and so give other weights.
    kept: dict[str, Any] = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    return traced(network.half(), batch, input_names=["image"], dynamic_axes={"image": {0: "N"}}, **kept)


def test_a_half_precision_file_is_computed_in_float32() -> None:
    """Inputs and outputs become float32; the numbers are those of the same weights in float32."""
    network = build("small_residual")
    data = {"image": example(network, batch=6, seed=1).numpy()}
    assert halves().graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    quantized = proven(ir.from_proto(halves()), data)
    model = quantized.model()
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert quantized.integer_mac_share() == 1.0
    with torch.no_grad():
        expected = network.half().float()(torch.from_numpy(data["image"]))
        (found,) = quantized.torch("float")(torch.from_numpy(data["image"]))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_half_precision_module(capfd: pytest.CaptureFixture[str]) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3)).half()
    data = {"input": np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)}
    proven(network, data, example=torch.zeros(2, 3, 8, 8, dtype=torch.float16))
    assert next(network.parameters()).dtype == torch.float16, "the user's module is left as it is"


def test_data_of_a_half_precision_file_are_float32() -> None:
    image = np.zeros((4, 3, 16, 16), np.float16)
    with pytest.raises(InputError, match=r"is float16; expected float32; convert it with \.astype\('float32'\)"):
        bw.quantize(ir.from_proto(halves()), {"image": image}, target=TARGET)


# Several inputs, and outputs.


class Several(torch.nn.Module):
    """An image, numbers beside it, and a mask of whole numbers; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8 + 5, 4)

    def forward(self, image: torch.Tensor, extra: torch.Tensor, mask: torch.Tensor) -> Any:
        """Scores, and the masked maps."""
        maps = torch.relu(self.conv(image)) * mask[:, None, None, None].float()
        return self.linear(torch.cat([maps.mean((2, 3)), extra], 1)), maps


NAMES = ("image", "extra", "mask")
BATCH = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5), torch.ones(2, dtype=torch.int64))


def several(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "image": draw.standard_normal((count, 3, 8, 8)).astype(np.float32),
        "extra": draw.standard_normal((count, 5)).astype(np.float32),
        "mask": draw.integers(0, 2, count),
    }


@pytest.mark.parametrize("exporter", ["TorchScript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_several_inputs(exporter: str, tmp_path: Path) -> None:
    axes = {name: {0: "N"} for name in NAMES}
    if exporter == "dynamo":
        with quiet():
            shapes = {name: {0: torch.export.Dim("batch", min=1)} for name in NAMES}
            torch.onnx.export(Several().eval(), BATCH, tmp_path / "net.onnx", dynamo=True, dynamic_shapes=shapes)
    else:
        proto = traced(Several().eval(), BATCH, input_names=list(NAMES), dynamic_axes=axes)
        onnx.save(proto, tmp_path / "net.onnx")
    quantized = proven(tmp_path / "net.onnx", several(6))
    assert [v.name for v in quantized.model().graph.inputs] == list(NAMES)
    assert quantized.integer_mac_share() == 1.0


@pytest.mark.parametrize("count", [6, 5])
def test_a_fixed_batch(count: int) -> None:
    """Files of one batch size run at their own; the last batch of five images is filled up and not counted."""
    proto = traced(Several().eval(), BATCH, input_names=list(NAMES))
    quantized = proven(ir.from_proto(proto), several(count))
    assert [int(v.shape[0]) for v in quantized.model().graph.inputs if v.shape is not None] == [2, 2, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_light_networks(name: str) -> None:
    """Operator set 9, IR version 3's form, batch 1."""
    proto = light_model(name)
    images = np.random.default_rng(1).standard_normal((2, 3, 224, 224)).astype(np.float32)
    assert proven(ir.from_proto(proto), {proto.graph.input[0].name: images}).integer_mac_share() == 1.0
