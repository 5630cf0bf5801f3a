"""What layers read in the float network, in passes over the images that are bounded in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.execute.observe import Watch, find_value, observe
from bitwright.graph.macs import rows_per_image
from bitwright.pipeline import State
from bitwright.ptq.second_moments import Layer

#: Second moments that are held at the same time, in bytes; one layer alone may have more.
MOMENT_BYTES = 2**30
#: Watched values of one batch, in bytes; one image alone may have more.
VALUE_BYTES = 2**28


def in_passes(layers: Sequence[Layer], most: int = MOMENT_BYTES) -> list[list[Layer]]:
    """Layers in groups whose moments fit into `most` bytes; those that share moments stand together."""
    shared: dict[object, list[Layer]] = {}
    for layer in layers:
        shared.setdefault(layer.key, []).append(layer)
    passes: list[list[Layer]] = []
    held = most + 1
    for group in shared.values():
        size = group[0].moment_bytes
        if held + size > most:
            passes.append([])
            held = 0
        passes[-1].extend(group)
        held += size
    return passes


def in_batches_of(state: State, sites: Sequence[str], batches: Batches) -> Batches:
    """The same images, so many at a time that what is watched stays within `VALUE_BYTES`."""
    if batches.fixed:
        return batches
    size = 0
    for site in sites:
        value = find_value(state.model, site)
        shape, node = value.shape, value.producer()
        assert shape is not None
        rows = 1 if node is None else rows_per_image(node, shape)
        size += 4 * rows * math.prod(d for d in shape[1:] if isinstance(d, int))
    return dataclasses.replace(batches, batch_size=min(batches.batch_size, max(1, VALUE_BYTES // max(size, 1))))


def watch_inputs(
    state: State, layers: Sequence[Layer], batches: Batches, consume: Callable[[str, Tensor], None]
) -> None:
    """Hand all that the layers read to `consume`, as `(site, values)`, batch after batch."""
    sites = list(dict.fromkeys(layer.site for layer in layers))
    watches = [Watch(site=site, extremes=False) for site in sites]
    observe(state.model, state.overlay, watches, in_batches_of(state, sites, batches), consume)
