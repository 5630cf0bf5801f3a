"""What OpenVINO makes of the regions around a kernel, and so of its arithmetic.

Of the sum of two activations: which operand it rescales, and whether a convolution absorbs it.

OpenVINO writes `s_a (a - z_a) + s_b (b - z_b)` as `s_e (s_f / s_e (f - z) + e)`: one operand, `f`, is rescaled, the
codes of the other, `e`, are added as they are. A convolution that only the sum reads takes the sum into its own
kernel, and then its result is not rounded to a code before it is added. Both follow from the graph alone, by the rules
of its source (getNotEmpty, FuseConvolutionSumAndConvolutionSumActivation), which are tested against its kernels.

Source: https://github.com/openvinotoolkit/openvino, src/common/low_precision_transformations, src/plugins/intel_cpu
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bitwright.graph.regions import Region

#: Ops whose kernels take weights: in OpenVINO convolution, group convolution, matrix multiplication.
WEIGHTED = ("Conv", "Gemm", "MatMul")
#: Codes of eight bits that nothing bounds.
FREE = (0, 255)

Bounds = Callable[[Region], tuple[int, int]]


def is_strided_point(node: ir.Node) -> bool:
    """Whether a node is a convolution of 1x1 elements in two dimensions that leaves some out."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type != "Conv" or weight is None or weight.shape is None or list(weight.shape)[2:] != [1, 1]:
        return False
    pads, strides = (list(node.attributes.get_ints(name, ())) for name in ("pads", "strides"))
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return not any(pads) and not automatic and any(s > 1 for s in strides)


@dataclass(frozen=True, kw_only=True)
class Sum:
    """A sum of two activations.

    Attributes:
        region: the sum.
        rescaled: index of the operand that is rescaled.
        absorbing: index of the operand whose convolution computes the sum; None where the sum has a kernel of its own.
        convolution: that convolution.
        at_once: the rescaled operand is quantized and rescaled in one step, `fma(q, factor, shift)`; else in two,
            `(q - shift) * factor`.
    """

    region: Region
    rescaled: int
    absorbing: int | None
    convolution: Region | None
    at_once: bool


@dataclass(frozen=True, kw_only=True)
class _Operand:
    """One side of a sum: the codes that stand in the file, and who reads them.

    `pending`: a sum that comes after this one is among the readers.
    `quantizer`: they come straight from a QuantizeLinear, behind which there is only a DequantizeLinear.
    `weighted`: what is quantized there is the result of a weighted op with a bias.
    """

    value: ir.Value
    region: Region | None
    quantizer: bool
    weighted: bool
    readers: int
    pending: bool


class _Graph:
    """The integer regions of a network, by what they give."""

    def __init__(self, regions: Sequence[Region], bounds: Bounds, moving: Sequence[str], thinned: bool) -> None:
        self.bounds, self.moving, self.thinned = bounds, set(moving), thinned
        self.made = {r.output: r for r in regions}
        self.of = {node: r for r in regions for node in r.nodes}

    def written(self, value: ir.Value) -> ir.Value:
        """The value whose codes stand in the file: a ReLU or Clip that bounds nothing is not written."""
        region = self.made.get(value)
        if region is not None and region.kind in ("Relu", "Clip") and self.bounds(region) == FREE:
            return self.written(region.inputs[0])
        return value

    def readers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that read the codes of a written value, those of values that stand for it included."""
        found = []
        for use in value.uses():
            region = self.of.get(use.node)
            if region is None:
                found.extend([use.node] if value in self.made else [])
            elif region.inputs and self.written(region.output) is not region.output:
                found.extend(self.readers(region.output))
            else:
                found.append(use.node)
        return found

    def operand(self, value: ir.Value, of: ir.Node) -> _Operand:
        """One side of the sum `of`."""
        value = self.written(value)
        region, readers = self.made.get(value), self.readers(value)
        moved = any(self._moves(node) for node in readers)
        kernel = region is None or region.kind not in self.moving
        bounded = region is not None and self.bounds(region) != FREE
        producer = value.producer() if region is None else region.op
        weighted = producer is not None and producer.op_type in WEIGHTED and len(producer.inputs) > 2
        quantizer = kernel and not bounded and not moved
        return _Operand(
            value=value, region=region, quantizer=quantizer, weighted=quantizer and weighted,
            readers=len(readers) + value.is_graph_output(),
            pending=any(n is not of and n.op_type == "Add" and self.precede([of], n) for n in readers),
        )  # fmt: skip

    def _moves(self, node: ir.Node) -> bool:
        """Whether a node reads codes without a DequantizeLinear."""
        region = self.of.get(node)
        return region is not None and (region.kind in self.moving or (self.thinned and is_strided_point(node)))

    def precede(self, nodes: Sequence[ir.Node], last: ir.Node) -> bool:
        """Whether `last` reads, directly or not, what all of `nodes` give."""
        seen: set[ir.Node] = set()
        waiting = [last]
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(p for v in node.inputs if v is not None and (p := v.producer()) is not None)
        return all(node in seen for node in nodes)


def sums_of(
    regions: Sequence[Region], bounds: Bounds, moving: Sequence[str], *, thinned: bool
) -> Mapping[Region, Sum]:
    """Every sum among integer regions, and how OpenVINO computes it.

    Args:
        regions: regions that run in integers.
        bounds: lowest and highest code of a region's output.
        moving: kinds of regions that move codes.
        thinned: strides of 1x1 convolutions are written as pools (`Target.thins_first`).
    """
    graph = _Graph(regions, bounds, moving, thinned)
    found = {}
    for region in regions:
        values = [v for v in region.op.inputs if v is not None]
        if region.kind == "Add" and not any(v.is_initializer() for v in values):
            found[region] = _sum(graph, region, [graph.operand(v, region.op) for v in values])
    return found


def ends_of(regions: Sequence[Region], bounds: Bounds, moving: Sequence[str]) -> set[Region]:
    """Regions whose output no region reads as codes: it leaves the integers, and the runtime gives reals at once."""
    graph = _Graph(regions, bounds, moving, thinned=False)
    return {
        r for r in regions
        if graph.written(r.output) is r.output and not any(node in graph.of for node in graph.readers(r.output))
    }  # fmt: skip


def _sum(graph: _Graph, region: Region, operands: Sequence[_Operand]) -> Sum:
    rescaled = _rescaled(operands)
    absorbing = _absorbing(graph, region, operands, rescaled)
    full = operands[rescaled]
    return Sum(
        region=region, rescaled=rescaled, absorbing=absorbing, at_once=full.quantizer and full.readers == 1,
        convolution=None if absorbing is None else operands[absorbing].region,
    )  # fmt: skip


def _rescaled(operands: Sequence[_Operand]) -> int:
    """The operand that is rescaled: the rules in OpenVINO's order."""
    a, b = operands
    if a.quantizer != b.quantizer:
        return 0 if a.quantizer else 1
    several = [o.readers > 1 for o in operands]
    if a.quantizer and several[0] != several[1]:
        return 1 if several[0] else 0
    if a.quantizer and all(several) and a.pending != b.pending:
        return 1 if a.pending else 0
    if a.weighted == b.weighted:
        for i, operand in enumerate(operands):
            if _is_point(operand.value):
                return i
    if several[0] != several[1]:
        return 1 if several[0] else 0
    return 1 if b.weighted and not a.weighted else 0


def _is_point(value: ir.Value) -> bool:
    """Whether a value has one element a channel."""
    sizes = list(value.shape or ())
    first = {1: 0, 2: 1}.get(len(sizes), 2)
    return bool(sizes) and all(size == 1 for size in sizes[first:])


def _absorbing(graph: _Graph, region: Region, operands: Sequence[_Operand], rescaled: int) -> int | None:
    """The operand whose convolution computes the sum: one that nothing else reads, and that may overwrite the other.

    The other operand's memory becomes the result's, so whatever else reads it must come before.
    """
    able = [
        i for i, o in enumerate(operands)
        if o.region is not None and o.region.op.op_type == "Conv" and o.readers == 1
    ]  # fmt: skip
    if not able:
        return None
    index = rescaled if rescaled in able else able[0]
    convolution, other = operands[index].region, operands[1 - index]
    assert convolution is not None
    shapes = [None if o.value.shape is None else list(o.value.shape)[1:] for o in operands]
    if shapes[0] != shapes[1] or shapes[0] is None:
        return None
    # Codes that are rescaled in a step of their own are no longer anyone else's memory.
    if rescaled != index and other.readers > 1:
        return index
    if graph.written(convolution.inputs[0]) is other.value:
        return None
    others = [node for node in graph.readers(other.value) if node is not region.op]
    return index if graph.precede(others, region.op) and not other.value.is_graph_output() else None
