"""Arrays in memory and in `.npz` files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitwright.data import Preprocess, open_data
from bitwright.data.arrays import npz_arrays
from bitwright.errors import InputError, UnsupportedError

Specs = dict[str, tuple[tuple[int | None, ...], str]]

X: Specs = {"x": ((None, 3, 2), "float32")}
TWO: Specs = {"ids": ((None, 4), "int64"), "mask": ((None, 4), "bool")}


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_gives_its_rows(save: Any, tmp_path: Path) -> None:
    x, labels = floats(7, 3, 2), np.arange(7) % 3
    save(tmp_path / "a.npz", x=x, labels=labels, notes=np.zeros(2))
    batches = open_data(tmp_path / "a.npz", X, batch_size=4)
    np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in batches]), x)
    np.testing.assert_array_equal(batches.require_labels(), labels)
    assert batches.preprocess_source == "none"
    assert batches.names[3] == f"{tmp_path}/a.npz[3]"


def test_an_uncompressed_npz_stays_on_disk(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "x": floats(7, 3, 2),
        "transposed": np.asfortranarray(floats(5, 4)),
        "scalar": np.float32(3),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    found = npz_arrays(tmp_path / "a.npz", "a.npz")
    assert isinstance(found["x"], np.memmap) and isinstance(found["transposed"], np.memmap)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    batch = next(iter(open_data(tmp_path / "a.npz", X)))
    assert not isinstance(batch.inputs["x"], np.memmap)


def test_several_inputs_are_matched_by_name(tmp_path: Path) -> None:
    ids, mask = np.arange(20).reshape(5, 4), np.ones((5, 4), dtype=bool)
    np.savez(tmp_path / "a.npz", mask=mask, ids=ids)
    found = list(open_data(tmp_path / "a.npz", TWO, batch_size=3))
    assert list(found[0].inputs) == ["ids", "mask"]
    np.testing.assert_array_equal(found[1].inputs["ids"], ids[3:])
    assert found[1].inputs["mask"].dtype == np.bool_


def test_an_npz_inside_a_zip(tmp_path: Path) -> None:
    x = floats(4, 3, 2)
    np.savez(tmp_path / "a.npz", x=x)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.npz", "inner/a.npz")
    np.testing.assert_array_equal(next(iter(open_data(tmp_path / "a.zip", X))).inputs["x"], x)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.write(tmp_path / "a.npz", "b.npz")
    with pytest.raises(InputError, match=r"a\.zip: holds 2 \.npz files; expected one"):
        open_data(tmp_path / "a.zip", X)


def test_an_input_called_labels_is_an_input() -> None:
    specs: Specs = {"labels": ((None, 2), "float32")}
    batches = open_data({"labels": floats(3, 2)}, specs)
    assert batches.labels is None and next(iter(batches)).inputs["labels"].shape == (3, 2)


def test_arrays_and_tensors_are_taken_as_they_are() -> None:
    x = floats(5, 3, 2)
    for source in (x, torch.tensor(x), {"x": torch.tensor(x, requires_grad=True)}):
        np.testing.assert_array_equal(next(iter(open_data(source, X))).inputs["x"], x)


def test_bfloat16_tensors_keep_their_type() -> None:
    x = torch.tensor(floats(5, 3, 2)).bfloat16()
    found = next(iter(open_data({"x": x}, {"x": ((None, 3, 2), "bfloat16")}))).inputs["x"]
    assert found.dtype.name == "bfloat16"
    np.testing.assert_array_equal(found.astype(np.float32), x.float().numpy())


def test_labels_may_have_axes() -> None:
    masks = np.zeros((5, 3, 2), dtype=np.uint8)
    assert open_data({"x": floats(5, 3, 2), "labels": masks}, X, limit=3).require_labels().shape == (3, 3, 2)


@pytest.mark.parametrize("row", [0, 3, 6])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_numbers_that_are_not_finite_are_named(row: int, value: float, word: str, tmp_path: Path) -> None:
    x = floats(7, 3, 2)
    x[row, 1, 0] = value
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(InputError, match=rf"a\.npz\['x'\]: image {row} holds {word}; expected finite"):
        open_data(tmp_path / "a.npz", X)


def test_a_search_for_nan_in_several_steps_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.data.arrays.CHECKED_AT_ONCE", 12)  # two rows
    x = floats(7, 3, 2)
    x[5, 0, 0] = np.nan
    with pytest.raises(InputError, match="image 5 holds NaN"):
        open_data({"x": x}, X)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": floats(2, 3, 2), "xx": floats(1)}, r"has xx, y; expected an array 'x'; did you mean 'xx'"),
        ({}, r"has nothing; expected an array 'x'"),
        ({"x": floats(5, 2, 3)}, r"\['x'\]: has the shape \[5, 2, 3\]; expected \[\?, 3, 2\]; transpose its axes"),
        (
            {"x": floats(5, 3)},
            r"\['x'\]: has the shape \[5, 3\]; expected \[\?, 3, 2\]; (store|give) it as \[\?, 3, 2\]",
        ),
        (
            {"x": floats(5, 3, 2).astype(np.float64)},
            r"\['x'\]: is float64; expected float32; convert it with \.astype",
        ),
        ({"x": np.float32(1)}, r"\['x'\]: has the shape \[\]; expected"),
        ({"x": floats(0, 3, 2)}, r"'x' has no rows; expected at least one image"),
        ({"x": floats(5, 3, 2), "labels": np.arange(4)}, r"has 4 labels for 5 images; expected 5 labels"),
        ({"x": floats(5, 3, 2), "labels": np.int64(4)}, r"has a single number for 5 images"),
        (
            {"x": floats(5, 3, 2), "labels": np.array(["a"] * 5)},
            r"\['labels'\]: holds .* expected an array of numbers",
        ),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_wrong_arrays_are_named(arrays: dict[str, np.ndarray], message: str, as_file: bool, tmp_path: Path) -> None:
    if as_file:
        np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    if as_file and not arrays:
        message = r"a\.npz: is no readable \.npz \(there are no arrays in it\)"
    with pytest.raises(InputError, match=message):
        open_data(tmp_path / "a.npz" if as_file else arrays, X)


def test_inputs_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"'mask' has 4 rows, 'ids' has 5"):
        open_data({"ids": np.zeros((5, 4), np.int64), "mask": np.zeros((4, 4), bool)}, TWO)


def test_python_objects_are_no_arrays(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=np.array([{}, None], dtype=object))
        with pytest.raises(InputError, match=r"a\.npz: is no readable \.npz \(.*(objects|Object)"):
            open_data(tmp_path / "a.npz", X)
    with pytest.raises(InputError, match=r"\['x'\]: a list is no array|holds a list of type"):
        open_data({"x": [[1.0], [1.0, 2.0]]}, X)


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_a_truncated_npz_is_named(keep: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=floats(50, 3, 2))
    raw = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(raw[:keep])
    with pytest.raises(InputError, match=r"a\.npz: is no readable \.npz \(.+\); expected arrays by numpy.savez"):
        open_data(tmp_path / "a.npz", X)


def test_an_array_shorter_than_its_header_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", floats(50, 3, 2))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes()[:-4])
    with pytest.raises(InputError, match=r"a\.npz: is no readable \.npz \(x\.npy is cut off\)"):
        open_data(tmp_path / "a.npz", X)


def test_preprocessing_does_not_apply_to_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=floats(5, 3, 2))
    for source in (tmp_path / "a.npz", {"x": floats(5, 3, 2)}):
        with pytest.raises(InputError, match="holds arrays, to which preprocessing does not apply"):
            open_data(source, X, preprocess=Preprocess(scale=1))
        assert len(open_data(source, X, preprocess=Preprocess())) == 5  # no field given


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"x: has the type 'float7', which numpy does not know"):
        open_data({"x": floats(2, 3, 2)}, {"x": ((None, 3, 2), "float7")})
