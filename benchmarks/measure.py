"""How a speed is measured: two calls interleaved in one process, and the ratio of their medians.

Machines are shared and noisy, so seconds mean little and ratios much. Each round times both calls,
in an order that alternates; the spread is the middle half of the rounds' own ratios.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paired:
    """Medians in seconds, and how many times faster ours is: `ratio` and its middle half."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes, its result waited for."""
    start = time.perf_counter()
    wait(call())
    return time.perf_counter() - start


def wait(result) -> None:
    """Wait for results that a framework may still be computing."""
    for part in result if isinstance(result, tuple | list) else (result,):
        if hasattr(part, "block_until_ready"):
            part.block_until_ready()


def paired(ours: Callable, theirs: Callable, budget: float = 8.0) -> Paired:
    """Time both calls in turn for about `budget` seconds, five rounds at least."""
    wait(ours()), wait(theirs())  # compile, allocate, warm the caches
    rounds: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(rounds) < 5 or (time.perf_counter() - start < budget and len(rounds) < 60):
        if len(rounds) % 2:
            b, a = seconds(theirs), seconds(ours)
        else:
            a, b = seconds(ours), seconds(theirs)
        rounds.append((a, b))
    own, other = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratios = sorted(b / a for a, b in rounds)
    quarter = len(ratios) // 4
    return Paired(own, other, other / own, ratios[quarter], ratios[-1 - quarter])


def matmul_peak(size: int = 2048, rounds: int = 7) -> float:
    """Return the machine's float32 matrix-multiply rate, in operations a second: the best seen."""
    a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(rounds))
