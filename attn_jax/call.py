"""One call of attention, checked and completed once: nothing below it checks or derives again."""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array

from . import checks
from .masks import Mask
from .numerics import scale_or_default


class Call(NamedTuple):
    """What an attention is told beside query, key and value; `sizes` is (B, H, T, S).

    It is a pytree: arrays and numbers are leaves, the rest is static. `rngs` stays outside: only
    a key that was drawn from it goes into a compiled function.
    """

    sizes: tuple[int, int, int, int]
    mask: Mask | None
    bias: Array | None  # (T, S), or rank 4 with dims of 1
    scale: float
    softcap: float | None
    sinks: Array | None  # (H,)
    empty_rows: str
    query_offset: int | Array | np.ndarray
    dropout: float
    rngs: nnx.Rngs | None


def check_call(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask | None = None,
    bias: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    empty_rows: str = "zero",
    query_offset: int | Array | np.ndarray | None = None,
    dropout: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Call:
    """Refuse a wrong call, as `attention` says; return what is left to do."""
    checks.check_attention(query, key, value, bias, scale, softcap, sinks, empty_rows, dropout)
    if mask is not None:
        checks.check_is_mask("mask must be a Mask", mask, Mask)
    batch, heads, queries, head_dim = query.shape
    sizes = (batch, heads, queries, key.shape[2])
    checks.check_mask(mask, sizes)
    query_offset = checks.check_query_offset(query_offset, mask, sizes)
    check_rngs(dropout, rngs)
    scale = scale_or_default(scale, head_dim)
    softcap = None if softcap is None else float(softcap)
    empty_rows = "zero" if sinks is not None else empty_rows  # what is left goes to the sink
    return Call(
        sizes, mask, bias, scale, softcap, sinks, empty_rows, query_offset, float(dropout), rngs
    )


def check_rngs(dropout: float, rngs: nnx.Rngs | None) -> None:
    """Refuse a dropout that has nowhere to draw from."""
    if dropout > 0 and rngs is None:
        raise ValueError("dropout needs rngs: got None")


def expand_bias(call: Call) -> Call:
    """Give the bias four axes: where ranks are strict, JAX adds no two that differ."""
    if call.bias is None:
        return call
    return call._replace(bias=call.bias.reshape((1,) * (4 - call.bias.ndim) + call.bias.shape))


def _flatten(call: Call) -> tuple[tuple, tuple]:
    leaves = (call.mask, call.bias, call.scale, call.softcap, call.sinks, call.query_offset)
    return leaves, (call.sizes, call.empty_rows, call.dropout)


def _unflatten(static: tuple, leaves: tuple) -> Call:
    (sizes, empty_rows, dropout), (mask, bias, scale, softcap, sinks, offset) = static, leaves
    return Call(sizes, mask, bias, scale, softcap, sinks, empty_rows, offset, dropout, None)


jax.tree_util.register_pytree_node(Call, _flatten, _unflatten)
