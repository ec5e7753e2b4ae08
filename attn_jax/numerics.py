"""How numbers are kept right: the width of sums, the scale, and what is not finite."""

import math

import jax.numpy as jnp


def upcast(array):
    """Return float64 as it is and everything else in float32: 16-bit sums stall."""
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """Return what scores are multiplied by: 1/sqrt(D) where nothing is said."""
    return 1 / math.sqrt(head_dim) if scale is None else float(scale)


def split_nonfinite(key, value):
    """Put 0 for what is not finite, and say which keys had any: 0 * NaN would reach every row."""
    nonfinite = ~(jnp.isfinite(key).all(-1) & jnp.isfinite(value).all(-1))  # (B, H_kv, S)
    return jnp.where(jnp.isfinite(key), key, 0), jnp.where(jnp.isfinite(value), value, 0), nonfinite
