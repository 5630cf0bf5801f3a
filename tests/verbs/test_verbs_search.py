"""`bw.search` and `bw.pareto`: networks and images in memory."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.cost.budget import Budget
from bitwright.graph.export import from_module
from bitwright.verbs.fronts import Front, front_of


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3)).eval()


@pytest.fixture(scope="module")
def network(module: nn.Module) -> ir.Model:
    """What the module is exported to, which takes seconds."""
    return from_module(module, torch.zeros(2, 2, 6, 6))


@pytest.fixture(scope="module")
def images(module: nn.Module) -> dict[str, np.ndarray]:
    x = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = module(x).argmax(1)
    return {"input": x.numpy(), "labels": labels.numpy()}


@pytest.fixture(scope="module")
def front(module: nn.Module, images: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Front:
    return bw.pareto(
        module, images, example=torch.zeros(2, 2, 6, 6), output=tmp_path_factory.mktemp("pareto"), weights=(4, 2),
        points=2, over="weights", verify_images=4, free_ends=True,
    )  # fmt: skip


def test_a_front_of_a_module(front: Front, images: dict[str, np.ndarray]) -> None:
    assert front.met and not front.limits and front.over == ("weights",) and front.reference == 1.0
    assert len(front.points) >= 2 and front.best in front.points
    costs = [point.costs["weights"] for point in front.points]
    assert costs == sorted(costs)
    for point in front.points:
        loaded = bw.load(point.folder / "model.onnx")
        assert loaded.plan.dumps() == (point.folder / "plan.json").read_text()
        assert point.found["proven"] and point.found["mismatches"] == 0
        assert loaded.evaluate(images).drop == pytest.approx(point.drop) or point.drop is not None
    on_front = front_of(front.points, front.over)
    assert on_front and all(
        not (a.costs["weights"] <= b.costs["weights"] and a.drop["drop"] < b.drop["drop"])  # type: ignore[index]
        for a in front.points for b in on_front
    )  # fmt: skip


@pytest.mark.parametrize(("name", "starts"), [("front.svg", b"<?xml"), ("front.png", b"\x89PNG")])
def test_its_picture(name: str, starts: bytes, front: Front, tmp_path: Path) -> None:
    front.plot(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(starts)


def test_a_picture_of_another_form_is_refused(front: Front, tmp_path: Path) -> None:
    with pytest.raises(bw.InputError, match="gif"):
        front.plot(tmp_path / "front.gif")


def test_a_front_of_two_costs(front: Front, network: ir.Model, images: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = bw.pareto(
        network, images, output=tmp_path, weights=(4, 2), activations=(8, 4),
        points=4, over=("weights", "bops"), verify_images=4, free_ends=True,
    )  # fmt: skip
    assert found.over == ("weights", "bops") and len(found.points) >= 3
    costs = [tuple(point.predicted[name] for name in found.over) for point in found.points]
    assert len({w for w, _ in costs}) > 1 and len({b for _, b in costs}) > 1
    for i, a in enumerate(found.points):  # none is as good in all that was foretold
        for j, b in enumerate(found.points):
            assert a.loss is not None and b.loss is not None
            assert i == j or any(x > y for x, y in zip((*costs[i], a.loss), (*costs[j], b.loss), strict=True))
    for name in found.over:
        found.plot(tmp_path / f"{name}.svg", name)
    assert (tmp_path / "weights.svg").read_bytes() != (tmp_path / "bops.svg").read_bytes()
    with pytest.raises(bw.InputError, match="cost 'energy'"):
        found.plot(tmp_path / "energy.svg", "energy")


def test_a_search_within_a_budget_goes_on_in_its_folder(
    front: Front, network: ir.Model, images: dict[str, np.ndarray]
) -> None:
    found = bw.search(
        network, images, output=front.folder, weights=(4, 2), free_ends=True,
        verify_images=4, over="weights", budget=["weights=1/9"], solver="greedy",
    )  # fmt: skip
    assert found.met and found.best.costs["weights"] <= found.limits["weights"] == found.float_costs["weights"] / 9
    assert found.searching.shelf.others() == 0  # what the front kept is used


def test_within_a_budget_the_best_is_judged_by_what_was_written(
    front: Front, network: ir.Model, images: dict[str, np.ndarray]
) -> None:
    found = bw.search(
        network, images, output=front.folder, weights=(4, 2), free_ends=True,
        verify_images=4, budget=["weights=1/9"], method="zeroq",
    )  # fmt: skip
    assert {point.kind for point in found.points} == {"search", "uniform"}
    judged = {point.name: point.found["calibration_sqnr_db"] for point in found.points}
    assert len(judged) >= 2 and judged[found.best.name] == max(judged.values())
    (uniform,) = [point for point in found.points if point.kind == "uniform"]
    assert set(uniform.widths.values()) == {(2, 8)} and uniform.costs["weights"] <= found.limits["weights"]


def test_other_methods_have_points_of_their_own_within_a_budget(
    front: Front, network: ir.Model, images: dict[str, np.ndarray]
) -> None:
    asked: dict[str, Any] = dict(
        output=front.folder, weights=(4, 2), free_ends=True, verify_images=4,
        budget="weights=1/9", refine=0,
    )  # fmt: skip
    alone = bw.search(network, images, method="size", also="none", **asked)
    assert {point.method for point in alone.points} <= {"size", ""}
    both = bw.search(network, images, method="size", also="kl,zeroq,kl", **asked)
    assert both.searching.aim.also == ("kl", "zeroq") and list(both.searching.measures) == ["size", "kl", "zeroq"]
    assert {point.choices for point in alone.points} <= {point.choices for point in both.points}
    for method in ("kl", "zeroq"):  # what each would have found by itself is there
        own = bw.search(network, images, method=method, also="none", **asked)
        (point,) = [point for point in own.points if point.method == method]
        assert point.choices in {point.choices for point in both.points}
    judged = [point.found["calibration_sqnr_db"] for point in both.points]
    assert both.best.found["calibration_sqnr_db"] == max(judged)
    assert bw.search(network, images, method="kl", **asked).searching.aim.also == ("adaquant",)


def test_layers_may_stay_in_float(network: ir.Model, images: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = bw.search(
        network, images, output=tmp_path, weights=(2, 32), free_ends=True,
        verify_images=4, budget="weights=1/2", target="onnxruntime-x64-avx2", also="zeroq,hawq,fisher", refine=4,
    )  # fmt: skip
    assert found.met and found.best.found["proven"] and found.best.found["mismatches"] == 0
    bits = {widths[0] for widths in found.best.widths.values()}
    assert bits == {2, 32} and set(found.searching.measures) == {"kl", "zeroq", "hawq", "fisher"}
    (uniform,) = [point for point in found.points if point.kind == "uniform"]
    assert found.best.found["calibration_sqnr_db"] > uniform.found["calibration_sqnr_db"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"also": "kl"}, "--also kl: needs a budget"),
        ({"also": "msq", "budget": "size=1/8"}, "--also msq: is an order"),
        (
            {"also": "zeroqq", "budget": "size=1/8"},
            "method 'zeroqq': there is no method of this name; did you mean 'zeroq'",
        ),
    ],
)
def test_what_cannot_be_asked_of_other_methods(
    asked: dict[str, Any], told: str, network: ir.Model, images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(bw.InputError, match=re.escape(told)):
        bw.search(network, images, output=tmp_path, method="zeroq", **asked)


def test_a_picture_without_accuracy_is_refused(
    front: Front, network: ir.Model, images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = bw.search(
        network, {"input": images["input"]}, output=front.folder, weights=(4, 2),
        free_ends=True, verify_images=0, budget="weights=1/9", set=["A=8"],
    )  # fmt: skip
    assert found.reference is None and found.best.found["proven"] is None and found.best.drop is None
    with pytest.raises(bw.InputError, match="plot: points without accuracy; expected labelled images"):
        found.plot(tmp_path / "front.png")


@pytest.mark.parametrize("bound", [{"budget": "size=1/8"}, {"max_drop": 1.0}], ids=["budget", "drop"])
def test_a_front_has_no_bounds(bound: dict[str, Any], network: ir.Model, images: dict[str, np.ndarray]) -> None:
    with pytest.raises(bw.InputError, match="and a front has no bounds; expected no bound; use search"):
        bw.pareto(network, images, **bound)


@pytest.mark.parametrize(
    ("high", "confidence", "over"),
    [(0.45, 0.95, None), (0.6, 0.95, 1.2), (0.6, 0.0, None), (None, 0.95, None)],
    ids=["certain", "perhaps", "as measured", "no interval"],
)
def test_a_relative_latency_holds_at_the_confidence(
    high: float | None, confidence: float, over: float | None, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.4 of float was measured where 0.5 is allowed; milliseconds of another minute do not count."""
    timed = dataclasses.replace(front.best, latency={"ms": 9.0, "to_float": 0.4, "to_float_high": high})
    aim = dataclasses.replace(
        front.searching.aim, budgets=(Budget(name="latency", value=0.5, relative=True),), confidence=confidence
    )
    monkeypatch.setattr(front.searching, "aim", aim)
    excess = front.searching.excess(timed, {"latency": 1.0})
    assert excess == ({} if over is None else {"latency": pytest.approx(over)})
    assert front.searching.cost("latency").confidence == (confidence or 0.95)


def test_tries_never_lose_more_than_the_solver_alone(
    front: Front, network: ir.Model, images: dict[str, np.ndarray]
) -> None:
    asked: dict[str, Any] = {
        "output": front.folder, "weights": (4, 2), "free_ends": True,
        "verify_images": 0, "budget": "weights=1/11", "method": "zeroq",
    }  # fmt: skip
    asked["output"] = front.folder / "tries"  # where no search before has tried any
    plain, tried = (bw.search(network, images, **asked, refine=tries) for tries in (0, 6))
    kept = tried.searching.shelf.used
    lines = [line for path in kept if path.suffix == ".jsonl" for line in path.read_text().splitlines()]
    whole = [json.loads(line) for line in lines if line.startswith('["network ')]
    losses = {name.removeprefix("network "): loss for name, (loss,) in whole}
    assert 1 < len(losses) <= 6 and tried.met
    start, best = (" ".join(map(str, found.best.choices)) for found in (plain, tried))
    assert losses[best] == min(losses.values()) <= losses[start]


SEQUENTIAL = """\
help: rounded behind quantized layers
steps: [fold_batchnorm, place, {calibrate: {activations: mse, weights: mse}}, {gptq: {inputs: quantized}}]
"""


def test_polished_is_never_worse_than_what_was_written(
    network: ir.Model, images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    recipe = tmp_path / "sequential.yaml"
    recipe.write_text(SEQUENTIAL)
    asked: dict[str, Any] = {
        "output": tmp_path, "weights": (7, 4, 2, 1), "activations": (7, 4, 2), "free_ends": True, "verify_images": 4,
        "budget": ["weights=1/10", "bops=1/200"], "recipe": str(recipe), "refine": 2, "polish": 6,
        "val_data": images, "val_limit": 8,
    }  # fmt: skip
    found = bw.search(network, images, **asked)
    (path,) = (path for path in found.searching.shelf.used if path.name.startswith("made"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    losses = {name.removeprefix("made "): loss for name, loss in rows}
    written = {" ".join(map(str, point.choices)): point for point in found.points}
    assert len(losses) == len(written.keys() - {key for key, p in written.items() if p.method == "polish"}) + 6
    best = " ".join(map(str, found.best.choices))
    assert losses[best] == min(losses.values()) and found.met and found.best.found["proven"]
    told = f"became {losses[best]:.4g}, the least of {len(losses)} networks on the {len(images['input'])} images"
    assert told in found.notes[0]
    # What is measured is what is served: the mean divergence of the written file, at temperature 2, on all images.
    float_file, file = (ort.InferenceSession(p) for p in (tmp_path / "float.onnx", found.best.folder / "model.onnx"))
    (p, q) = (
        torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images["input"]})[0]).double() / 2
        for session in (float_file, file)
    )
    divergence = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
    assert losses[best] == pytest.approx(float(divergence), rel=1e-4)
    assert not any("not used" in note for note in found.notes)
    before = path.read_text()
    assert bw.search(network, images, **asked).best.name == found.best.name and path.read_text() == before


def test_other_processes_need_paths(module: nn.Module, images: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(bw.InputError, match="data: are objects of this process; expected paths, which other"):
        bw.search(module, images, example=torch.zeros(2, 2, 6, 6), output=tmp_path, processes=2)
    with pytest.raises(bw.InputError, match="--data: is missing"):
        bw.search(module, None, example=torch.zeros(2, 2, 6, 6), output=tmp_path, processes=2)
    with pytest.raises(bw.InputError, match="data: are objects of this process"):
        bw.search(module, "images.npz", eval_data=images, output=tmp_path, processes=2)
    assert list(tmp_path.iterdir()) == []


def test_distilled_images_serve_a_search(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    asked: dict[str, Any] = {
        "example": torch.zeros(2, 1, 6, 6), "weights": (4, 2), "free_ends": True, "verify_images": 0, "refine": 2,
        "budget": "weights=1/9", "method": "zeroq", "output": tmp_path,
        "steps": {"distill": {"images": 4, "iterations": 5}},
    }  # fmt: skip
    found = bw.search(net, "distilled", **asked)
    (made,) = tmp_path.glob("distilled-*.npz")
    assert found.met and found.reference is None and np.load(made)["input"].shape == (4, 1, 6, 6)
    written = made.stat().st_mtime_ns
    assert bw.search(net, "distilled", **asked).best.name == found.best.name and made.stat().st_mtime_ns == written
    with pytest.raises(bw.InputError, match="--step distill: is given, and no images are distilled"):
        bw.search(net, str(made), **asked)
