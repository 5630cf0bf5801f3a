"""Choosing and grouping rows, whatever they come from."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitwright.data import Batches, balanced_order, open_data
from bitwright.data import images as images_module
from bitwright.errors import InputError, UnsupportedError

Specs = dict[str, tuple[tuple[int | None, ...], str]]
MakeFolder = Callable[..., Path]

X: Specs = {"x": ((None, 2), "float32")}
LABELS = np.repeat(np.arange(3), (10, 4, 2))


def rows(n: int) -> np.ndarray:
    return np.arange(2 * n, dtype=np.float32).reshape(n, 2)


def seen(batches: Batches) -> list[float]:
    """The row numbers of all batches, in order."""
    return [value / 2 for batch in batches for value in batch.inputs["x"][: batch.valid, 0].tolist()]


def test_batches_hold_rows_labels_and_names() -> None:
    batches = open_data({"x": rows(5), "labels": np.arange(5) * 10}, X, batch_size=2)
    found = list(batches)
    assert [batch.valid for batch in found] == [2, 2, 1]
    np.testing.assert_array_equal(found[1].inputs["x"], rows(5)[2:4])
    assert found[1].labels is not None and found[1].labels.tolist() == [20, 30]
    assert found[1].names == ("data (dict)[2]", "data (dict)[3]")
    assert found[2].inputs["x"].shape == (1, 2)
    assert (len(batches), batches.batch_size, batches.skipped, batches.class_names) == (5, 2, [], None)


def test_every_walk_is_the_same_even_two_at_once() -> None:
    batches = open_data({"x": rows(7)}, X, batch_size=3)
    assert seen(batches) == seen(batches) == list(range(7))
    for a, b in zip(batches, batches, strict=True):
        np.testing.assert_array_equal(a.inputs["x"], b.inputs["x"])


def test_batches_do_not_share_memory_with_the_data() -> None:
    data = rows(4)
    batch = next(iter(open_data({"x": data}, X)))
    batch.inputs["x"][:] = -1
    assert data[0, 1] == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_limit_balances_classes_and_interleaves_them(seed: int) -> None:
    batches = open_data({"x": rows(16), "labels": LABELS}, X, limit=9, seed=seed)
    labels = batches.require_labels()
    assert sorted(labels[:3]) == sorted(labels[3:6]) == [0, 1, 2]  # each round takes one of each class
    counts = np.bincount(labels).tolist()
    assert sorted(counts[:2]) == [3, 4] and counts[2] == 2  # class 2 has but two
    assert len(set(seen(batches))) == 9
    np.testing.assert_array_equal(LABELS[np.array(seen(batches), dtype=int)], labels)


def test_limit_is_drawn_by_the_seed() -> None:
    def chosen(seed: int) -> list[float]:
        return seen(open_data({"x": rows(16), "labels": LABELS}, X, limit=6, seed=seed))

    assert chosen(3) == chosen(3)
    assert chosen(3) != chosen(4)


def test_a_smaller_limit_is_a_prefix_of_a_larger_one() -> None:
    for labels in (LABELS, None):
        orders = [balanced_order(16, labels, limit, seed=5).tolist() for limit in (4, 9, 100)]
        assert orders[2][:9] == orders[1] and orders[1][:4] == orders[0]
        assert sorted(orders[2]) == list(range(16))


def test_with_fewer_images_than_classes_the_classes_are_drawn() -> None:
    labels = np.arange(100)
    drawn = balanced_order(100, labels, 10, seed=0)
    assert len(set(drawn.tolist())) == 10
    assert drawn.max() > 50  # not just the first classes


def test_labels_that_are_no_classes_are_not_balanced() -> None:
    heat = np.linspace(0, 1, 16)
    np.testing.assert_array_equal(balanced_order(16, heat, 8, seed=0), balanced_order(16, None, 8, seed=0))


def test_limit_beyond_the_data_is_all_of_them() -> None:
    assert sorted(seen(open_data({"x": rows(5)}, X, limit=50))) == list(range(5))


def test_take_is_the_first_images() -> None:
    batches = open_data({"x": rows(7), "labels": np.arange(7)}, X, batch_size=2).take(3)
    assert seen(batches) == [0, 1, 2] and len(batches) == 3
    assert batches.require_labels().tolist() == [0, 1, 2]
    limited = open_data({"x": rows(16), "labels": LABELS}, X, limit=12)
    assert seen(limited.take(5)) == seen(limited)[:5]


def test_shuffled_is_a_seeded_permutation() -> None:
    batches = open_data({"x": rows(16), "labels": LABELS}, X)
    shuffled = batches.shuffled(1)
    assert sorted(seen(shuffled)) == list(range(16))
    assert seen(shuffled) == seen(batches.shuffled(1)) != seen(batches.shuffled(2))
    np.testing.assert_array_equal(LABELS[np.array(seen(shuffled), dtype=int)], shuffled.require_labels())


def test_what_can_only_be_read_in_order_is_not_shuffled() -> None:
    with pytest.raises(UnsupportedError, match=r"data \(list\): can only be read in its own order"):
        open_data([rows(4)], X).shuffled(0)


def test_a_fixed_batch_is_filled_up_with_the_last_row() -> None:
    fixed: Specs = {"x": ((4, 2), "float32")}
    batches = open_data({"x": rows(6), "labels": np.arange(6)}, fixed, batch_size=32)
    found = list(batches)
    assert batches.batch_size == 4
    assert [batch.valid for batch in found] == [4, 2]
    assert found[1].inputs["x"][:, 0].tolist() == [8, 10, 10, 10]
    assert found[1].labels is not None and found[1].labels.tolist() == [4, 5]  # real rows only
    assert len(found[1].names) == 2
    assert len(batches) == 6


def test_inputs_that_fix_different_batches_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"fix different batches \(a: \[2, 3\], b: \[4, 3\]\)"):
        open_data({}, {"a": ((2, 3), "float32"), "b": ((4, 3), "float32")})


def test_one_fixed_input_fixes_the_batch_for_all() -> None:
    two: Specs = {"a": ((None, 2), "float32"), "b": ((3, 2), "float32")}
    batches = open_data({"a": rows(4), "b": rows(4)}, two)
    assert [batch.inputs["a"].shape[0] for batch in batches] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size: is 0; expected a whole number from 1 on"),
        ({"limit": 0}, r"limit: is 0; expected a whole number from 1 on; leave it out"),
        ({"limit": -3}, r"limit: is -3"),
    ],
)
def test_sizes_below_one_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data({"x": rows(3)}, X, **arguments)  # type: ignore[arg-type]


def test_take_and_limited_below_one_are_refused() -> None:
    batches = open_data({"x": rows(3)}, X)
    with pytest.raises(InputError, match=r"take: is 0; expected a whole number"):
        batches.take(0)
    with pytest.raises(InputError, match=r"limit: is 0; expected a whole number"):
        batches.limited(0)


def test_inputs_without_a_batch_axis_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"input 't': is a single number without a batch axis"):
        open_data({}, {"t": ((), "float32")})
    with pytest.raises(UnsupportedError, match="model: has no inputs"):
        open_data({}, {})


def test_missing_labels_say_how_to_give_them(make_folder: MakeFolder, specs: Specs) -> None:
    with pytest.raises(InputError, match=r"has no labels; expected a label for every image; add an array 'labels'"):
        open_data({"x": rows(3)}, X).require_labels()
    with pytest.raises(InputError, match=r"set: has no labels; .*; sort the images into one sub-folder"):
        open_data(make_folder(["a.png"]), specs).require_labels()
    with pytest.raises(InputError, match=r"has no labels; .*; let it give \(arrays, labels\)"):
        open_data([rows(3)], X).require_labels()


def test_reading_ahead_is_bounded(make_folder: MakeFolder, specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder([f"{i:03}.png" for i in range(60)])
    decoded = 0
    lock = threading.Lock()
    decode = images_module.ImageSource.decode

    def counting(self: images_module.ImageSource, row: int) -> np.ndarray | None:
        nonlocal decoded
        with lock:
            decoded += 1
        return decode(self, row)

    batches = open_data(folder, specs, batch_size=4)
    monkeypatch.setattr(images_module.ImageSource, "decode", counting)
    walk = iter(batches)
    for handed_out in range(4, 61, 4):
        next(walk)
        with lock:
            assert handed_out <= decoded <= handed_out + 2 * 4
    assert decoded == 60


def test_a_walk_that_is_broken_off_stops_its_threads(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder([f"{i:03}.png" for i in range(30)])
    walk = iter(open_data(folder, specs, batch_size=2))
    next(walk)
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    walk.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_images_are_not_kept(make_folder: MakeFolder) -> None:
    folder = make_folder([f"{i:03}.png" for i in range(40)], height=64, width=64)
    batches = open_data(folder, {"image": ((None, 3, 64, 64), "float32")}, batch_size=2)
    one = 3 * 64 * 64 * 4
    tracemalloc.start()
    try:
        for _ in batches:
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * one  # three batches, and what decoding needs; all images would be 40
