"""The engine: unit after unit, from the network's input on; each is learned, then passed with what it has become.

Two streams of values run beside each other for all calibration images, those of the float network and those of the
network quantized so far; each value is kept from the unit that gives it to the last one that reads it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from bitwright.data.batches import Batches
from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.program import Program
from bitwright.graph.blocks import Block
from bitwright.lookup import did_you_mean, lookup
from bitwright.pipeline import Event, Progress, State
from bitwright.plan.encoding import Encoding
from bitwright.ptq.calibrate import fit_biases
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.ptq.reconstruct import ROUNDINGS, heap
from bitwright.ptq.reconstruct.activations import BorderedBias, Coin, LearnedStep, ShiftedBias
from bitwright.ptq.reconstruct.correct import corrected
from bitwright.ptq.reconstruct.exponents import LearnedExponent
from bitwright.ptq.reconstruct.finished import Finished, fingerprint
from bitwright.ptq.reconstruct.learn import learn
from bitwright.ptq.reconstruct.method import Method, bytes_of
from bitwright.ptq.reconstruct.rows import Budget, Rows
from bitwright.ptq.reconstruct.units import Learnable, crossing, find_units, last_readers, learnable, stored_as_codes
from bitwright.ptq.reconstruct.work import Work
from bitwright.ptq.settle import settle

log = logging.getLogger("bitwright")
#: Bytes that learning takes for each element of a unit's values: the value, on its grid, its masks, its gradient.
BYTES_PER_ELEMENT = 20
#: Least calibration images: fewer say nothing of a distribution.
LEAST_IMAGES = 2
#: Share of a budget that is left to the allocator: blocks that are free and too small for what is wanted next.
ALLOCATOR = 1 / 8


def reconstruct(state: State, batches: Batches | None, method: Method, images_done: Progress | None = None) -> State:
    """The state with the encodings, and biases where the method learns them, that the method finds.

    Raises:
        InputError: no plan, no encodings, no or too few images, or a memory budget that is too small.
        UnsupportedError: a value between units that has no row for each image.
    """
    if state.plan is None or not state.encodings:
        raise InputError(
            method.name, "the network has no ranges", fix="run the steps 'place' and 'calibrate' before it"
        )
    if batches is None or len(batches) < LEAST_IMAGES:
        found = "no data" if batches is None else f"{len(batches)} image"
        raise InputError(method.name, found, f"at least {LEAST_IMAGES} images", "give more with --data")
    with heap.kept():
        return _Walk(state, batches, method).run(images_done)


def reconstruct_in_turn(
    state: State, batches: Batches | None, methods: Sequence[Method], images_done: Progress | None = None
) -> State:
    """`reconstruct` by one method after the other, each from the network's input on; the log has one event of all."""
    before = state.log
    for i, method in enumerate(methods):
        state = reconstruct(state, batches, method, None if i else images_done)
    facts = [event.facts for event in state.log[len(before) :]]
    told = {"units": [unit for each in facts for unit in each["units"]], "spilled": sum(f["spilled"] for f in facts),
            "diverged": [unit for each in facts for unit in each["diverged"]]}  # fmt: skip
    return state.but(log=(*before, Event(step=methods[0].name, seconds=0.0, facts=told)))


class _Walk:
    """One way through a network."""

    def __init__(self, state: State, batches: Batches, method: Method) -> None:
        self.state, self.method = state, method
        self.batches = batches if len(batches) <= method.images else batches.limited(method.images, method.seed)
        self.units = find_units(state.model, method.unit)
        self.learnables = learnable(state, self.units)
        self.chosen = self._chosen()
        self.chunk = self.batches.batch_size if self.batches.fixed else method.batch
        limit = self._budget()  # makes the chunk smaller where the memory asks for it
        self.budget = Budget(limit=limit, folder=method.work)
        self.floats: dict[str, Rows] = {}
        self.quantized: dict[str, Rows] = {}
        self.units_learned: list[dict[str, Any]] = []
        self.keeps_inputs = method.loss not in ("error", "moments", "cheapest")
        self._logits: Rows | None = None

    def _budget(self) -> int | None:
        limit = bytes_of(self.method.memory, f"{self.method.name}.memory")
        if limit is None:
            return None
        image = max(_elements(unit) for unit in self.units) * BYTES_PER_ELEMENT
        while resident_bytes() + image * self.chunk > limit and self.chunk > 1 and not self.batches.fixed:
            self.chunk //= 2
        least = resident_bytes() + image * self.chunk
        if least > limit:
            raise InputError(
                f"{self.method.name}.memory", f"is {self.method.memory}",
                f"at least {least / 2**30:.2f}GiB, which the process and {self.chunk} images of the largest unit take",
                "give more",
            )  # fmt: skip
        return max(0, limit - least - int(limit * ALLOCATOR))

    def run(self, images_done: Progress | None) -> State:
        """All units in order; those after the last with anything to learn are not passed."""
        self._enter(images_done)
        kept = Finished.open(self.method.work, self._fingerprint) if self.method.work else None
        last = max((i for i in range(len(self.units)) if self._moves(i)), default=-1)
        readers = last_readers(self.units)
        for i in range(last + 1):
            unit = self.units[i]
            self._pass_float(unit)
            if self._moves(i):
                changes = None if kept is None else kept.load(i)
                if changes is None:
                    changes = self._learn(i)
                    if kept is not None:
                        kept.save(i, changes)
                self._apply(unit, changes)
            self._pass_quantized(unit)
            for name in [name for name in self.floats if readers.get(name, -1) <= i]:
                if not (self.keeps_inputs and name in self._inputs()) and not self._is_output_of_later(name, i):
                    self._forget(name)
        return self._finished()

    def _fingerprint(self) -> str:
        first = next(iter(self.batches))
        return fingerprint(self.state, dataclasses.replace(self.method, work="", memory=""), first, len(self.batches))

    def _chosen(self) -> list[bool]:
        """Whether each unit is one of those to reconstruct.

        Raises:
            InputError: a glob that matches none of those that can be.
        """
        names = [u.name for u, f in zip(self.units, self.learnables, strict=True) if f.weights or f.steps or f.biases]
        for pattern in self.method.only:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(
                    f"{self.method.name}.only", f"{pattern!r} matches no {self.method.unit} with anything to learn",
                    "a glob of one of them", did_you_mean(pattern, names),
                )  # fmt: skip
        only = self.method.only or ("*",)
        return [any(fnmatchcase(unit.name, pattern) for pattern in only) for unit in self.units]

    def _moves(self, i: int) -> bool:
        found = self.learnables[i]
        if not self.chosen[i]:
            return False
        rounds = self.method.rounding != "nearest" and bool(found.weights)
        steps = (self.method.learn_steps and bool(found.steps)) or (
            self.method.learn_exponents and bool(found.exponents)
        )
        biases = self.method.learn_biases or bool(self.method.learn_borders)
        return rounds or steps or (biases and bool(found.biases))

    def _inputs(self) -> list[str]:
        return [v.name or "" for v in self.state.model.graph.inputs]

    def _is_output_of_later(self, name: str, i: int) -> bool:
        return any(unit.output.name == name for unit in self.units[i + 1 :])

    def _forget(self, name: str) -> None:
        rows = self.floats.pop(name)
        rows.release()
        other = self.quantized.pop(name, None)
        if other is not None and other is not rows:
            other.release()

    def _enter(self, images_done: Progress | None) -> None:
        """The network's inputs, as they are: what quantizes them is part of what reads them."""
        at = 0
        for batch in self.batches:
            for name, array in batch.inputs.items():
                if name not in self.floats:
                    rows = Rows(len(self.batches), array.shape[1:], self.budget, dtype=array.dtype)
                    self.floats[name] = self.quantized[name] = rows
                self.floats[name].write(at, torch.from_numpy(array[: batch.valid]))
            at += batch.valid
            if images_done is not None:
                images_done(batch.valid)
        self.count = at

    def _pass_float(self, unit: Block) -> None:
        program = float_program(self.state, inputs=_names(unit), outputs=[unit.output.name or ""])
        self.floats[unit.output.name or ""] = self._rows_of(program, self.floats, None)

    def _pass_quantized(self, unit: Block) -> None:
        name = unit.output.name or ""
        program = simulated_program(self.state, inputs=_names(unit), outputs=[name])
        encoding = self.state.encoding(name) if stored_as_codes(self.state, unit.output) else None
        self.quantized[name] = self._rows_of(program, self.quantized, encoding)

    @torch.no_grad()
    def _rows_of(self, program: Program, values: Mapping[str, Rows], encoding: Encoding | None) -> Rows:
        rows: Rows | None = None
        for index in torch.arange(self.count).split(self.chunk):
            (y,) = program.module(*(values[name][self._padded(index)] for name in program.inputs))
            if y.shape[:1] != (len(self._padded(index)),):
                raise UnsupportedError(
                    f"{self.method.name}: value {program.outputs[0]!r}",
                    f"has the shape {list(y.shape)} for {len(index)} images", "one row for each image",
                    "reconstruct larger units (unit=block or unit=net)",
                )  # fmt: skip
            if rows is None:
                dtype = np.dtype(str(y.dtype).removeprefix("torch."))
                rows = Rows(self.count, tuple(y.shape[1:]), self.budget, encoding, dtype=dtype)
            rows.write(int(index[0]), y[: len(index)])
        assert rows is not None
        return rows

    def _padded(self, index: Tensor) -> Tensor:
        """As many images as a network with a fixed batch takes."""
        short = self.chunk - len(index) if self.batches.fixed else 0
        return torch.cat([index, index[-1:].expand(short)]) if short else index

    def _work(self, i: int) -> Work:
        unit, found, method = self.units[i], self.learnables[i], self.method
        generator = torch.Generator().manual_seed(method.seed * 1_000_003 + i)
        coin = Coin(method.keep, generator) if method.keep < 1 else None
        rounding = lookup(ROUNDINGS, method.rounding, "rounding").load()
        weights = {w: self._rounding(rounding, w) for w in found.weights}
        steps = self._steps(found, coin) if method.activations else {}
        biases = self._biases(unit, found, steps)
        quantizers: dict[str, nn.Module] = {b: nn.Identity() for b in found.biases}
        if not method.activations:
            quantizers |= {site: nn.Identity() for site in (*found.steps, *found.exponents, *found.others)}
        quantizers |= {**weights, **steps, **biases}
        name = unit.output.name or ""
        program = simulated_program(self.state, inputs=_names(unit), outputs=[name], quantizers=quantizers)
        floats, target = self._corrected(unit) if method.correction else (self.floats, self.floats[name])
        rest = crossing(self.units, i) if self.keeps_inputs else []
        return Work(
            state=self.state, unit=unit, method=method, weights=weights, steps=steps, biases=biases, program=program,
            quantizers=quantizers,
            floats=floats, quantized=self.quantized, target=target, coin=coin,
            rest_inputs=tuple(rest), rest_rows={v: self.quantized[v] for v in rest if v != name},
            network_logits=self._network_logits, generator=generator,
        )  # fmt: skip

    def _steps(self, found: Learnable, coin: Coin | None) -> dict[str, LearnedStep]:
        """The quantizers of a unit's activations."""
        method, made = self.method, {}
        for site in (*found.steps, *found.exponents, *found.others):
            kind = LearnedExponent if site in found.exponents else LearnedStep
            learned = (method.learn_steps and site in found.steps) or (
                method.learn_exponents and site in found.exponents
            )
            made[site] = kind(self.state.encoding(site), learned=learned, coin=coin)
        return made

    def _biases(self, unit: Block, found: Learnable, steps: Mapping[str, LearnedStep]) -> dict[str, ShiftedBias]:
        """The biases that move: freely, or as the borders of rounding do."""
        if self.method.learn_biases:
            return {b: ShiftedBias(self.state.tensor(b)) for b in found.biases}
        if not self.method.learn_borders:
            return {}
        assert self.state.plan is not None
        made: dict[str, ShiftedBias] = {}
        for region in unit.regions:
            site = self.state.plan.resolve(region.output.name or "")[0]
            if region.bias is not None and region.bias.name in found.biases and site in steps:
                bias = self.state.tensor(region.bias.name or "")
                shared = self.method.learn_borders == "tensor"
                made[region.bias.name or ""] = BorderedBias(bias, steps[site], shared=shared)
        return made

    def _corrected(self, unit: Block) -> tuple[Mapping[str, Rows], Rows]:
        batches = [self._padded(index) for index in torch.arange(self.count).split(self.chunk)]
        found = corrected(self.state, unit, self.floats, self.method, batches, self.budget)
        if found is None:
            return self.floats, self.floats[unit.output.name or ""]
        log.info("%s %s: distance from the statistics of its batch norms %.4g to %.4g",
                 self.method.name, unit.name, found.before, found.after)  # fmt: skip
        return found.floats, found.output

    def _rounding(self, row: Callable[..., Any], site: str) -> Any:
        try:
            settings = dict(self.method.rounding_settings)
            return row(self.state.tensor(site), self.state.encodings[site], self.method.strength, **settings)
        except InputError as error:
            raise InputError(f"{self.method.name}: weight {site!r}", error.found, error.expected, error.fix) from error

    def _network_logits(self) -> Rows:
        if self._logits is None:
            self._logits = self._rows_of(float_program(self.state, outputs=[_first_output(self.state.model)]),
                                         self.floats, None)  # fmt: skip
        return self._logits

    def _learn(self, i: int) -> dict[str, Any]:
        """Encodings and bias shifts that were found for a unit; none where it diverged."""
        work = self._work(i)
        with torch.enable_grad():
            found = learn(work, self.chunk)
        for rows in {work.target, *work.floats.values()} - set(self.floats.values()):
            rows.release()
        log.info(
            "%s %s: loss %.4g to %.4g in %d iterations, %.2f %% undecided", self.method.name, work.unit.name,
            found.first, found.last, found.iterations, 100 * found.undecided,
        )  # fmt: skip
        changes: dict[str, Any] = {"learned": dataclasses.asdict(found), "encodings": {}, "biases": {}}
        if found.diverged:
            log.warning(
                "%s: the loss of unit %s became %s after %d iterations; it keeps the rounding that it had",
                self.method.name, work.unit.name, found.last, found.iterations,
            )  # fmt: skip
            return changes
        changes["encodings"] = {site: rounding.rounded() for site, rounding in work.weights.items()}
        changes["encodings"] |= {s: step.moved() for s, step in work.steps.items() if step.step.requires_grad}
        changes["biases"] = {b: module.change().detach().clone() for b, module in work.biases.items()}
        return changes

    def _apply(self, unit: Block, changes: Mapping[str, Any]) -> None:
        overlay = dict(self.state.overlay)
        for site, shift in changes["biases"].items():
            overlay[site] = self.state.tensor(site) + shift
        self.state = self.state.but(encodings={**self.state.encodings, **changes["encodings"]}, overlay=overlay)
        self.units_learned.append({"unit": unit.name, **changes["learned"]})

    def _finished(self) -> State:
        """Scales at which tables hold and biases fit."""
        for rows in {*self.floats.values(), *self.quantized.values()}:
            rows.release()
        told = {"units": self.units_learned, "spilled": self.budget.spilled,
                "diverged": [unit["unit"] for unit in self.units_learned if unit["diverged"]]}  # fmt: skip
        event = Event(step=self.method.name, seconds=0.0, facts=told)
        state = fit_biases(settle(self.state))
        return state.but(log=(*state.log, event))


def _names(unit: Block) -> list[str]:
    return [v.name or "" for v in unit.inputs]


def _first_output(model: ir.Model) -> str:
    return model.graph.outputs[0].name or ""


def _elements(unit: Block) -> int:
    """Elements of all values of a unit, for one image."""
    values = {v for region in unit.regions for node in region.nodes for v in (*node.inputs, *node.outputs)}
    shapes = [list(v.shape) for v in values if v is not None and v.shape is not None and not v.is_initializer()]
    return sum(int(np.prod([d for d in shape[1:] if isinstance(d, int)], dtype=np.int64)) for shape in shapes)


def resident_bytes() -> int:
    """Memory that the process takes now; its peak so far where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
