"""Choose scales at which every runtime gives the codes of our tables.

A table's entry that lies near the middle between two codes is rounded by one runtime so and by another otherwise. So
the scale of a table's output is enlarged, by the smallest `k` of

    s_y <- s_y (1 + k 2^-14),   k = 0, 1, 2, ...

at which all entries of all tables that give this encoding keep their distance (`kernels.table.MARGIN`). An encoding
may be shared by several tables, by a table's input and its output, and by the inputs of other tables: encodings are
visited in execution order until all hold. The same is done for a softmax whose scale is too small for its kernel, and
for a sum whose operands change places with the layout that the runtime chooses (`kernels.binary`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.errors import UnsupportedError
from bitwright.execute.kernels.binary import is_free_of_order, may_change_places
from bitwright.execute.kernels.parts import code_bounds
from bitwright.execute.kernels.softmax import overflows
from bitwright.execute.kernels.table import entries, is_hopeless, is_settled, settled_scales
from bitwright.graph.regions import Region
from bitwright.plan.encoding import Encoding

#: Steps by which a scale is enlarged, as parts of it.
STEPS_PER_OCTAVE = 2**14
#: How often a scale may double, and how often all encodings are visited, before we give up.
OCTAVES, ROUNDS = 40, 64
#: How many scales are tried at once.
AT_ONCE = 256

Sites = Callable[[ir.Value], Encoding]
Tensors = Callable[[ir.Value], Tensor]


def needs_settling(region: Region, arithmetic: str) -> bool:
    """Whether the codes of a region depend on where its scale lies, in an arithmetic (row of `ARITHMETICS`)."""
    if region.is_table or region.op.op_type == "Softmax":
        return True
    return arithmetic == "onnxruntime" and region.op.op_type == "Add" and may_change_places(region.op)


def holds(region: Region, encoding: Sites, tensor: Tensors) -> bool:
    """Whether a table, a softmax or a sum gives the same codes in every runtime, and layout, at these encodings.

    Raises:
        UnsupportedError: a table's function is not defined everywhere on the range of its input.
    """
    y = encoding(region.output)
    if region.is_table:
        return is_settled(*entries(region, encoding(region.inputs[0]), tensor), y)
    if region.op.op_type == "Add":
        a, b = (encoding(v) for v in region.op.inputs if v is not None)
        return is_free_of_order(a, b, y, code_bounds(region.bounds, y))
    return not overflows(_elements(region), y)


def settle(
    regions: Sequence[Region], root: Callable[[ir.Value], str], encodings: Mapping[str, Encoding], tensor: Tensors
) -> dict[str, Encoding]:
    """Encodings at which all of `regions` hold; those that hold already are as they were.

    Args:
        regions: tables, softmaxes and sums that run in integers, in execution order.
        root: the site whose encoding a value uses.
        encodings: `{site: numbers}`.
        tensor: present value of an initializer.

    Raises:
        UnsupportedError: no scale is found, or a table's function is not defined on the range of its input.
    """
    found = dict(encodings)
    groups: dict[str, list[Region]] = {}
    for region in regions:
        groups.setdefault(root(region.output), []).append(region)
    for _ in range(ROUNDS):
        loose = [site for site, members in groups.items() if not _all_hold(members, root, found, tensor)]
        if not loose:
            return found
        for site in loose:
            found[site] = _enlarged(site, groups[site], root, found, tensor)
    names = ", ".join(repr(r.name) for r in regions if root(r.output) in loose)
    raise _no_scale(names)


def _no_scale(names: str) -> UnsupportedError:
    return UnsupportedError(
        f"region {names}", "no scale was found at which every runtime rounds it the same way",
        fix="keep one of them in float with --set REGION:float",
    )  # fmt: skip


def _all_hold(
    members: Sequence[Region], root: Callable[[ir.Value], str], encodings: Mapping[str, Encoding], tensor: Tensors
) -> bool:
    return all(holds(region, lambda v: encodings[root(v)], tensor) for region in members)


def _enlarged(
    site: str, members: Sequence[Region], root: Callable[[ir.Value], str], encodings: Mapping[str, Encoding],
    tensor: Tensors,
) -> Encoding:  # fmt: skip
    """The encoding with the smallest larger scale at which all members hold."""
    before = encodings[site]
    # Where an input shares the encoding, its real values change with the scale.
    fixed = {
        region: entries(region, encodings[root(region.inputs[0])], tensor)
        for region in members
        if region.is_table and root(region.inputs[0]) != site
    }

    others = [region for region in members if region not in fixed]
    steps = torch.arange(1 if before.spec.format == "pow2" else STEPS_PER_OCTAVE, dtype=torch.float64)
    for octave in range(OCTAVES):
        start = dataclasses.replace(before, scale=before.scale * 2.0**octave)
        if any(is_hopeless(*known, start) for known in fixed.values()):
            continue
        for scales in (start.scale.double() * (1 + steps / STEPS_PER_OCTAVE)).float().split(AT_ONCE):
            good = torch.ones_like(scales, dtype=torch.bool)
            for known in fixed.values():
                good &= settled_scales(*known, start, scales)
            for scale in scales[good]:
                trial = dataclasses.replace(before, scale=scale.clone())
                if _all_hold(others, root, {**encodings, site: trial}, tensor):
                    return trial
    raise _no_scale(", ".join(repr(region.name) for region in members))


def _elements(region: Region) -> int:
    """How many elements a softmax sums."""
    shape = region.inputs[0].shape
    assert shape is not None
    size = shape[region.op.attributes.get_int("axis", -1)]
    assert isinstance(size, int)
    return size
