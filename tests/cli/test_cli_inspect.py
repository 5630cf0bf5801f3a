"""`bitwright inspect`: counts worked out by hand, reasons, and files of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import bitwright as bw
from bitwright.deploy.runtimes.onnxruntime import products_saturate

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
#: MACs of the digits network: kernel, channels and plane of every layer.
LAYERS = {
    "stem.0": 1 * 24 * 9 * 64,
    "residual.conv1": 24 * 24 * 9 * 64,
    "residual.conv2": 24 * 24 * 9 * 64,
    "down.0": 24 * 48 * 9 * 16,
    "inverted.conv.0.0": 48 * 96 * 16,
    "inverted.conv.1.0": 96 * 9 * 16,
    "inverted.conv.2": 96 * 48 * 16,
    "fc": 48 * 10,
}
#: Weights, and gamma and beta (or bias) of each.
PARAMETERS = {
    "stem.0": 24 * 9 + 48,
    "residual.conv1": 24 * 24 * 9 + 48,
    "residual.conv2": 24 * 24 * 9 + 48,
    "down.0": 24 * 48 * 9 + 96,
    "inverted.conv.0.0": 48 * 96 + 192,
    "inverted.conv.1.0": 96 * 9 + 192,
    "inverted.conv.2": 96 * 48 + 96,
    "fc": 48 * 10 + 10,
}
WIDEST = 7 if products_saturate() else 8


def test_a_float_network_by_hand(cli: Any, float_file: Path) -> None:
    found = cli("inspect", float_file, "--json").json
    regions = {r["name"]: r for r in found["regions"]}
    assert {name: r["macs"] for name, r in regions.items() if r["macs"]} == LAYERS
    assert {name: r["parameters"] for name, r in regions.items() if r["parameters"]} == PARAMETERS
    assert found["macs"] == sum(LAYERS.values()) and found["parameters"] == sum(PARAMETERS.values())
    assert found["bytes"] == float_file.stat().st_size
    assert found["bops"] == found["macs"] * 32 * 32 and found["bops_on_target"] == found["macs"] * WIDEST * 8
    assert sum(found["ops"].values()) == found["nodes"] and found["ops"]["BatchNormalization"] == 7
    assert found["inputs"] == [{"name": "image", "shape": [None, 1, 8, 8], "type": "float32"}]
    assert found["outputs"] == [{"name": "logits", "shape": [None, 10], "type": "float32"}]
    assert regions["inverted.conv.1.0"]["kind"] == "DepthwiseConv"
    assert regions["down.0"]["output_shape"] == [None, 48, 4, 4]
    assert found["integer_mac_share"] == 1 and all(r["integer"] and r["reason"] is None for r in found["regions"])
    assert not found["written"]


def test_a_target_can_be_chosen(cli: Any, float_file: Path) -> None:
    for target, bits in (("onnxruntime-x64", 8), ("onnxruntime-x64-avx2", 7)):
        found = cli("inspect", float_file, "--target", target, "--json").json
        assert found["target"] == target and found["bops_on_target"] == found["macs"] * bits * 8
    ran = cli("inspect", float_file, "--target", "onnxruntime")
    assert ran.code == 2 and "there is no target of this name; did you mean 'onnxruntime-x64'" in ran.err


def test_a_written_file_tells_its_own_plan(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.onnx"
    bw.quantize(float_file, assets / "digits_calib.npz", set=["W=4,A=6", "down.0:float"]).save(path)
    found = cli("inspect", path, "--json").json
    regions = {r["name"]: r for r in found["regions"]}
    assert found["written"] and found["macs"] == sum(LAYERS.values())
    assert found["bytes"] == path.stat().st_size
    # The ends keep 8 bits: network input, weights of the first and last layer, input of the last.
    expected = {name: (4, 6) for name in LAYERS} | {"stem.0": (WIDEST, 8), "fc": (WIDEST, 8), "down.0": (None, None)}
    assert {n: (regions[n]["weight_bits"], regions[n]["activation_bits"]) for n in LAYERS} == expected
    bops = {n: macs * (expected[n][0] or 32) * (expected[n][1] or 32) for n, macs in LAYERS.items()}
    assert {n: regions[n]["bops"] for n in LAYERS} == bops
    assert found["bops"] == found["bops_on_target"] == sum(bops.values())
    assert not regions["down.0"]["integer"] and "float" in regions["down.0"]["reason"]
    assert found["integer_mac_share"] == pytest.approx(1 - LAYERS["down.0"] / sum(LAYERS.values()))
    ran = cli("inspect", path)
    assert "integer network, written by bitwright" in ran.out and "W4A6" in ran.out


def test_a_written_file_knows_its_target_and_shapes(cli: Any, int8_file: Path) -> None:
    other = "onnxruntime-x64" if products_saturate() else "onnxruntime-x64-avx2"
    ran = cli("inspect", int8_file, "--target", other)
    assert ran.code == 2 and f"--target: is '{other}'; expected 'onnxruntime-x64" in ran.err
    ran = cli("inspect", int8_file, "--shape", "image=Nx1x8x8")
    assert ran.code == 2 and "--shape: is given, but the shapes of a written file are fixed" in ran.err


def test_nothing_to_quantize_is_no_error(cli: Any, onnx_file: Callable[..., Path]) -> None:
    path = onnx_file("s = LogSoftmax(x) y = Hardmax(s)", "(float[N, 3] x) => (float[N, 3] y)")
    ran = cli("inspect", path, "--json")
    assert ran.code == 0
    found = ran.json
    reasons = [r["reason"] for r in found["regions"]]
    assert reasons == [f"{op} has no integer kernel on {found['target']}" for op in ("LogSoftmax", "Hardmax")]
    assert (found["macs"], found["bops"], found["integer_mac_share"]) == (0, 0, 0)
    lines = cli("inspect", path).out.splitlines()
    assert [line.split()[-2:] for line in lines if "LogSoftmax  " in line] == [["float", "[1]"]]
    assert lines[-3:] == ["float, because:", f"[1]  {reasons[0]} (1 region)", f"[2]  {reasons[1]} (1 region)"]


def test_each_float_region_says_why(cli: Any, onnx_file: Callable[..., Path]) -> None:
    path = onnx_file(
        "c = Conv(x, w) r = Relu(c) e = LogSoftmax(r) y = Conv(e, v)",
        "(float[N, 1, 4, 4] x, float[1, 1, 1, 1] v) => (float[N, 1, 4, 4] y) <float[1, 1, 1, 1] w = {0.5}>",
    )
    found = cli("inspect", path, "--json").json
    kinds = [(r["kind"], r["integer"]) for r in found["regions"]]
    assert kinds == [("Conv", True), ("LogSoftmax", False), ("Conv", False)]
    assert found["regions"][2]["reason"] == "Conv: its weight is computed, not constant"
    assert found["integer_mac_share"] == 0.5


def test_transposed_convolutions_are_shown_as_they_run(cli: Any, onnx_file: Callable[..., Path]) -> None:
    path = onnx_file(
        "y = ConvTranspose<strides = [2, 2]>(x, w)",
        "(float[N, 1, 4, 4] x) => (float[N, 1, 8, 8] y) <float[1, 1, 2, 2] w = {1.0, 2.0, 3.0, 4.0}>",
    )
    found = cli("inspect", path, "--json").json
    assert [(r["kind"], r["integer"]) for r in found["regions"]] == [("Conv", True), ("DepthToSpace", True)]
    assert found["regions"][0]["parameters"] == found["parameters"] == 4 and found["integer_mac_share"] == 1
    assert found["macs"] == found["regions"][0]["macs"] == 64


def test_sizes_that_the_file_leaves_open(cli: Any, onnx_file: Callable[..., Path]) -> None:
    path = onnx_file("y = Conv(x, w)", "(float[N, 1, H, W] x) => (float[N, 1, H, W] y) <float[1, 1, 1, 1] w = {0.5}>")
    ran = cli("inspect", path)
    assert ran.code == 2 and "give --shape x=Nx1x224x224" in ran.err
    assert cli("inspect", path, "--shape", "x=Nx1x6x7", "--json").json["macs"] == 42
    ran = cli("inspect", path, "--shape", "y=Nx1x6x7")
    assert ran.code == 2 and "--shape y=...: the network has no input of this name; choose from x" in ran.err
    ran = cli("inspect", path, "--shape", "x=6")
    assert ran.code == 2 and "expected the given 6" in ran.err


def test_external_weights_count_among_the_bytes(cli: Any, float_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(onnx.load(float_file), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    size = path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert size > 32_000 * 4
    assert cli("inspect", path, "--json").json["bytes"] == size


def test_a_module_that_a_callable_returns(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_to_inspect.py").write_text(
        "import torch\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    layers = torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 5)\n"
        "    return torch.nn.Sequential(*layers).eval(), torch.zeros(2, 2, 6, 6)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = cli("inspect", "nets_to_inspect:net", "--json").json
    assert found["parameters"] == 2 * 3 * 9 + 3 + 48 * 5 + 5 and found["macs"] == 2 * 3 * 9 * 16 + 48 * 5
    assert found["bytes"] > found["parameters"] * 4


def test_a_network_that_others_quantized_is_refused(cli: Any, onnx_file: Callable[..., Path]) -> None:
    path = onnx_file(
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
        "(float[N, 3] x) => (float[N, 3] y) <float s = {0.5}, uint8 z = {0}>",
    )
    ran = cli("inspect", path)
    assert ran.code == 2 and f"{path}: is quantized already" in ran.err


@pytest.mark.real_data
def test_resnet20_has_the_published_counts(cli: Any) -> None:
    path = SHARED / "models" / "resnet20_cifar10.onnx"
    found = cli("inspect", path, "--target", "onnxruntime-x64", "--json").json
    assert (found["macs"], found["parameters"]) == (40_551_040, 269_722)
    assert (found["bops"], found["bops_on_target"]) == (41_524_264_960, 2_595_266_560)
    assert sum(r["macs"] for r in found["regions"]) == found["macs"]
    assert sum(r["parameters"] for r in found["regions"]) == found["parameters"]
