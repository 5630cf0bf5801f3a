"""Image folders and zips of them: which files, which class, decoded by a few threads that read ahead."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from bitwright.data.arrays import fits, numpy_dtype, shape_text
from bitwright.data.batches import Rows
from bitwright.data.preprocess import FILE_NAME, CropError, Preprocess
from bitwright.errors import InputError, UnsupportedError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff")
DEEPEST = 8  # folders below each other; ends a walk through a link that points back up
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images below one folder: relative paths with `/`, labels by sub-folder, and the folder they all share."""

    files: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    top: str


def list_folder(folder: Path) -> Listing:
    """The images of a folder, a sub-folder for each class, or all in the folder itself (no labels).

    Raises:
        InputError: no image; images both beside and in sub-folders; an empty class; a folder of several data sets.
    """
    files: list[str] = []
    folders: list[str] = []

    def walk(path: Path, relative: str, depth: int) -> None:
        for entry in os.scandir(path):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(f"{relative}{entry.name}/")
                if depth < DEEPEST:
                    walk(Path(entry.path), f"{relative}{entry.name}/", depth + 1)
            else:
                files.append(relative + entry.name)

    try:
        walk(folder, "", 1)
    except OSError as error:
        raise InputError(str(folder), f"cannot be listed: {error}", fix="check its permissions") from error
    return arrange(files, folders, str(folder), shared_class=True)


def list_zip(archive: zipfile.ZipFile, where: str) -> Listing:
    """The images of a zip; folders that all images share (`train/<class>/x.jpg`) are stripped.

    Raises:
        InputError: as `list_folder`.
    """
    names = [n for n in archive.namelist() if not any(p.startswith((".", "__MACOSX")) for p in n.split("/"))]
    return arrange(
        [name for name in names if not name.endswith("/")],
        [name for name in names if name.endswith("/")],
        where,
        shared_class=False,
    )


def arrange(files: Iterable[str], folders: Iterable[str], where: str, shared_class: bool) -> Listing:
    """Sorted images with the labels that their first folder gives.

    `shared_class`: a single folder right above all images is their class; otherwise it is stripped, like every other
    folder that all images share.

    Raises:
        InputError: see `list_folder`.

    Example:
        >>> found = arrange(["t/dog/1.jpg", "t/cat/2.jpg", "t/README"], [], "x.zip", shared_class=False)
        >>> found.files, found.labels.tolist(), found.class_names, found.top
        (('t/cat/2.jpg', 't/dog/1.jpg'), [0, 1], ('cat', 'dog'), 't/')
    """
    paths = sorted(tuple(file.split("/")) for file in files if file.lower().endswith(SUFFIXES))
    if not paths:
        raise InputError(
            where,
            "there is no image in it",
            f"files such as {', '.join('x' + s for s in SUFFIXES[:3])} in it or in a sub-folder for each class",
            "check the path",
        )
    shortest = min(len(path) for path in paths)
    keep = 2 if shared_class else 1
    cut = 0
    while shortest - cut > keep and len({path[cut] for path in paths}) == 1:
        cut += 1
    top = "".join(part + "/" for part in paths[0][:cut])
    names = tuple("/".join(path) for path in paths)
    if all(len(path) == cut + 1 for path in paths):
        return Listing(files=names, labels=None, class_names=None, top=top)
    _check_classes(paths, cut, where)
    of_each = [path[cut] for path in paths]
    classes = tuple(sorted(set(of_each)))
    empty = {f[len(top) :].split("/")[0] for f in folders if f.startswith(top) and f != top} - set(classes)
    if empty:  # leaving it out would silently shift the labels of the classes after it
        raise InputError(
            where,
            f"the class folder {min(empty)!r} holds no image",
            "images in every class folder",
            "fill it, or remove it if it is no class (labels are the indices of the sorted folder names)",
        )
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[name] for name in of_each], dtype=np.int64)
    return Listing(files=names, labels=labels, class_names=classes, top=top)


def _check_classes(paths: Sequence[tuple[str, ...]], cut: int, where: str) -> None:
    """Refuse images without a class among others with one, and folders of several data sets."""
    loose = next((path for path in paths if len(path) == cut + 1), None)
    if loose is not None:
        inside = next(path for path in paths if len(path) > cut + 1)
        raise InputError(
            where,
            f"{loose[-1]!r} lies beside the class folder {inside[cut]!r}",
            "either images only, or one sub-folder for each class",
            "move the image into a class folder",
        )
    below: dict[str, set[tuple[str, ...]]] = {}
    for path in paths:
        below.setdefault(path[cut], set()).add(path[cut + 1 : -1])
    for name, inner in below.items():
        if len(inner) > 1:
            example = "/".join(["", name, *max(inner)])
            raise InputError(
                where,
                f"the images of {name!r} are spread over {len(inner)} folders such as {example[1:]!r}",
                "one sub-folder for each class, with its images",
                f"choose one data set, for example {where.rstrip('/')}/{name}",
            )


class ZipReader:
    """`reader(name) -> bytes` for the files of one zip, from any thread.

    The lock is needed: zipfile counts its open members without one.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self._lock = threading.Lock()

    def __call__(self, name: str) -> bytes:
        """The contents of one file."""
        with self._lock:
            return self.archive.read(name)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """Images as rows of one input; decoded and preprocessed when they are read.

    `read(file) -> bytes` fetches one file; `shape` is that of one row, None where any size fits.
    """

    name: str
    listing: Listing
    read: Callable[[str], bytes]
    preprocess: Preprocess
    input: str
    shape: tuple[int | None, ...]
    dtype: str
    skip_bad: bool = False
    bad: set[int] = field(default_factory=set)
    random_access: bool = True
    labels_fix: str = "sort the images into one sub-folder for each class"

    @property
    def labels(self) -> np.ndarray | None:
        """The index of the class folder, `[images]`, int64; None when all lie in one folder."""
        return self.listing.labels

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The sorted names of the class folders."""
        return self.listing.class_names

    def __len__(self) -> int:
        return len(self.listing.files)

    def row_name(self, row: int) -> str:
        """The path of the image below the folder or in the zip."""
        return self.listing.files[row]

    def rows(self, order: Sequence[int], ahead: int) -> Rows:
        """Decoded images in order; with `skip_bad`, unreadable ones go to `bad` instead.

        Raises:
            InputError: an image is unreadable, or has the wrong size.
        """
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            raise InputError(
                "PIL.ImageFile.LOAD_TRUNCATED_IMAGES",
                "is set, so that damaged images would be loaded without a word",
                fix="set it back to False",
            )
        with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
            waiting: deque[tuple[int, Future[np.ndarray | None]]] = deque()
            try:
                for row in order:
                    waiting.append((row, pool.submit(self.decode, row)))
                    if len(waiting) >= max(ahead, 1):
                        yield from self._finished(*waiting.popleft())
                while waiting:
                    yield from self._finished(*waiting.popleft())
            finally:
                for _, future in waiting:
                    future.cancel()

    def _finished(self, row: int, future: Future[np.ndarray | None]) -> Rows:
        x = future.result()
        if x is None:
            self.bad.add(row)
        else:
            yield row, {self.input: x}

    def decode(self, row: int) -> np.ndarray | None:
        """One image, preprocessed, in the network's type; None if it is unreadable and may be skipped.

        Raises:
            InputError: the image is unreadable, or has the wrong size.
        """
        where = f"{self.name.rstrip('/')}/{self.row_name(row)}"
        try:
            with Image.open(io.BytesIO(self.read(self.row_name(row)))) as image:
                x = self.preprocess(image)
        except CropError as error:
            fix = "resize first (the shorter side in pixels), or choose a smaller crop"
            raise InputError(where, error.found, error.expected, fix) from error
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error ...
            if self.skip_bad:
                return None
            found = f"is no readable image ({' '.join(str(error).split()) or type(error).__name__})"
            raise InputError(
                where, found, "a whole image", "replace or remove it, or skip such images (skip_bad)"
            ) from error
        if not fits(x.shape, self.shape):
            found, expected = f"has the shape {shape_text(x.shape)} after preprocessing", shape_text(self.shape)
            raise InputError(where, found, f"{expected} for the input {self.input!r}", self._shape_fix(x.shape))
        return x.astype(numpy_dtype(self.dtype, self.input), copy=False)

    def _shape_fix(self, found: tuple[int, ...]) -> str:
        """Which field of the preprocessing would help."""
        preprocess = self.preprocess
        channels_last = preprocess.layout == "NHWC"
        other = (*found[1:], found[0]) if not channels_last else (found[2], *found[:2])
        if fits(other, self.shape):
            return f"set layout to {'NCHW' if channels_last else 'NHWC'}"
        wanted = self.shape[-1] if channels_last else self.shape[0]
        if wanted is not None and wanted != preprocess.channels:
            return {1: "set color to GRAY", 3: "set color to RGB or BGR"}.get(
                wanted, f"images have 1 or 3 channels, not {wanted}: give arrays (.npz) instead"
            )
        size = list(self.shape[:2] if channels_last else self.shape[1:])
        if None in size:
            return "bring all images to one size: set resize or crop"
        return f"set resize or crop to {size} (flags or {FILE_NAME})"


def check_image_input(
    name: str, shape: tuple[int | None, ...], dtype: str, where: str, preprocess: Preprocess
) -> None:
    """Whether images can feed this input at all.

    Raises:
        UnsupportedError: the input has not four axes.
        InputError: the input wants whole numbers, and the preprocessing would make fractions of the pixels.
    """
    if len(shape) != 4:
        raise UnsupportedError(
            where,
            f"holds images, but the input {name!r} has {len(shape)} axes",
            "4 axes (batch, channels, height, width)",
            "give arrays (.npz) instead",
        )
    kind = numpy_dtype(dtype, name)
    if kind.kind in "iu" and np.can_cast(np.uint8, kind):
        if not preprocess.keeps_pixels:
            raise InputError(
                where,
                f"the preprocessing makes fractions, but the input {name!r} is {dtype}",
                "whole pixels 0 to 255",
                "set scale: 1, mean: 0 and std: 1",
            )
    elif kind.kind != "f" and dtype != "bfloat16":
        raise UnsupportedError(
            where, f"holds images, but the input {name!r} is {dtype}", "a float or uint8", "give arrays (.npz) instead"
        )
