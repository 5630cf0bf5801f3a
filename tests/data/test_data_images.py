"""Image folders and zips: which files, which labels, which pixels, and what is wrong with them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from bitwright.data import Batches, Preprocess, open_data
from bitwright.data.images import arrange
from bitwright.errors import InputError, UnsupportedError

Specs = dict[str, tuple[tuple[int | None, ...], str]]
MakeFolder = Callable[..., Path]
ZipFolder = Callable[..., Path]

CLASSES = ["dog/1.png", "cat/2.png", "cat/1.png", "emu/x.jpg"]


def stacked(batches: Batches) -> np.ndarray:
    return np.concatenate([batch.inputs["image"][: batch.valid] for batch in batches])


def jpeg(seed: int = 0, size: int = 8, **options: Any) -> bytes:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def test_sub_folders_give_labels_in_sorted_order(make_folder: MakeFolder, specs: Specs) -> None:
    batches = open_data(make_folder(CLASSES), specs, batch_size=3)
    assert batches.names == ("cat/1.png", "cat/2.png", "dog/1.png", "emu/x.jpg")
    assert batches.class_names == ("cat", "dog", "emu")
    assert batches.require_labels().tolist() == [0, 0, 1, 2]
    found = list(batches)
    assert [batch.names for batch in found] == [batches.names[:3], batches.names[3:]]
    assert [label for batch in found if batch.labels is not None for label in batch.labels] == [0, 0, 1, 2]


def test_pixels_are_those_of_the_file(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(CLASSES)
    x = stacked(open_data(folder, specs))
    assert x.dtype == np.float32
    for row, name in zip(x, ("cat/1.png", "cat/2.png", "dog/1.png", "emu/x.jpg"), strict=True):
        expected = np.asarray(Image.open(folder / name), dtype=np.float32) / np.float32(255)
        np.testing.assert_array_equal(row, expected.transpose(2, 0, 1))


def test_a_flat_folder_has_no_labels(make_folder: MakeFolder, specs: Specs) -> None:
    batches = open_data(make_folder(["b.png", "a.JPG"]), specs)
    assert (batches.labels, batches.class_names, batches.names) == (None, None, ("a.JPG", "b.png"))
    assert [batch.labels for batch in batches] == [None]


def test_other_files_and_hidden_ones_are_left_alone(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder([*CLASSES, ".cache/9.png", "cat/._1.png"])
    (folder / "README.md").write_text("about")
    (folder / "cat" / "list.txt").write_text("1.png")
    assert len(open_data(folder, specs)) == 4


def test_a_folder_in_between_is_no_class(make_folder: MakeFolder, specs: Specs) -> None:
    inner = open_data(make_folder(["cat/images/1.png", "dog/images/1.png"]), specs)
    assert inner.class_names == ("cat", "dog")
    outer = open_data(make_folder(["train/cat/1.png", "train/dog/1.png"], "outer"), specs)
    assert (outer.class_names, outer.names) == (("cat", "dog"), ("train/cat/1.png", "train/dog/1.png"))


def test_a_folder_of_one_class_has_labels(make_folder: MakeFolder, specs: Specs) -> None:
    batches = open_data(make_folder(["cat/1.png", "cat/2.png"]), specs)
    assert (batches.class_names, batches.require_labels().tolist()) == (("cat",), [0, 0])


def test_links_to_class_folders_are_followed(make_folder: MakeFolder, tmp_path: Path, specs: Specs) -> None:
    folder = make_folder(["cat/1.png"])
    elsewhere = make_folder(["x.png"], "elsewhere")
    (folder / "dog").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(tmp_path / "nowhere")  # dangling
    assert open_data(folder, specs).names == ("cat/1.png", "dog/x.png")


@pytest.mark.parametrize("prefix", ["", "train/", "data/train/"])
def test_a_zip_is_read_like_its_folder(
    prefix: str, make_folder: MakeFolder, zip_folder: ZipFolder, specs: Specs
) -> None:
    folder = make_folder(CLASSES)
    from_zip = open_data(zip_folder(folder, prefix=prefix), specs)
    from_folder = open_data(folder, specs)
    assert from_zip.class_names == from_folder.class_names
    assert from_zip.names == tuple(prefix + name for name in from_folder.names)
    assert from_zip.require_labels().tolist() == from_folder.require_labels().tolist()
    np.testing.assert_array_equal(stacked(from_zip), stacked(from_folder))


def test_a_flat_zip_has_no_labels(make_folder: MakeFolder, zip_folder: ZipFolder, specs: Specs) -> None:
    path = zip_folder(make_folder(["a.png", "b.png"]), prefix="images/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/images/._a.png", b"?")
    batches = open_data(path, specs)
    assert batches.labels is None and len(batches) == 2


def test_limit_sees_all_classes(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder([f"class{c}/{i}.png" for c in range(5) for i in range(6)])
    batches = open_data(folder, specs, limit=10, seed=1)
    assert np.bincount(batches.require_labels()).tolist() == [2] * 5
    assert len(next(iter(batches)).names) == 10


# Inputs of the network.


def test_whole_pixels_feed_a_uint8_input(make_folder: MakeFolder) -> None:
    folder = make_folder(["a.png"])
    specs: Specs = {"image": ((None, 8, 8, 3), "uint8")}
    x = stacked(open_data(folder, specs, preprocess=Preprocess(scale=1, layout="NHWC")))
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x[0], np.asarray(Image.open(folder / "a.png")))


def test_fractions_do_not_feed_a_uint8_input(make_folder: MakeFolder) -> None:
    with pytest.raises(
        InputError, match=r"makes fractions, but the input 'image' is uint8; .*; set scale: 1, mean: 0"
    ):
        open_data(make_folder(["a.png"]), {"image": ((None, 3, 8, 8), "uint8")})


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_floats_are_rounded_from_float32(dtype: str, make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png"])
    x = stacked(open_data(folder, {"image": ((None, 3, 8, 8), dtype)}))
    assert x.dtype.name == dtype
    np.testing.assert_array_equal(x, stacked(open_data(folder, specs)).astype(x.dtype))


@pytest.mark.parametrize("dtype", ["int8", "bool"])
def test_pixels_do_not_fit_other_types(dtype: str, make_folder: MakeFolder) -> None:
    with pytest.raises(UnsupportedError, match=f"holds images, but the input 'image' is {dtype}"):
        open_data(make_folder(["a.png"]), {"image": ((None, 3, 8, 8), dtype)})


def test_any_size_fits_where_the_input_leaves_it_open(make_folder: MakeFolder) -> None:
    open_specs: Specs = {"image": ((None, 3, None, None), "float32")}
    folder = make_folder(["a.png"], height=6, width=9)
    assert stacked(open_data(folder, open_specs)).shape == (1, 3, 6, 9)
    make_folder(["b.png"], height=7, width=9)
    with pytest.raises(
        InputError, match=r"b\.png: has the shape \[3, 7, 9\] .*expected \[3, 6, 9\].*; set resize or crop to"
    ):
        list(open_data(folder, open_specs))


def test_images_feed_one_input_with_four_axes(make_folder: MakeFolder) -> None:
    folder = make_folder(["a.png"])
    two: Specs = {"a": ((None, 3, 8, 8), "float32"), "b": ((None, 3, 8, 8), "float32")}
    with pytest.raises(UnsupportedError, match=r"set: holds images, but the model has 2 inputs \(a, b\)"):
        open_data(folder, two)
    with pytest.raises(UnsupportedError, match=r"the input 'ids' has 2 axes; expected 4 axes .*give arrays"):
        open_data(folder, {"ids": ((None, 8), "float32")})


@pytest.mark.parametrize(
    ("shape", "preprocess", "message"),
    [
        (
            (3, 4, 4),
            {},
            r"\[3, 8, 8\] after preprocessing; expected \[3, 4, 4\] for .*; set resize or crop to \[4, 4\]",
        ),
        ((8, 8, 3), {}, r"\[3, 8, 8\] .* expected \[8, 8, 3\] .*; set layout to NHWC"),
        ((3, 8, 8), {"layout": "NHWC"}, r"\[8, 8, 3\] .* expected \[3, 8, 8\] .*; set layout to NCHW"),
        ((1, 8, 8), {}, r"expected \[1, 8, 8\] .*; set color to GRAY"),
        ((3, 8, 8), {"color": "GRAY"}, r"\[1, 8, 8\] .*; set color to RGB or BGR"),
        ((4, 8, 8), {}, r"; images have 1 or 3 channels, not 4: give arrays"),
        ((3, 8, 8), {"crop": 9}, r"is 8x8 before the crop .*; expected at least 9x9; resize first"),
    ],
)
def test_the_wrong_shape_says_what_to_set(
    shape: tuple[int, ...], preprocess: dict[str, object], message: str, make_folder: MakeFolder
) -> None:
    inputs: Specs = {"image": ((None, *shape), "float32")}
    with pytest.raises(InputError, match=r"set/a\.png: .*" + message):
        open_data(make_folder(["a.png"]), inputs, preprocess=Preprocess.from_mapping(preprocess, "flags"))


# Damaged data.


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["1.jpg", "1.png", "1.bmp", "1.webp", "1.tif"])
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning:PIL", "ignore:Corrupt EXIF:UserWarning:PIL")
def test_a_truncated_image_is_named(name: str, make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["0.png", name])
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    batches = open_data(folder, specs)
    with pytest.raises(InputError, match=rf"set/{name}: is no readable image \(.+\); expected a whole image; replace"):
        list(batches)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_no_truncated_jpeg_is_loaded_with_other_pixels(options: dict[str, Any], tmp_path: Path, specs: Specs) -> None:
    whole = jpeg(**options)
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "a.jpg"
    path.write_bytes(whole)
    expected = stacked(open_data(tmp_path / "set", specs))
    for length in [*range(0, len(whole), 9), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        try:
            x = stacked(open_data(tmp_path / "set", specs))
        except InputError:
            continue
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("contents", [b"", b"not an image", b"\xff\xd8\xff"])
def test_what_is_no_image_is_named(contents: bytes, make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png", "b.png"])
    (folder / "a.png").write_bytes(contents)
    with pytest.raises(InputError, match=r"set/a\.png: is no readable image"):
        open_data(folder, specs)


def test_pixels_of_sixteen_bits_are_named(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png"])
    Image.new("I;16", (8, 8)).save(folder / "a.png")
    with pytest.raises(InputError, match=r"a\.png: is no readable image \(the pixels are of mode I;16"):
        open_data(folder, specs)


def test_bad_images_are_skipped_counted_and_named(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "dog/3.png"])
    damage(folder / "cat/1.png")
    damage(folder / "dog/2.png")
    batches = open_data(folder, specs, batch_size=2, skip_bad=True)
    found = list(batches)
    assert batches.skipped == ["cat/1.png", "dog/2.png"]
    assert [batch.names for batch in found] == [("cat/2.png", "dog/1.png"), ("dog/3.png",)]
    assert len(batches) == 3 and batches.names == ("cat/2.png", "dog/1.png", "dog/3.png")
    assert batches.require_labels().tolist() == [0, 1, 1]
    assert batches.take(2).names == ("cat/2.png", "dog/1.png")
    assert [batch.names for batch in batches] == [batch.names for batch in found]  # and so at the second walk


def test_a_wrong_size_is_never_skipped(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png"])
    make_folder(["b.png"], height=9)
    with pytest.raises(InputError, match=r"b\.png: has the shape \[3, 9, 8\]"):
        list(open_data(folder, specs, skip_bad=True))


def test_all_images_bad_is_an_error(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(["a.png", "b.png"])
    for path in folder.iterdir():
        damage(path)
    with pytest.raises(InputError, match=r"set: none of the 2 chosen images can be read; look at one"):
        open_data(folder, specs, skip_bad=True)


def test_a_damaged_file_in_a_zip_is_named(make_folder: MakeFolder, zip_folder: ZipFolder, specs: Specs) -> None:
    path = zip_folder(make_folder(["cat/1.png", "dog/1.png"]))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"dog/1.png") + 60] ^= 255  # in its pixels: the checksum of the zip is wrong now
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"set\.zip/dog/1\.png: is no readable image \(Bad CRC-32"):
        list(open_data(path, specs))


def test_pillow_told_to_load_damaged_images_is_refused(
    make_folder: MakeFolder, specs: Specs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match=r"LOAD_TRUNCATED_IMAGES: is set, .*; set it back to False"):
        open_data(make_folder(["a.png"]), specs)


# Folders that are no data set.


def test_an_empty_folder_is_refused(tmp_path: Path, specs: Specs) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        InputError, match=r"there is no image in it; expected files such as x\.jpg, .*; check the path"
    ):
        open_data(tmp_path, specs)


def test_an_empty_class_is_refused(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder(CLASSES)
    (folder / "cow").mkdir()
    with pytest.raises(InputError, match=r"set: the class folder 'cow' holds no image; .*; fill it, or remove it"):
        open_data(folder, specs)


def test_images_beside_class_folders_are_refused(make_folder: MakeFolder, specs: Specs) -> None:
    with pytest.raises(InputError, match=r"set: '0\.png' lies beside the class folder 'cat'; expected either"):
        open_data(make_folder(["0.png", "cat/1.png"]), specs)


def test_a_folder_of_several_data_sets_is_refused(make_folder: MakeFolder, specs: Specs) -> None:
    folder = make_folder([f"{split}/{c}/1.png" for split in ("dev", "train") for c in ("cat", "dog")])
    with pytest.raises(InputError, match=r"the images of 'dev' are spread over 2 folders .*; choose one .*set/dev"):
        open_data(folder, specs)


def test_files_are_sorted_whatever_their_order() -> None:
    files = ["b/1.png", "a/2.png", "a-c/1.png", "a/1.png"]
    assert arrange(files, [], "x", shared_class=True).files == ("a/1.png", "a/2.png", "a-c/1.png", "b/1.png")
    assert arrange(files, [], "x", shared_class=True).class_names == ("a", "a-c", "b")
