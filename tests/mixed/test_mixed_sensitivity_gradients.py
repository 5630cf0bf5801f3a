"""HAWQ and Fisher: exact derivatives of small networks, formulas by hand, claims in both directions."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bitwright.data.batches import Batches
from bitwright.data.opening import open_data
from bitwright.errors import InputError, UnsupportedError
from bitwright.graph.normalise import normalise
from bitwright.lookup import lookup
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library, stock
from bitwright.mixed.problem import Additive
from bitwright.mixed.sensitivity import SENSITIVITIES
from bitwright.mixed.sensitivity.fisher import Fisher
from bitwright.mixed.sensitivity.gradients import cross_entropy, gradients
from bitwright.mixed.sensitivity.hawq import LEAST, Hawq, rademacher, top_eigenvalue, trace
from bitwright.mixed.space import space_of
from bitwright.pipeline import State, run_chain
from bitwright.plan.plan import Plan
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = 10, np.array([0, 1, 2, 1, 0, 2, 2, 1, 0, 1])
X = np.random.default_rng(1).normal(size=(IMAGES, 2, 5, 5)).astype(np.float32)
FEW, ALONE = Hawq(samples=LEAST), Hawq(samples=LEAST, together=False)
NODES: tuple[tuple[Any, ...], ...] = (
    ("Conv", "x conv1.weight conv1.bias", "c1", {"pads": [1, 1, 1, 1]}), ("Relu", "c1", "h"),
    ("Conv", "h conv2.weight conv2.bias", "c2"), ("Relu", "c2", "r2"),
    ("Conv", "h dead.weight dead.bias", "c3"), ("Relu", "c3", "r3"), ("Add", "r2 r3", "s"),
    ("GlobalAveragePool", "s", "g"), ("Flatten", "g", "f"), ("Gemm", "f fc.weight fc.bias", "y", {"transB": 1}),
)  # fmt: skip
NAMES = ("conv1.weight", "conv2.weight", "dead.weight", "fc.weight")
Made = tuple[Library, Batches]


class Small(nn.Module):
    """Two convolutions and a linear layer; beside them a convolution that never says anything. As in `NODES`."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.conv1, self.conv2, self.fc = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.dead = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=draws) * (0.4 if p.ndim > 1 else 0.1))
            self.dead.get_parameter("bias").sub_(1000.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x).relu()
        y: Tensor = self.fc((self.conv2(h).relu() + self.dead(h).relu()).mean((2, 3)))
        return y


def make(
    net: Small, *, batch: int = IMAGES, labels: Any = LABELS, output: str = "y", rows: int | None = None, **space: Any
) -> Made:
    """A library with weights of 8, 4 and 2 bits, all layers moving, and images."""
    end = [n[2] for n in NODES].index(output) + 1
    nodes = [helper.make_node(op, reads.split(), [gives], name=gives, **(extra[0] if extra else {}))
             for op, reads, gives, *extra in NODES[:end]]  # fmt: skip
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows or "N", 2, 5, 5])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(p.detach().numpy(), name) for name, p in net.named_parameters()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = normalise(ir.from_proto(made))
    given = {"x": X} if labels is None else {"x": X, "labels": labels}
    batches = open_data(given, {"x": ((rows, 2, 5, 5), "float32")}, batch_size=batch)
    state = run_chain([FoldBatchNorm()], State(model=model, reference=model), None)

    def quantized(plan: Plan | None) -> State:
        place = Place(ends=0) if plan is None else Place(plan=plan)
        return run_chain([place, Calibrate()], state, batches)

    base = quantized(None)
    return stock(space_of(base, [8, 4, 2], ends=True, **space), base, quantized), batches


@pytest.fixture(scope="module")
def net() -> Small:
    return Small()


@pytest.fixture(scope="module")
def made(net: Small) -> Made:
    return make(net)


@pytest.fixture(scope="module")
def traced(made: Made) -> Additive:
    return FEW(*made)


def by_layer(library: Library, loss: Additive) -> dict[str, tuple[float, ...]]:
    return dict(zip([group.name for group in library.space.groups], loss.values, strict=True))


def moved_by(library: Library, site: str) -> list[Tensor]:
    """`Q_k(W) - W` of one layer at 8, 4, 2 bits."""
    weight = library.state.tensor(site)
    return [library.weights[site, bits].values(weight) - weight for bits in (8, 4, 2)]


def loss_of(net: nn.Module, weights: Sequence[str], flat: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy as a function of the weights' values, one behind the other."""
    own = dict(net.named_parameters())
    parts = flat.split([own[name].numel() for name in weights])
    given = {name: part.reshape(own[name].shape) for name, part in zip(weights, parts, strict=True)}
    y: Tensor = torch.func.functional_call(net, given, (x,))
    return nn.functional.cross_entropy(y, labels)


def exact_hessian(net: nn.Module, weights: Sequence[str]) -> Tensor:
    own = dict(net.named_parameters())
    flat = torch.cat([own[name].detach().flatten() for name in weights])
    x, labels = torch.from_numpy(X), torch.from_numpy(LABELS)
    found: Tensor = torch.func.hessian(lambda w: loss_of(net, weights, w, x, labels))(flat)
    return found


def symmetric(n: int) -> Tensor:
    a = torch.randn(n, n, generator=GENERATOR, dtype=torch.float64)
    return a + a.T


# Pure functions, on f = 1/2 w^T A w.


def test_the_trace_of_each_block_of_a_quadratic() -> None:
    a = symmetric(12) + 5 * torch.eye(12, dtype=torch.float64)
    w = torch.randn(12, generator=GENERATOR, dtype=torch.float64, requires_grad=True)

    def hvp(v: Sequence[Tensor]) -> list[Tensor]:
        (slope,) = gradients(0.5 * w @ a @ w, [w], again=True)
        return list(gradients(slope @ torch.cat(list(v)), [w])[0].split([5, 7]))

    like = [torch.zeros(5, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)]
    found = trace(hvp, like, samples=400, tolerance=1e-9)
    for value, part in zip(found, (slice(0, 5), slice(5, 12)), strict=True):
        noise = a[part].square().sum() * 2  # at least the variance of a draw
        assert abs(value - float(a[part, part].trace())) < 4 * float(noise / 400) ** 0.5


def test_a_diagonal_is_known_after_the_fewest_draws_and_another_matrix_is_not() -> None:
    drawn: list[int] = []
    like = [torch.zeros(6)]
    assert trace(lambda v: [3 * v[0]], like, drawn=drawn.append) == [18.0]
    assert drawn[-1] == LEAST
    a = symmetric(6).float()
    trace(lambda v: [a @ v[0]], like, samples=60, tolerance=1e-6, drawn=drawn.append)
    assert drawn[-1] == 60
    trace(lambda v: [(a + 100 * torch.eye(6)) @ v[0]], like, samples=60, drawn=drawn.append)
    assert LEAST <= drawn[-1] < 60


def test_the_top_eigenvalue_is_the_one_of_largest_magnitude() -> None:
    for sign in (1, -1):
        vectors = torch.linalg.qr(symmetric(8))[0]
        a = vectors @ torch.diag(torch.tensor([sign * 9.0, -sign * 4, 3, 2, 1, 0, 0, 0]).double()) @ vectors.T
        found = top_eigenvalue(lambda v, a=a: [a @ v[0]], torch.zeros(8, dtype=torch.float64))  # type: ignore[misc]
        assert found == pytest.approx(sign * 9.0, rel=1e-2)
    assert top_eigenvalue(lambda v: [0 * v[0]], torch.zeros(8)) == 0.0


def test_gradients_of_what_cannot_be_differentiated_again_name_the_op() -> None:
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    for op, attend in (
        ("_scaled_dot_product_flash_attention_for_cpu_backward", nn.functional.scaled_dot_product_attention),
        ("_cdist_backward", lambda q, k, v: torch.cdist(q, k + 1)),
    ):
        (slope,) = gradients(attend(x, x, x).square().sum(), [x], again=True)
        assert slope.abs().sum() > 0
        with pytest.raises(UnsupportedError, match=rf"{op}\).*second"):
            gradients(slope.square().sum(), [x])


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0]])
def test_labels_that_are_no_classes(labels: list[int]) -> None:
    with pytest.raises(InputError, match="labels"):
        cross_entropy(torch.zeros(2, 3), torch.tensor(labels))


# HAWQ on a network.


def test_products_are_those_of_the_exact_hessian(net: Small, made: Made) -> None:
    kept = Kept(None)
    found = Hawq(seed=5, samples=LEAST).curvatures(*made, kept)
    assert set(found) == set(NAMES)
    h = exact_hessian(net, list(found)).detach()
    v = rademacher([made[0].state.tensor(name) for name in found], seed=5, draw=0)
    flat = torch.cat([one.flatten() for one in v])
    parts = (flat * (h @ flat)).split([one.numel() for one in v])
    assert kept.get("draw 0") == pytest.approx([float(part.sum()) for part in parts], rel=1e-3, abs=1e-5)
    spread = np.array([kept.get(f"draw {i}") for i in range(LEAST)]).std(0, ddof=1) / LEAST**0.5
    sizes = np.cumsum([0, *(one.numel() for one in v)])
    for value, error, (low, high) in zip(found.values(), spread, itertools.pairwise(sizes), strict=True):
        assert abs(value * (high - low) - float(h[low:high, low:high].trace())) <= 4 * error + 1e-9


def test_one_layer_at_a_time_is_much_nearer_to_its_trace(net: Small, made: Made) -> None:
    exact = {name: float(exact_hessian(net, [name]).detach().trace()) for name in NAMES}
    away = []
    for method in (ALONE, FEW):
        found = method.curvatures(*made)
        away.append(
            [abs(found[n] * made[0].state.tensor(n).numel() - exact[n]) for n in ("conv1.weight", "fc.weight")]
        )
    assert np.sum(away[0]) < np.sum(away[1])
    assert away[0] == pytest.approx([0.0, 0.0], abs=0.3 * max(exact.values()))


def test_eigenvalues_are_those_of_the_exact_hessian(net: Small, made: Made) -> None:
    for site, value in Hawq(statistic="eigenvalue").curvatures(*made).items():
        values = torch.linalg.eigvalsh(exact_hessian(net, [site]).detach())
        assert value * made[0].state.tensor(site).numel() == pytest.approx(float(values[-1]), rel=0.02, abs=1e-9)


@pytest.mark.parametrize("statistic", ["trace", "eigenvalue"])
def test_the_loss_is_curvature_times_squared_noise(made: Made, statistic: str) -> None:
    method, kept = Hawq(statistic=statistic, samples=LEAST), Kept(None)
    loss = by_layer(made[0], method(*made, kept))
    for site, value in method.curvatures(*made, kept).items():
        factor = value if statistic == "trace" else value * made[0].state.tensor(site).numel()
        expected = [factor * float(d.square().sum()) for d in moved_by(made[0], site)]
        assert loss[site.removesuffix(".weight")] == pytest.approx(expected, rel=1e-4)


def test_tied_widths_give_what_the_weights_give(net: Small, made: Made, traced: Additive) -> None:
    alone, (library, images) = by_layer(made[0], traced), make(net, tied=True)
    assert len(library.space.groups) < len(alone)
    for group, row in zip(library.space.groups, FEW(library, images).values, strict=True):
        members = [alone[product.name] for product in library.space.products[group.name]]
        assert row == pytest.approx(np.sum(members, 0).tolist(), rel=1e-3)


def test_hawq_of_activations_is_mean_curvature_times_squared_noise(net: Small, made: Made, traced: Additive) -> None:
    library, images = make(net, activations=[8, 3])
    weights, kept = by_layer(made[0], traced), Kept(None)
    row = by_layer(library, FEW(library, images, kept))
    (group,) = [g for g in library.space.groups if "conv2" in g.name]
    (root,) = library.space.roots[group.name]
    h = net.conv1(torch.from_numpy(X)).relu().detach()

    def loss(one: Tensor, label: Tensor) -> Tensor:
        y = net.fc((net.conv2(one[None]).relu() + net.dead(one[None]).relu()).mean((2, 3)))
        return nn.functional.cross_entropy(y, label[None])

    n = h[0].numel()
    exact = [torch.func.hessian(loss)(one, label).detach().reshape(n, n).trace()
             for one, label in zip(h, torch.from_numpy(LABELS), strict=True)]  # fmt: skip
    at = [r for each in library.space.roots.values() for r in each].index(root)
    draws = np.array([kept.get(f"draw of activations {i}") for i in range(LEAST)])[:, at]
    curvature = float(torch.stack(exact).mean())
    assert curvature > 0 and abs(draws.mean() - curvature) <= 4 * draws.std(ddof=1) / LEAST**0.5
    added = {}
    for bits in (8, 3):
        noise = library.activations[root, bits].fake_quantize(h).detach() - h
        added[bits] = draws.mean() / n * float(noise.square().flatten(1).sum(1).mean())
    assert added[3] > 10 * added[8] > 0
    for width, value in zip(group.choices, row[group.name], strict=True):
        k = (8, 4, 2).index(width.weight or 0)
        members = sum(weights[product.name][k] for product in library.space.products[group.name])
        assert value == pytest.approx(members + added[width.activation or 0], rel=1e-3)


def test_eigenvalues_tell_nothing_of_activations_with_widths_of_their_own(net: Small) -> None:
    library, images = make(net, activations=[8, 4])
    with pytest.raises(InputError, match=r"hawq.statistic eigenvalue: group .* statistic=trace"):
        Hawq(statistic="eigenvalue", samples=2)(library, images)
    assert FEW.passes(library.space) == 2 * FEW.passes(make(net, tied=True)[0].space) + 1


# Both.

BOTH: dict[str, Any] = {
    "trace": FEW,
    "one": ALONE,
    "eigenvalue": Hawq(statistic="eigenvalue", samples=20),
    "fisher": Fisher(),
}


@pytest.mark.parametrize("name", BOTH)
def test_what_does_not_speak_loses_nothing_and_narrow_widths_lose_more(made: Made, name: str) -> None:
    for layer, row in by_layer(made[0], BOTH[name](*made)).items():
        assert (row == (0.0,) * 3) if layer == "dead" else (0 < row[0] < row[1] < row[2]), layer


# Not all layers together: the small ones drown in the last one's curvature.
@pytest.mark.parametrize("name", ["one", "eigenvalue", "fisher"])
def test_scores_of_larger_scale_make_the_layers_more_sensitive(net: Small, name: str) -> None:
    small, large = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        small.fc.weight *= 0.1
        large.fc.weight *= 0.4
    before, after = (by_layer(each[0], BOTH[name](*each)) for each in (make(small), make(large)))
    for layer in ("conv1", "conv2", "fc"):
        assert after[layer][2] > 3 * before[layer][2], layer


@pytest.mark.parametrize("name", BOTH)
def test_an_interrupted_run_goes_on_to_the_same_result(net: Small, name: str, tmp_path: Path) -> None:
    library, images = make(net, batch=4)
    whole, told = BOTH[name](library, images), list[int]()
    path = tmp_path / "kept"

    def stop(done: int) -> None:
        told.append(done)
        if sum(told) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BOTH[name](library, images, Kept(path), stop)
    first = path.read_text().splitlines()
    told.clear()
    assert BOTH[name](library, images, Kept(path), told.append) == whole
    lines = path.read_text().splitlines()
    assert first and lines[: len(first)] == first and len(lines) > len(first)
    assert sum(told) == IMAGES
    path.write_text("".join(line.replace("0.", "7.", 1) + "\n" for line in lines))
    assert BOTH[name](library, images, Kept(path)) != whole  # what is kept is what counts


def test_a_seed_says_all_draws(made: Made, traced: Additive) -> None:
    assert FEW(*made) == traced
    assert Hawq(samples=LEAST, seed=1)(*made) != traced


# Fisher on a network.


def single_gradients(net: nn.Module, labels: np.ndarray) -> list[dict[str, Tensor]]:
    own = dict(net.named_parameters())
    found = []
    for x, label in zip(torch.from_numpy(X), torch.from_numpy(labels), strict=True):
        loss = nn.functional.cross_entropy(net(x[None]), label[None])
        found.append(dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True)))
    return found


@pytest.mark.parametrize("target", ["labels", "predicted"])
def test_fisher_is_the_mean_of_the_squared_gradients_of_single_images(net: Small, target: str) -> None:
    library, images = make(net, labels=LABELS if target == "labels" else None)
    with torch.no_grad():
        predicted = net(torch.from_numpy(X)).argmax(1).numpy()
    assert (predicted != LABELS).any()
    single = single_gradients(net, LABELS if target == "labels" else predicted)
    loss = by_layer(library, Fisher(target=target)(library, images))
    for name in NAMES:
        squares = torch.stack([one[name] for one in single]).square().mean(0)
        expected = [0.5 * float((squares * d.square()).sum()) for d in moved_by(library, name)]
        assert loss[name.removesuffix(".weight")] == pytest.approx(expected, rel=1e-4, abs=1e-12)
    mean = torch.stack([one["conv1.weight"] for one in single]).mean(0).square()
    of_the_mean = 0.5 * float((mean * moved_by(library, "conv1.weight")[2].square()).sum())
    assert of_the_mean < 0.8 * loss["conv1"][2]


@pytest.mark.parametrize("rows", [None, 4])
def test_fisher_does_not_depend_on_the_batch_even_on_a_fixed_one(net: Small, made: Made, rows: int | None) -> None:
    library, images = make(net, batch=3, rows=rows)
    assert images.fixed == (rows is not None)
    for row, other in zip(Fisher()(library, images).values, Fisher()(*made).values, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-12)


def test_fisher_of_activations_is_squared_slopes_times_squared_noise(net: Small, made: Made) -> None:
    library, images = make(net, activations=[8, 3])
    weights = by_layer(made[0], Fisher()(*made))
    (group,) = [g for g in library.space.groups if "conv2" in g.name]
    (root,) = library.space.roots[group.name]
    expected = {}
    h = net.conv1(torch.from_numpy(X)).relu().detach().requires_grad_(True)
    y = net.fc((net.conv2(h).relu() + net.dead(h).relu()).mean((2, 3)))
    (slopes,) = torch.autograd.grad(nn.functional.cross_entropy(y, torch.from_numpy(LABELS), reduction="sum"), h)
    for bits in (8, 3):
        noise = library.activations[root, bits].fake_quantize(h).detach() - h.detach()
        expected[bits] = 0.5 * float((slopes * noise).square().flatten(1).sum(1).mean())
    assert expected[3] > 10 * expected[8] > 0
    row = by_layer(library, Fisher()(library, images))[group.name]
    for width, value in zip(group.choices, row, strict=True):
        at = (8, 4, 2).index(width.weight or 0)
        members = sum(weights[product.name][at] for product in library.space.products[group.name])
        assert value == pytest.approx(members + expected[width.activation or 0], rel=1e-3)


# Settings.


@pytest.mark.parametrize("name", ["hawq", "fisher"])
def test_images_without_labels_and_outputs_that_are_no_scores_are_refused(net: Small, name: str) -> None:
    row = lookup(SENSITIVITIES, name, "sensitivity").load()()
    assert row.needs_labels and Fisher(target="predicted").needs_labels is False
    with pytest.raises(InputError, match="no labels"):
        row(*make(net, labels=None))
    with pytest.raises(InputError, match="scores of classes"):
        row(*make(net, output="s"))


def test_passes_count_what_goes_forward_and_back(made: Made) -> None:
    space = made[0].space
    assert Hawq(samples=40).passes(space) == 9 * 40 and Fisher().passes(space) == 3
    assert ALONE.passes(space) == len(NAMES) * FEW.passes(space)
    assert Hawq(statistic="eigenvalue", samples=2).passes(space) == 9 * 2 * len(NAMES)


@pytest.mark.parametrize(
    ("setting", "value"), [("statistic", "norm"), ("samples", 29), ("tolerance", 0.0), ("seed", -1)]
)
def test_settings_of_hawq_are_checked(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"hawq\.{setting}"):
        Hawq(**{setting: value})


def test_settings_of_fisher_are_checked() -> None:
    with pytest.raises(InputError, match=r"fisher\.target"):
        Fisher(target="true")
