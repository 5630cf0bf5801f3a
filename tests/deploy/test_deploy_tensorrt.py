"""Files for TensorRT: where pairs stand, what they hold, and that the file means what we simulate. Not run there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import bitwright as bw
from bitwright.deploy.names import scale_name
from bitwright.errors import InputError, UnsupportedError
from bitwright.models import example

NETWORKS = ("small_residual", "small_inception", "small_squeeze_excite", "small_conv_transpose", "small_vit")
WEIGHT_AXES = {"Conv": 0, "ConvTranspose": 1}
IMAGES = 8


@pytest.fixture(scope="module")
def made(emulate: Callable[..., Any], exported: Callable[[str], Path]) -> Callable[[str], tuple[bw.Quantized, Any]]:
    known: dict[str, tuple[bw.Quantized, Any]] = {}

    def make(name: str) -> tuple[bw.Quantized, Any]:
        if name not in known:
            x = example(name, batch=IMAGES, seed=3).numpy()
            quantized = bw.quantize(exported(name), {"x": x}, target="tensorrt")
            known[name] = quantized, emulate(quantized.state, x)
        return known[name]

    return make


def producers(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in proto.graph.node for output in node.output}


def readers(proto: onnx.ModelProto, name: str) -> list[str]:
    return [node.op_type for node in proto.graph.node if name in node.input]


def dequantized(proto: onnx.ModelProto, name: str) -> bool:
    node = producers(proto).get(name)
    return node is not None and node.op_type == "DequantizeLinear"


@pytest.mark.parametrize("name", NETWORKS)
def test_pairs_hold_int8_with_zero_point_0(made: Any, name: str) -> None:
    """Activations: one scale. Weights: int8 codes of the narrow grid, one scale for each output channel."""
    _, file = made(name)
    proto, known = file.proto, file.constants
    onnx.checker.check_model(proto, full_check=True)
    axes = 0
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        assert len(node.input) == 3, "the zero point gives the type"
        scale, zero = known[node.input[1]], known[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape and (scale > 0).all()
        if node.input[0] not in known:
            assert scale.shape == (), "activations have one scale"
            continue
        weight = known[node.input[0]]
        (axis,) = (a.i for a in node.attribute if a.name == "axis")
        assert weight.dtype == np.int8 and np.abs(weight.astype(int)).max() == 127
        assert scale.shape == (weight.shape[axis],)
        (op,) = (n for n in proto.graph.node if node.output[0] in n.input)
        turned = op.op_type == "Gemm" and any(a.name == "transB" and a.i for a in op.attribute)
        assert axis == WEIGHT_AXES.get(op.op_type, 0 if turned else 1)
        axes += 1
    assert axes == sum(n.op_type in ("Conv", "ConvTranspose", "Gemm") for n in proto.graph.node) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_weighted_ops_read_pairs_and_a_float_bias(made: Any, name: str) -> None:
    quantized, file = made(name)
    weighted = [n for n in file.proto.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm")]
    for node in weighted:
        assert dequantized(file.proto, node.input[0]) and dequantized(file.proto, node.input[1])
        for bias in node.input[2:]:
            assert file.constants[bias].dtype == np.float32
            reference = quantized.state.tensor(bias).numpy()
            assert np.array_equal(file.constants[bias], reference), "float, and as it was"
    assert quantized.integer_mac_share() == 1.0


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_quantized_that_no_kernel_reads(made: Any, name: str) -> None:
    """No pair on an output, none before what only moves values, and none after a weighted op that an Add takes in."""
    _, file = made(name)
    proto = file.proto
    kernels = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "GlobalAveragePool", "AveragePool"}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear":
            assert kernels & set(readers(proto, node.output[0])), node.name
    assert not any(dequantized(proto, output.name) for output in proto.graph.output)


def test_of_an_addition_the_operand_that_skips_is_quantized(made: Any) -> None:
    _, file = made("small_residual")
    additions = [n for n in file.proto.graph.node if n.op_type == "Add"]
    assert len(additions) == 2
    for node in additions:
        pairs = [dequantized(file.proto, v) for v in node.input]
        (straight,) = (v for v, pair in zip(node.input, pairs, strict=True) if not pair)
        assert sorted(pairs) == [False, True]
        assert producers(file.proto)[straight].op_type == "Conv", "a pair between them would keep the two apart"
        assert readers(file.proto, straight) == ["Add"]


def test_an_addition_of_two_shared_values_has_both_quantized() -> None:
    """Nothing can be fused with it where something else reads both of its operands."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 4, 1)
            self.c = torch.nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.a(x), self.b(x)
            return self.c(a + b) + self.c(a) + self.c(b)

    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    quantized = bw.quantize(Network().eval(), {"x": x.numpy()}, example=x, target="tensorrt")
    import onnx_ir as ir

    proto = ir.to_proto(quantized.model())
    first = next(n for n in proto.graph.node if n.op_type == "Add")
    assert [dequantized(proto, v) for v in first.input] == [True, True]


def test_a_pool_that_moves_values_has_its_pair_behind_it(made: Any) -> None:
    """TensorRT moves it in front: the pool then runs on int8."""
    _, file = made("small_inception")
    pools = [n for n in file.proto.graph.node if n.op_type == "MaxPool"]
    assert pools
    for node in pools:
        assert not dequantized(file.proto, node.input[0]) or len(readers(file.proto, node.input[0])) > 1


def test_a_pool_between_quantized_values_keeps_both_encodings(emulate: Callable[..., Any]) -> None:
    """What the pool reads and what it gives are inputs of convolutions: each has its own scale, and its own pair."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            return self.b(x)[:, :, ::2, ::2] + self.c(torch.nn.functional.max_pool2d(x, 2))

    torch.manual_seed(0)
    x = torch.randn(IMAGES, 3, 8, 8)
    settings = ["calibrate.activations=percentile", "calibrate.percentile=95"]  # ranges that a maximum changes
    quantized = bw.quantize(Network().eval(), {"x": x.numpy()}, example=x, target="tensorrt", steps=settings)
    file = emulate(quantized.state, x.numpy())
    (pool,) = (n for n in file.proto.graph.node if n.op_type == "MaxPool")
    weighted = [n for n in file.proto.graph.node if n.op_type == "Conv"]
    assert len(weighted) == 3 and all(dequantized(file.proto, n.input[0]) for n in weighted)
    before, after = (next(s for s in file.quantized if quantized.plan.resolve(s)[0] == site) for site in (
        pool.input[0].removesuffix("/real"), pool.output[0].removesuffix("/sum")))  # fmt: skip
    scales = [float(file.quantized[site][2].scale) for site in (before, after)]
    assert before != after and scales[0] != scales[1]
    assert file.differing() <= 1e-3 and file.untouched().any()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_means_what_is_simulated(made: Any, name: str) -> None:
    """Float sums of another order may move a code that is near a tie, so images of which none moved are compared."""
    quantized, file = made(name)
    assert file.differing() <= 1e-3
    for site in file.quantized:
        theirs, ours = file.codes(site)
        assert len(np.unique(ours)) >= 8, "a constant would agree whatever the file says"
        assert theirs.min() >= -128 and theirs.max() <= 127
    same = file.untouched()
    assert same.mean() >= 0.5
    error = np.abs(file.output - file.simulated)[same].max()
    assert error <= 1e-5 * np.abs(file.simulated).max()
    assert np.abs(file.simulated - _float(quantized, file)).max() > 1e-3, "quantizing changes the output"


def _float(quantized: bw.Quantized, file: Any) -> np.ndarray:
    x = next(v for k, v in file.values.items() if k == quantized.state.model.graph.inputs[0].name)
    with torch.no_grad():
        result: np.ndarray = quantized.torch("float")(torch.from_numpy(x))[0].numpy()
    return result


def test_the_file_alone_is_enough(made: Any, tmp_path: Path) -> None:
    quantized, _ = made("small_residual")
    quantized.save(tmp_path / "a.onnx")
    loaded = bw.load(tmp_path / "a.onnx")
    x = example("small_residual", batch=IMAGES, seed=3)
    assert loaded.plan == quantized.plan
    assert torch.equal(loaded.torch()(x)[0], quantized.torch()(x)[0])
    proto = onnx.load(str(tmp_path / "a.onnx"))
    scale = next(t for t in proto.graph.initializer if t.name == scale_name("relu"))
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(2), scale.name))
    onnx.save(proto, str(tmp_path / "a.onnx"))
    assert bw.load(tmp_path / "a.onnx").state.encodings["relu"].scale == 2 * quantized.state.encodings["relu"].scale
    scale.name = "another"
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "another" if name == scale_name("relu") else name
    onnx.save(proto, str(tmp_path / "a.onnx"))
    with pytest.raises(InputError, match=r"site 'relu': 'relu/scale' is missing from the file"):
        bw.load(tmp_path / "a.onnx")


def test_what_tensorrt_does_not_do_is_refused(made: Any, exported: Callable[[str], Path]) -> None:
    x = example("small_residual")
    for setting, said in (("W=4", "4-bit weights"), ("A=4", "4-bit activations"), ("W=binary", "weights")):
        with pytest.raises(UnsupportedError, match=said):
            bw.quantize(exported("small_residual"), {"x": x.numpy()}, target="tensorrt", set=[setting])
    quantized, _ = made("small_residual")
    with pytest.raises(UnsupportedError, match="the arithmetic of tensorrt is not known"):
        quantized.torch("integer")
    with pytest.raises(UnsupportedError, match="is simulated here, not run"):
        quantized.verify({"x": x.numpy()})
