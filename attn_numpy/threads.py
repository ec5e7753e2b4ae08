"""Several threads on one call, each with BLAS held to one thread, and all put back after it."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

NAME = "attn_numpy"
LOCK = threading.RLock()  # how many threads BLAS uses is one setting for the whole process


def is_inside() -> bool:
    """Whether this thread is one of ours already: a predicate may attend, too."""
    return threading.current_thread().name.startswith(NAME)


@contextmanager
def blas_held(wanted: int | None) -> Iterator[int]:
    """Hold BLAS to one thread; give how many threads may share its work, at most `wanted`.

    That is never more than BLAS itself may use, so that a limit set outside is kept. Calls from
    several threads wait for each other: who sets the limit also takes it back. Without
    threadpoolctl nothing is held, and it is one thread that calls BLAS.
    """
    with LOCK:
        blas = _blas()
        if blas is None:
            yield 1
            return
        counts = [library.num_threads for library in blas.lib_controllers]
        most = max(counts, default=_cores())
        with blas.limit(limits=1):
            yield most if wanted is None else max(min(wanted, most), 1)


def _new_lock() -> None:
    """Make the lock anew in a forked child: the thread that held it is not there."""
    global LOCK
    LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@cache
def _blas() -> Any:
    """Find what sets BLAS's threads, None without threadpoolctl: once, on the first call."""
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


def _cores() -> int:
    """Return how many cores this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def work_together(work: Callable[[Iterator], None], units: list, threads: int) -> None:
    """Run `work` on every thread, over units of which each is handed out once, the last one first.

    What one thread raises is raised here, and the others stop after the unit they are at.
    """
    left = deque(units)
    if threads == 1:
        return work(_take(left))
    with ThreadPoolExecutor(threads, thread_name_prefix=NAME) as pool:
        workers = [pool.submit(_until_done, work, left) for _ in range(threads)]
    for worker in workers:
        worker.result()


def _until_done(work: Callable[[Iterator], None], left: deque) -> None:
    try:
        work(_take(left))
    finally:
        left.clear()


def _take(left: deque) -> Iterator:
    while left:
        try:
            unit = left.pop()
        except IndexError:  # another thread was faster
            return
        yield unit
