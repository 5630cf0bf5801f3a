"""Where independent evaluations run: here, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from bitwright.lookup import Row

EXECUTORS: dict[str, Row] = {
    "here": Row("bitwright.mixed.jobs.here:Here", "one after the other, in this process"),
    "processes": Row("bitwright.mixed.jobs.processes:Processes", "in processes of this machine"),
    "ray": Row("bitwright.mixed.jobs.cluster:RayCluster", "on a Ray cluster, or one of this machine"),
}
