"""Paths, and where the preprocessing comes from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.data import Batches, Preprocess, open_data
from bitwright.errors import InputError

Specs = dict[str, tuple[tuple[int | None, ...], str]]
MakeFolder = Callable[..., Path]
ZipFolder = Callable[..., Path]


def mean_pixel(batches: Batches) -> float:
    return float(next(iter(batches)).inputs["image"].mean())


def test_a_path_that_does_not_exist(specs: Specs, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"gone: does not exist; expected an image folder, a \.npz, .*; check the path"
    ):
        open_data(tmp_path / "gone", specs)
    with pytest.raises(InputError, match=r"C:.gone: does not exist"):
        open_data("C:/gone", specs)


@pytest.mark.parametrize(("name", "ending"), [("a.txt", r"'\.txt'"), ("a", "'nothing'"), ("a.npy", r"'\.npy'")])
def test_a_file_that_is_neither(name: str, ending: str, specs: Specs, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=rf"{name}: is a file ending in {ending}; expected an image folder, a \.npz"):
        open_data(str(tmp_path / name), specs)


def test_a_damaged_zip(specs: Specs, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match=r"a\.zip: is no readable zip \(.*\); .*; download or write it again"):
        open_data(tmp_path / "a.zip", specs)


def test_an_empty_zip(specs: Specs, tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with pytest.raises(InputError, match=r"a\.zip: there is no image in it"):
        open_data(tmp_path / "a.zip", specs)


def test_an_existing_path_is_no_callable(
    make_folder: MakeFolder, specs: Specs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_folder(["a.png"], name="my:set")
    monkeypatch.chdir(tmp_path)
    assert len(open_data("my:set", specs)) == 1


def test_a_relative_path_stays_valid_elsewhere(
    make_folder: MakeFolder, specs: Specs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_folder(["a.png"])
    monkeypatch.chdir(tmp_path)
    batches = open_data("set", specs)
    monkeypatch.chdir(tmp_path / "set")
    assert len(list(batches)) == 1


def test_the_default_is_named(make_folder: MakeFolder, specs: Specs) -> None:
    assert open_data(make_folder(["a.png"]), specs).preprocess_source == "default"


def test_the_file_is_used_and_named(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png"])
    plain = mean_pixel(open_data(folder, specs))
    beside = folder.parent / "preprocess.yaml"
    beside.write_text("mean: 0.5")
    batches = open_data(folder, specs)
    assert batches.preprocess_source == str(beside)
    assert mean_pixel(batches) == pytest.approx(plain - 0.5, abs=1e-6)
    (folder / "preprocess.yaml").write_text("mean: 0.25")  # nearer, so it wins
    assert mean_pixel(open_data(folder, specs)) == pytest.approx(plain - 0.25, abs=1e-6)


def test_flags_override_the_file_field_by_field(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png"])
    plain = mean_pixel(open_data(folder, specs))
    (folder / "preprocess.yaml").write_text("{mean: 0.5, std: 2}")
    batches = open_data(folder, specs, preprocess=Preprocess(std=(4,)))
    assert mean_pixel(batches) == pytest.approx((plain - 0.5) / 4, abs=1e-6)
    assert batches.preprocess_source == f"{folder}/preprocess.yaml, overridden by flags: std"
    (folder / "preprocess.yaml").unlink()
    batches = open_data(folder, specs, preprocess=Preprocess(std=(4,)))
    assert mean_pixel(batches) == pytest.approx(plain / 4, abs=1e-6)
    assert batches.preprocess_source == "flags"
    assert open_data(folder, specs, preprocess=Preprocess()).preprocess_source == "default"  # no flag given


def test_a_zip_has_its_file_inside_or_beside(make_folder: MakeFolder, zip_folder: ZipFolder, specs: Specs) -> None:
    folder = make_folder(["cat/a.png", "dog/a.png"])
    path = zip_folder(folder, prefix="train/")
    plain = mean_pixel(open_data(path, specs))
    (path.parent / "preprocess.yaml").write_text("mean: 0.5")
    batches = open_data(path, specs)
    assert batches.preprocess_source == str(path.parent / "preprocess.yaml")
    assert mean_pixel(batches) == pytest.approx(plain - 0.5, abs=1e-6)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/preprocess.yaml", "mean: 0.25")
    batches = open_data(path, specs)
    assert batches.preprocess_source == f"{path}/train/preprocess.yaml"
    assert mean_pixel(batches) == pytest.approx(plain - 0.25, abs=1e-6)


def test_a_wrong_file_is_named(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png"])
    (folder / "preprocess.yaml").write_text("means: 0.5")
    with pytest.raises(InputError, match=r"set/preprocess\.yaml: there is no key 'means'; did you mean 'mean'"):
        open_data(folder, specs)


def test_flags_that_do_not_fit_the_file_are_refused(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png"])
    (folder / "preprocess.yaml").write_text("mean: [1, 2, 3]")
    with pytest.raises(InputError, match=r"mean has 3 numbers, but GRAY has 1 channels"):
        open_data(folder, specs, preprocess=Preprocess(color="GRAY"))


def test_reading_data_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, bitwright.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_one_image_is_preprocessed_as_the_set_it_lies_in(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["dev/cat/a.png", "dev/dog/b.png"])
    image = folder / "dev" / "cat" / "a.png"
    plain = open_data(image, specs)
    assert (len(plain), plain.names, plain.labels, plain.preprocess_source) == (1, ("a.png",), None, "default")
    (folder / "preprocess.yaml").write_text("scale: 51\n")
    found = open_data(str(image), specs)
    assert found.preprocess_source == str(folder / "preprocess.yaml")
    assert mean_pixel(found) == pytest.approx(5 * mean_pixel(plain), rel=1e-6)
    (image.parent / "preprocess.yaml").write_text("scale: 255\n")
    assert mean_pixel(open_data(image, specs)) == mean_pixel(plain)
    given = open_data(image, specs, preprocess=Preprocess(scale=51))
    assert mean_pixel(given) == pytest.approx(5 * mean_pixel(plain), rel=1e-6)
