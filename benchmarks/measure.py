"""How a speed is measured: two calls interleaved in one process, and the ratio of their medians.

Machines are shared and noisy, so seconds mean little and ratios much. Each round times both calls,
in an order that alternates; the spread is the middle half of the rounds' own ratios. A short call
is made many times between two looks at the clock.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from conformance.runs.run import cores

BATCH_SECONDS = 1e-2  # between two looks at the clock: what the other call left behind is spread
BUSY = """import os
print(flush=True)
while os.getppid() == {parent}:
    for _ in range(100_000):
        pass
"""


@dataclass(frozen=True)
class Paired:
    """Medians in seconds, and how many times faster ours is: `ratio` and its middle half."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def seconds(call: Callable[[], object], count: int = 1) -> float:
    """Return how long one call of `count` takes, each result waited for."""
    start = time.perf_counter()
    for _ in range(count):
        wait(call())
    return (time.perf_counter() - start) / count


def wait(result) -> None:
    """Wait for results that a framework may still be computing."""
    for part in result if isinstance(result, tuple | list) else (result,):
        if hasattr(part, "block_until_ready"):
            part.block_until_ready()
        elif hasattr(part, "is_cpu") and not part.is_cpu:  # a tensor of torch
            sys.modules["torch"].accelerator.synchronize(part.device)


def paired(ours: Callable, theirs: Callable, budget: float = 8.0) -> Paired:
    """Time both calls in turn for about `budget` seconds, five rounds at least."""
    return pair(*interleaved([ours, theirs], budget))


def interleaved(calls: Sequence[Callable], budget: float) -> list[list[float]]:
    """Time all calls in turn, five to sixty rounds; return each call's seconds by round."""
    for call in calls:
        wait(call())  # compile, allocate, warm the caches
    counts = [_count(call) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    rounds = 0
    while rounds < 5 or (time.perf_counter() - start < budget and rounds < 60):
        order = range(len(calls)) if rounds % 2 == 0 else reversed(range(len(calls)))
        for at in order:
            times[at].append(seconds(calls[at], counts[at]))
        rounds += 1
    return times


def _count(call: Callable) -> int:
    """Return how many calls take about `BATCH_SECONDS`, one at least."""
    if seconds(call) >= BATCH_SECONDS:
        return 1
    return max(1, round(BATCH_SECONDS / seconds(call, 10)))


def pair(ours: list[float], theirs: list[float]) -> Paired:
    """Compare two calls' seconds, round by round."""
    own, other = statistics.median(ours), statistics.median(theirs)
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    quarter = len(ratios) // 4
    return Paired(own, other, other / own, ratios[quarter], ratios[-1 - quarter])


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep another process busy on each core meanwhile."""
    command = [sys.executable, "-c", BUSY.format(parent=os.getpid())]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(cores())]
    try:
        for other in others:
            other.stdout.readline()  # it runs
        yield
    finally:
        for other in others:
            other.kill()
            other.communicate()


def matmul_peak(size: int = 2048, rounds: int = 7) -> float:
    """Return the machine's float32 matrix-multiply rate, in operations a second: the best seen."""
    a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(rounds))
