"""What every row of `EXECUTORS` is, and the loop that keeps workers busy and hands results over as they come."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from bitwright.errors import BitwrightError, InputError
from bitwright.mixed.jobs.task import unpacked

J = TypeVar("J")
R = TypeVar("R")
H = TypeVar("H")

#: Called with the place of a job and its result, in this process and as soon as the result is there.
Done = Callable[[int, R], None]
#: How much of a job an error shows.
SHOWN = 80


class Executor(Protocol):
    """Runs a function on jobs that do not depend on each other."""

    def run(self, function: Callable[[J], R], jobs: Sequence[J], done: Done[R] | None = None) -> list[R]:
        """The results, in the order of the jobs.

        After an exception nothing more is started; what runs already is waited for and handed to `done`.

        Args:
            function: what to do with a job; of a module, so that it can be pickled.
            jobs: each is pickled too.
            done: gets every result once, in the order in which they come.

        Raises:
            BitwrightError: a job whose worker died each time it was tried, by its place and text.
            Exception: what the function raised, of the same type; such a job is not tried again.
        """
        ...


class Workers(Protocol[H]):
    """Workers that take one job each."""

    def width(self) -> int:
        """How many jobs may run at once, as things are now."""
        ...

    def start(self, function: bytes, job: bytes) -> H:
        """Begin a job."""
        ...

    def ended(self, running: Collection[H]) -> Iterable[H]:
        """Wait until one or more of these have ended, and give those."""
        ...

    def outcome(self, handle: H) -> bytes | None:
        """What the job's worker said; None where it died."""
        ...


def keep_busy(
    workers: Workers[H],
    function: Callable[[J], R],
    jobs: Sequence[J],
    done: Done[R] | None,
    *,
    retries: int,
    told: int,
) -> list[R]:
    """Run all jobs on workers, as `Executor.run` says.

    Args:
        workers: where.
        function: what to do with a job.
        jobs: one a call.
        done: gets the results.
        retries: how often a job is begun anew here after its worker died.
        told: how often a job was tried when its error is raised.

    Raises:
        BitwrightError: a job whose worker died each time.
    """
    packed = pickle.dumps(function)
    results: dict[int, R] = {}
    waiting, deaths, running = deque(range(len(jobs))), [0] * len(jobs), dict[H, int]()
    failed: Exception | None = None
    while running or (waiting and failed is None):
        while waiting and failed is None and len(running) < workers.width():
            i = waiting.popleft()
            running[workers.start(packed, pickle.dumps(jobs[i]))] = i
        for handle in workers.ended(list(running)):
            i = running.pop(handle)
            try:
                outcome = workers.outcome(handle)
                if outcome is not None:
                    results[i] = unpacked(outcome)
                elif deaths[i] < retries:
                    deaths[i] += 1
                    waiting.appendleft(i)
                    continue
                else:
                    raise died(jobs, i, told)
            except Exception as error:  # whatever the function raises
                failed = failed or error
                continue
            if done is not None:
                done(i, results[i])
    if failed is not None:
        raise failed
    return [results[i] for i in range(len(jobs))]


def died(jobs: Sequence[Any], place: int, times: int) -> BitwrightError:
    """The error of a job whose worker died each time.

    Example:
        >>> print(died(["W4A8", "W2A8"], 1, 3))
        job 2 of 2 (W2A8): its worker died 3 times; expected a result;
        look for memory that ran out; a script that starts workers needs `if __name__ == "__main__":`
    """
    text = str(jobs[place])
    shown = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    often = f" {times} times" if times > 1 else ""
    return BitwrightError(
        f"job {place + 1} of {len(jobs)} ({shown})", f"its worker died{often}", "a result",
        'look for memory that ran out; a script that starts workers needs `if __name__ == "__main__":`',
    )  # fmt: skip


def check_counts(what: str, **counts: int | None) -> None:
    """Refuse settings below their least: 1, or 0 for `retries`.

    Example:
        >>> check_counts("processes", workers=0)
        Traceback (most recent call last):
        bitwright.errors.InputError: processes.workers: 0; expected 1 or more
    """
    for name, count in counts.items():
        least = 0 if name == "retries" else 1
        if count is not None and count < least:
            raise InputError(f"{what}.{name}", str(count), f"{least} or more")
