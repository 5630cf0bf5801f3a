"""What is known of a graph's values before any data passes: constants, and shapes at two batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bitwright.graph.names import fresh_name

#: Two sizes that no exporter's hard-coded number coincides with.
PROBES = (3, 5)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What each probe found.

    Attributes:
        model: the graph, which is changed in place.
        probes: sizes of the batch that are tried; one, whatever it is, where the file fixes the batch.
        values: values that do not depend on data, at each probe.
        shapes: shapes of all tensors that have a known one, at each probe.
    """

    model: ir.Model
    probes: tuple[int, ...] = PROBES
    values: dict[ir.Value, list[np.ndarray]] = field(default_factory=dict)
    shapes: dict[ir.Value, list[tuple[int, ...]]] = field(default_factory=dict)

    def constant(self, value: ir.Value) -> list[np.ndarray] | None:
        """The value at each probe; None where it depends on data."""
        if value not in self.values and value.is_initializer() and value.const_value is not None:
            self.values[value] = [value.const_value.numpy()] * len(self.probes)
        return self.values.get(value)

    def agrees(self, value: ir.Value) -> bool:
        """Whether a value that does not depend on data does not depend on the batch either."""
        first, *others = self.values[value]
        return all(np.array_equal(first, a, equal_nan=first.dtype.kind == "f") for a in others)

    def elements(self, value: ir.Value) -> int:
        """Number of elements of a value of known shape."""
        return int(np.prod(self.shapes[value][0]))

    def dimension(self, sizes: Sequence[int]) -> int | str | None:
        """One dimension of a shape, from its size at each probe: a number, `batch`, `4*batch`, or None."""
        if len(set(sizes)) == 1:
            return sizes[0]
        factor = sizes[0] // self.probes[0]
        if factor < 1 or any(s != factor * p for s, p in zip(sizes, self.probes, strict=True)):
            return None
        return "batch" if factor == 1 else f"{factor}*batch"

    def register(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        constant = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        constant.shape, constant.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        self.model.graph.register_initializer(constant)
        self.values[constant] = [array] * len(self.probes)
        self.shapes[constant] = [array.shape] * len(self.probes)
        return constant

    def replace(self, value: ir.Value, array: np.ndarray) -> ir.Value:
        """The value becomes an initializer of its own name; its node is left to the removal of unused nodes."""
        name = value.name or fresh_name(self.model, "constant")
        value.name = f"{name}/folded"
        constant = self.register(name, array)
        ir.convenience.replace_all_uses_with(value, constant)
        return constant
