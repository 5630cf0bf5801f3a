"""Jobs one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitwright.mixed.jobs.executor import Done, J, R


@dataclass(frozen=True, kw_only=True)
class Here:
    """In this process.

    Example:
        >>> Here().run(abs, [-1, 2], done=lambda i, result: print(i, result))
        0 1
        1 2
        [1, 2]
    """

    def run(self, function: Callable[[J], R], jobs: Sequence[J], done: Done[R] | None = None) -> list[R]:
        """The results, in the order of the jobs; `Executor.run`."""
        results = []
        for i, job in enumerate(jobs):
            results.append(function(job))
            if done is not None:
                done(i, results[i])
        return results
