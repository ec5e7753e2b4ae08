"""How numbers are kept right: the width of sums, the scale, and what is not finite."""

import math

import numpy as np

# Put on a function: inf, NaN and numbers too small are answers, whatever the caller has set.
without_warnings = np.errstate(all="ignore")


def upcast(array: np.ndarray) -> np.ndarray:
    """Return float64 as it is and everything else in float32: 16-bit sums stall."""
    return array.astype(np.float64 if array.itemsize == 8 else np.float32, copy=False)


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """Return what scores are multiplied by: 1/sqrt(D) where nothing is said."""
    return 1 / math.sqrt(head_dim) if scale is None else float(scale)


def is_surely_finite(array: np.ndarray) -> bool:
    """Whether every number is finite: the sum of their squares is finite only then."""
    return math.isfinite(np.vdot(array, array))


def split_nonfinite(
    key: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put 0 for what is not finite, and say which keys had any: 0 * NaN would reach every row."""
    key_finite, value_finite = np.isfinite(key), np.isfinite(value)
    nonfinite = ~(key_finite.all(-1) & value_finite.all(-1))  # (B, H_kv, S)
    return np.where(key_finite, key, 0), np.where(value_finite, value, 0), nonfinite
