"""AdaRound of the four largest layers beside AIMET's: seconds at the same iterations and images, and layer errors.

AIMET is no dependency of the project: it runs in an environment of its own, made once by

    python -m venv aimet-env && aimet-env/bin/pip install torch==2.13.0 aimet-onnx==2.42.0

and named by --aimet. Both round the same four weights to 4 bits, all others have 8 (ours 7 without VNNI), on two
threads, one after the other. The error is that of the layer's output in the float network, after its activation and
before, with each one's own grid: `||f(W~ x) - f(W x)||^2 / ||f(W x)||^2`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Record, parser

import bitwright as bw
from bitwright.execute.observe import Watch, observe
from bitwright.execute.program import build
from bitwright.graph.regions import Region, find_regions
from bitwright.pipeline import State
from bitwright.ptq.adaround import AdaRound
from bitwright.verbs.preparing import data_for
from bitwright.verbs.terminal import Terminal

NETWORKS = {
    "resnet20": ("resnet20_cifar10.onnx", "cifar10"),
    "resnet18": ("resnet18_tiny_imagenet.onnx", "tiny-imagenet"),
}
LAYERS = 4
BITS = 4
COLUMNS = ["network", "who", "iterations", "images", "seconds", "ratio", "error", "error before activation"]
#: Runs in the environment of AIMET: a float ONNX file, images, weights to round in; rounded weights and seconds out.
ADAROUND = """
import json
import sys
import time

import aimet_onnx
import numpy as np
import onnx
import torch
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

torch.set_num_threads(2)
source, images, wanted, iterations, bits, target = sys.argv[1:]
x, wanted = np.load(images), json.loads(wanted)
model = onnx.load(source)
fold_all_batch_norms_to_weight(model)
name = model.graph.input[0].name
sim = aimet_onnx.QuantizationSimModel(model, param_type="int8", activation_type="int8",
                                      quant_scheme="min_max", providers=["CPUExecutionProvider"])
nodes = []
for node in sim.connected_graph.ordered_ops:
    for parameter, kind in node.parameters.values():
        if kind == "weight" and any(parameter.name.startswith(w) for w in wanted):
            nodes.append(node.name)
            sim.qc_quantize_op_dict[parameter.name].set_bitwidth(int(bits))
batches = [{name: x[i : i + 32]} for i in range(0, len(x), 32)]
sim.compute_encodings(batches[:4])
start = time.perf_counter()
aimet_onnx.apply_adaround(sim, batches, int(iterations), nodes_to_include=nodes)
seconds = time.perf_counter() - start
found = {i.name: onnx.numpy_helper.to_array(i) for i in sim.model.model.graph.initializer}
for name in [name for name in found if any(name.startswith(w) for w in wanted)]:
    # What the model holds is rounded softly; its quantizer rounds it to the grid.
    encodings = sim.qc_quantize_op_dict[name].get_encodings() if name in sim.qc_quantize_op_dict else None
    if encodings:
        shape = (-1,) + (1,) * (found[name].ndim - 1)
        step, low, high = (
            np.array([getattr(e, k) for e in encodings]).reshape(shape) for k in ("delta", "min", "max")
        )
        codes = np.clip(np.round(found[name] / step), np.round(low / step), np.round(high / step))
        found[name] = (codes * step).astype(np.float32)
np.savez(target, seconds=seconds, count=len(nodes), **found)
"""


def main() -> None:
    """Both, on each network."""
    made = parser(__doc__ or "")
    made.add_argument(
        "--aimet", type=Path, required=True, help="python of the environment in which AIMET is installed"
    )
    made.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    made.add_argument("--iterations", type=int, default=2000)
    made.add_argument("--images", type=int, default=512)
    made.add_argument("--loss", nargs="+", default=["output", "cheapest"])
    flags = made.parse_args()
    torch.set_num_threads(2)
    record = Record(flags.output)
    for name in flags.network:
        if record.known(network=name, iterations=flags.iterations, images=flags.images):
            continue
        file, folder = NETWORKS[name]
        model, data = flags.shared / "data/models" / file, flags.shared / "data" / folder / "calib"
        state = bw.quantize(str(model), str(data), recipe="int8", limit=flags.images).state
        largest = sorted((r for r in find_regions(state.model) if r.weight is not None), key=_size)[-LAYERS:]
        widths = [f"{r.weight.name}:W={BITS}" for r in largest if r.weight is not None]
        state = bw.quantize(str(model), str(data), recipe="int8", limit=flags.images, set=widths).state
        batches = data_for(state.model, str(data), Terminal(), limit=flags.images)
        images = np.concatenate([batch.inputs[state.model.graph.inputs[0].name or ""] for batch in batches])
        theirs, seconds = _aimet(flags, model, images, largest)
        rows = [{"who": "aimet", "seconds": seconds, **_errors(state, largest, theirs, batches)}]
        for loss in flags.loss:
            step = AdaRound(
                iterations=flags.iterations, images=flags.images, loss=loss, only=tuple(r.name for r in largest)
            )
            start = time.perf_counter()
            rounded = step(state, batches)
            took = time.perf_counter() - start
            ours = {}
            for region in largest:
                assert region.weight is not None
                encoding = rounded.encodings[region.weight.name or ""]
                assert encoding.codes is not None
                ours[region.name] = encoding.dequantize(encoding.codes)
            rows.append({"who": f"ours, {loss}", "seconds": took, **_errors(state, largest, ours, batches)})
        for row in rows:
            key = {"network": name, "iterations": flags.iterations, "images": flags.images}
            record.add({**key, **row, "ratio": seconds / row["seconds"], "layers": [r.name for r in largest]})
            print(record.rows[-1], flush=True)
    record.show(COLUMNS)


def _size(region: Region) -> int:
    assert region.weight is not None and region.weight.const_value is not None
    return region.weight.const_value.size


def _aimet(flags: Any, model: Path, images: np.ndarray, layers: list[Region]) -> tuple[dict[str, torch.Tensor], float]:
    """Weights as AIMET rounds them, by region, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.save(place / "images.npy", images)
        (place / "adaround.py").write_text(ADAROUND)
        names = [r.weight.name or "" for r in layers if r.weight is not None]
        command = [flags.aimet, place / "adaround.py", model, place / "images.npy", json.dumps(names),
                   flags.iterations, BITS, place / "found.npz"]  # fmt: skip
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            raise SystemExit(f"AIMET failed in {flags.aimet}:\n{done.stderr[-3000:]}")
        found = np.load(place / "found.npz")
        if int(found["count"]) != len(names):
            raise SystemExit(f"AIMET rounded {found['count']} layers, not {len(names)}")
        weights = {}
        for region, name in zip(layers, names, strict=True):
            (key,) = [k for k in found.files if k.startswith(name)]
            weights[region.name] = torch.from_numpy(found[key])
        return weights, float(found["seconds"])


@torch.no_grad()
def _errors(state: State, layers: list[Region], weights: dict[str, torch.Tensor], batches: Any) -> dict[str, float]:
    """Relative error of the layers' outputs on float inputs, mean over the layers."""
    sums: dict[tuple[str, str], float] = {}
    for region in layers:
        assert region.weight is not None
        x, output = region.inputs[0].name or "", region.output.name or ""
        before = region.op.outputs[0].name or ""
        plain = build(state.model, state.overlay, inputs=[x], outputs=[output, before])
        overlay = {**state.overlay, region.weight.name or "": weights[region.name]}
        rounded = build(state.model, overlay, inputs=[x], outputs=[output, before])

        def add(site: str, values: torch.Tensor, name: str = region.name, plain: Any = plain,
                rounded: Any = rounded) -> None:  # fmt: skip
            for key, y, z in zip(("after", "before"), plain.module(values), rounded.module(values), strict=True):
                for kind, part in (("error", y - z), ("power", y)):
                    at = (f"{name} {key}", kind)
                    sums[at] = sums.get(at, 0.0) + float(part.double().square().sum())

        observe(state.model, state.overlay, [Watch(site=x, extremes=False)], batches, add)
    ratios = {name: sums[name, "error"] / sums[name, "power"] for name, kind in sums if kind == "error"}
    return {
        "error": float(np.mean([v for k, v in ratios.items() if k.endswith("after")])),
        "error before activation": float(np.mean([v for k, v in ratios.items() if k.endswith("before")])),
    }


if __name__ == "__main__":
    main()
