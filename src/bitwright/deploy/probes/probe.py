"""What a probe is: a file in its runtime, with the codes that it computes read out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import torch
from torch import Tensor

from bitwright.deploy.names import codes_name
from bitwright.execute.integer import BOUNDING_OPS, Arithmetic
from bitwright.graph.regions import Region
from bitwright.pipeline import State


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A written file, and what is known of it.

    Attributes:
        path: the file.
        state: what was read back from it.
        regions: those that run in integers.
        arithmetic: how the runtime computes them.
        threads: threads of the runtime within an op; 0 for one a core.
        precise: slower kernels whose products do not saturate, where the runtime has them.
    """

    path: Path
    state: State
    regions: Sequence[Region]
    arithmetic: Arithmetic
    threads: int
    precise: bool


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One batch in the runtime.

    Attributes:
        outputs: what the file gives, as it is.
        codes: codes that the runtime computed, by site.
    """

    outputs: Mapping[str, np.ndarray]
    codes: Mapping[str, Tensor]


class Probe(Protocol):
    """A subject in its runtime.

    Attributes:
        read: sites whose codes are read out.
        given: sites that regions read as they were simulated: the runtime gets their real values as inputs.
        kernels: how many kernels of each kind the runtime executes.
        float_kernels: kernels that compute in float although the plan has them in integers.
        unplanned_kernels: kernels that compute in integers although the plan has them in float.
    """

    read: Sequence[str]
    given: Sequence[str]
    kernels: Mapping[str, int]
    float_kernels: Mapping[str, int]
    unplanned_kernels: Mapping[str, int]

    def __init__(self, subject: Subject) -> None:
        """Load the file, once as it is and once with codes read out.

        Raises:
            GoalError: reading codes out changes what the runtime executes.
        """

    def observe(self, feeds: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> Observed:
        """One batch: inputs of the network, and real values of the sites in `given`."""
        ...


def written_sites(subject: Subject, made: set[str]) -> list[str]:
    """Sites of integer regions whose codes stand in the file, in execution order."""
    every = dict.fromkeys(v.name or "" for r in subject.regions for v in (*r.inputs, r.output))
    return [site for site in every if codes_name(site) in made]


def unwritten_sites(subject: Subject, made: set[str]) -> dict[str, str]:
    """Sites that are not in the file, by the site whose codes they are: a ReLU or Clip that bounds nothing."""
    return {
        r.output.name or "": r.inputs[0].name or "" for r in subject.regions
        if r.kind in BOUNDING_OPS and codes_name(r.output.name or "") not in made
    }  # fmt: skip


def with_outputs(proto: onnx.ModelProto, sites: Sequence[str]) -> bytes:
    """The file with the codes of sites added to its outputs."""
    known = {o.name for o in proto.graph.output}
    for name in map(codes_name, sites):
        if name not in known:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    data: bytes = proto.SerializeToString()
    return data


def made_by(proto: onnx.ModelProto) -> set[str]:
    """Names of all values that nodes of the file compute."""
    return {output for node in proto.graph.node for output in node.output}


def codes_of(outputs: Mapping[str, np.ndarray], sites: Sequence[str]) -> dict[str, Tensor]:
    """Codes of sites among what a runtime gave."""
    return {site: torch.from_numpy(outputs[codes_name(site)]) for site in sites}
