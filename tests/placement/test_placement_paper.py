"""The placement of papers on low-bit quantization: which sites of a network have quantizers, and of what width."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import bitwright as bw
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.pipeline import State
from bitwright.placement.overrides import parse_override
from bitwright.placement.place import place
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Float
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.targets.paper import PAPER

Network = Callable[..., ir.Model]


def planned(model: ir.Model, *settings: str, ends: int | None = 8) -> Plan:
    folded = FoldBatchNorm()(State(model=normalise(model), reference=model)).model
    return place(folded, PAPER, overrides=[parse_override(s) for s in settings or ("W=4,A=4",)], ends=ends).plan


def widths(plan: Plan) -> dict[str, int]:
    return {site: spec.bits for site in plan.sites if (spec := plan.qspec(site)) is not None}


@pytest.mark.real_data
def test_resnet20(root: Path) -> None:
    """Of each layer the weight; of activations the 10 after the stem and the blocks' first layers, and the 9 sums."""
    plan = planned(open_model(root.parent / "shared/data/models/resnet20_cifar10.onnx"))
    found = widths(plan)
    weights = [site for site in found if site.endswith(".weight")]
    assert len(weights) == 20 and [found[w] for w in weights] == [8, *[4] * 18, 8]
    activations = [site for site in found if site not in weights]
    made_by = {sites[-1]: region for region, sites in plan.regions.items()}
    expected = ["conv1"]
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            expected += [f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.Add"]
    assert sorted(made_by[site] for site in activations) == sorted(expected)
    last = next(site for site in activations if made_by[site] == "layer3.2.Add")
    assert {site: found[site] for site in activations} == dict.fromkeys(activations, 4) | {last: 8}
    assert not plan.refused
    reasons = plan.float_sites()
    assert "the network's input" in reasons[next(iter(plan.sites))]
    biases = [site for site in plan.sites if site.endswith(".bias")]
    assert len(biases) == 20 and all("biases in float" in reasons[site] for site in biases)
    ends = {region: plan.sites[sites[-1]] for region, sites in plan.regions.items()}
    for region in ("layer1.0.conv2", "layer2.0.conv2", "linear"):
        spec = ends[region]
        assert isinstance(spec, Float) and "no layer with weights reads it" in spec.reason, region


def test_inverted_residuals(exported: Callable[[str], Path]) -> None:
    """A linear bottleneck that the sum alone reads has no quantizer; the sum has, without an activation."""
    plan = planned(ir.load(exported("small_inverted_residual")))
    found = {region: widths(plan).get(sites[-1]) for region, sites in plan.regions.items()}
    assert found == {
        "body.0.0": 4, "body.1.conv.0.0": 4, "body.1.conv.1.0": 4, "body.1.conv.2": None, "body.1.Add": 4,
        "body.2.conv.0.0": 4, "body.2.conv.1.0": 4, "body.2.conv.2": 8, "avgpool": None, "Reshape": None, "fc": None,
    }  # fmt: skip


POOLED = [
    ("Conv", "x c.weight", "a"), ("Relu", "a", "b"), ("MaxPool", "b", "m", {"kernel_shape": [2, 2]}),
    ("Conv", "m d.weight", "e"), ("Sigmoid", "e", "s"), ("GlobalAveragePool", "s", "g"), ("Flatten", "g", "f"),
    ("Gemm", "f l.weight", "y", {"transB": 1}),
]  # fmt: skip
SHAPES = {"c.weight": (4, 3, 1, 1), "d.weight": (5, 4, 1, 1), "l.weight": (2, 5)}


def test_pools_pass_on_and_functions_count_as_the_layers_own(network: Network) -> None:
    plan = planned(network(POOLED, SHAPES))
    assert widths(plan) == {"c.weight": 8, "b": 4, "d.weight": 4, "s": 8, "l.weight": 8}
    reasons = plan.float_sites()
    assert "what it is made of has one" in reasons["m"] and "what it is made of has one" in reasons["f"]
    assert widths(planned(network(POOLED, SHAPES), "W=4,A=4", ends=None)) == {
        "c.weight": 4, "b": 4, "d.weight": 4, "s": 4, "l.weight": 4,
    }  # fmt: skip


def test_branches_of_a_concat_have_quantizers_of_their_own(network: Network) -> None:
    nodes = [
        ("Conv", "x c.weight", "a"), ("Conv", "x d.weight", "b"), ("Concat", "a b", "j", {"axis": 1}),
        ("Conv", "j e.weight", "k"), ("Conv", "k f.weight", "y"),
    ]  # fmt: skip
    shapes = {"c.weight": (2, 3, 1, 1), "d.weight": (3, 3, 1, 1), "e.weight": (2, 5, 1, 1), "f.weight": (2, 2, 1, 1)}
    plan = planned(network(nodes, shapes))
    assert {s: b for s, b in widths(plan).items() if "weight" not in s} == {"a": 4, "b": 4, "k": 8}
    assert plan.resolve("a")[0] == "a" and plan.resolve("b")[0] == "b"


def test_a_layer_that_is_kept_in_float_has_no_quantizer_at_its_output(network: Network) -> None:
    plan = planned(network(POOLED, SHAPES), "W=4,A=4", "c:float")
    assert {"c.weight", "b"}.isdisjoint(widths(plan)) and "d.weight" in widths(plan)


def test_widths_of_what_has_no_quantizer_are_refused(network: Network) -> None:
    with pytest.raises(bw.InputError, match="names no activation that is quantized"):
        planned(network(POOLED, SHAPES), "y:A=4")


def test_the_simulation_rounds_these_values_and_no_others(network: Network, tmp_path: Path) -> None:
    """Against the network written by hand, and read back from its file."""
    torch.manual_seed(3)
    conv, second = torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 3, padding=1)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.second, self.head = conv, second, torch.nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = torch.relu(self.conv(x))
            b = torch.relu(a + self.second(a))
            return self.head(torch.nn.functional.max_pool2d(b, 2))

    net = Block().eval()
    x = torch.randn(16, 2, 6, 6)
    quantized = bw.quantize(net, {"x": x.numpy()}, example=x, placement="paper", set=["W=3,A=3"], ends=0)
    assert quantized.placement == "paper" and quantized.plan.target == "paper"
    e = {site: quantized.state.encoding(site) for site in widths(quantized.plan)}
    weights = [e[w].dequantize(e[w].codes_of(quantized.state.tensor(w))) for w in
               ("conv.weight", "second.weight", "head.weight")]  # fmt: skip
    first, total = (e[s] for s in e if not s.endswith("weight"))
    with torch.no_grad():
        a = first.fake_quantize(torch.relu(torch.nn.functional.conv2d(x, weights[0], conv.bias, padding=1)))
        b = torch.relu(a + torch.nn.functional.conv2d(a, weights[1], second.bias, padding=1))
        pooled = torch.nn.functional.max_pool2d(total.fake_quantize(b), 2)
        expected = torch.nn.functional.conv2d(pooled, weights[2], net.head.bias)
        found = quantized.torch()(x)[0]
    step = float(total.scale)
    assert torch.allclose(found, expected, atol=1e-5 * step)
    quantized.save(tmp_path / "paper.onnx")
    read = bw.load(tmp_path / "paper.onnx")
    assert read.placement == "paper" and read.plan == quantized.plan
    with torch.no_grad():
        assert torch.allclose(read.torch()(x)[0], expected, atol=1e-5 * step)
    assert quantized.integer_mac_share() < 1, "the first layer reads the image as it is"


def test_the_default_is_what_it_was(assets: Path) -> None:
    model, data = assets / "digits.onnx", assets / "digits_calib.npz"
    said, not_said = bw.quantize(model, data, limit=16, placement="deployable"), bw.quantize(model, data, limit=16)
    assert said.plan == not_said.plan and said.placement == "deployable"
    assert "image" in widths(said.plan), "the network's input is quantized"


@pytest.mark.parametrize(
    ("placement", "target", "told"),
    [
        ("papers", "auto", "placement 'papers': there is no placement of this name; did you mean 'paper'?"),
        (
            "paper",
            "onnxruntime-x64",
            "--placement paper: beside the target 'onnxruntime-x64'",
        ),
        ("deployable", "paper", "--placement deployable: beside the target 'paper'"),
    ],
)
def test_what_does_not_fit_together(placement: str, target: str, told: str, assets: Path) -> None:
    with pytest.raises(bw.InputError) as caught:
        bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", limit=16, placement=placement, target=target)
    assert told in str(caught.value)


def test_a_plan_of_the_other_placement_is_refused(assets: Path) -> None:
    model, data = assets / "digits.onnx", assets / "digits_calib.npz"
    paper = bw.quantize(model, data, limit=16, placement="paper")
    again = bw.quantize(model, data, limit=16, plan=paper.plan, placement="paper")
    assert again.plan == paper.plan
    assert bw.quantize(model, data, limit=16, plan=paper.plan).placement == "paper"
    with pytest.raises(bw.InputError, match="--placement deployable: beside the target of plan 'paper'"):
        bw.quantize(model, data, limit=16, plan=paper.plan, placement="deployable")
