"""A graph under construction: nodes, values and constants by name, each made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir


class GraphWriter:
    """Collects nodes and initializers in execution order."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer; the one of that name if there is one."""
        if name not in self.constants:
            # Shape and type stand with the tensor; said of the value too they are written twice.
            self.constants[name] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        return self.constants[name]

    def keep(self, value: ir.Value) -> ir.Value:
        """An initializer of another graph, by reference to its tensor."""
        name = value.name or ""
        if name not in self.constants:
            self.constants[name] = ir.Value(name=name, const_value=value.const_value)
        return self.constants[name]

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, ir.Attr],
        output: str,
        domain: str = "",
    ) -> ir.Value:
        """A node with one output, called `output`; the node has the same name."""
        return self.nodes_of(op, inputs, attributes, [output], domain)[0]

    def constant_node(self, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, ir.Attr]) -> ir.Value:
        """A node of a constant expression, which a session folds: short names keep files small."""
        value = ir.Value(name=f"constant/{len(self.nodes)}")
        self.nodes.append(ir.Node("", op, inputs, dict(attributes), outputs=[value]))
        return value

    def nodes_of(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, ir.Attr], outputs: Sequence[str],
        domain: str = "",
    ) -> Sequence[ir.Value]:  # fmt: skip
        """A node with several outputs."""
        values = [ir.Value(name=name) for name in outputs]
        self.nodes.append(ir.Node(domain, op, inputs, dict(attributes), outputs=values, name=outputs[0]))
        return values
