"""From the pixels of an image to a network's input: `x = (pixel / scale - mean) / std`.

The fields are those of `preprocess.yaml`, a file that lies in the image folder, or in the parent of the
path as it was given (links not resolved), or beside or inside a zip.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from bitwright.errors import InputError
from bitwright.lookup import did_you_mean

FILE_NAME = "preprocess.yaml"

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

EXPECTED = {
    "resize": "the shorter side in pixels, [height, width], or null",
    "crop": "the side in pixels, [height, width], or null",
    "scale": "a finite number above 0",
    "mean": "a finite number, or a list of them, one for each channel",
    "std": "a finite number above 0, or a list of them, one for each channel",
    "layout": "NCHW or NHWC",
    "color": "RGB, BGR or GRAY",
    "interpolation": ", ".join(INTERPOLATIONS),
}

EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int | float) else value


def _not_bool(value: object) -> object:
    # pydantic would read `scale: yes` as 1; numbers in quotes are let through, since YAML reads 1e-3 as a string
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    return value


Pixels = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[FiniteFloat, BeforeValidator(_not_bool)]
Positive = Annotated[FiniteFloat, Field(gt=0), BeforeValidator(_not_bool)]


class CropError(ValueError):
    """The image is sound, but smaller than the crop: `found` and `expected` say the sizes."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"{found}; {expected}")
        self.found, self.expected = found, expected


class Preprocess(BaseModel):
    """How an image becomes a network's input: resize, crop, colour order, `(pixel / scale - mean) / std`, layout.

    Args:
        resize: the length of the shorter side in pixels (the aspect ratio is kept), or `[height, width]`; None: as is.
        crop: the side of the centre square in pixels, or `[height, width]`; None: as is.
        scale: what a pixel (0 to 255) is divided by.
        mean: one number, or one for each channel in the order of `color`; in units of `pixel / scale`.
        std: likewise; positive.
        layout: `NCHW` or `NHWC`, the order of the network's axes.
        color: `RGB`, `BGR` or `GRAY` (one channel).
        interpolation: of `resize`: nearest, box, bilinear, bicubic or lanczos (antialiased, as Pillow does it).

    Example:
        >>> Preprocess(resize=4, mean=0.5).updated(std=0.25)(Image.new("RGB", (8, 4), (255, 0, 51)))[:, 0, 0].tolist()
        [2.0, -2.0, -1.2000000476837158]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: Pixels | tuple[Pixels, Pixels] | None = None
    crop: Pixels | tuple[Pixels, Pixels] | None = None
    scale: Positive = 255.0
    mean: Annotated[tuple[Number, ...], BeforeValidator(_as_list), Field(min_length=1)] = (0.0,)
    std: Annotated[tuple[Positive, ...], BeforeValidator(_as_list), Field(min_length=1)] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR", "GRAY"] = "RGB"
    interpolation: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @model_validator(mode="after")
    def _channels_agree(self) -> Preprocess:
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in (1, self.channels):
                found = len(getattr(self, key))
                raise ValueError(f"{key} has {found} numbers, but {self.color} has {self.channels} channels")
        return self

    @property
    def channels(self) -> int:
        """1 for grey, else 3."""
        return 1 if self.color == "GRAY" else 3

    @property
    def keeps_pixels(self) -> bool:
        """Whether the numbers are the pixels themselves (scale 1, mean 0, std 1), as integer inputs need it."""
        return self.scale == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any], where: str) -> Preprocess:
        """Fields from a user's file or flags; `where` names them in errors.

        Raises:
            InputError: a key is unknown, or a value does not fit its key.

        Example:
            >>> Preprocess.from_mapping({"resize": 40, "crop": [32, 32]}, "flags").crop
            (32, 32)
        """
        for key in fields:
            if key not in cls.model_fields:
                raise InputError(where, f"there is no key {key!r}", fix=did_you_mean(str(key), cls.model_fields))
        try:
            return cls(**fields)
        except ValidationError as error:
            raise _as_input_error(error, fields, where) from error

    def updated(self, **fields: Any) -> Preprocess:
        """This preprocessing with some fields replaced, validated again.

        Raises:
            InputError: a field is unknown, or its value does not fit.

        Example:
            >>> Preprocess(scale=1).updated(crop=8).scale
            1.0
        """
        return type(self).from_mapping({**self.model_dump(exclude_unset=True), **fields}, "preprocessing")

    def overridden_by(self, other: Preprocess) -> Preprocess:
        """This preprocessing with the fields that were given explicitly to `other`.

        Example:
            >>> Preprocess(scale=1, crop=8).overridden_by(Preprocess(crop=4))
            Preprocess(resize=None, crop=4, scale=1.0, mean=(0.0,), std=(1.0,), layout='NCHW', color='RGB', \
interpolation='bilinear')
        """
        return self.updated(**other.model_dump(exclude_unset=True))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The network's input, float32, `[c, h, w]` or `[h, w, c]`, of one opened image.

        Raises:
            ValueError: the pixels have more than 8 bits, or the image is smaller than the crop.
            Exception: whatever Pillow raises for a damaged image.
        """
        if image.mode not in EIGHT_BIT_MODES:
            raise ValueError(f"the pixels are of mode {image.mode}, not of 8 bits a channel")
        image = self._cropped(self._resized(image.convert("L" if self.color == "GRAY" else "RGB")))
        pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, self.channels)
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        mean, std = (np.array(numbers, dtype=np.float32) for numbers in (self.mean, self.std))
        x = (pixels / np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(x.transpose(2, 0, 1) if self.layout == "NCHW" else x)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:  # the longer side is rounded down, as torchvision does, with which most networks were trained
            shorter = min(image.size)
            width, height = (self.resize * side // shorter for side in image.size)
        return image.resize((width, height), INTERPOLATIONS[self.interpolation])

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.crop is None:
            return image
        height, width = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
        if height > image.height or width > image.width:
            raise CropError(
                f"the image is {image.height}x{image.width} before the crop (height x width)",
                f"at least {height}x{width}",
            )
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))


def _as_input_error(error: ValidationError, fields: Mapping[str, Any], where: str) -> InputError:
    """The first complaint of pydantic, in our words."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # two fields that do not fit each other
        return InputError(where, message, fix="give one number, or one for each channel")
    key = str(first["loc"][0])
    return InputError(where, f"{key} is {fields[key]!r}", EXPECTED[key], f"correct {key}")


def parse(text: str | bytes, where: str) -> Preprocess:
    """The preprocessing that the text of a `preprocess.yaml` describes; an empty file is the default.

    Raises:
        InputError: not YAML, not a mapping, or not the fields of `Preprocess`.

    Example:
        >>> parse("resize: 256", "preprocess.yaml").resize
        256
    """
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(where, f"is not YAML: {error}", fix="write lines such as 'resize: 256'") from error
    if fields is None:
        return Preprocess()
    if not isinstance(fields, dict):
        raise InputError(where, f"holds a {type(fields).__name__}", "a mapping", "write lines such as 'resize: 256'")
    return Preprocess.from_mapping(fields, where)


def find(source: str | os.PathLike[str]) -> Path | None:
    """The `preprocess.yaml` in the folder `source`, else in the parent of the path as given; None if there is none.

    Links are not resolved: for a link `here/dev -> /elsewhere/dev` the parent is `here`.
    """
    path = Path(os.path.abspath(source))  # unlike resolve(), keeps links
    for folder in (path, path.parent):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    return None
