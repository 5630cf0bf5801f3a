"""Ops without a row of `OPS`: ONNX Runtime computes them, each in a session of its own, and gives no gradient."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.observe import run_session, session_of
from bitwright.graph.alone import alone, place, reads, title

log = logging.getLogger("bitwright")
#: Type and number of dimensions of an argument: a session is made for them, of whatever size.
_Kind = tuple[ir.DataType, int]


class Served(nn.Module):
    """One node in ONNX Runtime: its attributes, operator set and branches are those of the file.

    Integers that the file fixes (axes, shapes, numbers of turns) are fixed in the session too, as some kernels ask
    for; all else that the node reads, `inputs`, is an argument, values that its branches capture among them.

    Raises:
        UnsupportedError: the runtime has no such op or no kernel for its types; or a gradient is asked for.
    """

    def __init__(self, node: ir.Node, model: ir.Model) -> None:
        super().__init__()
        self.where = place(node)
        self.what = title(node)
        self.outputs = [output.name or "" for output in node.outputs]
        fixed = [v for v in reads(node) if _is_fixed(v)]
        self.inputs = [v for v in reads(node) if v not in fixed]
        self.constants = {v.name or "": v.const_value.numpy() for v in fixed if v.const_value is not None}
        self._node, self._opsets, self._ir_version = node, dict(model.graph.opset_imports), model.ir_version
        self._sessions: dict[tuple[_Kind, ...], ort.InferenceSession] = {}
        kinds = tuple((v.dtype, len(v.shape)) for v in self.inputs if v.dtype is not None and v.shape is not None)
        if len(kinds) == len(self.inputs):  # else at the first call
            self._session(kinds)
        _announce(self.what)

    def _session(self, kinds: tuple[_Kind, ...]) -> ort.InferenceSession:
        if kinds not in self._sessions:
            names = [v.name or "" for v in self.inputs]
            given = {name: (dtype, [None] * rank) for name, (dtype, rank) in zip(names, kinds, strict=True)}
            model = alone(self._node, self._opsets, self._ir_version, given, self.constants)
            try:
                self._sessions[kinds] = session_of(model, torch.get_num_threads(), planned_memory=False)
            except InputError as error:
                raise UnsupportedError(
                    self.where, f"{self.what} has no row in the op table, and {error.found}",
                    "an op that torch or the runtime computes", "export the network without it",
                ) from error  # fmt: skip
        return self._sessions[kinds]

    def forward(self, *inputs: Tensor) -> Any:
        """One tensor, or a tuple of them; None for an output that has no name."""
        found: tuple[Tensor | None, ...] = _Opaque.apply(self, *inputs)
        return found if len(found) > 1 else found[0]

    def compute(self, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """What the runtime gives."""
        arrays = [x.detach().cpu().contiguous().numpy() for x in inputs]
        session = self._session(tuple((ir.DataType.from_numpy(array.dtype), array.ndim) for array in arrays))
        names = [name for name in self.outputs if name]
        feeds = {v.name or "": array for v, array in zip(self.inputs, arrays, strict=True)}
        found = dict(zip(names, run_session(session, names, feeds, self.where), strict=True))
        device = inputs[0].device if inputs else torch.device("cpu")
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in found.items()}
        return tuple(tensors.get(name) for name in self.outputs)

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes sessions of its own: the runtime's cannot be copied."""
        return {**self.__dict__, "_sessions": {}}


class _Opaque(torch.autograd.Function):
    """Where gradients end, with the name of the node that ends them."""

    @staticmethod
    def forward(ctx: Any, served: Served, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """The runtime's outputs."""
        ctx.served = served
        found = served.compute(inputs)
        ctx.mark_non_differentiable(*(y for y in found if y is not None and not y.is_floating_point()))
        return found

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Refused.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            ctx.served.where, f"{ctx.served.what} runs in ONNX Runtime, which gives no gradient",
            "a step without gradients, or an op of bitwright.execute.OPS between the weights and the loss",
            "choose a step without gradients, or export the network without this op",
        )  # fmt: skip


def _is_fixed(value: ir.Value) -> bool:
    return value.is_initializer() and value.dtype is not None and not value.dtype.is_floating_point()


@cache
def _announce(what: str) -> None:
    """Once for each op, however many nodes there are and programs are built."""
    log.warning("%s has no row in the op table: it runs in ONNX Runtime, without gradients", what)
