"""QONNX files of any width: what their nodes say, that they mean what we simulate, and where they cannot quite.

QONNX's nodes are run as its documentation defines them (`conftest.py`), not by its package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

import bitwright as bw
from bitwright.deploy.names import scale_name, zero_point_name
from bitwright.deploy.qonnx import BIAS_BITS, DOMAIN
from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.integer import bias_scale
from bitwright.graph.export import from_module
from bitwright.models import example
from bitwright.plan.spec import Derived, QSpec

IMAGES = 8


class Small(torch.nn.Module):
    """Values of both signs and after ReLU, weights of both ranks, an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.second = torch.nn.Conv2d(6, 6, 3, padding=1)
        self.fc = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.fc((x + self.second(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    """A file, so that it is exported once, and images."""
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("qonnx") / "small.onnx")
    x = torch.randn(IMAGES, 3, 8, 8)
    ir.save(from_module(Small().eval(), x), path)
    return path, x.numpy()


@pytest.fixture(scope="module")
def made(network: tuple[str, np.ndarray], emulate: Callable[..., Any]) -> Callable[..., tuple[bw.Quantized, Any]]:
    known: dict[tuple[str, ...], tuple[bw.Quantized, Any]] = {}

    def make(*settings: str) -> tuple[bw.Quantized, Any]:
        if settings not in known:
            path, x = network
            quantized = bw.quantize(path, {"x": x}, target="anybits", set=settings, ends=0)
            known[settings] = quantized, emulate(quantized.state, x)
        return known[settings]

    return make


def quant_of(file: Any, name: str) -> onnx.NodeProto:
    """The node that quantizes an initializer."""
    (node,) = (n for n in file.proto.graph.node if n.domain == DOMAIN and n.input[0] == name)
    return node


def said(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_width(made: Any, bits: int) -> None:
    """A node says the width, the sign and the range of its grid; a weight is what its codes stand for."""
    quantized, file = made(f"W={bits},A={bits}")
    onnx.checker.check_model(file.proto, full_check=True)
    assert {o.domain: o.version for o in file.proto.opset_import}[DOMAIN] == 1
    weights = activations = 0
    for site, spec in quantized.plan.sites.items():
        if not isinstance(spec, QSpec):
            continue
        encoding = quantized.state.encodings[site]
        assert spec.bits == bits
        if site not in file.constants:
            nodes = [
                n for n in file.proto.graph.node if n.domain == DOMAIN and n.input[2:3] == [zero_point_name(site)]
            ]
            assert nodes and all(n.op_type == "Quant" for n in nodes)
            assert all(said(n) == {"signed": 0, "narrow": 0, "rounding_mode": b"ROUND"} for n in nodes)
            assert all(float(file.constants[n.input[3]]) == bits for n in nodes)
            assert float(file.constants[zero_point_name(site)]) == float(encoding.zero_point)
            activations += 1
            continue
        node, stored = quant_of(file, site), file.constants[site]
        codes = encoding.codes_of(quantized.state.tensor(site))
        assert np.array_equal(stored, encoding.dequantize(codes).numpy())
        assert np.array_equal(file.values[node.output[0]], stored), "Quant leaves it as it is"
        assert file.constants[node.input[1]].ndim == stored.ndim, "one scale a channel, with the rank of the weight"
        assert node.op_type == ("BipolarQuant" if bits == 1 else "Quant")
        if bits > 1:
            symmetric = int(bits > 4)
            assert said(node) == {"signed": symmetric, "narrow": symmetric, "rounding_mode": b"ROUND"}
            assert float(file.constants[node.input[3]]) == bits
        assert len(np.unique(codes.numpy())) > min(bits, 4)
        weights += 1
    assert weights == 3 and activations >= 5


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_width_is_read_back(made: Any, tmp_path: Path, network: Any, bits: int) -> None:
    quantized, _ = made(f"W={bits},A={bits}")
    quantized.save(tmp_path / "a.onnx")
    loaded = bw.load(tmp_path / "a.onnx")
    assert loaded.plan == quantized.plan
    for site, encoding in quantized.state.encodings.items():
        read = loaded.state.encodings[site]
        assert torch.equal(read.scale, encoding.scale) and torch.equal(read.zero_point, encoding.zero_point)
        if read.codes is not None:
            assert torch.equal(read.codes, encoding.codes_of(quantized.state.tensor(site)))
    x = torch.from_numpy(network[1])
    assert torch.equal(loaded.torch()(x)[0], quantized.torch()(x)[0])


@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
def test_from_equal_inputs_values_are_equal(made: Any, bits: int) -> None:
    """Bit for bit, with zero point 0 and with another; the latter pass a node that rounds first."""
    _, file = made(f"W={bits},A={bits}")
    zeros = others = 0
    for site, (real, left, encoding, _) in file.quantized.items():
        assert np.array_equal(encoding.fake_quantize(torch.from_numpy(real)).numpy(), left), site
        zero = int(encoding.zero_point)
        nodes = [n for n in file.proto.graph.node if n.domain == DOMAIN and n.output[0].endswith("/rounded")]
        before = [n for n in nodes if n.input[1] == scale_name(site)]
        assert bool(before) == bool(zero)
        zeros, others = zeros + (zero == 0), others + (zero != 0)
    assert zeros and others, "the network has both"


def test_ties_with_odd_zero_points(emulate: Callable[..., Any], exported: Callable[[str], Path]) -> None:
    """Power-of-two scales put many values half-way between steps: one Quant alone takes the other neighbour there."""
    x = example("small_residual", batch=IMAGES, seed=3).numpy()
    settings = ["W=pow2-5,A=pow2-7"]
    quantized = bw.quantize(exported("small_residual"), {"x": x}, target="anybits", set=settings, ends=0)
    file, ties, alone = emulate(quantized.state, x), 0, 0
    for site, (real, left, encoding, _) in file.quantized.items():
        scale, zero, grid = encoding.scale.numpy(), encoding.zero_point.numpy(), encoding.spec.grid
        assert np.array_equal(encoding.fake_quantize(torch.from_numpy(real)).numpy(), left), site
        if zero % 2:
            codes = encoding.quantize(torch.from_numpy(real)).numpy()
            single = np.round(np.clip((real / scale).astype(np.float32) + np.float32(zero), grid.qmin, grid.qmax))
            ties += int((np.abs(real / scale - np.floor(real / scale)) == 0.5).sum())
            alone += int((single != codes).sum())
    assert ties > 100 and alone > 100, "without the first node codes would differ"
    assert file.differing() <= 1e-4


@pytest.mark.parametrize("settings", ["W=8,A=8", "W=4,A=6", "W=1,A=8", "W=ternary,A=4"])
def test_the_file_means_what_is_simulated(made: Any, settings: str) -> None:
    _, file = made(settings)
    assert file.differing() <= 1e-3
    for site in file.quantized:
        assert len(np.unique(file.codes(site)[1])) >= 5, "a constant would agree whatever the file says"
        assert np.abs(np.subtract(*file.codes(site))).max() <= 2
    same = file.untouched()
    assert same.mean() >= 0.5
    assert np.abs(file.output - file.simulated)[same].max() <= 1e-5 * np.abs(file.simulated).max()


@pytest.mark.parametrize("name", ["small_inception", "small_squeeze_excite", "small_vit"])
def test_networks(name: str, emulate: Callable[..., Any], exported: Callable[[str], Path]) -> None:
    """Concat, gates, tables of activations, attention: copies have no quantizer, float ops read what they give."""
    x = example(name, batch=IMAGES, seed=3).numpy()
    quantized = bw.quantize(exported(name), {"x": x}, target="anybits", set=["W=6,A=8"])
    file = emulate(quantized.state, x)
    onnx.checker.check_model(file.proto, full_check=True)
    assert file.differing() <= 1e-3
    scale = np.abs(file.simulated).max()
    assert np.abs(file.output - file.simulated).max() <= 0.05 * scale
    assert (np.abs(file.output - file.simulated).max(1) <= 1e-5 * scale).mean() >= 0.5


def test_biases_are_at_the_scale_of_their_accumulator(made: Any) -> None:
    quantized, file = made("W=8,A=8")
    biases = {site: spec for site, spec in quantized.plan.sites.items() if isinstance(spec, Derived)}
    assert len(biases) == 3
    for site, spec in biases.items():
        node = quant_of(file, site)
        scale = bias_scale(quantized.state.encoding(spec.input), quantized.state.encodings[spec.weight]).numpy()
        assert said(node) == {"signed": 1, "narrow": 0, "rounding_mode": b"ROUND"}
        assert float(file.constants[node.input[3]]) == BIAS_BITS and not file.constants[node.input[2]].any()
        assert np.array_equal(file.constants[node.input[1]], scale)
        stored, real = file.constants[site].astype(np.float64), quantized.state.tensor(site).double().numpy()
        assert np.abs(np.rint(stored / scale) - stored / scale).max() < 1e-2, "whole codes"
        assert (np.abs(stored - real) <= 0.5001 * scale).all()
        assert np.array_equal(file.values[node.output[0]], file.constants[site])


def test_ternary_is_two_signed_narrow_bits(made: Any) -> None:
    quantized, file = made("W=ternary,A=4")
    sites = [s for s, spec in quantized.plan.sites.items() if isinstance(spec, QSpec) and spec.format == "ternary"]
    assert len(sites) == 3
    for site in sites:
        node = quant_of(file, site)
        assert said(node) == {"signed": 1, "narrow": 1, "rounding_mode": b"ROUND"}
        assert float(file.constants[node.input[3]]) == 2
        steps = file.constants[site] / file.constants[node.input[1]]
        assert set(np.unique(steps)) == {-1.0, 0.0, 1.0}
        assert np.array_equal(file.values[node.output[0]], file.constants[site])


def test_scales_are_those_of_the_file(made: Any, tmp_path: Path) -> None:
    quantized, _ = made("W=8,A=8")
    path = tmp_path / "a.onnx"
    quantized.save(path)
    proto = onnx.load(str(path))
    scale = next(t for t in proto.graph.initializer if t.name == scale_name("x"))
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(2), scale.name))
    onnx.save(proto, str(path))
    assert bw.load(path).state.encodings["x"].scale == 2 * quantized.state.encodings["x"].scale
    scale.name = "another"
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "another" if name == scale_name("x") else name
    onnx.save(proto, str(path))
    with pytest.raises(InputError, match=r"site 'x': 'x/scale' is missing from the file"):
        bw.load(path)


@pytest.mark.parametrize("settings", ["W=log2-4", "W=codebook-3", "A=log2-4"])
def test_tables_of_levels_have_no_node(network: Any, settings: str) -> None:
    path, x = network
    with pytest.raises(UnsupportedError, match=r"log2|codebook"):
        bw.quantize(path, {"x": x}, target="anybits", set=[settings], ends=0)


def test_integer_mode_knows_eight_bits(made: Any, network: Any) -> None:
    """Wider codes would wrap round in uint8."""
    x = torch.from_numpy(network[1])
    quantized, _ = made("W=8,A=8")
    step = quantized.state.encoding(quantized.state.model.graph.outputs[0].name or "").scale
    difference = (quantized.torch("integer")(x)[0] - quantized.torch()(x)[0]).abs() / step
    assert float(difference.max()) <= 1.01
    with pytest.raises(UnsupportedError, match=r"site 'x': codes from 0 to 511; expected 0 to 255"):
        made("W=9,A=9")[0].torch("integer")


def test_accuracy_is_said_to_be_simulated(made: Any, network: Any, tmp_path: Path) -> None:
    quantized, file = made("W=4,A=6")
    found = quantized.evaluate({"x": network[1]})
    assert found.simulated
    assert found.agreement == np.mean(file.simulated.argmax(1) == quantized.torch("float")(
        torch.from_numpy(network[1]))[0].detach().numpy().argmax(1))  # fmt: skip
    assert not bw.quantize(network[0], {"x": network[1]}).evaluate({"x": network[1]}).simulated
    with pytest.raises(UnsupportedError, match="is for anybits, which is simulated here, not run"):
        quantized.verify({"x": network[1]})
