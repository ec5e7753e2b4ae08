"""How numbers are kept right: the width of sums, the scale, and what is not finite."""

import math

import numpy as np

# Put on a function: inf, NaN and numbers too small are answers, whatever the caller has set.
without_warnings = np.errstate(all="ignore")
HUGE = 1e37  # a bound on scores, below what float32 holds


def upcast(array: np.ndarray) -> np.ndarray:
    """Return float64 as it is and everything else in float32: 16-bit sums stall."""
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """Return what scores are multiplied by: 1/sqrt(D) where nothing is said."""
    return 1 / math.sqrt(head_dim) if scale is None else float(scale)


@without_warnings
def is_bounded(query: np.ndarray, key: np.ndarray, value: np.ndarray, scale: float) -> bool:
    """Whether all numbers surely are finite, and all scores, too: |q . k| <= |q| |k|."""
    query_norm, key_norm, value_norm = (_norm(array) for array in (query, key, value))
    return query_norm * key_norm * abs(scale) < HUGE and value_norm < HUGE


def _norm(array: np.ndarray) -> float:
    """Return the root of the sum of all squares, which is finite only if every number is."""
    numbers = upcast(array).ravel(order="K")
    return math.sqrt(numbers @ numbers)


def split_nonfinite(
    key: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put 0 for what is not finite, and say which keys had any: 0 * NaN would reach every row."""
    key_finite, value_finite = np.isfinite(key), np.isfinite(value)
    nonfinite = ~(key_finite.all(-1) & value_finite.all(-1))  # (B, H_kv, S)
    return np.where(key_finite, key, 0), np.where(value_finite, value, 0), nonfinite
