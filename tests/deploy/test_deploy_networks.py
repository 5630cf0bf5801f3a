"""Whole networks: every code that the runtime serves is the one that is simulated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import bitwright as bw
from bitwright.deploy.names import codes_name, scale_name
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime, kernels, products_saturate
from bitwright.models import build

SHARED = Path(__file__).parents[2].parent / "shared"
TARGETS = ("onnxruntime-x64-avx2", "onnxruntime-x64")
NETWORKS = ("small_residual", "small_inverted_residual", "small_inception", "small_dense")


def random_data(network: torch.nn.Module, images: int = 16) -> dict[str, np.ndarray]:
    shape = (images, *network.input_shape)  # type: ignore[misc]
    return {"x": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


@pytest.fixture(scope="module")
def digits(request: pytest.FixtureRequest) -> dict[str, Any]:
    assets = Path(__file__).parents[1] / "assets"
    return {
        target: bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", target=target) for target in TARGETS
    } | {"test": assets / "digits.npz"}


@pytest.mark.parametrize("batch, threads", [(1, 1), (16, 1), (16, 2)])
@pytest.mark.parametrize("target", TARGETS)
def test_digits(digits: dict[str, Any], target: str, batch: int, threads: int) -> None:
    precise = target == "onnxruntime-x64" and products_saturate()
    found = digits[target].verify(digits["test"], batch=batch, limit=64, threads=threads, precise=precise)
    assert found.mismatches == 0, found.by_tensor
    assert found.proven
    assert found.images == 64
    assert digits[target].integer_mac_share() == 1.0
    assert digits[target].plan.float_sites() == {}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", TARGETS)
def test_small_network(name: str, target: str, exported: Callable[[str], Path]) -> None:
    data = random_data(build(name))
    quantized = bw.quantize(exported(name), data, target=target)
    precise = target == "onnxruntime-x64" and products_saturate()
    assert quantized.integer_mac_share() >= 0.99
    for batch, threads in ((1, 1), (16, 2)):
        found = quantized.verify(data, batch=batch, threads=threads, precise=precise)
        assert found.mismatches == 0, found.by_tensor
        assert found.proven


@pytest.mark.parametrize("reads", [["h", "pads", "zero"], ["h", "pads"], ["h", "pads", "", "axes"]], ids="-".join)
def test_no_constant_is_written_that_nothing_reads(reads: list[str], tmp_path: Path) -> None:
    """The runtime warns of such ones whenever it loads the file; the zero that Pad fills in is a code there."""
    draw = np.random.default_rng(3)
    constants = {
        "w1": draw.standard_normal((4, 2, 1, 1)), "w2": draw.standard_normal((8, 4, 1, 1)),
        "pads": np.array([2, 2] if "axes" in reads else [0, 2, 0, 0, 0, 2, 0, 0]), "axes": np.array([1]),
        "zero": np.array(0.0),
    }  # fmt: skip
    nodes = [
        ("Conv", ["x", "w1"], "c1"), ("Relu", ["c1"], "h"), ("Conv", ["h", "w2"], "c2"),
        ("Pad", reads, "p"), ("Add", ["c2", "p"], "y"),
    ]  # fmt: skip
    kinds = {"pads": np.int64, "axes": np.int64}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, inputs, [gives], name=gives) for op, inputs, gives in nodes], "shortcut",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 2, 6, 6]) for name in "x"],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 8, 6, 6])],
        [onnx.numpy_helper.from_array(a.astype(kinds.get(n, np.float32)), n) for n, a in constants.items()
         if n in reads or n.startswith('w')],
    )  # fmt: skip
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "float.onnx",
    )
    data = {"x": draw.standard_normal((8, 2, 6, 6)).astype(np.float32)}
    quantized = bw.quantize(tmp_path / "float.onnx", data, target=TARGETS[0])
    quantized.save(tmp_path / "net.onnx")
    written = onnx.load(tmp_path / "net.onnx").graph
    assert "zero" not in {tensor.name for tensor in written.initializer}
    assert {tensor.name for tensor in written.initializer} <= {name for node in written.node for name in node.input}
    assert bw.load(tmp_path / "net.onnx").verify(data).proven


@pytest.mark.real_data
@pytest.mark.parametrize("target", TARGETS)
def test_resnet20(target: str, tmp_path: Path) -> None:
    cifar = SHARED / "data" / "cifar10"
    model = SHARED / "data" / "models" / "resnet20_cifar10.onnx"
    quantized = bw.quantize(model, cifar / "calib", target=target, limit=64)
    precise = target == "onnxruntime-x64" and products_saturate()
    found = quantized.verify(cifar / "dev", limit=16, precise=precise)
    assert found.mismatches == 0, found.by_tensor
    assert found.proven
    assert quantized.integer_mac_share() == 1.0
    assert found.fake_quant_mismatches > 0, "if plain float simulation were exact, there would be nothing to prove"


def test_every_pair_is_consumed(digits: dict[str, Any], tmp_path: Path) -> None:
    """No op computes in float; the runtime keeps the network's own entrance and exit and nothing else."""
    digits[TARGETS[0]].save(tmp_path / "digits.onnx")
    counted = kernels(tmp_path / "digits.onnx")
    assert counted["QuantizeLinear"] == counted["DequantizeLinear"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu", "Clip"} & set(counted)


def test_the_file_alone_is_enough(digits: dict[str, Any], tmp_path: Path) -> None:
    """Reading a file back gives the plan, and a simulation of the same codes."""
    quantized = digits[TARGETS[0]]
    quantized.save(tmp_path / "digits.onnx")
    loaded = bw.load(tmp_path / "digits.onnx")
    assert loaded.plan == quantized.plan
    x = np.load(digits["test"])["image"][:8]
    served = OnnxRuntime(tmp_path / "digits.onnx").run({"image": x})["logits"]
    for one in (quantized, loaded):
        (simulated,) = one.torch("integer")(torch.from_numpy(x))
        assert torch.equal(simulated, torch.from_numpy(served))


def test_a_changed_scale_in_the_file_is_what_is_simulated(digits: dict[str, Any], tmp_path: Path) -> None:
    """Scales are read from the file's own constants, never from the metadata."""
    path = tmp_path / "digits.onnx"
    digits[TARGETS[0]].save(path)
    proto = onnx.load(str(path))
    for tensor in proto.graph.initializer:
        if tensor.name == scale_name("image"):
            changed = onnx.numpy_helper.to_array(tensor) * np.float32(1.1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(changed, dtype=np.float32), tensor.name))
    onnx.save(proto, str(path))
    before = digits[TARGETS[0]].state.encodings["image"].scale
    assert bw.load(path).state.encodings["image"].scale == pytest.approx(float(before) * 1.1)


def test_a_changed_graph_is_found(digits: dict[str, Any], tmp_path: Path) -> None:
    """A region that the runtime computes otherwise than the plan says is named."""
    path = tmp_path / "digits.onnx"
    digits[TARGETS[0]].save(path)
    proto = onnx.load(str(path))
    site = next(s for s in digits[TARGETS[0]].plan.sites if "relu" in s.lower())
    changed = next(n for n in proto.graph.node if n.output[0] in (codes_name(site), f"{site}/unbounded"))
    inputs = [t for t in proto.graph.initializer if t.name == changed.input[1]]
    other = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(inputs[0]) * np.float32(1.01), "other")
    proto.graph.initializer.append(other)
    changed.input[1] = "other"
    onnx.save(proto, str(path))
    found = bw.load(path).verify(digits["test"], limit=4)
    assert found.proven, "a state read from the file and written again is consistent"
    from bitwright.deploy.verify import verify

    batches = bw.load(path)._batches(digits["test"], 4, 4)
    assert verify(path, batches).first_mismatch == site


def test_metadata_is_small_and_readable(digits: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "digits.onnx"
    size = digits[TARGETS[0]].save(path)
    entry = {p.key: p.value for p in onnx.load(str(path)).metadata_props}["bitwright"]
    assert json.loads(entry)["version"] == 1
    assert len(entry) < size / 4
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("mode", ["float", "simulated", "integer"])
def test_modes_agree_with_what_they_simulate(digits: dict[str, Any], mode: Any) -> None:
    quantized = digits[TARGETS[0]]
    x = torch.from_numpy(np.load(digits["test"])["image"])
    labels = np.load(digits["test"])["labels"]
    (logits,) = quantized.torch(mode)(x)
    assert (logits.argmax(1).numpy() == labels).mean() > 0.98


def test_simulation_trains(digits: dict[str, Any]) -> None:
    """Gradients reach every weight through the quantizers."""
    module = digits[TARGETS[0]].torch()
    weights = [p for p in module.parameters() if p.ndim > 1]
    for p in weights:
        p.requires_grad_(True)
    module(torch.from_numpy(np.load(digits["test"])["image"][:4]))[0].square().sum().backward()
    assert weights
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in weights)


def test_float_outputs_equal_the_runtimes(exported: Callable[[str], Path]) -> None:
    for name in NETWORKS:
        data = random_data(build(name), 3)
        quantized = bw.quantize(exported(name), data)
        (mine,) = quantized.torch("float")(torch.from_numpy(data["x"]))
        theirs = OnnxRuntime(bw.verbs.quantized.model_bytes(quantized.state.reference)).run(data)
        expected = next(iter(theirs.values()))
        assert np.abs(mine.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
