"""What layers read in the float network, and behind the quantized layers before them, one layer after the other.

The network is walked block by block (`graph.blocks`). What enters a block is kept for all images, float and quantized,
until no block reads it any more; within a block each layer runs the block's own part again, with the layers before it
as they are rounded by then.

Source: Frantar et al., GPTQ, ICLR 2023, section 4 (blocks in order, inputs from those quantized before).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.execute.observe import find_value
from bitwright.execute.program import Program
from bitwright.graph.blocks import Block, find_blocks
from bitwright.graph.macs import rows_per_image
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.ptq.second_moments import Layer

#: Values that are kept between blocks, float and quantized together, in bytes.
CACHE_BYTES = 2**30

Pairs = Iterator[tuple[Tensor, Tensor]]


@dataclass(kw_only=True, eq=False)
class Kept:
    """Values of one batch: `{name: (float, quantized)}`, and the share of its rows that are images.

    Attributes:
        values: by name.
        real: of how many images; a fixed batch may be filled up.
        size: rows of the batch.
    """

    values: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    real: int
    size: int

    def run(self, program: Program, quantized: bool) -> dict[str, Tensor]:
        """What a program gives for them."""
        return program.run({name: self.values[name][quantized] for name in program.inputs})


def needed_after(blocks: Sequence[Block]) -> list[list[str]]:
    """For each block the values made so far, or given to the network, that later blocks read."""
    found: list[list[str]] = []
    for i in range(len(blocks)):
        later = dict.fromkeys(v.name or "" for block in blocks[i + 1 :] for v in block.inputs)
        made = {v.name for block in blocks[i + 1 :] for r in block.regions for n in r.nodes for v in n.outputs}
        found.append([name for name in later if name not in made])
    return found


def images_that_fit(state: State, most: int = CACHE_BYTES) -> int:
    """How many images' values between blocks `most` bytes hold, at the place where these are largest; at least one."""
    largest = 1
    for names in needed_after(find_blocks(state.model)):
        size = 0
        for name in names:
            value = find_value(state.model, name)
            node, shape = value.producer(), value.shape
            if shape is None:
                raise InputError(f"site {name!r}", "of unknown shape", "a known one", "use gptq.inputs=float")
            rows = 1 if node is None else rows_per_image(node, shape)
            size += 8 * rows * math.prod(d for d in shape[1:] if isinstance(d, int))
        largest = max(largest, size)
    return max(1, most // largest)


@torch.no_grad()
def quantized_prefix(
    state: State, layers: Sequence[Layer], batches: Batches, encodings: Mapping[str, Encoding]
) -> Iterator[tuple[Layer, Pairs]]:
    """Each layer with what it reads, `(float, quantized)` batch after batch.

    Args:
        state: placed and calibrated.
        layers: those wanted.
        batches: images; no more than `images_that_fit`.
        encodings: looked at anew for each layer, so that the codes of the layers before are known.
    """
    wanted = {layer.region: layer for layer in layers}
    blocks = find_blocks(state.model)
    kept = [
        Kept(
            values={name: (torch.from_numpy(x),) * 2 for name, x in batch.inputs.items()}, real=batch.valid,
            size=len(next(iter(batch.inputs.values()))),
        )
        for batch in batches
    ]  # fmt: skip
    for block, after in zip(blocks, needed_after(blocks), strict=True):
        for region in block.regions:
            if region.name in wanted:
                layer = wanted[region.name]
                yield layer, _pairs(state.but(encodings=encodings), block, layer.site, kept)
        made = [name for name in after if name not in kept[0].values]
        now = state.but(encodings=encodings)
        programs = _programs(now, block, made) if made else None
        for part in kept:
            found = {} if programs is None else _both(now, part, programs)
            part.values = {name: found[name] if name in found else part.values[name] for name in after}


def _programs(state: State, block: Block, outputs: Sequence[str]) -> tuple[Program, Program]:
    entries = [v.name or "" for v in block.inputs]
    return (
        float_program(state, inputs=entries, outputs=outputs),
        simulated_program(state, inputs=entries, outputs=outputs),
    )


def _both(state: State, kept: Kept, programs: tuple[Program, Program]) -> dict[str, tuple[Tensor, Tensor]]:
    plain, simulated = kept.run(programs[0], False), kept.run(programs[1], True)
    return {name: (x, _on_grid(state, name, simulated[name])) for name, x in plain.items()}


def _on_grid(state: State, name: str, x: Tensor) -> Tensor:
    """A value as the integer regions read it; what float ops made is rounded here."""
    assert state.plan is not None
    return x if state.plan.qspec(name) is None else state.encoding(name).fake_quantize(x)


def _pairs(state: State, block: Block, site: str, kept: Sequence[Kept]) -> Pairs:
    programs = None if site in kept[0].values else _programs(state, block, [site])
    for part in kept:
        if programs is None:
            x, quantized = part.values[site][0], _on_grid(state, site, part.values[site][1])
        else:
            x, quantized = _both(state, part, programs)[site]
        real = len(x) * part.real // part.size
        yield x[:real], quantized[:real]
