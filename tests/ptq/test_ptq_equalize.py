"""Equalization: the sheet's vectors, the same function before and after, and better codes for a whole weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.graph.export import from_module
from bitwright.graph.layers import find_links
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.graph.regions import activation_bounds
from bitwright.models import build
from bitwright.pipeline import State, run_chain
from bitwright.plan.plan import Plan
from bitwright.ptq.equalize import (
    Equalize,
    counted,
    equalizable_sets,
    equalization_factors,
    input_ranges,
    output_ranges,
    stayed_below,
)
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.programs import float_program


def drawn(module: nn.Module, seed: int = 0, spread: float = 1.5) -> nn.Module:
    """The module with batch norms that have seen data, and channels of very unlike weights."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                part.weight.copy_(torch.exp(spread * torch.randn(part.weight.shape, generator=generator)))
                part.bias.normal_(0, 0.5, generator=generator)
    return module.eval()


def folded_module(module: nn.Module, shape: Sequence[int]) -> State:
    model = normalise(open_model(module, torch.randn(2, *shape)))
    return run_chain([FoldBatchNorm()], State(model=model, reference=model), None)


@cache
def folded_network(name: str, spread: float = 1.5) -> State:
    """A reference network of unlike channels, exported once."""
    network = build(name)
    return folded_module(drawn(network, spread=spread), network.input_shape)


def inputs_of(name: str, images: int) -> Tensor:
    return torch.randn(images, *build(name).input_shape)


def output(state: State, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = float_program(state).module(x)[0]
    return found


def same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * a.abs().max())


# Vectors.


def test_a_pair() -> None:
    """r1 = [4, 1], r2 = [1, 9]: s = [2, 1/3], both ranges [2, 3]."""
    (s,) = equalization_factors([torch.tensor([4.0, 1.0]), torch.tensor([1.0, 9.0])])
    assert torch.allclose(s, torch.tensor([2.0, 1 / 3], dtype=torch.float64))


def test_a_triple() -> None:
    """r = (8, 1, 1): S12 = 4, S23 = 2, all ranges 2."""
    first, second = equalization_factors([torch.tensor([r]) for r in (8.0, 1.0, 1.0)])
    assert first.tolist() == pytest.approx([4.0]) and second.tolist() == pytest.approx([2.0])


def test_dead_channels_stay_and_factors_are_bounded() -> None:
    (s,) = equalization_factors([torch.tensor([0.0, 1e30, 2.0]), torch.tensor([5.0, 1e-30, 0.0])])
    assert s.tolist() == [1.0, 1e8, 1.0]


ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    "relu": ("Relu", "a", "m"), "none": ("Identity", "a", "m"), "leaky": ("LeakyRelu", "a", "m", {"alpha": 0.2}),
    "prelu": ("PRelu", "a slope", "m"), "max": ("MaxPool", "a", "m", {"kernel_shape": [2, 2]}),
    "average": ("AveragePool", "a", "m", {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "global": ("GlobalAveragePool", "a", "m"),
    "sigmoid": ("Sigmoid", "a", "m"), "hard swish": ("HardSwish", "a", "m"), "bounded": ("Clip", "a zero one", "m"),
}  # fmt: skip
HOMOGENEOUS = ("relu", "none", "leaky", "prelu", "max", "average", "global")
Folded = Callable[..., State]


def pair(folded: Folded, act: str) -> State:
    """Two 1x1 layers whose ranges are those of the sheet."""
    weights = {
        "a.weight": np.array([4, 1], np.float32).reshape(2, 1, 1, 1), "a.bias": np.array([1.0, -2.0], np.float32),
        "b.weight": np.array([1, 9], np.float32).reshape(1, 2, 1, 1), "b.bias": np.array([3.0], np.float32),
    }  # fmt: skip
    constants = {"slope": [[[0.1]], [[0.3]]], "zero": 0.0, "one": 1.0}
    read = ACTIVATIONS[act][1].split()
    weights |= {name: np.array(value, np.float32) for name, value in constants.items() if name in read}
    nodes = [("Conv", "x a.weight a.bias", "a"), ACTIVATIONS[act], ("Conv", "m b.weight b.bias", "y")]
    return folded(nodes, weights, (1, 4, 4))


def test_weights_and_biases_of_a_pair(folded: Folded) -> None:
    state = pair(folded, "relu")
    found = Equalize()(state)
    assert torch.allclose(found.tensor("a.weight").flatten(), torch.tensor([2.0, 3.0]))
    assert torch.allclose(found.tensor("b.weight").flatten(), torch.tensor([2.0, 3.0]))
    assert torch.allclose(found.tensor("a.bias"), state.tensor("a.bias") / torch.tensor([2.0, 1 / 3]))
    assert "b.bias" not in found.overlay and not state.overlay


# The same function.


@pytest.mark.parametrize("act", HOMOGENEOUS)
def test_homogeneous_activations_keep_the_function(act: str, folded: Folded) -> None:
    state = pair(folded, act)
    found = Equalize()(state)
    x = torch.randn(3, 1, 4, 4)
    assert same(output(state, x), output(found, x))
    assert torch.allclose(found.tensor("a.weight").flatten(), torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("act", sorted(set(ACTIVATIONS) - set(HOMOGENEOUS)))
def test_other_activations_are_left_alone(act: str, folded: Folded) -> None:
    found = Equalize()(pair(folded, act))
    assert not found.overlay and found.log[-1].facts["equalized_sets"] == 0


def test_grouped_convolutions_and_additions_break_a_set(folded: Folded) -> None:
    wide, narrow = np.ones((4, 4, 1, 1), np.float32), np.ones((4, 2, 1, 1), np.float32)
    grouped = [("Conv", "x a", "m"), ("Conv", "m b", "n", {"group": 2}), ("Conv", "n c", "y")]
    assert equalized_sets(folded(grouped, {"a": wide, "b": narrow, "c": wide}, (4, 2, 2))) == 0
    added = [("Conv", "x a", "m"), ("Add", "m x", "n"), ("Conv", "n c", "y")]
    assert equalized_sets(folded(added, {"a": wide, "c": wide}, (4, 2, 2))) == 0
    plain = [("Conv", "x a", "m"), ("Conv", "m c", "y")]
    assert equalized_sets(folded(plain, {"a": wide, "c": wide}, (4, 2, 2))) == 1


def equalized_sets(state: State) -> int:
    found: int = Equalize()(state).log[-1].facts["equalized_sets"]
    return found


NETWORKS = ("small_residual", "small_conv_transpose", "small_shuffle")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_stays_the_same_function(name: str) -> None:
    state = folded_network(name)
    found = Equalize()(state)
    assert found.log[-1].facts["equalized_sets"] > 0 and found.overlay
    x = inputs_of(name, 2)
    assert same(output(state, x), output(found, x))
    assert found.model is state.model


def test_depthwise_triples_end_with_equal_ranges_and_batch_norm_follows() -> None:
    state = folded_network("small_inverted_residual", 0.2)
    found = Equalize(relu6="replace")(state)
    triples = [links for links in equalizable_sets(find_links(found.model)) if len(links) == 2]
    assert triples and found.log[-1].facts["relu6_changed"] > 0
    for first, second in triples:
        a, b = (output_ranges(link.first, found.tensor(link.first.weight)) for link in (first, second))
        c = input_ranges(second.last, found.tensor(second.last.weight))
        assert torch.allclose(a, b, rtol=5e-3) and torch.allclose(b, c, rtol=5e-3)
    # What the layers give is divided by s; so are the mean and spread that are known of it.
    for weight, bn in found.batchnorm.items():
        before = state.batchnorm[weight]
        assert torch.allclose(bn.beta * before.gamma, before.beta * bn.gamma, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(bn.gamma, state.batchnorm[w].gamma) for w, bn in found.batchnorm.items())
    # It is the function of the network whose ReLU6 inside sets have no upper bound.
    clips = [[n for n in s.model.graph if n.op_type == "Clip"] for s in (state, found)]
    left = {n.outputs[0].name for n in clips[1]}
    bounds = {
        n.inputs[2].name or "": torch.tensor(1e9) for n in clips[0] if n.outputs[0].name not in left and n.inputs[2]
    }
    x = 3 * inputs_of("small_inverted_residual", 2)
    assert same(output(state.but(overlay=bounds), x), output(found, x))
    assert not same(output(state, x), output(found, x))


def test_relu6_can_be_kept_and_then_nothing_changes_through_it() -> None:
    state = folded_network("small_inverted_residual")
    found = Equalize(relu6="keep")(state)
    x = 3 * inputs_of("small_inverted_residual", 2)
    assert same(output(state, x), output(found, x)) and found.log[-1].facts["relu6_changed"] == 0
    replaced = Equalize(relu6="replace")(state)
    assert sum(n.op_type == "Clip" for n in replaced.model.graph) < sum(n.op_type == "Clip" for n in state.model.graph)


def test_statistics_of_a_batch_norm_before_a_layer_follow(folded: Folded) -> None:
    vector = {k: np.array(v, np.float32) for k, v in
              dict(gamma=[2, -1], beta=[0.5, 1], mean=[0.3, 0.6], var=[1, 4], bias=[1, 2]).items()}  # fmt: skip
    weights = {"a": np.array([4, 1], np.float32).reshape(2, 1, 1, 1), "b": np.ones((3, 2, 1, 1), np.float32)}
    nodes = [
        ("Conv", "x a bias", "c"), ("Relu", "c", "r"), ("BatchNormalization", "r gamma beta mean var", "n"),
        ("Conv", "n b", "y"),
    ]  # fmt: skip
    state = folded(nodes, {**vector, **weights}, (1, 4, 4))
    found = Equalize()(state)
    (weight,) = state.input_batchnorm
    s = state.tensor("bias") / found.tensor("bias")
    assert not torch.allclose(s, torch.ones(2))
    assert torch.allclose(found.input_batchnorm[weight].mean * s, state.input_batchnorm[weight].mean, rtol=1e-5)
    assert torch.allclose(found.input_batchnorm[weight].var * s**2, state.input_batchnorm[weight].var, rtol=1e-5)
    x = torch.randn(2, 1, 4, 4)
    assert same(output(state, x), output(found, x))


def test_a_wider_bound_is_nearer_to_the_function_than_none(folded: Folded) -> None:
    """s = [2, 1/3]: the bound 18 is exact for the second channel, and lets the first rise to 36 where it was 6."""
    state = bounded_pair(folded)
    widened, replaced = (Equalize(relu6=how)(state) for how in ("widen", "replace"))
    (node,) = (n for n in widened.model.graph if n.op_type == "Clip")
    bounds = activation_bounds(node)
    assert bounds is not None and bounds[0] == 0 and bounds[1] == pytest.approx(18.0)
    x = torch.tensor([-1.0, 1.4, 8.0, 50.0]).reshape(4, 1, 1, 1).expand(4, 1, 4, 4)
    wanted, found, loose = (output(s, x)[:, 0, 0, 0].tolist() for s in (state, widened, replaced))
    assert wanted == pytest.approx([0, 5.6 + 9 * 1.4, 6 + 54, 6 + 54])
    assert found == pytest.approx([0, 5.6 + 9 * 1.4, 32 + 54, 36 + 54])
    assert loose == pytest.approx([0, 5.6 + 9 * 1.4, 32 + 72, 200 + 450])


# ReLU6 that channels get to.


def bounded_pair(folded: Folded) -> State:
    """Two layers around a ReLU6, r1 = [4, 1], r2 = [1, 9]; alone they would take s = [2, 1/3]."""
    weights = {
        "a.weight": np.array([4, 1], np.float32).reshape(2, 1, 1, 1), "zero": np.array(0, np.float32),
        "b.weight": np.array([1, 9], np.float32).reshape(1, 2, 1, 1), "six": np.array(6, np.float32),
    }  # fmt: skip
    clip = ("Clip", "a zero six", "m")
    return folded([("Conv", "x a.weight", "a"), clip, ("Conv", "m b.weight", "y")], weights, (1, 4, 4))


@pytest.mark.parametrize(
    ("largest", "factors", "bound"),
    [
        (1.4, (2.0, 1 / 3), 18.0),  # 5.6 and 1.4: neither gets there, nor could it under the bound 6 / (1/3)
        (2.0, (2.0, 2.0 * 2 / 6), 3.0),  # 8 and 2: the first does, so the bound is 6 / 2, and the second stays below
        (9.0, ((2 / 3) ** 0.5, (2 / 3) ** 0.5), 6 / (2 / 3) ** 0.5),  # both do: one factor, their geometric mean
    ],
)
def test_factors_of_channels_that_get_to_six(
    largest: float, factors: tuple[float, float], bound: float, folded: Folded, batches_of: Any
) -> None:
    state = bounded_pair(folded)
    x = np.linspace(-largest, largest, 8 * 16, dtype=np.float32).reshape(8, 1, 4, 4)
    found = Equalize(reached=0.0)(state, batches_of(state, x))
    # What a channel reaches is known to a step of 6 / 64.
    assert (state.tensor("a.weight") / found.tensor("a.weight")).flatten().tolist() == pytest.approx(factors, rel=0.05)
    (node,) = (n for n in found.model.graph if n.op_type == "Clip")
    bounds = activation_bounds(node)
    assert bounds is not None and bounds[1] == pytest.approx(bound, rel=1e-5)
    assert same(output(state, torch.from_numpy(x)), output(found, torch.from_numpy(x)))
    assert found.log[-1].facts["relu6_reached"] == sum(r * largest > 6 for r in (4, 1))


def test_a_network_whose_channels_get_to_six_stays_the_same_function(batches_of: Any) -> None:
    state = folded_network("small_inverted_residual")
    x = 3 * inputs_of("small_inverted_residual", 8)
    found = Equalize(reached=0.0)(state, batches_of(state, x.numpy()))
    facts = found.log[-1].facts
    assert facts["relu6_changed"] > 0 and facts["relu6_reached"] > 0 and found.overlay
    assert same(output(state, x), output(found, x))
    for how in ("widen", "replace"):
        assert not same(output(state, x), output(Equalize(relu6=how)(state), x))


def test_without_images_batch_norm_says_what_channels_reach(folded: Folded) -> None:
    def behind(beta: float) -> State:
        vector = {k: np.array(v, np.float32) for k, v in
                  dict(gamma=[4, 1], beta=[beta, 0], mean=[0, 0], var=[1, 1], zero=0, six=6).items()}  # fmt: skip
        weights = {"a": np.ones((2, 1, 1, 1), np.float32), "b": np.array([1, 9], np.float32).reshape(1, 2, 1, 1)}
        nodes = [("Conv", "x a", "c"), ("BatchNormalization", "c gamma beta mean var", "n"),
                 ("Clip", "n zero six", "r"), ("Conv", "r b", "y")]  # fmt: skip
        return run_chain([FoldBatchNorm()], folded(nodes, vector | weights, (1, 4, 4)), None)

    # A hundredth of a normal variable is above its mean and 2.326 deviations.
    for beta, reached in ((6 - 4 * 2.3, 1), (6 - 4 * 2.4, 0)):
        facts = Equalize()(behind(beta)).log[-1].facts
        assert (facts["relu6_changed"], facts["relu6_reached"]) == (1, reached)


def test_where_nothing_says_what_channels_reach_they_stay(folded: Folded, batches_of: Any) -> None:
    state = bounded_pair(folded)
    assert Equalize()(state).log[-1].facts["equalized_sets"] == 0
    some = batches_of(state, np.ones((2, 1, 4, 4), np.float32))
    assert Equalize()(state, some).log[-1].facts["equalized_sets"] == 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
def test_what_channels_stay_below(share: float) -> None:
    values = 3 * torch.randn(50, 5, 7, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(5).reshape(
        5, 1, 1
    )
    counts = counted(values[:20], 6.0) + counted(values[20:], 6.0)
    assert counts.shape == (5, 66) and counts.sum(1).tolist() == [50 * 7 * 3] * 5
    found = stayed_below(counts, 6.0, share)
    rows = values.transpose(0, 1).flatten(1)
    for limit, row in zip(found.tolist(), rows, strict=True):
        assert (row > limit).float().mean() <= share + 1e-9
        lower = min(limit, 6 + 6 / 64) - 6 / 64  # one step less would be too few, or lies at 0
        assert (row > lower).float().mean() > share or limit == 0


# What it is for.


def simulated_error(network: ir.Model, granularity: str, recipe: str) -> float:
    """Mean squared error of the simulation against the float network, over the network's own power."""
    x = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    q = bw.quantize(
        network.clone(), {"input": x.numpy()}, recipe=recipe, target="onnxruntime-x64",
        steps={"place": {"granularity": granularity}},
    )  # fmt: skip
    with torch.no_grad():
        y, found = q.torch("float")(x)[0], q.torch("simulated")(x)[0]
    return float((found - y).square().mean() / y.square().mean())


def test_one_scale_for_a_weight_needs_equal_ranges(tmp_path: Any) -> None:
    """The paper's claim: per-tensor weights of unlike channels are useless, and equalized ones are not."""
    equalized = tmp_path / "equalized.yaml"
    equalized.write_text("help: x\nsteps: [fold_batchnorm, equalize, place, calibrate]\n")
    module = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16),
        nn.ReLU(), nn.Conv2d(16, 8, 1),
    )  # fmt: skip
    network = from_module(drawn(module, spread=2.5), torch.zeros(2, 3, 6, 6))
    naive = simulated_error(network, "tensor", "int8")
    better = simulated_error(network, "tensor", str(equalized))
    by_channel = simulated_error(network, "channel", "int8")
    assert better < naive / 4
    assert by_channel < naive / 4, "where each channel has its scale there is nothing to gain"


# What it refuses.


def test_it_comes_before_placing(folded: Folded) -> None:
    state = pair(folded, "relu")
    with pytest.raises(InputError, match=r"equalize: the network has a plan; .*; run it before 'place'"):
        Equalize()(state.but(plan=Plan(target="onnxruntime-x64", sites={}, regions={})))
    with pytest.raises(InputError, match=r"equalize\.relu6: is 'drop'; expected fit, widen, replace or keep"):
        Equalize(relu6="drop")(state)
    with pytest.raises(InputError, match=r"equalize\.reached: is 1; expected a share"):
        Equalize(reached=1)(state)
    with pytest.raises(InputError, match=r"equalize\.images: is 0; expected 1 or more"):
        Equalize(images=0)(state)


@pytest.mark.real_data
def test_resnet20_stays_the_same_function(root: Any) -> None:
    model = normalise(open_model(root.parent / "shared/data/models/resnet20_cifar10.onnx"))
    state = run_chain([FoldBatchNorm()], State(model=model, reference=model), None)
    found = Equalize()(state)
    x = torch.randn(2, 3, 32, 32)
    assert found.log[-1].facts["equalized_sets"] == 9 and same(output(state, x), output(found, x))
