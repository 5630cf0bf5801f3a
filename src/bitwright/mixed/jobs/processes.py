"""Jobs in processes of this machine.

Each worker is a pool of one process: when a process dies it is known which job it had, and no other is lost with it.
Processes are spawned, not forked: torch and ONNX Runtime hold threads that do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for

from bitwright.mixed.jobs.executor import Done, J, R, check_counts, keep_busy
from bitwright.mixed.jobs.task import run, share


@dataclass(frozen=True, kw_only=True)
class Processes:
    """In processes of this machine; what they print goes to standard error.

    Attributes:
        workers: processes.
        threads: threads of each; the cores of this machine divided by `workers` if not said.
        retries: how often a job is tried again after its process died.

    Raises:
        InputError: a count below 1, or retries below 0.

    Example:
        >>> Processes(workers=2).run(abs, [-1, 2, -3])
        [1, 2, 3]
    """

    workers: int = 2
    threads: int | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        check_counts("processes", workers=self.workers, threads=self.threads, retries=self.retries)

    def run(self, function: Callable[[J], R], jobs: Sequence[J], done: Done[R] | None = None) -> list[R]:
        """The results, in the order of the jobs; `Executor.run`."""
        pools = _Pools(self.workers, self.threads or share(self.workers))
        try:
            return keep_busy(pools, function, jobs, done, retries=self.retries, told=self.retries + 1)
        finally:
            pools.close()


class _Pools:
    """Pools of one process each."""

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads
        self.free: list[ProcessPoolExecutor] = []
        self.busy: dict[Future[bytes], ProcessPoolExecutor] = {}

    def width(self) -> int:
        return self.workers

    def start(self, function: bytes, job: bytes) -> Future[bytes]:
        while True:
            pool = self.free.pop() if self.free else _pool()
            try:
                future = pool.submit(run, function, job, self.threads)
            except BrokenProcessPool:  # its process died while it had nothing to do
                pool.shutdown()
                continue
            self.busy[future] = pool
            return future

    def ended(self, running: Collection[Future[bytes]]) -> Iterable[Future[bytes]]:
        return wait(running, return_when=FIRST_COMPLETED).done

    def outcome(self, handle: Future[bytes]) -> bytes | None:
        pool = self.busy.pop(handle)
        try:
            found = handle.result()
        except BrokenProcessPool:
            pool.shutdown()
            return None
        self.free.append(pool)
        return found

    def close(self) -> None:
        for pool in [*self.free, *self.busy.values()]:
            pool.shutdown(cancel_futures=True)


def _pool() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_begin)


def _begin() -> None:
    """In a new process: print to standard error, and end when the process that started it is gone."""
    os.dup2(2, 1)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a spawned process has one"

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
