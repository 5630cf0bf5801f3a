"""Sizes are those of files on disk; the table's sums are near them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.cost.size import Size
from bitwright.cost.table import Widths
from bitwright.cost.workload import Workload, with_widths
from bitwright.deploy.writer import write
from bitwright.errors import InputError
from bitwright.graph.macs import count_parameters
from bitwright.pipeline import State

#: What the sum of a table may be off, in bytes: a bound for each width of activations, and the compressed plan.
NEAR = 320


@pytest.mark.parametrize("network", ["tests/assets/digits.onnx", "small_residual"])
@pytest.mark.parametrize("widths", ["W=7,A=8", "W=4,A=8", "W=3,A=5", "W=2,A=4", "W=1,A=8"])
def test_the_size_is_that_of_the_written_file(
    network: str, widths: str, calibrated: Callable[..., State], root: Path, tmp_path: Path
) -> None:
    state = calibrated(str(root / network) if network.endswith(".onnx") else network, widths)
    assert write(state, tmp_path / "x.onnx") == Size().of(state) == (tmp_path / "x.onnx").stat().st_size


@pytest.mark.parametrize("target", ["onnxruntime-x64", "openvino-cpu", "tensorrt", "anybits", "paper"])
def test_files_of_every_form(target: str, calibrated: Callable[..., State], tmp_path: Path) -> None:
    state = calibrated("small_residual", target=target)
    assert write(state, tmp_path / "x.onnx") == Size().of(state)


def test_another_plan_is_written_with_what_is_known(calibrated: Callable[..., State], tmp_path: Path) -> None:
    eight, four = calibrated("small_residual", "W=7,A=8"), calibrated("small_residual", "W=4,A=4")
    told = Size().of(eight, four.plan)
    assert told != Size().of(eight)
    assert abs(told - write(four, tmp_path / "x.onnx")) <= 64  # zero points, bounds


def test_the_float_file_is_the_reference(placed: Callable[..., State], assets: Path) -> None:
    state = placed(str(assets / "digits.onnx"))
    on_disk = (assets / "digits.onnx").stat().st_size
    weights = 4 * count_parameters(state.reference)
    assert weights < Size().reference(state) < on_disk  # normalised: without what the exporter says of its nodes


def test_without_a_plan_there_is_no_file(placed: Callable[..., State]) -> None:
    state = placed("small_residual").but(plan=None)
    for ask in (Size().of, Size().tables):
        with pytest.raises(InputError, match="the network has no plan"):
            ask(state)


def mixed(state: State) -> dict[str, Widths]:
    """Widths in turn, one for each encoding."""
    weights, reads = [7, 4, 3, 2, 1], [8, 4, 3]
    load, chosen = Workload(state.model, state.plan), {}
    roots: dict[str, int] = {}
    for i, product in enumerate(p for p in load.products if p.has_choice):
        a = next((roots[r] for r in product.roots if r in roots), reads[i % 3])
        roots |= dict.fromkeys(product.roots, a)
        chosen[product.name] = (weights[2 * i % 5], a)
    return chosen


@pytest.mark.parametrize("network", ["small_residual", "small_inverted_residual"])
def test_the_table_is_exact_for_its_own_plan_and_near_elsewhere(
    network: str, calibrated: Callable[..., State]
) -> None:
    state = calibrated(network, "W=4,A=8")
    (table,) = Size().tables(state, weights=[7, 4, 3, 2, 1], activations=[8, 4, 3])
    assert table.total() == Size().of(state)
    choice = mixed(state)
    written = Size().of(state, with_widths(state, choice))
    assert abs(table.total(choice) - written) <= NEAR, (table.total(choice), written)
    # The tables of bytes that are in the file once are several kB here: without `once` it would be far off.
    due = sum(once.cost for once in table.once if once.weights & {w for w, _ in choice.values()})
    assert due > 10 * NEAR


def test_an_entry_is_the_bytes_of_packed_codes_and_little_more(placed: Callable[..., State]) -> None:
    state = placed("resnet20", "W=4,A=8")
    (table,) = Size().tables(state, weights=[7, 4, 2], activations=[8])
    for product in Workload(state.model, state.plan).products:
        n, costs = product.weight_elements, table[product.name]
        for w, stored in ((7, 8), (4, 4), (2, 2)):  # 7 bits lie in 8
            parameters = 9 * product.scales  # scale, zero point, centre of the codes
            assert parameters / 2 < costs[w, 8] - n * stored / 8 < parameters + 1600  # nodes and names
    large = max(Workload(state.model, state.plan).products, key=lambda p: p.weight_elements)
    costs = table[large.name]
    assert large.weight_elements == 36864 and abs(costs[7, 8] - costs[4, 8] - 36864 / 2) < 600
