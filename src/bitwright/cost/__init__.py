"""What a network costs under a plan: bytes, operations, energy, memory, and the latency that is measured."""

from __future__ import annotations

from bitwright.lookup import Row

COSTS: dict[str, Row] = {
    "size": Row("bitwright.cost.size:Size", "bytes of the file as it is written, all that is in it"),
    "weights": Row("bitwright.cost.weights:Weights", "bytes of the weights alone, as papers count model size"),
    "macs": Row("bitwright.cost.macs:Macs", "multiply-accumulates of one image, whatever their widths"),
    "bops": Row("bitwright.cost.bops:Bops", "bit operations: MACs times bits of weight times bits of activation"),
    "linear": Row("bitwright.cost.linear:Linear", "MACs times the wider of the two widths, rounded up to 4, 8, 16"),
    "energy": Row("bitwright.cost.energy:Energy", "picojoules of one image by a table of a 45 nm process: a model"),
    "memory": Row("bitwright.cost.memory:Memory", "bytes of activations alive at once, at their peak"),
    "latency": Row("bitwright.cost.latency:Latency", "milliseconds of one run in the installed runtime, measured"),
}
