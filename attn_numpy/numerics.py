"""How numbers are kept right: the width of sums, the scale, and what is not finite."""

import math

import numpy as np


def upcast(array):
    """Return float64 as it is and everything else in float32: 16-bit sums stall."""
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """Return what scores are multiplied by: 1/sqrt(D) where nothing is said."""
    return 1 / math.sqrt(head_dim) if scale is None else float(scale)


def all_finite(*arrays) -> bool:
    """Whether every number is finite; nothing is copied."""
    return all(np.isfinite(x.min()) and np.isfinite(x.max()) for x in arrays)


def split_nonfinite(key, value):
    """Put 0 for what is not finite, and say which keys had any: 0 * NaN would reach every row."""
    nonfinite = ~(np.isfinite(key).all(-1) & np.isfinite(value).all(-1))  # (B, H_kv, S)
    return np.where(np.isfinite(key), key, 0), np.where(np.isfinite(value), value, 0), nonfinite
