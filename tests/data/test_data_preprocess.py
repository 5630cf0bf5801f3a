from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from bitwright.data import preprocess as preprocessing
from bitwright.data.preprocess import INTERPOLATIONS, CropError, Preprocess
from bitwright.errors import InputError


def given(**fields: Any) -> Preprocess:
    """Fields as users write them: lists for tuples, one number for all channels."""
    return Preprocess(**fields)


RGB = np.array([[[255, 0, 51], [0, 102, 255]]], dtype=np.uint8)  # 1x2 pixels


def image(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8))


def test_the_default_divides_by_255_and_puts_channels_first() -> None:
    x = Preprocess()(Image.fromarray(RGB))
    assert x.dtype == np.float32 and x.flags.c_contiguous
    assert x.tolist() == np.array([[[1, 0]], [[0, 0.4]], [[0.2, 1]]], dtype=np.float32).tolist()


def test_normalisation_is_the_formula_in_float32() -> None:
    preprocess = given(scale=255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    x = preprocess(Image.fromarray(RGB))
    for c in range(3):
        pixel = RGB[:, :, c].astype(np.float32)
        expected = (pixel / np.float32(255) - np.float32(preprocess.mean[c])) / np.float32(preprocess.std[c])
        np.testing.assert_array_equal(x[c], expected)


def test_one_number_serves_all_channels() -> None:
    one = given(mean=0.5, std=0.25)
    assert one.mean == (0.5,)
    three = given(mean=[0.5] * 3, std=[0.25] * 3)
    np.testing.assert_array_equal(one(Image.fromarray(RGB)), three(Image.fromarray(RGB)))


def test_bgr_swaps_pixels_but_not_mean_and_std() -> None:
    x = given(color="BGR", scale=1, mean=[1, 2, 3])(Image.fromarray(RGB))
    assert x[:, 0, 0].tolist() == [51 - 1, 0 - 2, 255 - 3]


def test_grey_has_one_channel() -> None:
    x = given(color="GRAY", scale=1)(Image.fromarray(RGB))
    assert x.shape == (1, 1, 2)
    assert x[0, 0, 0] == np.asarray(Image.fromarray(RGB).convert("L"))[0, 0]


def test_nhwc_keeps_channels_last() -> None:
    x = given(layout="NHWC", scale=1)(Image.fromarray(RGB))
    np.testing.assert_array_equal(x, RGB.astype(np.float32))


@pytest.mark.parametrize(
    ("resize", "shape"), [(4, (4, 5)), ([6, 5], (6, 5)), (10, (10, 14)), (None, (10, 14))]
)  # of an image 10 high, 14 wide: 4*14/10 = 5.6, rounded down
def test_resize_is_the_shorter_side_or_height_and_width(resize: object, shape: tuple[int, int]) -> None:
    assert given(resize=resize)(image(10, 14)).shape == (3, *shape)
    if isinstance(resize, int):
        assert given(resize=resize)(image(14, 10)).shape == (3, *shape[::-1])


def test_crop_takes_the_centre() -> None:
    x = given(crop=[2, 4], scale=1)(image(6, 10))
    assert x[0, :, 0].tolist() == [2, 3]  # rows
    assert x[1, 0, :].tolist() == [3, 4, 5, 6]  # columns
    assert given(crop=3)(image(6, 10)).shape == (3, 3, 3)


def test_crop_follows_resize() -> None:
    assert given(resize=8, crop=6)(image(16, 32)).shape == (3, 6, 6)


def test_crop_larger_than_the_image_says_both_sizes() -> None:
    with pytest.raises(CropError, match=r"the image is 6x10 before the crop .*; at least 7x7"):
        given(crop=7)(image(6, 10))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_each_interpolation_is_pillows(interpolation: str) -> None:
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    x = given(resize=4, scale=1, layout="NHWC", interpolation=interpolation)(source)
    expected = source.resize((4, 4), getattr(Image.Resampling, interpolation.upper()))
    np.testing.assert_array_equal(x, np.asarray(expected, dtype=np.float32))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_other_eight_bit_modes_become_rgb(mode: str) -> None:
    assert Preprocess()(Image.new(mode, (5, 4))).shape == (3, 4, 5)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_of_more_than_eight_bits_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode}, not of 8 bits"):
        Preprocess()(Image.new(mode, (5, 4)))


def test_only_scale_1_mean_0_std_1_keeps_pixels() -> None:
    assert given(scale=1).keeps_pixels
    assert not Preprocess().keeps_pixels
    assert not given(scale=1, mean=1).keeps_pixels
    assert not given(scale=1, std=[1, 1, 2]).keeps_pixels


def test_updated_replaces_fields_and_checks_them() -> None:
    assert given(scale=2, crop=4).updated(crop=[3, 2]) == given(scale=2, crop=[3, 2])
    with pytest.raises(InputError, match=r"preprocessing: crop is 0; expected the side in pixels"):
        Preprocess().updated(crop=0)


def test_explicit_fields_override_others_stay() -> None:
    file = given(resize=40, crop=32, mean=0.5)
    merged = file.overridden_by(given(crop=None, std=2))
    assert merged == given(resize=40, crop=None, mean=0.5, std=2)


def test_fields_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Preprocess().crop = 3


def test_a_file_is_read_with_every_field() -> None:
    text = """
        resize: 256
        crop: [224, 200]
        scale: 1e0
        mean: [1, 2, 3]
        std: 4
        layout: NHWC
        color: BGR
        interpolation: bicubic
    """
    assert preprocessing.parse(text, "p.yaml") == Preprocess(
        resize=256,
        crop=(224, 200),
        scale=1.0,
        mean=(1, 2, 3),
        std=(4,),
        layout="NHWC",
        color="BGR",
        interpolation="bicubic",
    )


def test_an_empty_file_is_the_default() -> None:
    assert preprocessing.parse("# nothing yet\n", "p.yaml") == Preprocess()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resiz: 3", r"p\.yaml: there is no key 'resiz'; did you mean 'resize'"),
        ("3: 4", r"p\.yaml: there is no key 3; choose from color, crop"),
        ("resize: 0", r"p\.yaml: resize is 0; expected the shorter side in pixels, \[height, width\], or null"),
        ("resize: yes", r"p\.yaml: resize is True; expected the shorter side"),
        ("crop: [1, 2, 3]", r"p\.yaml: crop is \[1, 2, 3\]; expected"),
        ("crop: 2.5", r"p\.yaml: crop is 2.5; expected"),
        ("scale: 0", r"p\.yaml: scale is 0; expected a finite number above 0"),
        ("scale: true", r"p\.yaml: scale is True; expected a finite number above 0"),
        ("mean: .nan", r"p\.yaml: mean is nan; expected a finite number, or a list"),
        ("mean: []", r"p\.yaml: mean is \[\]; expected a finite number, or a list"),
        ("std: [1, 0, 1]", r"p\.yaml: std is \[1, 0, 1\]; expected a finite number above 0"),
        ("layout: NCWH", r"p\.yaml: layout is 'NCWH'; expected NCHW or NHWC"),
        ("color: rgb", r"p\.yaml: color is 'rgb'; expected RGB, BGR or GRAY"),
        ("interpolation: cubic", r"p\.yaml: interpolation is 'cubic'; expected nearest, box, bilinear"),
        ("mean: [1, 2]", r"p\.yaml: mean has 2 numbers, but RGB has 3 channels; give one number"),
        ("{color: GRAY, std: [1, 2, 3]}", r"p\.yaml: std has 3 numbers, but GRAY has 1 channels"),
        ("- resize", r"p\.yaml: holds a list; expected a mapping"),
        ("a: [", r"p\.yaml: is not YAML: .*; write lines such as 'resize: 256'"),
        (b"\xff\xfe\x00", r"p\.yaml: is not YAML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocessing.parse(text, "p.yaml")


def test_the_file_is_sought_in_the_folder_then_in_its_parent(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "dev"
    folder.mkdir(parents=True)
    assert preprocessing.find(folder) is None
    (tmp_path / "set" / "preprocess.yaml").touch()
    assert preprocessing.find(folder) == tmp_path / "set" / "preprocess.yaml"
    (folder / "preprocess.yaml").touch()
    assert preprocessing.find(folder) == folder / "preprocess.yaml"


def test_the_parent_is_that_of_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere" / "dev").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere" / "preprocess.yaml").touch()
    link = tmp_path / "here" / "dev"
    link.symlink_to(tmp_path / "elsewhere" / "dev")
    assert preprocessing.find(link) is None
    (tmp_path / "here" / "preprocess.yaml").touch()
    assert preprocessing.find(link) == tmp_path / "here" / "preprocess.yaml"
    monkeypatch.chdir(tmp_path / "here")
    assert preprocessing.find("dev") == tmp_path / "here" / "preprocess.yaml"
    monkeypatch.chdir(tmp_path / "elsewhere" / "dev")
    assert preprocessing.find(".") == tmp_path / "elsewhere" / "preprocess.yaml"
