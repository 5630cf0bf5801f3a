"""Keep freed memory in the process while units are learned.

glibc hands blocks of more than 128 KiB back to the system when they are freed, and the system gives new ones page by
page. An iteration frees and takes the same dozens of blocks of megabytes: on small virtual machines the pages cost
more than the arithmetic does. Other systems' allocators are left as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

#: Numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Blocks up to 1 GiB come from the heap, of which up to 1 GiB is kept when free.
KEPT = 1 << 30
#: glibc's own.
DEFAULT = 128 * 1024


@contextmanager
def kept() -> Iterator[None]:
    """Freed memory stays in the process inside, and goes back at the end."""
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        library.mallopt(option, KEPT)
    try:
        yield
    finally:
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            library.mallopt(option, DEFAULT)
        library.malloc_trim(0)
