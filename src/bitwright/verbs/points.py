"""Points of a search: each a plan that is quantized by a recipe, written, measured, verified, in its own folder.

A point is done when its `evaluation.json` is there, which is written last and says what it was made from; the same
point is not made again, another one is made anew. Points depend on nothing but their job, so that they can be made by
other processes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitwright import __version__
from bitwright.cost import COSTS
from bitwright.data.batches import Batches
from bitwright.deploy.evaluate import evaluate
from bitwright.deploy.simulate import is_served, runtime_of, subject
from bitwright.deploy.verify import verify
from bitwright.deploy.writer import write_bytes
from bitwright.mixed.jobs.task import threads
from bitwright.plan.plan import plan_from_json
from bitwright.recipes.recipe import load_recipe
from bitwright.targets import TARGETS
from bitwright.verbs.preparing import data_for, float_network
from bitwright.verbs.quantized import Quantized, are_classes, model_bytes, run_recipe
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import finite

MODEL, PLAN, EVALUATION = "model.onnx", "plan.json", "evaluation.json"
#: Raised where `evaluation.json` gets other keys: what was written before is made anew.
FORM = "2"


@dataclass(frozen=True, kw_only=True)
class PointJob:
    """All that a point depends on.

    Attributes:
        folder: of this point.
        network: path of the float network.
        data, eval_data: images to calibrate with, and labelled ones to measure on; paths, or what `quantize` takes.
        images: what identifies them.
        batch, limit, skip_bad, preprocess: as `quantize` has them; the limit is of `data`.
        eval_limit: the same of `eval_data`.
        plan: as JSON.
        recipe: name or path.
        settings: `{step: {setting: value}}`.
        costs: `{name: settings}` of costs to tell, latency not among them.
        verified: images to verify on; 0 for none.
        seed: of everything random.
    """

    folder: str
    network: str
    data: Any
    eval_data: Any
    images: str
    batch: int
    limit: int
    eval_limit: int
    skip_bad: bool
    preprocess: Mapping[str, Any]
    plan: str
    recipe: str
    settings: Mapping[str, Mapping[str, Any]]
    costs: Mapping[str, Mapping[str, Any]]
    verified: int
    seed: int

    @property
    def key(self) -> str:
        """What it is made from, as one number in text."""
        steps = repr(
            (
                load_recipe(self.recipe),
                self.settings,
                self.batch,
                self.limit,
                self.eval_limit,
                self.preprocess,
                self.seed,
            )
        )
        measured = repr((self.costs, self.verified))
        network = Path(self.network).read_bytes()
        texts = (__version__, FORM, steps, measured, self.images, self.plan, hashlib.sha256(network).hexdigest())
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def kept_point(job: PointJob) -> dict[str, Any] | None:
    """The point of a run before; None where it is not there, or was made from something else."""
    path = Path(job.folder) / EVALUATION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_same = isinstance(found, dict) and found.get("key") == job.key and (path.parent / MODEL).exists()
    return found if is_same else None


def make_point(job: PointJob) -> dict[str, Any]:
    """Quantize, write, measure and verify a point; what its `evaluation.json` holds.

    Raises:
        InputError: as `quantize`.
    """
    start = time.perf_counter()
    folder, terminal = Path(job.folder), Terminal(seed=job.seed)
    network = float_network(job.network)
    reference = model_bytes(network)
    batches = _data(job, network, job.data, job.limit)
    measured = _data(job, network, job.eval_data, job.eval_limit)
    quantized = run_recipe(
        network, batches, load_recipe(job.recipe), job.settings, terminal, target=_target(job), set=(), ends=None,
        plan=plan_from_json(json.loads(job.plan)),
    )  # fmt: skip
    served = model_bytes(quantized.model())
    found = evaluate(
        subject(quantized.state, served), measured, against=reference, runtime=runtime_of(quantized.state),
        labelled=are_classes(measured.labels, network), threads=threads(),
    )  # fmt: skip
    # What points are chosen by: neither labels nor other images that they are measured on have a part in it.
    judged = found
    if job.eval_data is not job.data or job.eval_limit != job.limit:
        judged = evaluate(
            subject(quantized.state, served), batches, against=reference, runtime=runtime_of(quantized.state),
            labelled=False, threads=threads(),
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / MODEL, served)
    write_bytes(folder / PLAN, quantized.plan.dumps().encode())
    row = {
        "key": job.key,
        "costs": {name: COSTS[name].load()(**given).of(quantized.state) for name, given in job.costs.items()},
        "drop": None if found.drop is None else asdict(found.drop),
        "agreement": found.agreement,
        "sqnr_db": finite(found.sqnr_db),
        "calibration_sqnr_db": finite(judged.sqnr_db),
        "simulated": found.simulated,
        "diverged": quantized.diverged,
        "seconds": time.perf_counter() - start,
        **_proof(job, quantized, folder / MODEL, measured),
    }
    write_bytes(folder / EVALUATION, json.dumps(row, indent=1).encode())
    return row


def _proof(job: PointJob, quantized: Quantized, path: Path, measured: Batches) -> dict[str, Any]:
    """Codes compared, of images of the measured ones; none where no runtime here executes the file."""
    if not job.verified or not is_served(TARGETS[quantized.plan.target].load()):
        return {"codes": 0, "mismatches": 0, "proven": None}
    proof = verify(path, measured.limited(min(job.verified, len(measured)), job.seed), threads=threads())
    return {"codes": proof.codes, "mismatches": proof.mismatches, "proven": proof.proven}


def _data(job: PointJob, network: Any, source: Any, limit: int) -> Batches:
    return data_for(
        network, source, Terminal(seed=job.seed), batch=job.batch, limit=limit, skip_bad=job.skip_bad,
        preprocess=dict(job.preprocess),
    )  # fmt: skip


def _target(job: PointJob) -> str:
    return str(json.loads(job.plan)["target"])
