"""Lists of batches, data loaders, and callables that return them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bitwright.data import Batches, open_data
from bitwright.errors import InputError

Specs = dict[str, tuple[tuple[int | None, ...], str]]

X: Specs = {"x": ((None, 2), "float32")}
TWO: Specs = {"a": ((None, 2), "float32"), "b": ((None, 3), "int64")}


def rows(n: int, first: int = 0) -> np.ndarray:
    return np.arange(2 * first, 2 * (first + n), dtype=np.float32).reshape(n, 2)


def joined(batches: Batches, name: str = "x") -> np.ndarray:
    return np.concatenate([batch.inputs[name][: batch.valid] for batch in batches])


def test_batches_of_any_size_are_grouped_anew() -> None:
    batches = open_data([rows(3), rows(1, 3), rows(4, 4)], X, batch_size=5)
    assert [batch.valid for batch in batches] == [5, 3]
    np.testing.assert_array_equal(joined(batches), rows(8))
    np.testing.assert_array_equal(joined(batches), rows(8))


@pytest.mark.parametrize(
    "item",
    [
        (rows(3), np.arange(3)),
        [torch.tensor(rows(3)), torch.arange(3)],
        {"x": rows(3), "labels": [0, 1, 2]},
        ({"x": rows(3)}, (0, 1, 2)),
    ],
)
def test_labels_come_with_the_arrays(item: Any) -> None:
    batches = open_data([item, item], X, batch_size=4)
    assert batches.require_labels().tolist() == [0, 1, 2, 0, 1, 2]
    assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [[0, 1, 2, 0], [1, 2]]


@pytest.mark.parametrize("item", [rows(3), (rows(3),), {"x": rows(3)}])
def test_labels_may_be_missing(item: Any) -> None:
    assert open_data([item], X).labels is None


def test_single_images_are_batches_of_one() -> None:
    batches = open_data([(row, i) for i, row in enumerate(rows(5))], X, batch_size=2)
    np.testing.assert_array_equal(joined(batches), rows(5))
    assert batches.require_labels().tolist() == [0, 1, 2, 3, 4]


def test_several_inputs_in_order_or_by_name() -> None:
    a, b = rows(4), np.arange(12).reshape(4, 3)
    for item in ((a, b), (a, b, np.arange(4)), {"b": b, "a": a}):
        batches = open_data([item], TWO)
        np.testing.assert_array_equal(joined(batches, "a"), a)
        np.testing.assert_array_equal(joined(batches, "b"), b)


def test_a_data_loader() -> None:
    loader = DataLoader(TensorDataset(torch.tensor(rows(7)), torch.arange(7)), batch_size=3)
    batches = open_data(loader, X, batch_size=2)
    np.testing.assert_array_equal(joined(batches), rows(7))
    assert batches.require_labels().tolist() == list(range(7))


def test_limit_keeps_the_order_of_what_is_read_in_order() -> None:
    labels = np.repeat(np.arange(4), 5)
    batches = open_data([(rows(9), labels[:9]), (rows(11, 9), labels[9:])], X, batch_size=3, limit=8, seed=2)
    assert np.bincount(batches.require_labels()).tolist() == [2, 2, 2, 2]
    found = (joined(batches)[:, 0] / 2).astype(int)
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(labels[found], batches.require_labels())


class Afresh:
    """Gives other batches at each walk."""

    def __init__(self, *walks: list[Any]) -> None:
        self.walks = list(walks)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.walks.pop(0))


def test_other_data_at_the_second_walk_are_refused() -> None:
    fix = "turn off shuffling and random augmentation"
    batches = open_data(Afresh([rows(3), rows(2)], [rows(3), rows(2, 1)]), X, batch_size=2)
    with pytest.raises(InputError, match=f"gave another batch 1 than before when it was read again.*{fix}"):
        list(batches)
    with pytest.raises(InputError, match="gave another batch 0"):  # other labels only
        list(open_data(Afresh([(rows(2), [0, 1])], [(rows(2), [1, 0])]), X))
    with pytest.raises(InputError, match=f"ended after 3 images instead of 5 when.*{fix}"):
        list(open_data(Afresh([rows(3), rows(2)], [rows(3)]), X))


def test_a_shuffling_data_loader_is_refused() -> None:
    loader = DataLoader(TensorDataset(torch.tensor(rows(50))), batch_size=10, shuffle=True)
    with pytest.raises(InputError, match="gave another batch 0 than before"):
        list(open_data(loader, X))


def test_what_can_be_read_only_once_is_refused() -> None:
    for source in ((rows(2) for _ in range(3)), iter([rows(2)]), map(rows, [1, 2])):
        with pytest.raises(InputError, match=r", which can be read only once; .*; give a list of batches"):
            open_data(source, X)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], r"data \(list\): is empty; expected arrays, \(arrays, labels\) or"),
        ([rows(0)], r"data \(list\): is empty"),
        ([rows(2), "word"], r"data \(list\)\[1\]: holds a str"),
        ([None], r"data \(list\)\[0\]: holds a NoneType"),
        ([(rows(2), np.arange(2), 3)], r"\[0\]: a tuple of 3 entries; expected 1, or 2 with labels \(inputs: x\)"),
        ([{"y": rows(2)}], r"\[0\]: has y; expected an array 'x'"),
        ([rows(2), rows(4).reshape(2, 4)], r"\[1\]\['x'\]: has the shape \[2, 4\]; expected \[\?, 2\]"),
        ([rows(2).astype(np.float64)], r"\[0\]\['x'\]: is float64; expected float32"),
        ([(rows(2), np.arange(3))], r"\[0\]: has 3 labels for 2 images"),
        ([(rows(2), np.arange(2)), rows(2)], r"\[1\]: has no labels, but other batches have"),
        ([rows(2), (rows(2), np.arange(2))], r"\[0\]: has no labels, but other batches have"),
        ([rows(3), rows(2) * np.float32(np.nan)], r"\['x'\]: image 3 holds NaN"),
    ],
)
def test_wrong_items_are_named(items: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(items, X)


def test_wrong_items_for_several_inputs_are_named() -> None:
    with pytest.raises(
        InputError, match=r"\[0\]: a ndarray for 2 inputs; expected a tuple or a dict; name them: a, b"
    ):
        open_data([rows(2)], TWO)
    with pytest.raises(InputError, match=r"\[0\]: its inputs have \[2, 4\] rows"):
        open_data([(rows(2), np.zeros((4, 3), np.int64))], TWO)


def test_rows_of_several_sizes_are_refused_where_the_size_is_open() -> None:
    with pytest.raises(InputError, match=r"\[1\]\['x'\]: its rows are \[4\]; expected \[2\] as in the batches before"):
        open_data([rows(2), rows(4).reshape(2, 4)], {"x": ((None, None), "float32")})


# module:callable

MODULE = """
import numpy as np
from bitwright.data import open_data
X = np.arange(6, dtype=np.float32).reshape(3, 2)
def arrays(): return {"x": X, "labels": np.arange(3)}
def batches(): return [X, X]
def opened(): return open_data({"x": X, "labels": np.arange(3)}, {"x": ((None, 2), "float32")}, batch_size=2)
def generator(): yield X
def path(): return "somewhere"
def number(): return 3
def needs(argument): return X
def fails(): raise RuntimeError("no disk")
class Loader:
    def __iter__(self): return iter([X])
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working folder."""
    (tmp_path / "my_data.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    yield "my_data"
    sys.modules.pop("my_data", None)


@pytest.mark.parametrize(("name", "n"), [("arrays", 3), ("batches", 6), ("opened", 3), ("Loader", 3)])
def test_a_callable_gives_the_data(name: str, n: int, module: str) -> None:
    before = list(sys.path)
    assert joined(open_data(f"{module}:{name}", X)).shape == (n, 2)
    assert sys.path == before


def test_opened_batches_pass_through(module: str) -> None:
    batches = open_data(f"{module}:opened", X, batch_size=32)
    assert batches.batch_size == 2  # as the user opened them
    assert len(open_data(batches, X, limit=2)) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": ((None, 2), "float32")}, r"was opened for x; expected the input 'y'"),
        ({"x": ((None, 3), "float32")}, r"was opened for 'x' as \[\?, 2\] float32; expected \[\?, 3\] float32"),
        ({"x": ((None, 2), "float16")}, r"was opened for 'x' as \[\?, 2\] float32; expected \[\?, 2\] float16"),
        ({"x": ((4, 2), "float32")}, r"was opened with batches of 32; expected the model's fixed batch of 4"),
    ],
)
def test_opened_batches_must_fit_the_model(inputs: Specs, message: str) -> None:
    batches = open_data({"x": rows(3)}, X)
    with pytest.raises(InputError, match=message):
        open_data(batches, inputs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generator", r"my_data:generator: is a generator, which can be read only once"),
        ("path", r"my_data:path: is a str; expected something that gives arrays"),
        ("number", r"my_data:number: is a int; expected something that gives arrays"),
        ("needs", r"my_data:needs: raised TypeError: .*argument.*; expected a call without arguments"),
        ("fails", r"my_data:fails: raised RuntimeError: no disk"),
        ("array", r"my_data:array: 'my_data' has no 'array'; did you mean 'arrays'"),
        ("X", r"my_data:X: is a ndarray; expected something to call"),
    ],
)
def test_wrong_callables_are_named(name: str, message: str, module: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(f"{module}:{name}", X)


def test_a_module_that_cannot_be_imported_is_named(module: str) -> None:
    with pytest.raises(
        InputError, match=r"nowhere:data: the module 'nowhere' cannot be imported .*; run from the folder"
    ):
        open_data("nowhere:data", X)
    with pytest.raises(InputError, match=r"my_broken:data: .* cannot be imported \(ZeroDivisionError"):
        open_data("my_broken:data", X)


def test_what_is_no_data_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"data \(int\): is a int; expected something that gives arrays"):
        open_data(3, X)
