"""Interactions of neighbouring groups: nothing where losses add up, the whole rest where they do not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitwright.data.batches import Batches
from bitwright.data.opening import open_data
from bitwright.errors import InputError
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.library import Library, stock
from bitwright.mixed.problem import Additive, Problem
from bitwright.mixed.sensitivity.adaquant import AdaQuantLoss
from bitwright.mixed.sensitivity.kl import Kl
from bitwright.mixed.sensitivity.measure import OneAtATime
from bitwright.mixed.sensitivity.sqnr import Sqnr
from bitwright.mixed.sensitivity.zeroq import ZeroQ
from bitwright.mixed.solvers.milp import Milp
from bitwright.mixed.space import space_of
from bitwright.pipeline import State, run_chain
from bitwright.plan.plan import Plan
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.diagnosis.switches import Board
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place
from bitwright.verbs.preparing import float_network, input_specs

X = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)


def network(kind: str) -> ir.Model:
    """Three linear layers: `beside` each other, with outputs of their own, so that squared errors add up; or `behind`
    each other, with a ReLU between them.
    """
    random = np.random.default_rng(0)
    nodes, weights, source = [], [], "x"
    for i, (rows, width) in enumerate([(4, 6)] * 3 if kind == "beside" else [(8, 6), (8, 8), (4, 8)]):
        for name, shape in ((f"w{i}", (rows, width)), (f"b{i}", (rows,))):
            weights.append(numpy_helper.from_array((random.normal(size=shape) / 3).astype(np.float32), name))
        nodes.append(helper.make_node("Gemm", [source, f"w{i}", f"b{i}"], [f"y{i}"], transB=1))
        if kind == "behind":
            nodes.append(helper.make_node("Relu", [f"y{i}"], [f"z{i}"]))
            source = f"z{i}"
    out = "y2" if kind == "behind" else "y"
    nodes = nodes[:-1] if kind == "behind" else [*nodes, helper.make_node("Concat", ["y0", "y1", "y2"], ["y"], axis=1)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
            for name, size in (("x", 6), (out, 4 if kind == "behind" else 12)))  # fmt: skip
    graph = helper.make_graph(nodes, kind, [x], [y], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.fixture(scope="module", params=["beside", "behind"])
def made(request: pytest.FixtureRequest) -> tuple[str, Library, Batches]:
    """The kind of network, its library with weights of 8, 3 and 2 bits, and images in three batches."""
    model = float_network(network(request.param))
    batches = open_data({"x": X}, input_specs(model), batch_size=5)
    start = run_chain([FoldBatchNorm()], State(model=model, reference=model), None)

    def quantized(plan: Plan | None) -> State:
        return run_chain([Place(ends=0) if plan is None else Place(plan=plan), Calibrate()], start, batches)

    base = quantized(None)
    library = stock(space_of(base, [8, 3, 2], ends=True), base, quantized)
    return request.param, library, batches


def directly(measure: OneAtATime, library: Library, batches: Batches, choices: tuple[int | None, ...]) -> float:
    """The mean of a metric with these choices, all run anew."""
    board, total = LibraryBoard(library), 0.0
    for batch in batches:
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        board.turn([None] * 3, rest=False)
        reference = board.run(inputs)[0][0].double()
        board.turn(choices, rest=measure.base == "widest")
        total += float(measure.metric(board.run(inputs)[0][0].double(), reference, None).sum())
    return total / len(batches)


def test_where_losses_add_up_pairs_are_nothing_and_where_not_they_are_the_rest(
    made: tuple[str, Library, Batches],
) -> None:
    kind, library, batches = made
    found, every = (AdaQuantLoss(pairs=pairs)(library, batches) for pairs in ("neighbours", "all"))
    alone = AdaQuantLoss()(library, batches)
    assert found.values == every.values == alone.values and alone.pairs == {}
    assert sorted(found.pairs) == [(0, 1), (1, 2)] and sorted(every.pairs) == [(0, 1), (0, 2), (1, 2)]
    assert all(every.pairs[pair] == matrix for pair, matrix in found.pairs.items())
    largest = max(abs(value) for matrix in every.pairs.values() for row in matrix for value in row)
    least = min(value for row in found.values for value in row[1:])
    assert (largest < 1e-6 * least) if kind == "beside" else (largest > 0.1 * least)
    base = directly(AdaQuantLoss(), library, batches, (0, 0, 0))
    for choices in [(2, 1, 0), (1, 2, 0), (0, 1, 1), (0, 2, 1), (0, 0, 0), (2, 0, 1)]:
        exact = directly(AdaQuantLoss(), library, batches, choices) - base
        assert every.of(choices) == pytest.approx(exact, rel=1e-6, abs=1e-9)
        if choices != (2, 0, 1):  # two groups that are no neighbours
            assert found.of(choices) == pytest.approx(exact, rel=1e-6, abs=1e-9)
        elif kind == "behind":
            assert found.of(choices) != pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("measure", [Sqnr(pairs="neighbours"), ZeroQ(pairs="neighbours")])
def test_from_float_on_the_first_choice_has_interactions_too(
    measure: OneAtATime, made: tuple[str, Library, Batches]
) -> None:
    _, library, batches = made
    found = measure(library, batches)
    for a, b in itertools.product(range(3), repeat=2):
        both = found.values[0][a] + found.values[1][b] + found.pairs[0, 1][a][b]
        assert both == pytest.approx(directly(measure, library, batches, (a, b, None)), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kind", [Kl, Sqnr])
def test_passes_are_those_that_are_run(
    kind: Any, made: tuple[str, Library, Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, library, batches = made
    runs: list[Any] = []
    run = Board.run

    def counted(*args: Any) -> Any:
        runs.append(args)
        return run(*args)

    monkeypatch.setattr(Board, "run", counted)
    turned = 2 if kind is Kl else 3
    for pairs, count in (("none", 0), ("neighbours", 2), ("all", 3)):
        passes = 2 + 3 * turned + count * turned**2
        runs.clear()
        measure = kind(pairs=pairs)
        measure(library, batches)
        assert measure.passes(library.space) == passes
        floats = 0 if kind is Kl else 1  # nothing is run for a base that is the float network
        assert len(runs) == 3 * (passes - floats)


def test_the_solver_heeds_them(made: tuple[str, Library, Batches]) -> None:
    """With one more group at 2 bits than losses alone would have, where both together are worse than their sum."""
    _, library, _ = made
    groups, bits = library.space.groups, Additive(values=((8.0, 3.0, 2.0),) * 3)
    values = ((0.0, 1.0, 9.0), (0.0, 1.0, 9.0), (0.0, 1.1, 9.0))
    worse = {(0, 1): ((0.0, 0.0, 0.0), (0.0, 5.0, 0.0), (0.0, 0.0, 0.0))}
    problem = {"groups": groups, "costs": {"bits": bits}, "limits": {"bits": 14.0}}
    assert Milp()(Problem(loss=Additive(values=values), **problem)).best.choices == (1, 1, 0)  # type: ignore[arg-type]
    paired = Additive(values=values, pairs=worse)
    assert Milp()(Problem(loss=paired, **problem)).best.choices in [(1, 0, 1), (0, 1, 1)]  # type: ignore[arg-type,operator]


@pytest.mark.parametrize("kind", [Kl, AdaQuantLoss])
def test_other_pairs_are_refused(kind: Any) -> None:
    with pytest.raises(InputError, match="none, neighbours or all"):
        kind(pairs="some")
