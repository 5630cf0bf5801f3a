"""What a worker does: one job, and its result or exception as bytes that any process can read."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from typing import Any

#: What libraries that are not imported yet read their number of threads from.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_limited = 0


def run(function: bytes, job: bytes, limit: int) -> bytes:
    """Unpickle a function and a job, call it within so many threads, and pickle what comes of it.

    Example:
        >>> unpacked(run(pickle.dumps(abs), pickle.dumps(-2), 0))
        2
    """
    if limit:
        limit_threads(limit)
    try:
        return pickle.dumps((pickle.loads(function)(pickle.loads(job)), None))
    except Exception as error:  # whatever the function raises is told where the job was given out
        return pickle.dumps((None, portable(error)))


def unpacked(outcome: bytes) -> Any:
    """The result of a job.

    Raises:
        Exception: what the function raised.
    """
    value, error = pickle.loads(outcome)
    if error is not None:
        raise error
    return value


def portable(error: Exception) -> Exception:
    """The same exception with its traceback as a note; one that does not survive pickling as a RuntimeError.

    Example:
        >>> portable(ValueError("a word"))
        ValueError('a word')
    """
    note = "".join(traceback.format_exception(error)).rstrip()
    error.add_note(note)
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # constructors that want other arguments raise anything
        pass
    other = RuntimeError(f"{type(error).__name__}: {error}")
    other.add_note(note)
    return other


def limit_threads(threads: int) -> None:
    """So many threads for torch and BLAS in this process from now on; `threads()` tells sessions of ONNX Runtime."""
    global _limited
    _limited = threads
    for name in VARIABLES:
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def threads() -> int:
    """How many threads a job may use, for sessions that ask; 0, which is one a core, outside of workers.

    Example:
        >>> threads()
        0
    """
    return _limited


def share(workers: int) -> int:
    """The cores of this machine that each of so many workers gets, at least one.

    Example:
        >>> share(10**6)
        1
    """
    return max(1, len(os.sched_getaffinity(0)) // workers)
