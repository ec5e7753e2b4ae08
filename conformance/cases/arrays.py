"""Random arrays, each from a seed."""

import numpy as np

from ..oracle.tolerance import dtype


def normal(seed: int, *shape: int, dtype_name: str = "float64") -> np.ndarray:
    """Return normal random numbers from a seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype(dtype_name))


def coins(seed: int, *shape: int, true: float = 0.5) -> np.ndarray:
    """Return random booleans from a seed, True with the given share."""
    return np.random.default_rng(seed).random(shape) < true
