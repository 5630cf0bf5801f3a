"""Links between layers: where one layer alone reads another, and what stands between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bitwright.graph.layers import add_bias, find_links, layer_of
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.pipeline import State
from bitwright.ptq.programs import float_program


def exported(module: nn.Module, *shape: int) -> State:
    model = normalise(open_model(module.eval(), torch.randn(2, *shape)))
    return State(model=model, reference=model)


def links(module: nn.Module, *shape: int) -> list[tuple[str, str, int]]:
    found = find_links(exported(module, *shape).model)
    return [(link.first.weight, link.last.weight, link.repeat) for link in found]


@pytest.mark.parametrize(
    "between",
    [nn.Identity, nn.ReLU6, lambda: nn.PReLU(3), lambda: nn.AvgPool2d(2)],
)
def test_layers_are_linked_through_what_keeps_channels_apart(between: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), between(), nn.Conv2d(3, 4, 1))
    assert links(net, 2, 4, 4) == [("0.weight", "2.weight", 1)]


def test_nothing_is_linked_through_an_addition_a_concat_or_two_readers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(6, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            z: torch.Tensor = self.c(torch.cat([self.b(y), y], 1)) + x
            return z

    assert links(Two(), 3, 4, 4) == []


def test_a_flattened_map_repeats_its_channels() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    assert links(net, 2, 2, 2) == [("0.weight", "3.weight", 4)]


def test_weights_that_two_layers_share_are_no_layer_of_its_own() -> None:
    conv = nn.Conv2d(3, 3, 1)
    assert links(nn.Sequential(conv, nn.ReLU(), conv), 3, 4, 4) == []


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Linear(5, 3)]
)
def test_rows_are_output_channels_and_go_back(layer: nn.Module) -> None:
    shape = (5,) if isinstance(layer, nn.Linear) else (4, 6, 6)
    state = exported(layer, *shape)
    (node,) = (n for n in state.model.graph if layer_of(n) is not None)
    found = layer_of(node)
    assert found is not None
    weight = state.tensor(found.weight)
    rows = found.rows(weight)
    assert torch.equal(found.stored(rows), weight)
    assert found.grouped(weight).shape[0] == found.group and rows.shape[0] == state.tensor(found.bias or "").shape[0]
    # Output channel 1 of constant inputs, away from borders, is the sum of its row.
    scaled = state.but(
        overlay={found.weight: found.stored(rows * torch.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 1)))}
    )
    x = torch.randn(2, *shape)
    bias = state.tensor(found.bias or "").reshape(1, -1, *[1] * (len(shape) - 1))
    before = float_program(state).module(x)[0] - bias
    after = float_program(scaled).module(x)[0] - bias
    factor = torch.arange(len(rows)).reshape(1, -1, *[1] * (len(shape) - 1))
    assert torch.allclose(after, before * factor, atol=1e-5)


def test_a_bias_of_zeros_changes_nothing() -> None:
    state = exported(nn.Conv2d(2, 3, 1, bias=False), 2, 4, 4)
    model = state.model.clone()
    (node,) = (n for n in model.graph if n.op_type == "Conv")
    name = add_bias(model, node, {})
    x = torch.randn(1, 2, 4, 4)
    changed = state.but(model=model)
    assert changed.tensor(name).tolist() == [0.0] * 3
    assert torch.equal(float_program(changed).module(x)[0], float_program(state).module(x)[0])
    assert len(next(n for n in state.model.graph if n.op_type == "Conv").inputs) == 2, "the old graph is as it was"
