"""A state as its float graph with quantizers in it: what simulation computes, node by node.

A value that an integer region gives is quantized where it is made, and every op reads the quantized value. The
network's inputs, and what float ops give, are quantized for the integer regions that read them; float ops read them as
they are. A copy of quantized values is on their grid already and has no quantizer of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import onnx_ir as ir
from torch import Tensor

from bitwright.deploy.graph_writer import GraphWriter
from bitwright.deploy.names import real_name
from bitwright.deploy.writer import IR_VERSION, METADATA_KEY, embed
from bitwright.errors import UnsupportedError
from bitwright.execute.integer import bias_scale, quantized_bias
from bitwright.execute.program import repeats_codes
from bitwright.graph.captures import captured_values
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import Derived
from bitwright.targets import TARGETS


@dataclass(frozen=True, kw_only=True)
class Quantizers:
    """How a form spells quantizers.

    Attributes:
        activation: `(writer, real value, site that has the encoding, encoding, name of the result)` -> real values on
            the grid.
        weight: `(writer, name, codes, encoding)` -> real values on the grid.
        bias: `(writer, name, codes, scale)` -> real values on the grid; codes are whole numbers in float64.
        domains: operator sets that they need, with their versions.
    """

    activation: Callable[[GraphWriter, ir.Value, str, Encoding, str], ir.Value]
    weight: Callable[[GraphWriter, str, Tensor, Encoding], ir.Value]
    bias: Callable[[GraphWriter, str, Tensor, Tensor], ir.Value]
    domains: tuple[tuple[str, int], ...] = ()


def float_form(state: State, quantizers: Quantizers) -> ir.Model:
    """The float graph of a quantized state, with quantizers, plan and skeleton in it.

    Raises:
        UnsupportedError: a layer whose activation range is found at run time.
    """
    assert state.plan is not None
    for region, mode in state.plan.modes.items():
        if mode == "dynamic":
            raise UnsupportedError(
                f"region {region!r}", f"activation ranges found at run time, on {state.plan.target}",
                "ranges that calibration sets", "leave its --set ...:A=dynamic out",
            )  # fmt: skip
    return _Writer(state, quantizers).model()


class _Writer:
    def __init__(self, state: State, quantizers: Quantizers) -> None:
        assert state.plan is not None
        self.state, self.plan, self.quantizers = state, state.plan, quantizers
        regions = integer_regions(state.model, self.plan, TARGETS[self.plan.target].load())
        self.inside = {node for region in regions for node in region.nodes}
        self.on_grid = {r.output for r in regions if repeats_codes(r, self.plan)}
        self.out = GraphWriter()
        self.real: dict[ir.Value, ir.Value] = {}
        self.snapped: dict[ir.Value, ir.Value] = {}
        self.constants: dict[ir.Value, ir.Value] = {}

    def model(self) -> ir.Model:
        source = self.state.model
        inputs = []
        for value in source.graph.inputs:
            self.real[value] = ir.Value(name=value.name, shape=value.shape, type=value.type)
            inputs.append(self.real[value])
        for node in source.graph:
            self._node(node)
        opset = source.graph.opset_imports[""]
        graph = ir.Graph(
            inputs, [self.real[v] for v in source.graph.outputs], nodes=self.out.nodes,
            initializers=list(self.out.constants.values()),
            opset_imports={**source.graph.opset_imports, **dict(self.quantizers.domains)},
            name=source.graph.name or "bitwright",
        )  # fmt: skip
        return ir.Model(
            graph, ir_version=max(IR_VERSION, source.ir_version if opset > 21 else 0), producer_name="bitwright",
            producer_version=version("bitwright"), metadata_props={METADATA_KEY: embed(self.state)},
        )  # fmt: skip

    def _node(self, node: ir.Node) -> None:
        inside = node in self.inside
        inputs = [None if v is None else self._read(v, inside) for v in node.inputs]
        for captured in captured_values(node):  # branches read by name, which every value keeps
            self._read(captured, inside=False)
        ends = [v for v in node.outputs if inside and v not in self.on_grid and self.plan.qspec(v.name or "")]
        names = [f"{v.name}/sum" if v in ends else v.name or "" for v in node.outputs]
        made = self.out.nodes_of(node.op_type, inputs, node.attributes, names, node.domain)
        for before, value in zip(node.outputs, made, strict=True):
            value.shape, value.type = before.shape, before.type
            self.real[before] = self._quantized(before, value, before.name or "") if before in ends else value
            if inside:
                self.snapped[before] = self.real[before]

    def _read(self, value: ir.Value, inside: bool) -> ir.Value:
        if value.is_initializer():
            if value not in self.constants:
                self.constants[value] = self._constant(value)
            return self.constants[value]
        if not inside or self.plan.qspec(value.name or "") is None:
            return self.real[value]
        if value not in self.snapped:
            self.snapped[value] = self._quantized(value, self.real[value], real_name(value.name or ""))
        return self.snapped[value]

    def _quantized(self, value: ir.Value, real: ir.Value, name: str) -> ir.Value:
        site = value.name or ""
        root = self.plan.resolve(site)[0]
        made = self.quantizers.activation(self.out, real, root, self.state.encoding(site), name)
        made.shape, made.type = value.shape, value.type
        return made

    def _constant(self, value: ir.Value) -> ir.Value:
        name = value.name or ""
        if self.plan.qspec(name) is not None:
            encoding = self.state.encoding(name)
            made = self.quantizers.weight(self.out, name, encoding.codes_of(self.state.tensor(name)), encoding)
        elif isinstance(spec := self.plan.sites.get(name), Derived):
            x, weight = self.state.encoding(spec.input), self.state.encodings[spec.weight]
            known = self.state.encodings.get(name)
            codes = quantized_bias(self.state.tensor(name), x, weight) if known is None else known.codes
            assert codes is not None
            made = self.quantizers.bias(self.out, name, codes.double(), bias_scale(x, weight))
        elif name in self.state.overlay:
            return self.out.constant(name, self.state.overlay[name].numpy())
        else:
            return self.out.keep(value)
        made.shape, made.type = value.shape, value.type
        return made
