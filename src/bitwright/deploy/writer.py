"""Write a state as an ONNX file in QDQ form whose every pair the runtime consumes.

- A kernel region is DequantizeLinear -> op -> QuantizeLinear; the runtime makes one QLinear kernel of it.
- ReLU, ReLU6 and widths below 8 bits are one integer Clip behind QuantizeLinear (rounding is monotone, so this is
  exact), and nothing at all where the uint8 range bounds by itself.
- What only moves codes is written directly on codes, without any pair.
- A table is DequantizeLinear, its float ops, QuantizeLinear; its encodings are settled, so that whatever exponential
  the runtime has gives the codes of the table.
- The plan and the graph's skeleton (no weights) are embedded, so that the file alone is enough to verify it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.deploy.forms import FORMS, Form
from bitwright.deploy.graph_writer import GraphWriter
from bitwright.deploy.names import codes_name, real_name, scale_name, sum_name, unbounded_name, zero_point_name
from bitwright.deploy.packing import PACKINGS
from bitwright.errors import InputError
from bitwright.execute.integer import BOUNDING_OPS, bias_scale, code_bounds, constant_operands, quantized_bias
from bitwright.execute.kernels.sums import is_strided_point
from bitwright.execute.program import stored_weights
from bitwright.graph.captures import captured_values
from bitwright.graph.regions import Region, find_regions
from bitwright.graph.uses import is_use
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.ptq.settle import unsettled
from bitwright.targets import TARGETS
from bitwright.targets.target import OpRule, Target

#: Key of the metadata entry, and the version of its form.
METADATA_KEY, METADATA_VERSION = "bitwright", 1
#: Constants of more elements are not repeated in the skeleton.
SKELETON_LIMIT = 16
#: Float ops that the runtime would make integer kernels of, in an arithmetic of its own, if they stood between
#: DequantizeLinear and QuantizeLinear. Where the plan keeps them in float, they read codes through plain arithmetic.
FUSED_BY_THE_RUNTIME = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Sigmoid", "Softmax", "LeakyRelu", "AveragePool",
    "GlobalAveragePool", "Concat", "Where", "Resize",
}  # fmt: skip
#: Lowest IR version that allows operator set 21.
IR_VERSION = 10


def to_onnx(state: State) -> ir.Model:
    """The integer network as a model, with plan and skeleton embedded.

    Raises:
        InputError: the state has no plan or no encodings, or its tables are not settled.
    """
    if state.plan is None or not state.encodings:
        raise InputError("write", "the network is not quantized", "a plan and encodings", "run a recipe first")
    loose = unsettled(state)
    if loose:
        raise InputError(
            "write", f"the codes of {', '.join(loose)} would depend on how a runtime rounds", "settled scales",
            "call bitwright.ptq.settle.settle after the step that set them",
        )  # fmt: skip
    target: Target = TARGETS[state.plan.target].load()
    form: Form = FORMS[target.form].load()
    return form.write(state)


def integer_qdq(state: State) -> ir.Model:
    """The form of ONNX Runtime's integer kernels: `to_onnx` of a target that asks for it."""
    assert state.plan is not None
    return _Writer(state, TARGETS[state.plan.target].load()).model()


def write(state: State, path: str | Path) -> int:
    """Write the integer network; the file appears whole or not at all. Returns its size in bytes.

    Raises:
        InputError: the folder is missing or not writable, or the disk is full; an earlier file is left as it was.
    """
    data = ir.to_proto(to_onnx(state)).SerializeToString()
    write_bytes(path, data)
    return len(data)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, then rename it.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:  # an interrupted run leaves nothing behind either
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise InputError(str(path), f"cannot be written: {error.strerror}", fix="choose another --output") from error


class _Writer:
    def __init__(self, state: State, target: Target) -> None:
        assert state.plan is not None
        self.state, self.plan, self.target = state, state.plan, target
        self.out = GraphWriter()
        modes = self.plan.modes
        self.stored = stored_weights(state.model, state.plan)
        self.dynamic = {r.op: r for r in find_regions(state.model) if modes.get(r.name) == "dynamic"} if modes else {}
        self.rules: Mapping[Region, OpRule] = integer_regions(state.model, state.plan, target)
        self.codes: dict[str, ir.Value] = {}
        self.real: dict[str, ir.Value] = {}
        self.pairs: dict[str, ir.Value] = {}
        self.exits: dict[str, ir.Value] = {}

    def model(self) -> ir.Model:
        source = self.state.model
        inputs = []
        for value in source.graph.inputs:
            kept = ir.Value(name=value.name, shape=value.shape, type=value.type)
            self.real[value.name or ""] = kept
            inputs.append(kept)
        first = {region.op: region for region in self.rules}
        inside = {node for region in self.rules for node in region.nodes}
        for node in source.graph:
            if node in first:
                self._region(first[node])
            elif node not in inside:
                self._float(node)
        outputs = [self._output(value) for value in source.graph.outputs]
        opset = source.graph.opset_imports[""]
        domains = {"": opset} | {d: v for d, v in source.graph.opset_imports.items() if d}
        graph = ir.Graph(
            inputs, outputs, nodes=self.out.nodes, initializers=list(self.out.constants.values()),
            opset_imports=domains, name=source.graph.name or "bitwright",
        )  # fmt: skip
        return ir.Model(
            graph, ir_version=max(IR_VERSION, source.ir_version if opset > 21 else 0), producer_name="bitwright",
            producer_version=version("bitwright"), metadata_props={METADATA_KEY: embed(self.state)},
        )  # fmt: skip

    def _scales(self, site: str) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of an activation."""
        root = self.plan.resolve(site)[0]
        encoding = self.state.encodings[root]
        return (
            self.out.constant(scale_name(root), encoding.scale.numpy()),
            self.out.constant(zero_point_name(root), encoding.zero_point.to(torch.uint8).numpy()),
        )

    def _codes_of(self, value: ir.Value) -> ir.Value:
        """Codes of an activation; quantized here when it came as real values."""
        name = value.name or ""
        if name not in self.codes:
            grid = self.state.encoding(name).spec.grid
            self.codes[name] = self._quantize(name, self.real[name], (grid.qmin, grid.qmax))
        return self.codes[name]

    def _quantize(self, site: str, real: ir.Value, bounds: tuple[int, int]) -> ir.Value:
        if bounds == (0, 255):
            return self.out.node("QuantizeLinear", [real, *self._scales(site)], {}, codes_name(site))
        free = self.out.node("QuantizeLinear", [real, *self._scales(site)], {}, unbounded_name(site))
        return self._bound(free, bounds, codes_name(site))

    def _bound(self, codes: ir.Value, bounds: tuple[int, int], name: str) -> ir.Value:
        low, high = (self.out.constant(f"uint8/{b}", np.array(b, dtype=np.uint8)) for b in bounds)
        return self.out.node("Clip", [codes, low, high], {}, name)

    def _real_of(self, value: ir.Value, op: str) -> ir.Value:
        """Real values of what a float op reads."""
        name = value.name or ""
        if value.is_initializer():
            if name in self.stored:
                return self._unpacked(name)
            if name in self.state.overlay:
                return self.out.constant(name, self.state.overlay[name].numpy())
            return self.out.keep(value)
        if name in self.real:
            return self.real[name]
        return self._exit(name) if op in FUSED_BY_THE_RUNTIME else self._dequantized(name)

    def _dequantized(self, site: str) -> ir.Value:
        """Codes through DequantizeLinear: the entrance of a kernel, or of a float op that the runtime leaves alone."""
        if site not in self.pairs:
            inputs = [self.codes[site], *self._scales(site)]
            self.pairs[site] = self.out.node("DequantizeLinear", inputs, {}, real_name(site))
        return self.pairs[site]

    def _exit(self, site: str) -> ir.Value:
        """`(q - z) * s` in plain float arithmetic, the same numbers as DequantizeLinear."""
        if site not in self.exits:
            encoding = self.state.encoding(site)
            scale, _ = self._scales(site)
            to_float = {"to": ir.AttrInt64("to", ir.DataType.FLOAT.value)}
            wide = self.out.node("Cast", [self.codes[site]], to_float, f"{site}/wide")
            zero = self.out.constant(
                f"{self.plan.resolve(site)[0]}/zero_point_real", encoding.zero_point.float().numpy()
            )
            centred = self.out.node("Sub", [wide, zero], {}, f"{site}/centred")
            self.exits[site] = self.out.node("Mul", [centred, scale], {}, f"{site}/float")
        return self.exits[site]

    def _float(self, node: ir.Node) -> None:
        """A node that stays as it is."""
        if node in self.dynamic:
            self._dynamic_gemm(self.dynamic[node])
            return
        inputs = [None if v is None else self._real_of(v, node.op_type) for v in node.inputs]
        for captured in captured_values(node):  # branches read by name
            self._real_of(captured, node.op_type).name = captured.name
        names = [v.name or "" for v in node.outputs]
        made = self.out.nodes_of(node.op_type, inputs, node.attributes, names, node.domain)
        for before, value in zip(node.outputs, made, strict=True):
            value.shape, value.type = before.shape, before.type
            self.real[before.name or ""] = value

    def _region(self, region: Region) -> None:
        site = region.output.name or ""
        rule = self.rules[region]
        bounds = code_bounds(region.bounds, self.state.encoding(site))
        if region.is_table:
            self.codes[site] = self._quantize(site, self._chain(region), bounds)
        elif rule.how == "kernel":
            first, attributes = self._entrance(region)
            inputs = [first, *(self._inside(region, v) for v in region.op.inputs[1:])]
            real = self.out.node(region.op.op_type, inputs, attributes, sum_name(site))
            self.codes[site] = self._quantize(site, real, bounds)
        elif region.op.op_type in BOUNDING_OPS:
            codes = self._codes_of(region.inputs[0])
            grid = self.state.encoding(site).spec.grid
            free = bounds == (grid.qmin, grid.qmax)
            self.codes[site] = codes if free else self._bound(codes, bounds, codes_name(site))
        else:
            self.codes[site] = self._move(region, site)

    def _chain(self, region: Region) -> ir.Value:
        """The float ops of a table, on the real values of its codes."""
        x = region.inputs[0]
        self._codes_of(x)
        if is_use(region.op):  # plain arithmetic: a pair of quantizers with nothing between the runtime may merge
            return self._exit(x.name or "")
        real = {x: self._dequantized(x.name or "")}
        for node in region.nodes:
            inputs = [None if v is None else real[v] if v in real else self._real_of(v, "") for v in node.inputs]
            (value,) = node.outputs
            real[value] = self.out.node(node.op_type, inputs, node.attributes, value.name or "", node.domain)
        real[region.output].name = f"{region.output.name}/function"
        return real[region.output]

    def _inside(self, region: Region, value: ir.Value | None) -> ir.Value | None:
        """What a kernel's op reads: real values that come from codes, always."""
        if value is None:
            return None
        if not value.is_initializer():
            self._codes_of(value)
            return self._dequantized(value.name or "")
        if value in constant_operands(region):
            self._constant_codes(value)
            return self._dequantized(value.name or "")
        return (self._weight if value is region.weight else self._bias)(region, value.name or "")

    def _entrance(self, region: Region) -> tuple[ir.Value | None, Mapping[str, ir.Attr]]:
        """What a kernel's op reads first, and its attributes: without strides where a pool takes them over."""
        x, y = region.op.inputs[0], region.output.name or ""
        if x is None or not (self.target.thins_first and is_strided_point(region.op)):
            return self._inside(region, x), region.op.attributes
        pool = {"kernel_shape": ir.AttrInt64s("kernel_shape", [1, 1]), "strides": region.op.attributes["strides"]}
        codes = self.out.node("MaxPool", [self._codes_of(x)], pool, f"{y}/thinned")
        real = self.out.node("DequantizeLinear", [codes, *self._scales(x.name or "")], {}, f"{y}/thinned/real")
        return real, {name: value for name, value in region.op.attributes.items() if name != "strides"}

    def _constant_codes(self, value: ir.Value) -> ir.Value:
        """Codes of a constant that stands where an activation might."""
        name = value.name or ""
        if name not in self.codes:
            encoding = self.state.encoding(name)
            codes = encoding.codes_of(self.state.tensor(name)).to(torch.uint8)
            self.codes[name] = self.out.constant(codes_name(name), codes.numpy())
        return self.codes[name]

    def _packed(self, name: str) -> ir.Value:
        """The int8 integers of a weight, from the bits that the file stores."""
        encoding = self.state.encodings[name]
        codes = encoding.codes_of(self.state.tensor(name))
        packing = PACKINGS[self.target.weight_packing[encoding.spec.format][encoding.spec.bits]]
        return packing.write(self.out, name, codes, encoding)

    def _weight(self, region: Region, name: str) -> ir.Value:
        encoding = self.state.encodings[name]
        return self._constant_pair(name, self._packed(name), encoding.scale, encoding.spec.axis, zero=True)

    def _unpacked(self, name: str) -> ir.Value:
        """A weight's real values: constants that are folded, where a DequantizeLinear would run for every image."""
        if name not in self.real:
            encoding = self.state.encodings[name]
            to_float = {"to": ir.AttrInt64("to", ir.DataType.FLOAT.value)}
            wide = self.out.constant_node("Cast", [self._packed(name)], to_float)
            scale = self.out.constant(scale_name(name), encoding.scale.numpy())
            if encoding.spec.axis is not None:
                rank = self.state.tensor(name).ndim
                shape = [-1 if i == encoding.spec.axis else 1 for i in range(rank)]
                sizes = self.out.constant(f"int64/{shape}", np.array(shape, dtype=np.int64))
                scale = self.out.constant_node("Reshape", [scale, sizes], {})
            self.real[name] = self.out.constant_node("Mul", [wide, scale], {})
        return self.real[name]

    def _dynamic_gemm(self, region: Region) -> None:
        """A linear layer in integers whose activation range is found at run time; see `execute.kernels.dynamic`."""
        assert region.weight is not None
        x, name, site = region.inputs[0], region.weight.name or "", region.op.outputs[0].name or ""
        encoding = self.state.encodings[name]
        weight = self._packed(name)
        if region.op.attributes.get_int("transB", 0):
            weight = self.out.constant_node("Transpose", [weight], {"perm": ir.AttrInt64s("perm", [1, 0])})
        found = [f"{site}/{part}" for part in ("dynamic", "dynamic_scale", "dynamic_zero_point")]
        codes, scale, zero = self.out.nodes_of("DynamicQuantizeLinear", [self._real_of(x, "MatMul")], {}, found)
        none = self.out.constant(zero_point_name(name), np.zeros((), dtype=np.int8))
        acc = self.out.node("MatMulInteger", [codes, weight, zero, none], {}, f"{site}/acc")
        wide = self.out.node("Cast", [acc], {"to": ir.AttrInt64("to", ir.DataType.FLOAT.value)}, f"{site}/wide")
        stored = self.out.constant(scale_name(name), encoding.scale.numpy())
        factor = self.out.node("Mul", [scale, stored], {}, f"{site}/dynamic_factor")
        scaled = site if region.bias is None else f"{site}/product"
        value = self.out.node("Mul", [wide, factor], {}, scaled)
        if region.bias is not None:
            value = self.out.node("Add", [value, self._real_of(region.bias, "Add")], {}, site)
        value.shape, value.type = region.op.outputs[0].shape, region.op.outputs[0].type
        self.real[site] = value

    def _bias(self, region: Region, name: str) -> ir.Value:
        assert region.weight is not None
        x, weight = self.state.encoding(region.inputs[0].name or ""), self.state.encodings[region.weight.name or ""]
        known = self.state.encodings.get(name)
        codes = quantized_bias(self.state.tensor(name), x, weight) if known is None else known.codes
        assert codes is not None
        stored = self.out.constant(name, codes.to(torch.int32).numpy())
        return self._constant_pair(name, stored, bias_scale(x, weight), None if weight.spec.axis is None else 0)

    def _constant_pair(
        self, name: str, stored: ir.Value, scale: Tensor, axis: int | None, zero: bool = False
    ) -> ir.Value:
        attributes = {} if axis is None else {"axis": ir.AttrInt64("axis", axis)}
        pair = [stored, self.out.constant(scale_name(name), scale.numpy())]
        if zero:  # written out: without it the runtime leaves Gemm in float; not shared: its precise mode renames it
            pair.append(self.out.constant(zero_point_name(name), np.zeros(tuple(scale.shape), dtype=np.int8)))
        return self.out.node("DequantizeLinear", pair, attributes, real_name(name))

    def _move(self, region: Region, site: str) -> ir.Value:
        op = region.op
        if op.op_type == "Concat":
            values = [v for v in op.inputs if v is not None]
            inputs: list[ir.Value | None] = [
                self._constant_codes(v) if v.is_initializer() else self._codes_of(v) for v in values
            ]
        else:
            arguments = list(op.inputs[1:])
            if op.op_type == "Pad":
                del arguments[1:2]
            real = (None if v is None else self._real_of(v, op.op_type) for v in arguments)
            inputs = [self._codes_of(region.inputs[0]), *real]
            if op.op_type == "Pad":  # what it fills in is the code of zero, whether or not the float op says so
                inputs.insert(2, self._scales(site)[1])
        if op.op_type == "GlobalMaxPool":  # takes no uint8; the largest code over the plane is the same
            axes = self._plane_axes(region.inputs[0])
            return self.out.node("ReduceMax", [inputs[0], axes], {}, codes_name(site))
        return self.out.node(op.op_type, inputs, op.attributes, codes_name(site))

    def _plane_axes(self, x: ir.Value) -> ir.Value:
        """All axes after batch and channel."""
        rank = len(x.shape or ())
        return self.out.constant(f"int64/2..{rank}", np.arange(2, rank, dtype=np.int64))

    def _output(self, value: ir.Value) -> ir.Value:
        """A graph output keeps its name, shape and float type."""
        name = value.name or ""
        made = self.real.get(name) or self._dequantized(name)
        made.name = name
        made.shape, made.type = value.shape, value.type
        return made


def embed(state: State) -> str:
    """Plan and skeleton as the text of one metadata entry.

    The skeleton is the normalised graph; tensors that stand in the file under their own name are left empty.
    """
    assert state.plan is not None
    skeleton = state.model.clone()
    for value in skeleton.graph.initializers.values():
        assert value.const_value is not None
        if value.name in state.plan.sites or value.const_value.size > SKELETON_LIMIT:
            value.const_value = ir.tensor(np.zeros(0, dtype=np.float32), name=value.name)
            value.shape = None
    content: dict[str, Any] = {
        "plan": state.plan.to_json(),
        "skeleton": base64.b64encode(ir.to_proto(skeleton).SerializeToString()).decode(),
    }
    packed = base64.b64encode(zlib.compress(json.dumps(content).encode(), 9)).decode()
    return json.dumps({"version": METADATA_VERSION, "content": packed})
