"""ONNX Runtime, watched: every tensor of codes is an output; the runtime uses the same kernels all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx

from bitwright.deploy.probes.probe import Observed, Subject, codes_of, made_by, with_outputs, written_sites
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime, computing_kernels, kernels
from bitwright.errors import GoalError
from bitwright.graph.regions import Region

#: The runtime's integer kernel for each op that the writer puts between DequantizeLinear and QuantizeLinear.
INTEGER_KERNELS = {
    "Conv": "QLinearConv",
    "Gemm": "QGemm",
    "Add": "QLinearAdd",
    "Mul": "QLinearMul",
    "MatMul": "QLinearMatMul",
    "Softmax": "QLinearSoftmax",
    "AveragePool": "QLinearAveragePool",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
}
#: Integer kernels whose names do not begin with QLinear.
OTHER_INTEGER_KERNELS = ("QGemm", "QAttention", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger")
#: A table of one such op becomes an integer kernel too, a look-up of its own that gives the same codes.
TABLE_KERNELS = {
    "Sigmoid": "QLinearSigmoid",
    "LeakyRelu": "QLinearLeakyRelu",
    "Add": "QLinearAdd",
    "Mul": "QLinearMul",
}


def integer_kernel(region: Region) -> str | None:
    """The runtime's integer kernel for a region; None where it has none of its own."""
    if not region.is_table:
        return INTEGER_KERNELS.get(region.op.op_type)
    alone = len(region.nodes) == 1 and set(region.op.inputs) == set(region.inputs)  # x + x and x x: no constant
    return TABLE_KERNELS.get(region.op.op_type) if alone else None


class OnnxRuntimeProbe:
    """The served file with its codes read out."""

    given: tuple[str, ...] = ()

    def __init__(self, subject: Subject) -> None:
        self.path, self.regions = subject.path, subject.regions
        path, precise = subject.path, subject.precise
        proto = onnx.load(str(path))
        self.read = written_sites(subject, made_by(proto))
        probed = with_outputs(proto, self.read)
        self.kernels = kernels(path, precise=precise)
        usual, seen = (computing_kernels(m, precise=precise) for m in (path, probed))
        if seen != usual:
            raise GoalError(
                str(path), f"reading codes out changes the kernels to {seen}", f"{usual}",
                "the runtime cannot be observed without changing it; report this network",
            )  # fmt: skip
        planned = Counter(kernel for r in subject.regions if (kernel := integer_kernel(r)) is not None)
        self.float_kernels = self._float_kernels(planned, usual)
        self.unplanned_kernels = self._unplanned_kernels(planned)
        self.plain = OnnxRuntime(path, subject.threads, precise=precise)
        self.served = OnnxRuntime(probed, subject.threads, precise=precise)

    def _float_kernels(self, planned: Mapping[str, int], computing: Mapping[str, int]) -> dict[str, int]:
        """Ops for which fewer integer kernels are made than the plan asks for.

        What is compared is integer kernels: of float ops the runtime makes others as it likes (HardSwish becomes
        HardSigmoid and Mul, five ops of a Gelu one), and equal ones are counted apart, although it merges them.
        """
        made = {integer_kernel(r): r.op.op_type for r in self.regions}
        missing = {made[kernel]: n - computing.get(kernel, 0) for kernel, n in planned.items()}
        return {op: n for op, n in missing.items() if n > 0}

    def _unplanned_kernels(self, planned: Mapping[str, int]) -> dict[str, int]:
        """Integer kernels beyond those that the plan asks for."""
        made = {op: n for op, n in self.kernels.items() if op.startswith("QLinear") or op in OTHER_INTEGER_KERNELS}
        extra = {op: n - planned.get(op, 0) for op, n in made.items()}
        return {op: n for op, n in extra.items() if n > 0}

    def observe(self, feeds: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> Observed:
        """One batch.

        Raises:
            GoalError: reading codes out changes an output.
        """
        plain, served = self.plain.run(feeds), self.served.run(feeds)
        for name, expected in plain.items():
            if not np.array_equal(expected, served[name], equal_nan=True):
                raise GoalError(str(self.path), f"reading codes out changes output {name!r}", "the same output")
        return Observed(outputs=plain, codes=codes_of(served, self.read))
