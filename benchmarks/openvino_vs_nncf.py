"""Our int8 file in OpenVINO beside NNCF's own int8 of the same network and images, in interleaved rounds of one run.

NNCF is no dependency of the project: it quantizes in an environment of its own, made once by

    python -m venv nncf-env && nncf-env/bin/pip install nncf==3.4.0 openvino==2026.4.1 onnx

and named by --nncf. Both files are timed by this script's own OpenVINO, at the same threads and batch, in float32
where they are not integers; the time of a run is that of the request, without the copies of what it gives.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from peer import export, random_images
from record import Record, parser

import bitwright as bw
from bitwright.deploy.runtimes.openvino import OpenVino, counted, products_saturate
from bitwright.verbs.preparing import data_for, float_network
from bitwright.verbs.terminal import Terminal

COLUMNS = [
    "network", "batch", "threads", "ours ms", "nncf ms", "float ms", "ours / nncf", "ours / float", "same top-1 ours",
    "same top-1 nncf",
]  # fmt: skip
#: A sample runs at least this long.
SAMPLE_SECONDS = 0.2
IMAGES = 32
#: Runs in the environment of NNCF: a float ONNX file and images in, OpenVINO IR out.
QUANTIZE = """
import sys
import numpy as np
import nncf
import openvino as ov

source, images, target = sys.argv[1:]
x = np.load(images)
model = ov.Core().read_model(source)
name = model.inputs[0].get_any_name()
data = nncf.Dataset([x[i : i + 1] for i in range(len(x))], lambda image: {name: image})
ov.save_model(nncf.quantize(model, data, subset_size=len(x)), target, compress_to_fp16=False)
"""


def main() -> None:
    """Time the three files of each network."""
    made = parser(__doc__ or "")
    made.add_argument("--nncf", type=Path, required=True, help="python of the environment in which NNCF is installed")
    made.add_argument("--network", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2", "resnet20"])
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    made.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    made.add_argument("--rounds", type=int, default=10)
    flags = made.parse_args()
    record = Record(flags.output)
    for name in flags.network:
        keys = [{"network": name, "batch": b, "threads": t} for b in flags.batch for t in flags.threads]
        missing = [key for key in keys if not record.known(**key)]
        if not missing:
            continue
        if name == "resnet20" and not flags.shared.exists():
            print(f"resnet20 left out: {flags.shared} does not exist", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            paths, images = write_files(name, Path(folder), flags.nncf, flags.shared)
            for key in missing:
                record.add(key | compare(paths, images, key["batch"], key["threads"], flags.rounds))
                print(record.rows[-1], flush=True)
    record.show(COLUMNS)


def write_files(name: str, folder: Path, nncf: Path, shared: Path) -> tuple[dict[str, Path], np.ndarray]:
    """The float file, ours and NNCF's, from the same images; and the images."""
    paths = {"ours": folder / "ours.onnx", "nncf": folder / "nncf.xml", "float": folder / "float.onnx"}
    if name == "resnet20":
        paths["float"] = shared / "data" / "models" / "resnet20_cifar10.onnx"
        images = first_images(paths["float"], shared / "data" / "cifar10" / "calib")
    else:
        images = random_images(IMAGES)
        export(name, paths["float"])
    target = "openvino-cpu-avx2" if products_saturate() else "openvino-cpu"
    network = float_network(paths["float"])
    bw.quantize(network, {network.graph.inputs[0].name: images}, target=target, batch=8).save(paths["ours"])
    np.save(folder / "images.npy", images)
    script = folder / "quantize.py"
    script.write_text(QUANTIZE)
    command = [nncf, script, paths["float"], folder / "images.npy", paths["nncf"]]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise SystemExit(f"NNCF failed in {nncf}:\n{done.stderr[-2000:]}")
    return paths, images


def first_images(model: Path, data: Path) -> np.ndarray:
    """The first calibration images of a folder, as the network takes them."""
    network = float_network(model)
    batches = data_for(network, data, Terminal(), batch=IMAGES, limit=IMAGES)
    found = next(iter(batches)).inputs
    return next(iter(found.values()))


def compare(paths: dict[str, Path], images: np.ndarray, batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """One row: milliseconds, medians of the ratios within each round, and how often the top-1 is that of the float."""
    runtimes = {kind: OpenVino(path, threads) for kind, path in paths.items()}
    x = np.concatenate([images] * -(-batch // len(images)))[:batch]
    samples = np.array([_round(runtimes, x, i) for i in range(rounds)])
    times = dict(zip(runtimes, np.median(samples, axis=0), strict=True))
    ratios = {kind: np.median(samples[:, 0] / samples[:, i]) for i, kind in enumerate(runtimes)}
    classes = {kind: _classes(runtime, images) for kind, runtime in runtimes.items()}
    same = {kind: float((classes[kind] == classes["float"]).mean()) for kind in ("ours", "nncf")}
    return {
        **{f"{kind} ms": float(t) for kind, t in times.items()},
        **{f"ours / {kind}": float(ratios[kind]) for kind in ("nncf", "float")},
        **{f"same top-1 {kind}": value for kind, value in same.items()},
        **{f"layers {kind}": counted(runtimes[kind].layers()) for kind in ("ours", "nncf")},
    }


def _round(runtimes: dict[str, OpenVino], x: np.ndarray, i: int) -> list[float]:
    """Milliseconds of one run in each; the order turns round from one round to the next."""
    order = list(runtimes)[:: 1 if i % 2 == 0 else -1]
    found = {kind: _sample(runtimes[kind], x) for kind in order}
    return [found[kind] for kind in runtimes]


def _sample(runtime: OpenVino, x: np.ndarray) -> float:
    feeds = {runtime.inputs[0]: x}
    runtime.request.infer(feeds, share_inputs=True, share_outputs=True)
    runs, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SAMPLE_SECONDS or runs < 2:
        runtime.request.infer(feeds, share_inputs=True, share_outputs=True)
        runs += 1
    return spent / runs * 1e3


def _classes(runtime: OpenVino, images: np.ndarray) -> np.ndarray:
    runs = (runtime.run({runtime.inputs[0]: image[None]}) for image in images)
    return np.concatenate([found[runtime.outputs[0]].argmax(1) for found in runs])


if __name__ == "__main__":
    main()
