"""Image folders and zips as users have them, small."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Specs = dict[str, tuple[tuple[int | None, ...], str]]


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def specs() -> Specs:
    """The inputs of a network for RGB images of 8x8 pixels."""
    return {"image": ((None, 3, 8, 8), "float32")}


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_folder(files, name)`: writes images `pixels(index)` at these relative paths."""

    def make(files: list[str], name: str = "set", height: int = 8, width: int = 8) -> Path:
        for number, file in enumerate(files):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(number, height, width)).save(path)
        return tmp_path / name

    return make


@pytest.fixture
def zip_folder(tmp_path: Path) -> Callable[..., Path]:
    """`zip_folder(folder, name, prefix)`: everything below the folder as a zip, inside the folder `prefix`."""

    def write(folder: Path, name: str = "set.zip", prefix: str = "") -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, prefix + path.relative_to(folder).as_posix())
        return tmp_path / name

    return write
