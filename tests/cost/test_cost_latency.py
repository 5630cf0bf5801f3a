"""Latency with times that are made up: what the table claims, what it refuses to claim, what is timed at all."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitwright.cost.cutting import float_region, written_region
from bitwright.cost.latency import Latency, effective
from bitwright.cost.size import written
from bitwright.cost.timing import Timer, compared, interleaved, median_interval
from bitwright.cost.workload import Workload, with_widths
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime, kernels
from bitwright.errors import InputError, UnsupportedError
from bitwright.pipeline import State

GENERATOR = np.random.default_rng(0)


def ops(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


class Machine:
    """Times models by what is in them: a millisecond a convolution or gemm, and noise; 2-bit weights may be faster."""

    def __init__(self, two_bits: float = 1.0, noise: float = 0.05) -> None:
        self.two_bits, self.noise, self.calls = two_bits, noise, 0

    def __call__(self, model: bytes) -> float:
        self.calls += 1
        kinds = ops(model)
        names = {t.name for t in onnx.load_model_from_string(model).graph.initializer}
        narrow = sum(name.endswith("/plane0") for name in names)
        layers = kinds.count("Conv") + kinds.count("Gemm")
        time = layers - narrow * (1 - self.two_bits)
        return float(time * (2.0 if "QuantizeLinear" not in kinds else 1.0) * np.exp(GENERATOR.normal(0, self.noise)))


@pytest.fixture
def latency(tmp_path: Path) -> Latency:
    return Latency(rounds=20, cache=str(tmp_path / "latency.json"))


def test_no_speed_is_claimed_where_none_is_shown(
    latency: Latency, placed: Callable[..., State], caplog: pytest.LogCaptureFixture
) -> None:
    state = placed("small_residual", "W=7,A=8")
    with caplog.at_level(logging.INFO, "bitwright"):
        (table,) = latency.tables(state, weights=[4, 2], activations=[8, 4], sample=Machine())
    for region, costs in table.entries.items():
        assert set(costs) == {(7, 8), (4, 8), (4, 4), (2, 8), (2, 4)}
        assert len(set(costs.values())) == 1, region
        assert {f.comparison.verdict for f in table.findings[region].values()} == {"no faster"}
        assert 1.5 < table.float_ms[region] / costs[7, 8] < 2.5
    notes = table.notes()
    assert [n.partition(" (")[0] for n in notes] == [
        "W4: no faster than wider weights in any of 8 regions", "W2: no faster than wider weights in any of 8 regions",
    ]  # fmt: skip
    assert all(note in caplog.text for note in notes)


def test_speed_that_is_shown_is_claimed_and_predicts_the_file(latency: Latency, placed: Callable[..., State]) -> None:
    state = placed("small_residual", "W=7,A=8")
    machine = Machine(two_bits=0.5)
    (table,) = latency.tables(state, weights=[4, 2], activations=[8], sample=machine)
    assert table.total() == pytest.approx(latency.measure(state, sample=machine).ms, rel=0.05)
    for region, costs in table.entries.items():
        assert costs[4, 8] == costs[7, 8]
        assert costs[2, 8] == pytest.approx(costs[7, 8] / 2, rel=0.1), region
        assert table.findings[region][2].comparison.verdict == "faster"
    checked = latency.check(state, [table], {r: (2, 8) for r in table.now}, sample=machine)
    assert checked.predicted_ms == pytest.approx(checked.measured.ms, rel=0.1)
    assert checked.predicted_to_float == pytest.approx(checked.measured.to_float.ratio, rel=0.1)
    assert "ms measured" in checked.words() and "ms predicted" in checked.words()
    assert "W2: faster than wider weights in body.0.0, " in table.notes()[1]


def test_a_region_in_float_takes_what_its_float_ops_take(latency: Latency, placed: Callable[..., State]) -> None:
    state, machine = placed("small_residual", "W=7,A=8"), Machine(noise=0.0)
    (table,) = latency.tables(state, weights=[4, 32], activations=[8], sample=machine)
    before = machine.calls
    for region, costs in table.entries.items():
        assert set(costs) == {(32, 8), (7, 8), (4, 8)} and costs[32, 8] == table.float_ms[region] == 2.0
    latency.tables(state, weights=[4], activations=[8], sample=machine)  # nothing more was timed for it
    assert machine.calls - before == 2 * latency.rounds


def test_equal_regions_are_timed_once_and_never_again(latency: Latency, placed: Callable[..., State]) -> None:
    state = placed("resnet20", "W=7,A=8")
    machine = Machine()
    latency.tables(state, weights=[4], activations=[8], sample=machine)
    whole = 2 * latency.rounds
    regions = (machine.calls - whole) / latency.rounds / 3  # float, W7, W4
    assert regions == 10 < 20  # three stages: inner layers with and without a ReLU, the first of a stage; ends
    before = machine.calls
    latency.tables(state, weights=[4], activations=[8], sample=machine)
    assert machine.calls - before == whole
    latency.tables(state, weights=[4, 2], activations=[8], sample=machine)
    assert machine.calls - before == 2 * whole + regions * latency.rounds * 4


def test_one_number_is_measured_beside_the_float_file(latency: Latency, placed: Callable[..., State]) -> None:
    state, machine = placed("small_residual", "W=7,A=8"), Machine(noise=0.0)
    found = latency.measure(state, sample=machine)
    assert (found.ms, found.float_ms, found.to_float.ratio) == (8.0, 16.0, 0.5)
    assert latency.of(state, sample=machine) == 8.0 and latency.reference(state, sample=machine) == 16.0
    narrow = with_widths(state, {r: (2, a) for r, (_, a) in latency.tables(state, sample=machine)[0].now.items()})
    assert latency.of(state, narrow, sample=Machine(two_bits=0.5, noise=0.0)) == 4.0


@pytest.mark.parametrize("target", ["anybits", "paper", "tensorrt"])
def test_no_latency_where_nothing_runs_the_file(target: str, placed: Callable[..., State]) -> None:
    state = placed("small_residual", target=target)
    for ask in (Latency().of, Latency().tables, Latency().reference):
        with pytest.raises(UnsupportedError, match=f"no runtime here executes files for {target}"):
            ask(state)


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"rounds": 0}, "latency.rounds"), ({"threads": -1}, "latency.threads"), ({"batch": 0}, "latency.batch"),
     ({"confidence": 1.0}, "latency.confidence"), ({"seconds": 0.0}, "latency.seconds")],
)  # fmt: skip
def test_settings_out_of_their_range_are_refused(setting: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Latency(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "target"),
    [*((w, "onnxruntime-x64-avx2") for w in (7, 4, 3, 1)), (4, "openvino-cpu-avx2")],
)  # fmt: skip
def test_a_cut_region_runs_by_the_kernel_of_the_file_and_gives_its_codes(
    width: int, target: str, calibrated: Callable[..., State]
) -> None:
    state = calibrated("small_residual", f"W={width},A=6", target=target)
    assert state.plan is not None
    file = written(state)
    load = Workload(state.model, state.plan)
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    codes = {i: f"{i}/codes" for p in load.products for i in (p.region.inputs[0].name, p.region.output.name)}
    for name in codes.values():
        if name not in {o.name for o in file.graph.output}:
            file.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    values = OnnxRuntime(file.SerializeToString()).run({load.model.graph.inputs[0].name or "": x})
    for product in load.products:
        cut = written_region(written(state), product.region, state.plan.sites, batch=2).SerializeToString()
        assert set(kernels(cut)) <= {"QLinearConv", "QGemm", "Clip", "MaxPool"}
        read, gives = (codes[v.name] for v in (product.region.inputs[0], product.region.output))
        served = OnnxRuntime(cut).run({read: values[read]})
        assert np.array_equal(served[gives], values[gives]), product.name
        alone = float_region(state, product.region, batch=2).SerializeToString()
        assert set(ops(alone)) <= {"Conv", "Gemm", "Relu"} and OnnxRuntime(alone).outputs == (
            product.region.output.name,
        )


# Timing itself.


def test_a_timer_takes_the_median_of_runs_by_its_clock(placed: Callable[..., State]) -> None:
    state = placed("small_residual")
    ticks = itertools.chain.from_iterable(
        (t, t + d) for t, d in zip(range(0, 1000, 10), [5, 1, 2, 3, 9] * 20, strict=True)
    )
    timer = Timer(runtime="onnxruntime", seconds=20, clock=lambda: float(next(ticks)))
    assert timer(written(state).SerializeToString()) == 3000.0  # 5, 1, 2, 3, 9 s; 20 s are over


def test_what_cannot_be_fed_is_refused() -> None:
    def model(kind: int, shape: list[str | int]) -> bytes:
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        info = [onnx.helper.make_tensor_value_info(n, kind, shape) for n in "xy"]
        graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        return bytes(made.SerializeToString())

    timer = Timer(runtime="onnxruntime", seconds=1e-6)
    assert timer(model(onnx.TensorProto.INT64, ["N", 4])) > 0
    with pytest.raises(InputError, match="expected only the batch open"):
        timer(model(onnx.TensorProto.FLOAT, ["N", "H"]))
    with pytest.raises(InputError, match=r"is a tensor\(bool\)"):
        timer(model(onnx.TensorProto.BOOL, ["N", 4]))


def test_the_interval_is_that_of_order_statistics() -> None:
    values = [float(i) for i in range(1, 21)]
    assert median_interval(values, 0.95) == (6.0, 15.0)  # the table of the sign test: n = 20, 95.9 %
    assert median_interval(values, 0.99) == (4.0, 17.0)
    assert median_interval(values[:5], 0.95) == (-float("inf"), float("inf"))
    assert median_interval(values[:6], 0.95) == (1.0, 6.0)


def test_the_interval_keeps_its_confidence() -> None:
    inside = 0
    for _ in range(2000):
        low, high = median_interval(list(GENERATOR.standard_cauchy(15)), 0.95)
        inside += low <= 0.0 <= high
    assert inside / 2000 >= 0.95


def test_equal_models_are_hardly_ever_called_faster() -> None:
    found = [compared(list(GENERATOR.lognormal(0, 0.1, 20)), list(GENERATOR.lognormal(0, 0.1, 20)), 0.95).verdict
             for _ in range(500)]  # fmt: skip
    assert found.count("no faster") >= 0.95 * 500 and found.count("faster") <= 0.025 * 500 + 6


def test_a_width_is_compared_with_the_last_faster_one_and_slowness_is_told() -> None:
    samples = {8: [2.0] * 12, 4: [1.0] * 12, 3: [1.5] * 12, 2: [0.9, 1.1] * 6, 1: [0.5] * 12}
    times, findings = effective(samples, 0.95)
    assert times == {8: 2.0, 4: 1.0, 3: 1.5, 2: 1.0, 1: 0.5}
    assert {w: (f.beside, f.comparison.verdict) for w, f in findings.items()} == {
        4: (8, "faster"), 3: (4, "slower"), 2: (4, "no faster"), 1: (4, "faster"),
    }  # fmt: skip


def test_too_few_rounds_claim_nothing() -> None:
    times, findings = effective({8: [2.0] * 4, 4: [1.0] * 4}, 0.95)
    assert times == {8: 2.0, 4: 2.0} and findings[4].comparison.verdict == "no faster"


def test_every_round_times_every_model_and_says_so() -> None:
    rounds: list[int] = []
    found = interleaved({"a": b"a", "b": b"b"}, lambda model: float(ord(model)), 3, rounds.append)
    assert found == {"a": [97.0] * 3, "b": [98.0] * 3} and rounds == [1, 1, 1]
