"""OpenVINO, watched.

Reading a tensor out changes what OpenVINO does with a sum that reads it: which operand it rescales depends on how many
others read each, and a convolution takes a sum into its kernel only where it may overwrite the other operand. So what
a sum reads is not read out where the sum reads it. Where a convolution computes the sum, the network is cut at the
other operand: all that reads it gets it from an input of its own, as it was simulated, through the same
QuantizeLinear; and the codes that the runtime computes for it are an output that nothing else reads. Every kernel is
then the one of the whole file, on codes that are known, and an error does not travel. That the layers are those of
the whole file is checked. Where they are not (a cut can part what must come before a sum from the sum), sums are left
alone and what they read is not read out at all. What comes out of a layer that the runtime compiles from many float
ops is cut in the same way.

Values that are not read out, or that only live inside a layer, are carried by the formulas. Where the last of them
becomes an output of the network, its codes are those of the output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.deploy.names import codes_name, sum_name, unbounded_name
from bitwright.deploy.probes.probe import (
    Observed,
    Subject,
    codes_of,
    made_by,
    unwritten_sites,
    with_outputs,
    written_sites,
)
from bitwright.deploy.runtimes.openvino import Layer, OpenVino, counted
from bitwright.errors import GoalError
from bitwright.execute.integer import MOVING_OPS
from bitwright.graph.regions import Region

#: What reads 8-bit integers where it computes in them.
INTEGERS = ("u8", "i8")
#: Layers that multiply or average: those that the plan has in float compute there.
COMPUTING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "Reduce")


#: Ends the names of what stands at a door.
GIVEN = "/given"


def given_name(site: str) -> str:
    """Real values of a site at the door through which what reads it gets them."""
    return f"{site}{GIVEN}"


class OpenVinoProbe:
    """The served file with its codes read out."""

    def __init__(self, subject: Subject) -> None:
        self.state = subject.state
        self.plain = OpenVino(subject.path, subject.threads)
        layers = self.plain.layers()
        for doors, untouched in _doors(subject, _from_subgraphs(subject, layers)):
            proto = onnx.load(str(subject.path))
            made = made_by(proto)
            self.given = [site for site in doors if site not in self.plain.inputs]
            self.read = _leaving(subject, layers, made, set(untouched))
            shapes = _shapes(subject)
            for site in self.given:
                _cut(proto, site, shapes[site])
            self.served = OpenVino(with_outputs(proto, self.read), subject.threads)
            usual, seen = (_signature(subject, found) for found in (layers, self.served.layers()))
            if usual == seen:
                break
        else:
            raise GoalError(
                str(subject.path), f"reading codes out changes layers to {_text(seen - usual)}",
                _text(usual - seen), "the runtime cannot be observed without changing it; report this network",
            )  # fmt: skip
        self.ends = [
            name for name in self.plain.outputs
            if name not in self.read and codes_name(name) in made and name not in unwritten_sites(subject, made)
        ]  # fmt: skip
        self.read = [*self.read, *self.ends]
        self.kernels = counted(layers)
        self.float_kernels, self.unplanned_kernels = _against_plan(subject, layers)

    def observe(self, feeds: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> Observed:
        """One batch."""
        doors = {given_name(site): given[site] for site in self.given}
        served = self.served.run({**feeds, **doors})
        codes = codes_of(served, [site for site in self.read if site not in self.ends])
        ends = {name: self._codes(name, served[name]) for name in self.ends}
        return Observed(outputs=self.plain.run(feeds), codes={**codes, **ends})

    def _codes(self, site: str, real: np.ndarray) -> Tensor:
        """Codes of an output of the network, from its real values."""
        encoding = self.state.encoding(site)
        places = real / float(encoding.scale) + int(encoding.zero_point)
        return torch.from_numpy(np.rint(places).astype(np.uint8))


def _leaving(subject: Subject, layers: Sequence[Layer], made: set[str], untouched: set[str]) -> list[str]:
    """Sites whose codes leave a layer of the file as it is, or enter the network; without those to leave alone."""
    last = {layer.names[-1] for layer in layers if layer.names}
    entering = {v.name or "" for v in subject.state.model.graph.inputs}
    return [
        site for site in written_sites(subject, made)
        if site not in untouched and (site in entering or last & {codes_name(site), unbounded_name(site)})
    ]  # fmt: skip


def _from_subgraphs(subject: Subject, layers: Sequence[Layer]) -> list[str]:
    """Sites that are quantized at the end of a layer that the runtime compiles from many float ops.

    Which ops it takes into such a layer depends on what else reads what the last of them gives.
    """
    ends = {layer.names[-1] for layer in layers if layer.type == "Subgraph" and layer.names}
    given = {r.output.name for r in subject.regions}
    every = dict.fromkeys(v.name or "" for r in subject.regions for v in r.inputs)
    return [site for site in every if site not in given and ends & {codes_name(site), unbounded_name(site)}]


def _doors(subject: Subject, islands: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Where to cut, and what not to read out: first with all cuts, then without those at sums."""
    made = {r.output: r for r in subject.regions}
    entering = {v.name or "" for v in subject.state.model.graph.inputs}
    doors: dict[str, None] = {}
    others: dict[str, None] = {}
    always = dict.fromkeys(islands)

    def visit(value: ir.Value, found: dict[str, None]) -> None:
        region = made.get(value)
        if region is None and value.name not in entering:  # no formula gives what comes from float ops
            always[value.name or ""] = None
        elif region is not None and region.kind in MOVING_OPS:  # what was moved comes from codes further up
            others[value.name or ""] = None
            for source in region.inputs:
                visit(source, found)
        else:
            found[value.name or ""] = None

    for sum_ in subject.arithmetic.sums.values():
        for i, value in enumerate(_operands(sum_.region)):
            if i != sum_.absorbing:
                visit(value, others if sum_.absorbing is None else doors)
    alone = [site for site in others if site not in doors]
    if any(site not in entering for site in doors):
        yield [*doors, *always], [*alone, *(site for site in doors if site in entering)]
    yield list(always), [*alone, *doors]


def _operands(region: Region) -> Iterator[ir.Value]:
    return (v for v in region.op.inputs if v is not None)


def _shapes(subject: Subject) -> dict[str, list[int | str]]:
    """Shape of every activation of the regions; a name for what is open."""
    values = (v for r in subject.regions for v in (*r.inputs, r.output))
    return {
        v.name or "": [d if isinstance(d, int) else str(d) for d in (v.shape or ())] for v in values
    }  # fmt: skip


def _cut(proto: onnx.ModelProto, site: str, shape: Sequence[int | str]) -> None:
    """Let all that reads the codes of a site read those of a new input instead, quantized in the same way."""
    graph, codes = proto.graph, codes_name(site)
    (maker,) = [node for node in graph.node if codes in node.output]
    chain = [maker]
    while chain[0].op_type != "QuantizeLinear":
        (before,) = [node for node in graph.node if chain[0].input[0] in node.output]
        chain.insert(0, before)
    renamed = {name: given_name(name) for node in chain for name in node.output}
    for node in graph.node:
        if node not in chain:
            node.input[:] = [renamed.get(name, name) for name in node.input]
    copies = []
    for node in chain:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = given_name(node.name)
        copy.input[0] = given_name(site) if node is chain[0] else renamed[node.input[0]]
        copy.output[:] = [renamed[name] for name in node.output]
        copies.append(copy)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*copies, *rest])
    graph.input.append(onnx.helper.make_tensor_value_info(given_name(site), onnx.TensorProto.FLOAT, shape))


def _signature(subject: Subject, layers: Sequence[Layer]) -> Counter[tuple[str, str, tuple[str, ...]]]:
    """Kind, precision and nodes of every layer that computes an integer region.

    Of the nodes, those of regions; what the runtime makes of float ops, and of copies, is its own matter.
    """
    sites = [r.output.name or "" for r in subject.regions]
    known = {name for site in sites for name in (sum_name(site), unbounded_name(site), codes_name(site))}
    sums = {sum_name(site) for site in sites}
    return Counter(
        (layer.type, layer.precision, tuple(name for name in layer.names if name in known))
        for layer in layers if any(_is_part(name, sums) for name in layer.names)
    )  # fmt: skip


def _is_part(name: str, sums: set[str]) -> bool:
    """Whether a node is one of `sums`, or what the runtime made of one (`site/sum/WithoutBiases`)."""
    before, mark, _ = name.rpartition("/sum")
    return bool(mark) and sum_name(before) in sums


def _text(found: Counter[tuple[str, str, tuple[str, ...]]]) -> str:
    parts = [f"{kind} {precision} of {', '.join(names)}" for kind, precision, names in found]
    return "; ".join(parts[:3]) + (" ..." if len(parts) > 3 else "") or "nothing"


def _against_plan(subject: Subject, layers: Sequence[Layer]) -> tuple[dict[str, int], dict[str, int]]:
    """Kernels in float that the plan has in integers, by op; kernels in integers that it has in float, by layer."""
    weighty = [r for r in subject.regions if r.kind not in (*MOVING_OPS, "Table", "Add")]
    planned = [sum_name(r.output.name or "") for r in subject.regions if r.kind not in MOVING_OPS]
    integer = {name for layer in layers if layer.precision in INTEGERS for name in layer.names}
    in_float = Counter(r.op.op_type for r in weighty if not _is_in(sum_name(r.output.name or ""), integer))
    computing = [layer for layer in layers if layer.precision in INTEGERS and layer.type in COMPUTING]
    extra = Counter(layer.type for layer in computing if not any(_is_in(p, set(layer.names)) for p in planned))
    return dict(in_float), dict(extra)


def _is_in(name: str, names: set[str]) -> bool:
    """Whether a node, or a part that the runtime made of it (`name/WithoutBiases`), is among names."""
    return name in names or any(n.startswith(f"{name}/") for n in names)
