"""Several threads on one call, each with torch held to one: none waits for another inside a block.

Torch's own threads share out each operation and meet at its end, spinning: on a busy machine each
operation waits until the last of them has had its turn.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

NAME = "attn_torch"
LOCK = threading.Lock()  # held by the call that our threads work for


def work_together(work: Callable[[Iterator], None], units: list, threads: int) -> None:
    """Run `work` on every thread, over units of which each is handed out once, the last one first.

    What one thread raises is raised here, and the others stop after the unit they are at. Where
    our threads are taken, or would hide operations from who counts them, it is this one alone.
    """
    left = deque(units)
    alone = threads == 1 or _get_current_dispatch_mode() is not None
    if alone or not LOCK.acquire(blocking=False):
        return work(_take(left))
    workers: list[Future] = []
    try:
        inference = torch.is_inference_mode_enabled()
        with suppress(RuntimeError):  # while Python ends it starts no thread, and hands out no work
            for _ in range(threads):
                if pool := _pool(threads):
                    workers.append(pool.submit(_until_done, work, left, inference))
        try:
            if not workers:
                work(_take(left))
            wait(workers)
        finally:
            left.clear()
    finally:
        LOCK.release()
    for worker in workers:
        worker.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor | None:
    """Start that many threads, in each of which torch uses one: they stay, waiting for work.

    None where the system gives no more threads.

    `torch.set_num_threads` is a thread's own, and that of all threads to come: a thread of its own
    puts the latter back.
    """
    pool = ThreadPoolExecutor(threads, NAME, _use_one)
    with ThreadPoolExecutor(1) as keeper:
        before = keeper.submit(torch.get_num_threads).result()
        all_there = threading.Barrier(threads, timeout=20)
        try:
            for started in [pool.submit(all_there.wait) for _ in range(threads)]:
                started.result()
        except RuntimeError:
            all_there.abort()
            pool.shutdown(wait=False)
            return None
        finally:
            keeper.submit(torch.set_num_threads, before).result()
    return pool


def _use_one() -> None:
    torch.get_num_threads()  # else a thread's first operation would set what all others have
    torch.set_num_threads(1)


def _new_pools() -> None:
    """Start anew in a forked child, where the threads are not."""
    global LOCK
    LOCK = threading.Lock()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_pools)


def _until_done(work: Callable[[Iterator], None], left: deque, inference: bool) -> None:
    try:
        with torch.inference_mode(inference), torch.no_grad():  # in this order: the one sets both
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
