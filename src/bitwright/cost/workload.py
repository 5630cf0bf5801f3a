"""What a network multiplies, keeps and moves under a plan, and the widths of all that.

A region with a weight is a choice of two widths: `w` of the weight, `a` of the activation that it reads. Values that
share an encoding have one width, that of their root; the first region that reads it speaks for it.

Batch 1. Bias, batch norm, additions and pools are not counted among the MACs.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from bitwright.cost.table import Widths
from bitwright.errors import InputError, UnsupportedError
from bitwright.graph.macs import rows_per_image
from bitwright.graph.regions import Region, find_regions
from bitwright.lookup import lookup
from bitwright.pipeline import State
from bitwright.placement.given import edit, in_float
from bitwright.placement.overrides import Override, Width
from bitwright.placement.place import integer_regions
from bitwright.placement.quantized import origins
from bitwright.plan.plan import Plan
from bitwright.plan.spec import QSpec
from bitwright.targets import TARGETS
from bitwright.targets.target import Target

#: Bits of what is not quantized.
FLOAT = 32
#: Bits of an activation whose range is found at run time.
DYNAMIC = 8
#: Widest candidates where a target has wider ones too.
WIDEST = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """A region that multiplies.

    Attributes:
        region: of the graph.
        widths: bits of the weight as it is stored (of the second operand where there is no weight), and of the
            activation that is read; 32 in float.
        in_integers: it multiplies integers of these widths; else both operands are float when they are multiplied.
        roots: sites whose width is that of the activation; () where the plan has none.
        has_choice: it has a weight that is quantized.
        second: roots of the second operand where there is no weight.
        scales: of the weight, where it is quantized.
    """

    region: Region
    widths: Widths
    in_integers: bool
    roots: tuple[str, ...] = ()
    has_choice: bool = False
    second: tuple[str, ...] = ()
    scales: int = 0

    @property
    def name(self) -> str:
        """Of the region."""
        return self.region.name

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.region.macs

    def multiplied(self, widths: Widths) -> Widths:
        """Bits of both operands of a multiplication when the region has these widths."""
        return widths if self.in_integers and FLOAT not in widths else (FLOAT, FLOAT)

    @property
    def weight_elements(self) -> int:
        """Elements of the weight; 0 without one."""
        return math.prod(_sizes(self.region.weight)) if self.region.weight is not None else 0

    @property
    def bias_elements(self) -> int:
        """Elements of the bias; 0 without one."""
        return math.prod(_sizes(self.region.bias)) if self.region.bias is not None else 0

    @property
    def terms(self) -> int:
        """Products in each sum: `I/g * k_h * k_w` of a convolution, I of a linear layer."""
        second = self.region.op.inputs[1]
        sizes = _sizes(second)
        op = self.region.op
        if op.op_type == "Conv":
            return math.prod(sizes[1:])
        if op.op_type == "ConvTranspose":
            return math.prod(sizes[2:]) * sizes[0] // op.attributes.get_int("group", 1)
        transposed = op.op_type == "Gemm" and op.attributes.get_int("transB", 0) == 1
        return sizes[-1] if transposed else sizes[-2]


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """A value that regions hand over.

    Attributes:
        value: of the graph.
        elements: of one image.
        moves: how often it passes between memory and arithmetic: written once, unless it is an input of the network,
            and read by each region that reads it.
        root: site whose encoding it has; None in float.
        bits: its width; that of its type in float.
    """

    value: ir.Value
    elements: int
    moves: int
    root: str | None
    bits: int


class Workload:
    """A network under a plan.

    Args:
        model: normalised.
        plan: widths; None for the float network.

    Raises:
        InputError: the plan is for no known target.
    """

    def __init__(self, model: ir.Model, plan: Plan | None) -> None:
        self.model, self.plan = model, plan
        self.regions = find_regions(model)
        self.target: Target | None = None if plan is None else lookup(TARGETS, plan.target, "target").load()
        integer = {} if plan is None or self.target is None else integer_regions(model, plan, self.target)
        self.integer = {region.name for region in integer}

    @cached_property
    def products(self) -> list[Product]:
        """The regions that multiply, in execution order."""
        return [self._product(region) for region in self.regions if region.macs or region.weight is not None]

    @cached_property
    def held(self) -> list[Held]:
        """The values that regions hand over, inputs and outputs of the network among them, in execution order.

        Raises:
            InputError: a value whose size is open beyond the batch.
        """
        made = {region.output: 1 for region in self.regions}
        values = dict.fromkeys([*self.model.graph.inputs, *(v for r in self.regions for v in (*r.inputs, r.output))])
        reads = {value: 0 for value in values}
        for region in self.regions:
            for value in dict.fromkeys(region.inputs):
                reads[value] += 1
        return [self._held(value, reads[value] + made.get(value, 0)) for value in values]

    @cached_property
    def speakers(self) -> dict[str, str]:
        """`{root: first region with a choice that reads it}`: whose `a` is its width."""
        found: dict[str, str] = {}
        for product in self.products:
            for root in product.roots if product.has_choice else ():
                found.setdefault(root, product.name)
        return found

    def options(self, weights: Sequence[int] = (), activations: Sequence[int] = ()) -> dict[str, list[Widths]]:
        """`{region: widths that it can have}`, its present ones first.

        Raises:
            InputError: the network has no plan.
            UnsupportedError: a width that the target lacks.
        """
        if self.target is None:
            raise InputError("cost", "the network has no plan", "a plan to change the widths of", "place it first")
        first, second = candidates(self.target, weights, activations)
        found = {}
        for product in self.products:
            if product.has_choice:
                read = second if product.roots else [product.widths[1]]
                found[product.name] = list(dict.fromkeys([product.widths, *((w, a) for w in first for a in read)]))
        return found

    def _product(self, region: Region) -> Product:
        mode = "" if self.plan is None else self.plan.modes.get(region.name, "")
        integer = region.name in self.integer
        first, roots = self._operand(region.inputs[:1], integer)
        if region.weight is None:
            second, others = self._operand(region.inputs[-1:], integer)
            return Product(
                region=region, widths=(second, first), in_integers=integer, roots=roots, second=others,
            )  # fmt: skip
        spec = None if self.plan is None else self.plan.qspec(region.weight.name or "")
        stored = spec.bits if spec is not None and (integer or mode) else FLOAT
        read = DYNAMIC if mode == "dynamic" else first
        return Product(
            region=region, widths=(stored, read), in_integers=integer or mode == "dynamic",
            roots=() if mode else roots, has_choice=stored != FLOAT, scales=_scales(region.weight, spec),
        )  # fmt: skip

    def _operand(self, values: Iterable[ir.Value], integer: bool) -> tuple[int, tuple[str, ...]]:
        """Bits of an activation that a region reads, and its roots; where ops pass it on, where it is made."""
        plan, target = self.plan, self.target
        if plan is None or target is None or not integer:
            return FLOAT, ()
        made = [m for v in values for m in self._makers(v, target)]
        specs = [plan.qspec(v.name or "") for v in made]
        bits = [FLOAT if spec is None else spec.bits for spec in specs]
        if not bits or FLOAT in bits:
            return FLOAT, ()
        return max(bits), tuple(dict.fromkeys(plan.resolve(v.name or "")[0] for v in made))

    def _makers(self, value: ir.Value, target: Target) -> list[ir.Value]:
        return sorted(origins(value, target.passing), key=lambda v: v.name or "")

    def _held(self, value: ir.Value, moves: int) -> Held:
        name = value.name or ""
        spec = None if self.plan is None else self.plan.qspec(name)
        if spec is None or self.plan is None:
            bits = FLOAT if value.dtype is None else round(value.dtype.itemsize * 8)
            return Held(value=value, elements=elements(value), moves=moves, root=None, bits=bits)
        root = self.plan.resolve(name)[0]
        return Held(value=value, elements=elements(value), moves=moves, root=root, bits=spec.bits)


def _sizes(value: ir.Value | None) -> list[int]:
    shape = () if value is None or value.shape is None else value.shape
    return [d for d in shape if isinstance(d, int)]


def _scales(weight: ir.Value, spec: QSpec | None) -> int:
    if spec is None:
        return 0
    return 1 if spec.axis is None else _sizes(weight)[spec.axis]


def workload(state: State, plan: Plan | None = None) -> Workload:
    """Of a state under `plan`, or under its own.

    Raises:
        InputError: neither is there.
    """
    plan = plan or state.plan
    if plan is None:
        raise InputError("cost", "the network has no plan", "a plan, for its widths", "place it first")
    return Workload(state.model, plan)


def elements(value: ir.Value) -> int:
    """Elements of a value for one image.

    Raises:
        InputError: its size is open beyond the batch.
    """
    if value.shape is None:
        raise InputError(f"value {value.name!r}", "its shape is not known", "only the batch open", "give --shape")
    if not value.shape:
        return 1
    rest = [d for d in value.shape[1:] if isinstance(d, int)]
    if len(rest) != len(value.shape) - 1:
        raise InputError(f"value {value.name!r}", f"has shape {value.shape}", "only the batch open", "give --shape")
    node = value.producer()
    if node is not None:
        return rows_per_image(node, value.shape) * math.prod(rest)
    return math.prod(rest)


def candidates(
    target: Target, weights: Sequence[int] = (), activations: Sequence[int] = (), where: str = "cost"
) -> tuple[list[int], list[int]]:
    """Widths to try, the widest first: those that are asked for, else all that the target has up to 8 bits.

    Weights may be asked for at FLOAT: the region then runs in float.

    Args:
        target: what it has is a row of data.
        weights: asked for.
        activations: asked for.
        where: what errors call the asking.

    Raises:
        UnsupportedError: a width that the target lacks.

    Example:
        >>> from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64_AVX2
        >>> candidates(ONNXRUNTIME_X64_AVX2, activations=[8, 4])
        ([7, 6, 5, 4, 3, 2, 1], [8, 4])
    """
    known = {*target.weight_packing["affine"], *target.weight_packing.get("binary", ())}
    for asked, has, what in ((weights, known, "weights"), (activations, target.activation_bits, "activations")):
        missing = [b for b in asked if b not in has and not (b == FLOAT and what == "weights")]
        if missing:
            raise UnsupportedError(
                where, f"{missing[0]}-bit {what}",
                f"{what} of {', '.join(map(str, sorted(has)))} bits, as {target.name} has them",
            )  # fmt: skip
    return (
        sorted(weights or [b for b in known if b <= WIDEST], reverse=True),
        sorted(activations or [b for b in target.activation_bits if b <= WIDEST], reverse=True),
    )


def with_widths(state: State, choice: Mapping[str, Widths], plan: Plan | None = None) -> Plan:
    """The plan in which the regions that `choice` names have its widths; one bit of weight is its sign (`binary`).

    A region whose weight has FLOAT bits runs in float; what it reads keeps the width that is said with it where others
    read it in integers.

    Raises:
        InputError: a region without a quantized weight, an activation that the plan fixes, or two widths for one
            encoding.
        UnsupportedError: a width that the target lacks.
    """
    load = workload(state, plan)
    assert load.plan is not None and load.target is not None
    known = {product.name: product for product in load.products if product.has_choice}
    overrides = []
    read: dict[str, tuple[str, int]] = {}
    for name, (w, a) in choice.items():
        if name not in known:
            raise InputError(f"region {name!r}", "has no quantized weight", f"one of {', '.join(known)}")
        product = known[name]
        weight = "" if product.region.weight is None else product.region.weight.name or ""
        if w != product.widths[0] and w != FLOAT:
            width = Width(bits=w, format="binary" if w == 1 else "affine")
            overrides.append(Override(pattern=glob.escape(weight), weights=width))
        if not product.roots and a != product.widths[1]:
            fixed = product.widths[1]
            raise InputError(f"region {name!r}", f"reads an activation of {a} bits", f"{fixed}, which the plan fixes")
        for root in product.roots:
            spec = load.plan.qspec(root)
            if a == product.widths[1] and spec is not None and spec.bits < a:
                continue  # read together with a wider one, and neither is changed
            other, bits = read.setdefault(root, (name, a))
            if bits != a:
                raise InputError(
                    f"region {name!r}", f"reads {root!r} with {a} bits, and {other!r} with {bits}",
                    "one width for one encoding", "give both the same width",
                )  # fmt: skip
            overrides.append(Override(pattern=glob.escape(root), activations=Width(bits=a)))
    edited = edit(load.plan, overrides, load.target)
    floats = [name for name, (w, _) in choice.items() if w == FLOAT]
    return in_float(edited, floats, load.model, load.target) if floats else edited
