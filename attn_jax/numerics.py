"""How numbers are kept right: the width of sums, the scale, and what is not finite."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

HUGE = 1e37  # a bound on scores, below what float32 holds


def upcast(array: Array) -> Array:
    """Return float64 as it is and everything else in float32: 16-bit sums stall."""
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)


def multiply(dims: str, array: Array, other: Array) -> Array:
    """Return the products that einsum's `dims` name, in the width of array's sums.

    What is bfloat16 is not widened: a number of float32 is the sum of three of bfloat16, and these
    stand one below the other along axis 2.
    """
    if other.dtype != jnp.bfloat16:
        return jnp.einsum(dims, array, upcast(other))
    high = lax.reduce_precision(array, 8, 7)
    middle = lax.reduce_precision(array - high, 8, 7)
    parts = jnp.concatenate([high, middle, array - high - middle], 2).astype(other.dtype)
    sums = jnp.einsum(dims, parts, other, preferred_element_type=array.dtype)
    return sums.reshape(*sums.shape[:2], 3, -1, sums.shape[3]).sum(2)


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """Return what scores are multiplied by: 1/sqrt(D) where nothing is said."""
    return 1 / math.sqrt(head_dim) if scale is None else float(scale)


def is_bounded(query: Array, key: Array, value: Array, scale: float | Array) -> Array:
    """Whether all numbers surely are finite, and all scores, too: |q . k| <= |q| |k|."""
    query_norm, key_norm, value_norm = (_norm(array) for array in (query, key, value))
    return (query_norm * key_norm * jnp.abs(scale) < HUGE) & (value_norm < HUGE)


def _norm(array: Array) -> Array:
    """Return the root of the sum of all squares, which is finite only if every number is."""
    squares = jnp.einsum("bhsd,bhsd->bh", array, array, preferred_element_type=upcast(array).dtype)
    return jnp.sqrt(squares.sum())


def split_nonfinite(key: Array, value: Array) -> tuple[Array, Array, Array]:
    """Put 0 for what is not finite, and say which keys had any: 0 * NaN would reach every row."""
    key_finite, value_finite = jnp.isfinite(key), jnp.isfinite(value)
    nonfinite = ~(key_finite.all(-1) & value_finite.all(-1))  # (B, H_kv, S)
    return jnp.where(key_finite, key, 0), jnp.where(value_finite, value, 0), nonfinite


def zero_where_empty(query: Array, empty: Array) -> Array:
    """Put 0 for what is not finite in a fully masked row: its gradient is 0, and 0 * NaN is not."""
    return jnp.where(empty & ~jnp.isfinite(query), 0, query)


@jax.jit
def set_nonfinite_aside(key: Array, value: Array) -> tuple[Array, Array, tuple[Array, Array]]:
    """Put 0 for what is not finite in tokens, with marks that give it back to their heads.

    A token may be hidden, but a parameter's gradient sums over all: 0 * NaN would be in it.
    """
    both = (key, value)
    key_mark, value_mark = (lax.stop_gradient(x - x).sum(-1)[:, None, :, None] for x in both)
    key, value = (jnp.where(jnp.isfinite(x), x, 0) for x in both)
    return key, value, (key_mark, value_mark)  # of 0, or else NaN


def mark_heads(key: Array, value: Array, marks: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """Put NaN for the heads of tokens that were not finite."""
    if marks is None:
        return key, value
    return key + marks[0].astype(key.dtype), value + marks[1].astype(value.dtype)
