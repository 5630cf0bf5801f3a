"""Where independent evaluations run: here, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from bitwright.lookup import Row

EXECUTORS: dict[str, Row] = {
    "here": Row("bitwright.search.jobs.here:Here", "one after the other, in this process"),
    "processes": Row("bitwright.search.jobs.processes:Processes", "in processes of this machine"),
    "ray": Row("bitwright.search.jobs.cluster:RayCluster", "on a Ray cluster, or one of this machine"),
}
