"""`bitwright auto`: climb from cheap recipes to dear ones until the accuracy goal holds, and say what it took.

The drop of an attempt is that of its written file in its runtime, beside the float network on the same images; the
goal holds when the upper end of the drop's interval is within it. Every attempt is measured on the same images, and
the first that holds is taken: what is claimed of it in public should be measured once more, on others.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitwright import __version__
from bitwright.data.batches import Batches
from bitwright.deploy.evaluate import paired_drop
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError
from bitwright.ptq.diagnosis.scan import scan
from bitwright.ptq.reconstruct.method import bytes_of
from bitwright.recipes.ladder import LADDER, Rung
from bitwright.recipes.recipe import Recipe, load_recipe, parse_settings, steps_having
from bitwright.verbs.attempts import Attempt, Folder, run_of
from bitwright.verbs.auto_text import told
from bitwright.verbs.pace import Pace, bench_steps, check_minutes
from bitwright.verbs.preparing import check_output, data_for, float_network, model_files
from bitwright.verbs.quantize import DataFlags, ShapeFlag, peak_memory_mb, preprocess_flags
from bitwright.verbs.quantized import model_bytes, placing_of
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.trial import Bench, Trial, check_labels, check_settings, eight_bits, raisable, run_trial
from bitwright.verbs.verb import Outcome, argument, finite, option

#: Images that the scan before raising bits sees.
SCANNED = 256
NEXT = (
    "no rung of the ladder is within the goal: the next step is quantization-aware training, which trains the network "
    "with its quantizers in place; or allow more bits with --set, or a larger --max-drop"
)
MORE_TIME = "no attempt that fitted into --minutes is within the goal; give more, with --resume so that these are kept"
#: Passes of the float network that take as long as the scan of one node's sites, for one image.
SCAN_PASSES = 4


@dataclass(frozen=True, kw_only=True)
class Auto(ShapeFlag, DataFlags):
    """Quantize by dearer and dearer recipes until the accuracy drop of the written file is within the goal.

    Ranges first, then equalization, corrected biases, rounding in closed form, learned rounding, and at last 8 bits
    for the sites that hurt. The best file is written even where the goal is missed (exit code 1).
    """

    model: str = argument("an ONNX file, a .pt2 file, or module:callable returning an nn.Module")
    data_path: str = option("", "images that set ranges: a folder, .npz, .zip or module:callable", "--data", "-d")
    eval_data: str = option("", "labelled images to measure the drop on; --data if not given, which is worse")
    max_drop: float = option(0.5, "the goal: how many percentage points of accuracy may be lost")
    confidence: float = option(0.95, "of the interval whose upper end must be within the goal; 0 for the drop itself")
    minutes: float = option(0.0, "time that all attempts may take; one that does not fit is not begun; 0 for any")
    memory: str = option("", "memory that steps with a setting for it may take: 4GiB, 500MB; any if not given")
    resume: str = option("", "a folder that keeps each attempt; the same command goes on where it was stopped")
    output: str = option("", "the file to write; MODEL's name with .auto.onnx if not given", "--output", "-o")
    target: str = option("auto", "what the file is for; auto: this machine")
    set: tuple[str, ...] = option((), "widths to start from: 'W=4,A=8', 'layer4.*:W=8', 'head.*:float'")
    ends: int | None = option(None, "bits of input, first and last layer, logits; 8 if not given, 0: as elsewhere")
    plan: str = option("", "a plan's JSON file to start from instead of placing; --set changes its widths")
    step: tuple[str, ...] = option((), "a setting of a step, in all recipes that have it: gptq.damping=0.02")

    def run(self, terminal: Terminal) -> Outcome:
        """Climb, keep what was tried, write the best file."""
        start = time.perf_counter()
        output = Path(self.output or f"{Path(self.model.replace(':', '.')).stem}.auto.onnx")
        self._check_numbers()
        bench = self._bench(output, terminal)
        with self._folder(bench, terminal) as folder:
            climb = _Climb(
                bench=bench, folder=folder, goal=self.max_drop / 100, confidence=self.confidence,
                pace=Pace(bench, self.minutes),
            )  # fmt: skip
            climb.check_budget(self.minutes)
            for rung in LADDER:
                if climb.attempt(rung):
                    break
            best = climb.best()
            assert best is not None
            write_bytes(output, folder.file(best.name).read_bytes())
        json = {
            "met": climb.met(best),
            "best": best.name,
            "output": str(output),
            "max_drop": self.max_drop / 100,
            "confidence": self.confidence,
            "attempts": [attempt_json(a, self.confidence) for a in climb.attempts],
            "skipped": [{"name": name, "reason": reason} for name, reason in climb.skipped.items()],
            "images": len(bench.measured),
            "calibration_images": len(bench.calibration),
            "same_images": not self.eval_data,
            "target": bench.target,
            "minutes": self.minutes or None,
            "memory": self.memory or None,
            "seconds": time.perf_counter() - start,
            "attempted_seconds": climb.pace.spent,
            "peak_memory_mb": peak_memory_mb(),
            "next": None if climb.met(best) else MORE_TIME if climb.out_of_time else NEXT,
        }
        return Outcome(json=json, text=told(json), exit_code=0 if json["met"] else 1)

    def _check_numbers(self) -> None:
        if not self.data_path:
            raise InputError("--data", "is missing", "images to set the ranges from: a folder, .npz, .zip")
        if not 0 < self.max_drop <= 100:
            raise InputError("--max-drop", f"is {self.max_drop:g}", "percentage points, above 0 and up to 100")
        if not 0 <= self.confidence < 1:
            raise InputError("--confidence", f"is {self.confidence:g}", "a fraction from 0 to below 1, as 0.95")
        check_minutes(self.minutes)

    def _bench(self, output: Path, terminal: Terminal) -> Bench:
        """Everything that the user gave, checked before anything runs."""
        bytes_of(self.memory, "--memory")
        recipes = [load_recipe(rung.recipe) for rung in LADDER if rung.recipe]
        settings = parse_settings(self.step)
        check_settings(settings, recipes)
        if self.memory:
            for step in steps_having(recipes, "memory"):
                settings[step] = {"memory": self.memory, **settings.get(step, {})}
        self._check_paths(output)
        placing = placing_of(self.target, self.set, self.ends, self.plan or None, terminal)
        network = float_network(self.model, shapes=self.shape)
        calibration = self._images(network, self.data_path, terminal)
        measured = self._images(network, self.eval_data, terminal) if self.eval_data else calibration
        check_labels(measured, network, self.eval_data or self.data_path)
        if not self.eval_data:
            terminal.note(
                "note: the drop is measured on the calibration images, which flatters it; give --eval-data for others"
            )
        check_enough(len(measured), self.max_drop / 100, self.confidence, self.eval_data or self.data_path)
        return Bench(
            network=network, reference=model_bytes(network), calibration=calibration, measured=measured,
            labelled=True, target=placing["target"], set=self.set, ends=self.ends, plan=self.plan,
            settings=settings, terminal=terminal,
        )  # fmt: skip

    def _images(self, network: Any, source: str, terminal: Terminal) -> Batches:
        return data_for(
            network, source, terminal, batch=self.batch, limit=self.limit, skip_bad=self.skip_bad,
            preprocess=preprocess_flags(self),
        )  # fmt: skip

    def _check_paths(self, output: Path) -> None:
        inputs = {
            self.model: "the float network itself", self.data_path: "what --data names",
            self.eval_data: "what --eval-data names", self.plan: "the plan",
        }  # fmt: skip
        if self.model.endswith(".onnx") and Path(self.model).is_file():
            inputs = dict.fromkeys(map(str, model_files(self.model)), "a part of the float network") | inputs
        check_output(output, inputs)
        if self.eval_data and os.path.exists(self.data_path) and os.path.exists(self.eval_data):
            data, other = (os.path.realpath(path) for path in (self.data_path, self.eval_data))
            if data == other or data.startswith(other + os.sep) or other.startswith(data + os.sep):
                raise InputError(
                    "--eval-data", f"{self.eval_data!r} holds the images of --data, or is among them", "other images",
                    "keep images apart, or leave --eval-data out to measure on the calibration images",
                )  # fmt: skip

    @contextmanager
    def _folder(self, bench: Bench, terminal: Terminal) -> Iterator[Folder]:
        run = run_of(bench, terminal.seed, __version__)
        if self.resume:
            yield Folder(Path(self.resume), run)
            return
        with tempfile.TemporaryDirectory() as path:
            yield Folder(Path(path) / "attempts", run)


def check_enough(images: int, goal: float, confidence: float, where: str) -> None:
    """Whether so many images can show a drop within the goal, if no answer at all changed.

    Raises:
        InputError: they cannot.

    Example:
        >>> check_enough(390, 0.005, 0.95, "d")
        >>> check_enough(300, 0.005, 0.95, "d")
        Traceback (most recent call last):
        bitwright.errors.InputError: d: 300 images cannot show ... expected at least 390 images; ...
    """

    def shows(n: int) -> bool:
        same = np.ones(n, dtype=bool)
        return paired_drop(same, same).upper(confidence) <= goal

    if shows(images):
        return
    low, high = images, 2 * images
    while not shows(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    raise InputError(
        where, f"{images} images cannot show a drop within {100 * goal:g} points at a confidence of {confidence:g}",
        f"at least {high} images", "or a larger --max-drop, or a lower --confidence (0 takes the drop as it is)",
    )  # fmt: skip


@dataclass(kw_only=True, eq=False)
class _Climb:
    """The attempts of one run, and what they may still cost."""

    bench: Bench
    folder: Folder
    goal: float
    confidence: float
    pace: Pace

    def __post_init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.skipped: dict[str, str] = {}
        self.recipes: dict[str, Recipe] = {}
        self.out_of_time = False
        self.last: tuple[str, Trial] | None = None

    def check_budget(self, minutes: float) -> None:
        """Refuse a time into which not even the first attempt fits.

        Raises:
            InputError: with the least that works.
        """
        least = self.pace.expected(bench_steps(self.bench, load_recipe(LADDER[0].recipe)))
        if least > self.pace.limit:
            raise InputError(
                "--minutes", f"is {minutes:g}", f"at least {np.ceil(10 * least / 60) / 10:g}, for the first attempt",
                "or fewer images, with --limit",
            )  # fmt: skip

    def attempt(self, rung: Rung) -> bool:
        """Climb one rung; whether the goal holds now."""
        base = self.best(raised=False)
        more: tuple[str, ...] = ()
        recipe = load_recipe(rung.recipe) if rung.recipe else None
        if recipe is None:
            assert base is not None
            scanning = self.pace.image * SCAN_PASSES * SCANNED * len(self.bench.network.graph)
            too_long = self.pace.refusal(scanning)
            if self.folder.kept_order(base.name) is None and too_long is not None:
                return self._out_of_time(rung, too_long)
            recipe, sites = self.recipes[base.name], self._sites(base)
            if not sites:
                return self._skip(rung, "no site has fewer than 8 bits")
            chosen = dict(sites[: max(1, round(rung.raises * len(sites)))])
            more = eight_bits(chosen, self.bench.target)
        steps = bench_steps(self.bench, recipe, more)
        texts = tuple(map(repr, steps))
        same = next((a for a in self.attempts if a.steps == texts), None)
        if same is not None:
            return self._skip(rung, f"has the same steps as {same.name}")
        found = self.folder.kept(rung.name, texts, (*self.bench.set, *more))
        if found is None:
            too_long = self.pace.refusal(self.pace.expected(steps))
            if too_long is not None:
                return self._out_of_time(rung, too_long)
            found = self._run(rung, recipe, texts, more)
        self.recipes[rung.name] = recipe
        self.attempts.append(found)
        self.pace.add(steps, found.seconds)
        self.bench.terminal.note(_line(found, self.confidence))
        return self.met(found)

    def best(self, raised: bool = True) -> Attempt | None:
        """The attempt with the least drop; without those whose sites were raised, if so asked."""
        own = {rung.name for rung in LADDER if rung.recipe or raised}
        done = [a for a in self.attempts if a.drop is not None and a.name in own]
        return min(done, key=lambda a: a.drop.drop if a.drop is not None else 1.0, default=None)

    def met(self, attempt: Attempt | None) -> bool:
        """Whether an attempt is within the goal."""
        return attempt is not None and attempt.drop is not None and attempt.drop.upper(self.confidence) <= self.goal

    def _out_of_time(self, rung: Rung, reason: str) -> bool:
        self.out_of_time = True
        return self._skip(rung, reason)

    def _skip(self, rung: Rung, reason: str) -> bool:
        self.skipped[rung.name] = reason
        return False

    def _run(self, rung: Rung, recipe: Recipe, steps: tuple[str, ...], more: tuple[str, ...]) -> Attempt:
        start = time.perf_counter()
        base: dict[str, Any] = {
            "name": rung.name, "help": rung.help, "recipe": recipe.name, "steps": steps,
            "set": (*self.bench.set, *more),
        }  # fmt: skip
        try:
            trial = run_trial(self.bench, recipe, more)
        except InputError as error:
            if not self.attempts:
                raise
            seconds = time.perf_counter() - start
            failed = Attempt(**base, drop=None, sqnr_db=None, bytes=0, seconds=seconds, failed=str(error))
            self.folder.keep(failed, b"")
            return failed
        found = Attempt(
            **base, drop=trial.found.drop, sqnr_db=finite(trial.found.sqnr_db),
            bytes=len(trial.served), seconds=trial.seconds,
        )  # fmt: skip
        self.folder.keep(found, trial.served)
        so_far = self.best(raised=False)
        if so_far is None or (rung.recipe and found.drop and so_far.drop and found.drop.drop < so_far.drop.drop):
            self.last = rung.name, trial
        return found

    def _sites(self, base: Attempt) -> list[tuple[str, str]]:
        """`(site, kind)` of less than 8 bits, those first whose repair pays off most on the calibration images."""
        kept = self.folder.kept_order(base.name)
        if kept is not None:
            return [(site, kind) for site, kind in kept]
        start = time.perf_counter()
        if self.last is None or self.last[0] != base.name:  # an attempt of a run before, of which the file is kept
            self.last = base.name, run_trial(self.bench, self.recipes[base.name])
        state = self.last[1].quantized.state
        images = self.bench.calibration.limited(SCANNED, self.bench.terminal.seed)
        with self.bench.terminal.progress("scan", len(images)) as advance:
            rows = scan(state, images, labelled=False, images_done=advance).sites
        found = list(raisable(sorted(rows, key=lambda row: -row.repaired), self.bench.target).items())
        self.folder.keep_order(base.name, found)
        self.pace.spend(time.perf_counter() - start)
        return found


def attempt_json(attempt: Attempt, confidence: float) -> dict[str, Any]:
    """As JSON, with the upper end that the goal is held against."""
    upper = None if attempt.drop is None else attempt.drop.upper(confidence)
    return {**asdict(attempt), "steps": list(attempt.steps), "set": list(attempt.set), "upper": upper}


def _line(attempt: Attempt, confidence: float) -> str:
    if attempt.drop is None:
        return f"{attempt.name}: failed, {attempt.failed}"
    upper = 100 * attempt.drop.upper(confidence)
    return f"{attempt.name}: drop {100 * attempt.drop.drop:+.2f} points, at most {upper:+.2f}; {attempt.seconds:.1f} s"
