"""Slopes by central differences in float64, and how far off they may be."""

from collections.abc import Callable

STEP = 1e-5
EPS = 2.0**-52


def slope(total: Callable[[float], float], size: float) -> tuple[float, float]:
    """Return the slope of a function at 0, and the error that it may have.

    Twice the step makes four times the truncation error, so that the two slopes lie three times
    it apart. `size` is the sum of the terms' sizes, of which every operation rounds a part.

    >>> [round(x, 6) for x in slope(lambda step: 3 * step + step**3, size=1.0)]
    [3.0, 0.0]
    """
    near, far = ((total(h) - total(-h)) / (2 * h) for h in (STEP, 2 * STEP))
    return near, abs(far - near) + 64 * EPS * size / STEP
