"""The Python interface: quantize, save, load, verify, evaluate, torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bitwright as bw
from bitwright.plan.spec import QSpec


@pytest.fixture(scope="module")
def quantized(assets: Path) -> bw.Quantized:
    return bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz")


def test_it_is_proven_and_accurate(quantized: bw.Quantized, assets: Path) -> None:
    assert quantized.images_used == 256 and quantized.integer_mac_share() == 1
    assert quantized.verify(assets / "digits.npz", limit=64).proven
    found = quantized.evaluate(assets / "digits.npz")
    assert found.drop is not None and found.images == 360
    assert found.drop.drop < 0.02 and found.drop.reference > 0.98


def test_a_saved_file_comes_back(quantized: bw.Quantized, tmp_path: Path) -> None:
    size = quantized.save(tmp_path / "a.onnx")
    assert size == (tmp_path / "a.onnx").stat().st_size
    loaded = bw.load(tmp_path / "a.onnx")
    assert loaded.plan == quantized.plan
    for site, encoding in quantized.state.encodings.items():
        assert torch.equal(loaded.state.encodings[site].scale, encoding.scale), site
        assert torch.equal(loaded.state.encodings[site].zero_point, encoding.zero_point), site
    loaded.save(tmp_path / "b.onnx")
    assert bw.load(tmp_path / "b.onnx").plan == quantized.plan


def test_the_simulation_follows_the_integers(quantized: bw.Quantized, assets: Path) -> None:
    images = torch.from_numpy(np.load(assets / "digits.npz")["image"][:64])
    exact, simulated = (quantized.torch(mode)(images)[0] for mode in ("integer", "simulated"))
    steps = exact / quantized.state.encodings[quantized.plan.resolve("logits")[0]].scale
    assert (steps - steps.round()).abs().max() < 1e-3  # the integers' logits lie on the grid
    # Sums in float32 round elsewhere than sums of integers do: a code may be the neighbour, seldom and never further.
    apart = (simulated - exact) / quantized.state.encodings[quantized.plan.resolve("logits")[0]].scale
    assert apart.abs().max() < 2.5 and (apart.abs() > 0.5).float().mean() < 0.05


def test_a_module_and_arrays_in_memory() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    images = np.random.default_rng(0).standard_normal((16, 2, 6, 6)).astype(np.float32)
    found = bw.quantize(net, {"input": images}, example=torch.zeros(2, 2, 6, 6), set=["W=4,A=8"], ends=0)
    assert {spec.bits for spec in found.plan.sites.values() if isinstance(spec, QSpec)} == {4, 8}
    assert found.verify({"input": images}).proven


def test_settings_as_text_or_as_a_mapping(assets: Path) -> None:
    ways = (["calibrate.activations=percentile"], {"calibrate": {"activations": "percentile"}})
    first, second = (bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", steps=way) for way in ways)
    scales = [{s: float(e.scale.max()) for s, e in q.state.encodings.items()} for q in (first, second)]
    assert scales[0] == scales[1]


def test_wrong_requests_are_told(assets: Path) -> None:
    model, data = assets / "digits.onnx", assets / "digits_calib.npz"
    with pytest.raises(bw.InputError, match="recipe 'int9': there is no recipe of this name; did you mean 'int8'"):
        bw.quantize(model, data, recipe="int9")
    with pytest.raises(bw.InputError, match="--ends: is 17; expected 1 to 16 bits, or 0"):
        bw.quantize(model, data, ends=17)
    with pytest.raises(bw.InputError, match="was not written by bitwright"):
        bw.load(model)
    with pytest.raises(bw.InputError, match=r"an nn\.Module without an example batch"):
        bw.quantize(torch.nn.Linear(2, 2), {"input": np.zeros((2, 2), np.float32)})
