"""MSQ on networks whose layers are known to add something or nothing, and on trained digits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright.data.batches import Batches
from bitwright.data.digits import digits_split
from bitwright.data.opening import open_data
from bitwright.errors import InputError, UnsupportedError
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library, stock
from bitwright.mixed.problem import Additive
from bitwright.mixed.sensitivity import SENSITIVITIES
from bitwright.mixed.sensitivity.measure import Ordering
from bitwright.mixed.sensitivity.msq import Accuracies, Classifiers, Msq
from bitwright.mixed.sensitivity.orders import ByChance, BySize
from bitwright.mixed.sensitivity.points import Point, of_groups, points, tied
from bitwright.mixed.solvers.greedy import Step
from bitwright.mixed.space import space_of
from bitwright.pipeline import State, run_chain
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place

RANDOM = np.random.default_rng(0)
SAME = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def placed(model: ir.Model) -> State:
    state = State(model=model, reference=model)
    return run_chain([FoldBatchNorm(), Place(target="onnxruntime-x64-avx2", set=("A=8",), ends=8)], state, None)


def library_of(state: State, batches: Batches, bits: Sequence[int] = (7, 4, 3), **how: Any) -> Library:
    space = space_of(state, bits, **how)
    return stock(space, state, lambda plan: run_chain([Calibrate()], state.but(plan=plan), batches))


def sizes(library: Library) -> dict[str, Additive]:
    groups = library.space.groups
    return {"size": Additive(values=tuple(tuple(float(g.parameters * (w.weight or 0)) for w in g.choices)
                                          for g in groups))}  # fmt: skip


def written(nodes: Sequence[tuple[Any, ...]], constants: Mapping[str, np.ndarray], shape: Sequence[int]) -> State:
    made = [helper.make_node(op, reads.split(), [gives], name=gives, **(more[0] if more else {}))
            for op, reads, gives, *more in nodes]  # fmt: skip
    graph = helper.make_graph(
        made, "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(made[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in constants.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 21)]
    return placed(normalise(ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=10))))


def textures(images: int = 16) -> Batches:
    """Even grey and checkerboards of the same mean, in turn: means do not tell them apart, an edge filter does."""
    board = np.indices((8, 8)).sum(0) % 2 * 1.0
    x = np.stack([board if i % 2 else np.full((8, 8), 0.5) for i in range(images)])[:, None]
    x = (x * RANDOM.uniform(0.5, 1.0, (images, 1, 1, 1))).astype(np.float32)
    given = {"x": x, "labels": np.arange(images) % 2}
    return open_data(given, {"x": ((None, 1, 8, 8), "float32")}, batch_size=6)


def texture_network(last: np.ndarray) -> State:
    """same -> same -> edges -> last -> pooled scores; the second layer adds nothing, the third all."""
    point = np.zeros((3, 3))
    point[1, 1] = 1.0
    edge = np.full((3, 3), -1.0)
    edge[1, 1] = 8.0
    fourth = np.zeros((2, 2, 3, 3))
    fourth[:, :, 1, 1] = last
    constants = {
        "a.weight": point[None, None], "b.weight": point[None, None], "c.weight": np.stack([point, edge])[:, None],
        "d.weight": fourth, "fc.weight": np.array([[1.0, 0.0], [0.0, 0.3]]),
    }  # fmt: skip
    nodes: list[tuple[Any, ...]] = []
    read = "x"
    for name in "abcd":
        nodes += [("Conv", f"{read} {name}.weight", f"{name}0", SAME), ("Relu", f"{name}0", f"{name}1")]
        read = f"{name}1"
    nodes += [("GlobalAveragePool", "d1", "p"), ("Flatten", "p", "f"),
              ("Gemm", "f fc.weight", "y", {"transB": 1})]  # fmt: skip
    return written(nodes, constants, (1, 8, 8))


@pytest.fixture(scope="module")
def textured() -> Callable[[np.ndarray], Library]:
    return lambda last: library_of(texture_network(last), textures())


def lowered_names(library: Library, steps: Sequence[Step]) -> list[str]:
    return [library.space.groups[step.group].name for step in steps if step.group is not None]


@pytest.mark.parametrize("fusion", ["each", "literal", "fused"])
def test_what_adds_nothing_goes_first_and_what_adds_most_goes_last(
    fusion: str, textured: Callable[[np.ndarray], Library]
) -> None:
    library = textured(np.eye(2))
    msq = Msq(pools=(1,), fusion=fusion)  # type: ignore[arg-type]
    found = Classifiers(msq, library, textures(), textures()).measure((0, 0, 0))
    assert found.printed == found.confidence == (0.5, 0.5, 1.0, 1.0, 1.0)
    steps = list(msq.trajectory(library, textures(), textures(), sizes(library), {}))
    assert steps[1].scores == (0.0, 0.5, 0.0)
    assert lowered_names(library, steps) == ["d", "d", "b", "b", "c", "c"]


def test_equal_numbers_of_images_are_equal_differences() -> None:
    assert 0.5 - 0.3 != 0.3 - 0.1
    assert Msq().differences((0.1, 0.3, 0.5, 0.3)) == (0.2, 0.2, 0.2)
    assert Msq(signed=True).differences((0.1, 0.3, 0.5, 0.3)) == (0.2, 0.2, -0.2)


def test_a_layer_that_loses_is_important_unless_differences_are_signed(
    textured: Callable[[np.ndarray], Library],
) -> None:
    library = textured(np.array([[1.0, 0.0], [1.0, 0.0]]))  # the edges are not passed on
    for signed, first in ((False, "b"), (True, "d")):
        msq = Msq(pools=(1,), signed=signed)
        steps = list(msq.trajectory(library, textures(), textures(), sizes(library), {}))
        assert steps[1].scores == (0.0, 0.5, -0.5 if signed else 0.5)
        assert lowered_names(library, steps)[0] == first


SHORTCUT = [
    ("Conv", "x stem", "s0", SAME), ("Relu", "s0", "s1"),
    ("Conv", "s1 one", "a0", SAME), ("Relu", "a0", "a1"),
    ("Conv", "a1 two", "b0", SAME), ("Conv", "s1 short", "b1"), ("Add", "b0 b1", "b2"), ("Relu", "b2", "b3"),
    ("Conv", "b3 alone", "c0"), ("Sigmoid", "c0", "c1"), ("Mul", "c0 c1", "c2"),
    ("GlobalAveragePool", "c2", "p"), ("Flatten", "p", "f"), ("Gemm", "f fc", "y"),
]  # fmt: skip


@pytest.fixture(scope="module")
def shortcut() -> State:
    shapes = {"stem": (4, 1, 3, 3), "one": (4, 4, 3, 3), "two": (4, 4, 3, 3), "short": (4, 4, 1, 1),
              "alone": (4, 4, 1, 1), "fc": (4, 2)}  # fmt: skip
    return written(SHORTCUT, {name: RANDOM.standard_normal(shape) for name, shape in shapes.items()}, (1, 8, 8))


def test_a_block_is_judged_by_what_it_gives_and_its_shortcut_is_no_layer(shortcut: State) -> None:
    found = points(shortcut.model)
    assert found == (
        Point(feature="s1", layer="s0"), Point(feature="a1", layer="a0"),
        Point(feature="b3", layer="b0", parallel=("b1",)), Point(feature="c2", layer="c0"),
        Point(feature="y", layer="y"),
    )  # fmt: skip
    assert tied(shortcut) == [("b0", "b1")]


def test_a_shortcut_moves_with_the_last_layer_of_its_block(shortcut: State) -> None:
    alone = space_of(shortcut, [7, 4])
    with pytest.raises(InputError, match=r"group 'b1': is the shortcut of a block .* the bits of 'b0'"):
        of_groups(points(shortcut.model), alone)
    library = library_of(shortcut, textures(), (7, 4), ties=Msq().ties(shortcut))
    assert [group.name for group in library.space.groups] == ["a0", "b0 and 1 more", "c0"]
    assert [group.parameters for group in library.space.groups] == [144, 160, 16]
    steps = list(Msq().trajectory(library, textures(), textures(), sizes(library), {}))
    assert len(steps) == 4 and Msq().passes(library.space) == 4
    widths = library.space.widths((0, 1, 0))
    assert widths["b0"][0] == widths["b1"][0] == 4


def test_a_tie_of_an_unknown_region_is_refused(shortcut: State) -> None:
    with pytest.raises(InputError, match="ties: there is no region 'b9'"):
        space_of(shortcut, [7, 4], ties=[("b0", "b9")])


def test_the_first_layer_is_held_where_ends_move(shortcut: State) -> None:
    library = library_of(shortcut, textures(), (7, 4), ties=tied(shortcut), ends=True)
    indices, held = of_groups(points(shortcut.model), library.space)
    assert held == ["s0"] and indices["y"] == [4]
    for order in (Msq(), ByChance(), BySize()):
        steps = list(order.trajectory(library, textures(), textures(), sizes(library), {}))
        assert sorted(lowered_names(library, steps)) == ["a0", "b0 and 1 more", "c0", "y"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    library: Library
    calibration: Batches
    validation: Batches


@pytest.fixture(scope="module")
def digits(assets: Path) -> Digits:
    (images, labels), _ = digits_split()
    batches = open_data(
        {"image": images, "labels": labels}, {"image": ((None, 1, 8, 8), "float32")}, batch_size=64
    )  # fmt: skip
    drawn = batches.limited(240)
    calibration = drawn.take(80)
    validation = dataclasses.replace(drawn, order=drawn.order[80:])
    state = placed(normalise(open_model(str(assets / "digits.onnx"))))
    return Digits(
        library=library_of(state, calibration, ties=tied(state)), calibration=calibration, validation=validation
    )


def run(
    digits: Digits, order: Ordering, limits: Mapping[str, float] | None = None, kept: Kept | None = None,
    done: Callable[[int], None] | None = None,
) -> list[Step]:  # fmt: skip
    costs = sizes(digits.library)
    return list(order.trajectory(
        digits.library, digits.calibration, digits.validation, costs, limits or {}, kept, done
    ))  # fmt: skip


@pytest.fixture(scope="module")
def whole(digits: Digits) -> list[Step]:
    return run(digits, Msq())


def test_at_its_widest_the_network_tells_what_the_float_network_tells(digits: Digits) -> None:
    for msq in (Msq(), Msq(fusion="fused")):
        classifiers = Classifiers(msq, digits.library, digits.calibration, digits.validation)
        widest, in_float = classifiers.measure((0,) * 6), classifiers.measure(None)
        assert abs(widest.printed[-1] - in_float.printed[-1]) <= 0.01 and in_float.printed[-1] > 0.9
        assert abs(widest.network - in_float.network) <= 0.01 and in_float.network > 0.95
        assert widest.printed[-1] == widest.confidence[-1]  # vectors have one scale
        assert in_float.printed[0] < in_float.printed[-1]
    assert classifiers.measure((2,) * 6) != widest  # the network as it is now


def test_each_step_is_smaller_by_one_choice_of_one_group(digits: Digits, whole: list[Step]) -> None:
    assert len(whole) == 1 + 6 * 2 and whole[-1].choices == (2,) * 6
    for before, after in itertools.pairwise(whole):
        assert sum(after.choices) == sum(before.choices) + 1 and after.costs["size"] < before.costs["size"]
    limit = whole[4].costs["size"]
    assert run(digits, Msq(), {"size": limit}) == whole[:5]


def test_equal_differences_lower_by_size(digits: Digits, whole: list[Step]) -> None:
    one_class = [dataclasses.replace(b, order=tuple(np.array(b.order)[b.require_labels() == 3].tolist()))
                 for b in (digits.calibration, digits.validation)]  # fmt: skip
    found = run(Digits(library=digits.library, calibration=one_class[0], validation=one_class[1]), Msq())
    by_size = run(digits, BySize())
    assert [step.choices for step in found] == [step.choices for step in by_size]
    assert [step.choices for step in whole] != [step.choices for step in by_size]


def test_orders_by_chance_differ_by_their_seeds_alone(digits: Digits, whole: list[Step]) -> None:
    first = run(digits, ByChance(seed=1))
    assert first == run(digits, ByChance(seed=1)) != run(digits, ByChance(seed=2))
    assert len(first) == len(whole) and first[-1].choices == whole[-1].choices


def test_a_broken_run_goes_on_and_ends_as_an_unbroken_one(digits: Digits, whole: list[Step], tmp_path: Path) -> None:
    limits, images = {"size": whole[4].costs["size"]}, len(digits.calibration) + len(digits.validation)
    kept, done = Kept(tmp_path / "msq"), list[int]()
    walk = Msq().trajectory(
        digits.library, digits.calibration, digits.validation, sizes(digits.library), limits, kept, done.append
    )
    assert list(itertools.islice(walk, 3)) == whole[:3]
    assert sum(done) == len(digits.calibration) + 2 * images
    done.clear()
    assert run(digits, Msq(), limits, Kept(tmp_path / "msq"), done.append) == whole[:5]
    assert sum(done) == len(digits.calibration) + 2 * images
    done.clear()
    assert run(digits, Msq(), limits, Kept(tmp_path / "msq"), done.append) == whole[:5] and not done
    first = Kept(tmp_path / "msq").get("choices 0 0 0 0 0 0")
    assert set(first) == {"choices", "scores", *(field.name for field in dataclasses.fields(Accuracies))}
    assert tuple(first["scores"]) == whole[1].scores


def test_settings_change_what_is_measured(digits: Digits) -> None:
    def found(**settings: Any) -> Accuracies:
        return Classifiers(Msq(**settings), digits.library, digits.calibration, digits.validation).measure((2,) * 6)

    as_is, moved = found(), found(augment=True)
    assert moved == found(augment=True) != found(augment=True, seed=1)
    assert as_is != moved
    for other in ({"pools": (1,)}, {"tau": 1.0}, {"fusion": "fused"}, {"fusion": "literal"}):
        assert found(**other) != as_is, other


def test_what_has_no_classes_is_refused(digits: Digits) -> None:
    images = np.zeros((4, 1, 8, 8), np.float32)
    specs = {"image": ((None, 1, 8, 8), "float32")}
    unlabelled = open_data({"image": images}, specs, batch_size=2)
    shares = open_data({"image": images, "labels": np.zeros((4, 2), np.float32)}, specs, batch_size=2)
    beyond = open_data({"image": images, "labels": np.array([0, 1, 2, 10])}, specs, batch_size=2)
    for wrong, told in ((unlabelled, "has no labels"), (shares, "number of a class"), (beyond, "from 2 to 10")):
        with pytest.raises(InputError, match=told):
            run(dataclasses.replace(digits, validation=wrong), Msq())
        with pytest.raises(InputError, match=told):
            run(dataclasses.replace(digits, calibration=wrong), Msq())


def test_layers_that_give_rows_instead_of_images_are_refused() -> None:
    weights = {"a": np.ones((4, 4)), "b": np.eye(4), "fc": np.ones((4, 2))}
    state = written([("MatMul", "x a", "h"), ("Relu", "h", "r"), ("MatMul", "r b", "k"), ("Relu", "k", "l"),
                     ("ReduceMean", "l", "m", {"keepdims": 1}), ("Flatten", "m", "n"), ("Gemm", "n one", "y")],
                    {**weights, "one": np.ones((1, 2))}, (3, 4))  # fmt: skip
    given = {"x": np.ones((4, 3, 4), np.float32), "labels": np.zeros(4, np.int64)}
    batches = open_data(given, {"x": ((None, 3, 4), "float32")}, batch_size=4)
    library = library_of(state, batches)
    with pytest.raises(UnsupportedError, match="several rows an image"):
        list(Msq().trajectory(library, batches, batches, sizes(library), {}))


@pytest.mark.parametrize(
    "settings", [{"pools": ()}, {"pools": (0,)}, {"tau": 0.0}, {"fusion": "some"}, {"weighting": "none"}]
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"msq.{next(iter(settings))}"):
        Msq(**settings)


def test_orders_are_told_from_tables_of_losses() -> None:
    orders = {name for name, row in SENSITIVITIES.items() if isinstance(row.load()(), Ordering)}
    assert orders == {"msq", "random", "size"}
    assert Msq().needs_labels and not BySize().needs_labels
