"""Parts of a program: from values within the graph, with other quantizers than the plan's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.graph.blocks import find_blocks
from bitwright.pipeline import State
from bitwright.ptq.programs import float_program, simulated_program


@pytest.fixture(scope="module")
def state(exported: Callable[[str], Path]) -> State:
    x = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    return bw.quantize(exported("small_residual"), {"x": x}, set=["W=4,A=4"]).state


def test_parts_in_turn_give_what_the_whole_gives(state: State) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    blocks = find_blocks(state.model)
    for program in (float_program, simulated_program):
        whole = program(state).module(x)[0]
        values = {"x": x}
        for block in blocks:
            inputs = [v.name or "" for v in block.inputs]
            part = program(state, inputs=inputs, outputs=[block.output.name or ""])
            values |= part.run({name: values[name] for name in inputs})
        assert torch.equal(values[state.model.graph.outputs[0].name or ""], whole)


def test_without_quantizers_a_simulation_is_the_float_network(state: State) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert state.plan is not None
    off = {site: nn.Identity() for site in state.plan.sites}
    quiet = simulated_program(state, quantizers=off).module(x)[0]
    assert torch.equal(quiet, float_program(state).module(x)[0])
    assert not torch.equal(quiet, simulated_program(state).module(x)[0])


def test_a_quantizer_may_stand_at_several_sites(state: State) -> None:
    """As that of a shared encoding does: what comes after it keeps a module of its own."""
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert state.plan is not None
    sites = [site for site in state.encodings if site not in state.model.graph.initializers]
    one = nn.Identity()
    same = simulated_program(state, quantizers=dict.fromkeys(sites[:3], one)).module(x)[0]
    assert torch.equal(same, simulated_program(state, quantizers={s: nn.Identity() for s in sites[:3]}).module(x)[0])
    assert not torch.equal(same, simulated_program(state).module(x)[0])


def test_a_part_names_what_it_lacks(state: State) -> None:
    block = next(b for b in find_blocks(state.model) if len(b.regions) > 2)
    inside = block.regions[0].output.name or ""
    with pytest.raises(InputError, match=r"computed from none of them.*all values that the part reads"):
        float_program(state, inputs=[inside], outputs=[block.output.name or ""])
