"""Program: an ONNX model as a `torch.fx.GraphModule`, in one of three modes.

- float: the network as it is.
- simulated: every quantized site is quantized and dequantized in float, with straight-through gradients; this is what
  other toolkits call fake quantization, and what training uses.
- integer: regions that the target runs in integers compute on codes with the target's own formulas
  (`execute/integer.py`); what is float in the served file is float here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.integer import (
    MOVING_OPS,
    ONNXRUNTIME,
    Arithmetic,
    arithmetic_of,
    bias_scale,
    kernel_operands,
    quantized_bias,
    region_kernel,
)
from bitwright.execute.kernels.dynamic import DynamicGemm
from bitwright.execute.nodes import attributes_of, function_of, has_row
from bitwright.execute.observe import find_value
from bitwright.execute.served import Served
from bitwright.graph.alone import reads
from bitwright.graph.overlay import initializer
from bitwright.graph.regions import Region, find_regions
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, QSpec
from bitwright.targets import TARGETS
from bitwright.targets.target import Target

Mode = Literal["float", "simulated", "integer"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A model that torch can run.

    Attributes:
        module: the graph module; takes the inputs in order and returns a tuple.
        inputs: names of the inputs.
        outputs: names of what it returns.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named inputs to named outputs."""
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise InputError("inputs", f"{', '.join(missing)} missing", f"all of {', '.join(self.inputs)}")
        return dict(zip(self.outputs, self.module(*(inputs[name] for name in self.inputs)), strict=True))


class FakeQuantize(nn.Module):
    """Quantize and dequantize at one site; scale and zero point are buffers."""

    scale: Tensor
    zero_point: Tensor
    levels: Tensor | None

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.spec = encoding.spec
        self.register_buffer("scale", encoding.scale)
        self.register_buffer("zero_point", encoding.zero_point)
        self.register_buffer("levels", encoding.levels)

    def forward(self, x: Tensor) -> Tensor:
        """Real values on the grid."""
        encoding = Encoding(spec=self.spec, scale=self.scale, zero_point=self.zero_point, levels=self.levels)
        return encoding.fake_quantize(x)


class FakeQuantizeBias(nn.Module):
    """A bias at the scale of its region's accumulator, with a straight-through gradient."""

    def __init__(self, x: Encoding, weight: Encoding) -> None:
        super().__init__()
        self.x, self.w = x, weight

    def forward(self, bias: Tensor) -> Tensor:
        """The bias at its codes."""
        codes = quantized_bias(bias.detach(), self.x, self.w)
        rounded = (codes * bias_scale(self.x, self.w).double()).float()
        return bias + (rounded - bias).detach()


class Quantize(nn.Module):
    """Real values to codes: the entrance of an integer region. uint8 where they fit, else int32."""

    def __init__(self, encoding: Encoding, arithmetic: Arithmetic = ONNXRUNTIME) -> None:
        super().__init__()
        self.encoding, self.own = encoding, arithmetic.quantizer(encoding)
        self.dtype = torch.uint8 if fits_uint8(encoding.spec) else torch.int32

    def forward(self, x: Tensor) -> Tensor:
        """Codes."""
        return (self.encoding.quantize(x) if self.own is None else self.own(x)).to(self.dtype)


def fits_uint8(spec: QSpec) -> bool:
    """Whether the codes of an activation are 0 to 255.

    Example:
        >>> fits_uint8(QSpec(bits=8)), fits_uint8(QSpec(bits=9)), fits_uint8(QSpec(bits=8, signed=True))
        (True, False, False)
    """
    return spec.grid.qmin >= 0 and spec.grid.qmax <= 255


class Dequantize(nn.Module):
    """Codes to real values: the exit of an integer region."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self, codes: Tensor) -> Tensor:
        """Real values."""
        return self.encoding.dequantize(codes.int())


def build(
    model: ir.Model,
    overlay: Mapping[str, Tensor],
    *,
    mode: Mode = "float",
    plan: Plan | None = None,
    encodings: Mapping[str, Encoding] | None = None,
    integer: Sequence[Region] = (),
    outputs: Sequence[str] = (),
    codes: bool = False,
    arithmetic: Arithmetic | None = None,
    inputs: Sequence[str] = (),
    quantizers: Mapping[str, nn.Module] | None = None,
) -> Program:
    """Build the program of a model, or of the part between `inputs` and `outputs`.

    Args:
        model: normalised model.
        overlay: new values of initializers.
        mode: float, simulated or integer.
        plan: for simulated and integer.
        encodings: `{site: encoding}`, for simulated and integer.
        integer: regions that run in integers (`placement.integer_regions`).
        outputs: sites to return; the graph's outputs if empty.
        codes: return the codes of quantized sites instead of their real values (not in float mode).
        arithmetic: how the integer regions round; None for the runtime of the plan's target.
        inputs: values that the part starts from; what an integer region gave is taken as it comes, a simulation does
            not quantize it once more; the graph's inputs if empty.
        quantizers: `{site: module}` in place of a simulation's own quantizer of a site, its own or the one that it
            shares; `nn.Identity()` leaves the site in float. A weight's module is given the float weight.

    Raises:
        InputError: an output that depends on a graph input that is none of `inputs`.
        UnsupportedError: an op or attribute that cannot be executed, or codes in mode integer that are not uint8.
    """
    if mode == "integer" and plan is not None:
        _check_codes(plan, integer)
    builder = _Builder(model, overlay, mode, plan, dict(encodings or {}), integer, quantizers or {})
    if arithmetic is not None:
        builder.arithmetic = arithmetic
    nodes = _between(model, inputs, outputs) if inputs else set(model.graph)
    for value in [find_value(model, name) for name in inputs] or model.graph.inputs:
        builder.enter(value)
    by_first = {region.op: region for region in integer} if mode == "integer" else {}
    inside = {node for region in by_first.values() for node in region.nodes}
    for node in model.graph:
        if node not in nodes:
            continue
        if node in by_first:
            builder.kernel(by_first[node])
        elif node not in inside:
            builder.call(node)
    names = tuple(outputs) or tuple(v.name or "" for v in model.graph.outputs)
    return Program(module=builder.finish(names, codes), inputs=builder.inputs, outputs=names)


def _between(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> set[ir.Node]:
    """The nodes that the outputs are computed by, from the inputs on."""
    waiting = [find_value(model, name) for name in outputs] or list(model.graph.outputs)
    found: set[ir.Node] = set()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value.name in inputs or node in found:
            continue
        if node is None:
            if not value.is_initializer():
                raise InputError(
                    f"part from {', '.join(inputs)}", f"reads {value.name!r}, which is computed from none of them",
                    "all values that the part reads",
                )  # fmt: skip
            continue
        found.add(node)
        waiting.extend(v for v in reads(node) if v is not None)
    return found


def stored_weights(model: ir.Model, plan: Plan) -> set[str]:
    """Weights that lie in few bits in the file although their layer has no calibrated ranges (`Plan.modes`)."""
    members = (site for region in plan.modes for site in plan.regions[region])
    return {site for site in members if site in model.graph.initializers and plan.qspec(site) is not None}


def _check_codes(plan: Plan, integer: Sequence[Region]) -> None:
    """Codes between the kernels travel as uint8: others would wrap round."""
    for value in (v for region in integer for v in (*region.inputs, region.output)):
        spec = plan.qspec(value.name or "")
        if spec is not None and not fits_uint8(spec):
            raise UnsupportedError(
                f"site {value.name!r}", f"codes from {spec.grid.qmin} to {spec.grid.qmax}",
                "0 to 255, the codes of integer kernels", "simulate it in float (mode simulated)",
            )  # fmt: skip


def repeats_codes(region: Region, plan: Plan) -> bool:
    """Whether a region gives codes of its inputs, at their encoding: quantizing them again would change nothing."""
    sites = [v.name or "" for v in (*region.inputs, region.output)]
    if region.kind not in MOVING_OPS or any(plan.qspec(site) is None for site in sites):
        return False
    return len({plan.resolve(site)[0] for site in sites}) == 1


class _Builder:
    """Walks the graph once; remembers for each value the fx node of its real value and of its codes."""

    def __init__(
        self, model: ir.Model, overlay: Mapping[str, Tensor], mode: Mode, plan: Plan | None,
        encodings: dict[str, Encoding], integer: Sequence[Region], quantizers: Mapping[str, nn.Module],
    ) -> None:  # fmt: skip
        self.model, self.overlay, self.mode, self.plan, self.encodings = model, overlay, mode, plan, encodings
        self.quantizers = quantizers
        self.root = nn.Module()
        self.numbers = itertools.count()
        self.graph = fx.Graph()
        self.real: dict[str, fx.Node] = {}
        self.codes: dict[str, fx.Node] = {}
        self.constants: dict[str, fx.Node] = {}
        self.inputs: tuple[str, ...] = ()
        # In simulation a copy of quantized values is on the grid already.
        self.on_grid = set() if plan is None else {r.output.name for r in integer if repeats_codes(r, plan)}
        self.inside = {node for region in integer for node in region.nodes}
        modes = {} if plan is None or mode == "float" else plan.modes
        self.stored = stored_weights(model, plan) if plan is not None and modes else set()
        self.dynamic = {r.op: r for r in find_regions(model) if modes.get(r.name) == "dynamic"} if modes else {}
        self.snapped: dict[str, fx.Node] = {}
        self.arithmetic = ONNXRUNTIME
        if mode == "integer" and plan is not None:
            target: Target = TARGETS[plan.target].load()
            self.arithmetic = arithmetic_of(target.arithmetic, target, integer, self.encoding)

    def encoding(self, value: ir.Value) -> Encoding:
        """The encoding of a site, its own or the one it shares."""
        assert self.plan is not None
        return self.encodings[self.plan.resolve(value.name or "")[0]]

    def tensor(self, value: ir.Value) -> Tensor:
        """The present value of an initializer."""
        return initializer(self.model, self.overlay, value.name or "")

    def bias_codes(self, value: ir.Value) -> Tensor | None:
        """Codes of a bias that were read from a file."""
        known = self.encodings.get(value.name or "")
        return None if known is None else known.codes

    def _quantized(self, value: ir.Value) -> bool:
        return self.mode != "float" and self.plan is not None and self.plan.qspec(value.name or "") is not None

    def _module(self, kind: str, module: nn.Module) -> str:
        name = f"{kind}_{next(self.numbers)}"  # one of its own each time: a module may stand in several places
        self.root.add_module(name, module)
        return name

    def enter(self, value: ir.Value) -> None:
        """A graph input, or a value that a part starts from: what an integer region gave comes quantized."""
        name = value.name or ""
        self.inputs = (*self.inputs, name)
        self.real[name] = self.graph.placeholder(f"input_{len(self.inputs)}")
        if value.producer() in self.inside:
            self.snapped[name] = self.real[name]

    def _quantizer(self, value: ir.Value) -> nn.Module:
        assert self.plan is not None
        own = self.quantizers.get(self.plan.resolve(value.name or "")[0])
        return FakeQuantize(self.encoding(value)) if own is None else own

    def _simulated(self, value: ir.Value, node: fx.Node) -> fx.Node:
        if self.mode == "simulated" and self._quantized(value) and value.name not in self.on_grid:
            return self.graph.call_module(self._module("fake_quantize", self._quantizer(value)), (node,))
        return node

    def constant(self, value: ir.Value) -> fx.Node:
        """An initializer, fake-quantized in simulation."""
        name = value.name or ""
        if name not in self.constants:
            tensor = self.tensor(value)
            known = None if self.mode == "float" else self.encodings.get(name)
            # A rounding that was chosen gives these values; a float op that reads stored bits gets what they mean.
            chosen = self.mode == "simulated" and known is not None and known.codes is not None
            if known is not None and (name in self.stored or (chosen and name not in self.quantizers)):
                tensor = known.values_of(tensor)
            key = f"constant_{len(self.constants)}"
            if tensor.is_floating_point():
                self.root.register_parameter(key, nn.Parameter(tensor.clone(), requires_grad=False))
            else:
                self.root.register_buffer(key, tensor)
            node = self.graph.get_attr(key)
            spec = self.plan.sites.get(name) if self.plan and self.mode == "simulated" else None
            if isinstance(spec, Derived):
                assert self.plan is not None
                pair = self.encodings[self.plan.resolve(spec.input)[0]], self.encodings[spec.weight]
                own = self.quantizers.get(name, FakeQuantizeBias(*pair))
                node = self.graph.call_module(self._module("fake_quantize", own), (node,))
            else:
                node = self._simulated(value, node)
            self.constants[name] = node
        return self.constants[name]

    def real_of(self, value: ir.Value) -> fx.Node:
        """The fx node of a value's real numbers."""
        name = value.name or ""
        if value.is_initializer():
            return self.constant(value)
        if name not in self.real:
            dequantize = self._module("dequantize", Dequantize(self.encoding(value)))
            self.real[name] = self.graph.call_module(dequantize, (self.codes[name],))
        return self.real[name]

    def codes_of(self, value: ir.Value) -> fx.Node:
        """The fx node of a value's codes."""
        name = value.name or ""
        if name not in self.codes:
            quantize = self._module("quantize", Quantize(self.encoding(value), self.arithmetic))
            self.codes[name] = self.graph.call_module(quantize, (self.real[name],))
        return self.codes[name]

    def call(self, node: ir.Node) -> None:
        """One op on real numbers."""
        # What float ops or the network's input give reaches an integer region quantized, and a float op as it is.
        read = self.snapped_of if node in self.inside else self.real_of
        if node in self.dynamic:
            x = node.inputs[0]
            assert x is not None
            layer = self._module("dynamic", self._dynamic_gemm(self.dynamic[node]))
            result = self.graph.call_module(layer, (self.real_of(x),))
        elif has_row(node):
            arguments = tuple(None if v is None else read(v) for v in node.inputs)
            result = self.graph.call_function(function_of(node), arguments, attributes_of(node))
        else:
            served = Served(node, self.model)
            result = self.graph.call_module(self._module("served", served), tuple(read(v) for v in served.inputs))
        several = len(node.outputs) > 1
        for i, value in enumerate(node.outputs):
            part = self.graph.call_function(_item, (result, i)) if several else result
            self.real[value.name or ""] = self._simulated(value, part) if node in self.inside else part
            if node in self.inside:
                self.snapped[value.name or ""] = self.real[value.name or ""]

    def _dynamic_gemm(self, region: Region) -> nn.Module:
        assert region.weight is not None
        weight = self.encoding(region.weight)
        bias = None if region.bias is None else self.tensor(region.bias)
        transposed = bool(region.op.attributes.get_int("transB", 0))
        return DynamicGemm(weight, weight.codes_of(self.tensor(region.weight)), bias, transposed=transposed)

    def snapped_of(self, value: ir.Value) -> fx.Node:
        """The fx node of a value as an integer region sees it in simulation."""
        name = value.name or ""
        if value.is_initializer() or self.mode != "simulated":
            return self.real_of(value)
        if name not in self.snapped:
            self.snapped[name] = self._simulated(value, self.real[name])
        return self.snapped[name]

    def kernel(self, region: Region) -> None:
        """One region on codes."""
        module = region_kernel(region, self.encoding, self.tensor, self.bias_codes, self.arithmetic)
        arguments = tuple(self.codes_of(v) for v in kernel_operands(region))
        self.codes[region.output.name or ""] = self.graph.call_module(self._module("kernel", module), arguments)

    def finish(self, outputs: Sequence[str], codes: bool) -> fx.GraphModule:
        """The module that returns `outputs`."""
        results = []
        for name in outputs:
            value = find_value(self.model, name)
            as_codes = codes and self._quantized(value)
            results.append(self.codes_of(value) if as_codes else self.real_of(value))
        self.graph.output(tuple(results))
        module = fx.GraphModule(self.root, self.graph)
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
        return module


def _item(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]
