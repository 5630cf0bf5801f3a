"""`open_data`: whatever the user calls data, as `Batches`."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.data import preprocess as preprocessing
from bitwright.data.arrays import array_source, fits, npz_arrays, shape_text
from bitwright.data.batches import Batches, InputSpecs, Source
from bitwright.data.images import (
    SUFFIXES,
    ImageSource,
    Listing,
    ZipReader,
    check_image_input,
    list_folder,
    list_zip,
)
from bitwright.data.iterables import ACCEPTED, iterable_source
from bitwright.data.preprocess import FILE_NAME, Preprocess
from bitwright.errors import InputError, UnsupportedError
from bitwright.lookup import did_you_mean

CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
KINDS = "an image folder, a .npz, a .zip of either, an image, or module:callable"


def open_data(
    source: Any,
    inputs: InputSpecs,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    skip_bad: bool = False,
) -> Batches:
    """Data as re-iterable batches for a network.

    Args:
        source: an image folder (a sub-folder for each class gives labels, the indices of the sorted folder names; a
            flat folder gives none); an `.npz` keyed by input name, `labels` optional; a `.zip` of either; one image;
            "module:callable", called without arguments; or a dict of arrays, `Batches`, or anything that can be
            walked again and again and gives arrays, (arrays, labels) or dicts of arrays (a list, a data loader).
            A data loader is walked once here, to count and check it.
        inputs: input name -> (shape, numpy type), None in the shape where any size fits. A whole number as the first
            entry k is a fixed batch: all batches have k rows then (see `Batch.valid`).
        batch_size: rows in a batch, where the network does not fix it.
        limit: at most so many images, drawn by `seed`, balanced over the classes and alternating between them.
        preprocess: for images; the fields given here override those of `preprocess.yaml`, one by one.
        skip_bad: leave out unreadable images, and name them in `Batches.skipped`.

    Raises:
        InputError: the source does not exist, is empty, is unreadable, or does not fit the inputs.
        UnsupportedError: images for a network with several inputs, or whose input has not four axes.

    Example:
        >>> x = np.zeros((5, 3, 8, 8), np.float32)
        >>> data = open_data({"image": x}, {"image": ((None, 3, 8, 8), "float32")}, batch_size=2)
        >>> [batch.inputs["image"].shape[0] for batch in data], len(data), data.labels
        ([2, 2, 1], 5, None)
    """
    if batch_size < 1:
        raise InputError("batch_size", f"is {batch_size}", "a whole number from 1 on", "choose batch_size=32")
    if limit is not None and limit < 1:
        raise InputError("limit", f"is {limit}", "a whole number from 1 on", "leave it out to use all images")
    fixed = _fixed_batch(inputs)
    size = fixed or batch_size
    if isinstance(source, str | os.PathLike) and not _is_callable_name(source):
        path = Path(source)
        found = _open_path(path, inputs, preprocess, skip_bad)
    else:
        where = source if isinstance(source, str) else f"data ({type(source).__name__})"
        value = _called(source) if isinstance(source, str) else source
        if _is_given(preprocess):
            raise InputError(where, "holds arrays, to which preprocessing does not apply", fix="preprocess them first")
        if isinstance(value, Batches):
            _check_specs(value, inputs, fixed, where)
            return value if limit is None else value.limited(limit, seed)
        found = _open_value(value, inputs, where), "none"
    rows, preprocess_source = found
    batches = Batches(
        source=rows,
        specs=dict(inputs),
        order=tuple(range(len(rows))),
        batch_size=size,
        fixed=fixed is not None,
        preprocess_source=preprocess_source,
    )
    if limit is not None:
        batches = batches.limited(limit, seed)
    return _with_first_image_read(batches)


def _fixed_batch(inputs: InputSpecs) -> int | None:
    """The batch that the network's inputs fix, if they do."""
    if not inputs:
        raise UnsupportedError("model", "has no inputs", "at least one input")
    for name, (shape, _) in inputs.items():
        if not shape:
            raise UnsupportedError(f"input {name!r}", "is a single number without a batch axis", "a batch axis first")
    sizes = {shape[0] for shape, _ in inputs.values() if shape[0] is not None}
    if len(sizes) > 1:
        found = ", ".join(f"{name}: {shape_text(shape)}" for name, (shape, _) in inputs.items())
        raise UnsupportedError("model", f"its inputs fix different batches ({found})", "one batch size for all inputs")
    return next(iter(sizes), None)


def _open_path(path: Path, inputs: InputSpecs, given: Preprocess | None, skip_bad: bool) -> tuple[Source, str]:
    """The source at a path, and where its preprocessing came from."""
    if not path.exists():
        raise InputError(str(path), "does not exist", KINDS, "check the path")
    if path.is_dir():
        folder = Path(os.path.abspath(path))  # images are read later, perhaps from another working folder
        yaml = preprocessing.find(path)
        text = None if yaml is None else (yaml.read_bytes(), str(yaml))
        listing = list_folder(path)
        return _images(path, listing, lambda name: (folder / name).read_bytes(), inputs, given, text, skip_bad)
    if path.suffix.lower() == ".npz":
        return _open_npz(path, str(path), inputs, given)
    if path.suffix.lower() == ".zip":
        return _open_zip(path, inputs, given, skip_bad)
    if path.suffix.lower() in SUFFIXES:
        return _open_image(path, inputs, given, skip_bad)
    raise InputError(str(path), f"is a file ending in {path.suffix or 'nothing'!r}", KINDS, "choose one of these")


def _open_zip(path: Path, inputs: InputSpecs, given: Preprocess | None, skip_bad: bool) -> tuple[Source, str]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(str(path), f"is no readable zip ({error})", KINDS, "download or write it again") from error
    names = archive.namelist()
    arrays = [name for name in names if name.lower().endswith(".npz")]
    if arrays:
        with archive:
            if len(arrays) > 1:
                found, fix = f"holds {len(arrays)} .npz files", "unpack it and choose one"
                raise InputError(str(path), found, "one .npz, or images", fix)
            return _open_npz(archive.read(arrays[0]), f"{path}/{arrays[0]}", inputs, given)
    listing = list_zip(archive, str(path))
    text = None
    inside = next((name for name in (listing.top + FILE_NAME, FILE_NAME) if name in names), None)
    beside = preprocessing.find(path)
    if inside is not None:
        text = archive.read(inside), f"{path}/{inside}"
    elif beside is not None:
        text = beside.read_bytes(), str(beside)
    return _images(path, listing, ZipReader(archive), inputs, given, text, skip_bad)


def _open_image(path: Path, inputs: InputSpecs, given: Preprocess | None, skip_bad: bool) -> tuple[Source, str]:
    """One image, without a label.

    It is preprocessed as in the data set it lies in: by the file beside it, or above its class folder.
    """
    folder = Path(os.path.abspath(path)).parent
    yaml = preprocessing.find(folder) or preprocessing.find(folder.parent)
    text = None if yaml is None else (yaml.read_bytes(), str(yaml))
    listing = Listing(files=(path.name,), labels=None, class_names=None, top="")
    return _images(path.parent, listing, lambda name: (folder / name).read_bytes(), inputs, given, text, skip_bad)


def _open_npz(file: Path | bytes, where: str, inputs: InputSpecs, given: Preprocess | None) -> tuple[Source, str]:
    if _is_given(given):
        raise InputError(where, "holds arrays, to which preprocessing does not apply", fix="preprocess them first")
    return array_source(npz_arrays(file, where), inputs, where, file=True), "none"


def _images(
    path: Path,
    listing: Listing,
    read: Any,
    inputs: InputSpecs,
    given: Preprocess | None,
    text: tuple[bytes, str] | None,
    skip_bad: bool,
) -> tuple[Source, str]:
    if len(inputs) > 1:
        raise UnsupportedError(
            str(path),
            f"holds images, but the model has {len(inputs)} inputs ({', '.join(inputs)})",
            "a model with one input",
            "give arrays (.npz) keyed by input name",
        )
    (name, (shape, dtype)) = next(iter(inputs.items()))
    preprocess, origin = Preprocess(), "default"
    if text is not None:
        preprocess, origin = preprocessing.parse(*text), text[1]
    if given is not None and _is_given(given):
        preprocess = preprocess.overridden_by(given)
        flags = ", ".join(sorted(given.model_fields_set))
        origin = "flags" if text is None else f"{origin}, overridden by flags: {flags}"
    check_image_input(name, shape, dtype, str(path), preprocess)
    source = ImageSource(
        name=str(path),
        listing=listing,
        read=read,
        preprocess=preprocess,
        input=name,
        shape=tuple(shape[1:]),
        dtype=dtype,
        skip_bad=skip_bad,
    )
    return source, origin


def _with_first_image_read(batches: Batches) -> Batches:
    """Read one image, so that what is wrong with all is said at once; its size is that of all where any size fits."""
    source = batches.source
    if not isinstance(source, ImageSource):
        return batches
    first = next(iter(dataclasses.replace(batches, batch_size=1, fixed=False)))
    shape = first.inputs[source.input].shape[1:]
    return dataclasses.replace(batches, source=dataclasses.replace(source, shape=shape))


def _is_callable_name(source: str | os.PathLike[str]) -> bool:
    return isinstance(source, str) and CALLABLE.fullmatch(source) is not None and not os.path.exists(source)


def _is_given(preprocess: Preprocess | None) -> bool:
    """Whether any field was set explicitly."""
    return preprocess is not None and bool(preprocess.model_fields_set)


def _called(name: str) -> Any:
    """What `module:callable` returns; modules of the working folder are found."""
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a missing module, or whatever its first lines raise
        fix = "run from the folder that holds it, or set PYTHONPATH"
        raise InputError(
            name, f"the module {module_name!r} cannot be imported ({type(error).__name__}: {error})", fix=fix
        ) from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, attribute):
        fix = did_you_mean(attribute, [n for n in vars(module) if not n.startswith("_")])
        raise InputError(name, f"{module_name!r} has no {attribute!r}", fix=fix)
    function = getattr(module, attribute)
    if not callable(function):
        raise InputError(name, f"is a {type(function).__name__}", "something to call without arguments")
    try:
        return function()
    except Exception as error:
        found = f"raised {type(error).__name__}: {error}"
        raise InputError(name, found, "a call without arguments that returns data", "call it in Python") from error


def _open_value(value: Any, inputs: InputSpecs, where: str) -> Source:
    """A source of arrays in memory, or of anything that can be walked."""
    if isinstance(value, Mapping):
        return array_source(value, inputs, where)
    if (isinstance(value, np.ndarray) or hasattr(value, "detach")) and len(inputs) == 1:
        return array_source({next(iter(inputs)): value}, inputs, where)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return iterable_source(value, inputs, where)
    found = f"is a {type(value).__name__}"
    raise InputError(where, found, f"something that gives {ACCEPTED}", f"or name {KINDS}")


def _check_specs(batches: Batches, inputs: InputSpecs, fixed: int | None, where: str) -> None:
    """Whether batches that were opened before fit this network."""
    for name, (shape, dtype) in inputs.items():
        if name not in batches.specs:
            raise InputError(where, f"was opened for {', '.join(batches.specs)}", f"the input {name!r}")
        other_shape, other_dtype = batches.specs[name]
        if not fits(tuple(-1 if s is None else s for s in other_shape[1:]), shape[1:]) or other_dtype != dtype:
            found = f"was opened for {name!r} as {shape_text(other_shape)} {other_dtype}"
            raise InputError(where, found, f"{shape_text(shape)} {dtype}", "open the data for this model")
    if fixed is not None and (batches.batch_size != fixed or not batches.fixed):
        found = f"was opened with batches of {batches.batch_size}"
        raise InputError(where, found, f"the model's fixed batch of {fixed}", "open the data for this model")
