"""The textbook formula, softmax(Q K^T * scale) V, with everything a mask can do to it.

`attention_steps` returns every step of it, `attention` only the output, and takes the fast way.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Integer

from . import checks
from .blocked import attention_blocked
from .masks import Mask, allow
from .numerics import scale_or_default, split_nonfinite, upcast
from .tiles import Cells


class AttentionSteps(NamedTuple):
    """What one attention computes on its way: float32 for 16-bit inputs, but for the output."""

    scores: Float[Array, "B H T S"]
    masked_scores: Float[Array, "B H T S"]
    weights: Float[Array, "B H T S"]
    output: Float[Array, "B H T D_v"]


def attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H_kv S D"],
    value: Float[Array, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "T S"] | Float[Array, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Array | np.ndarray, "..."] | None = None,
    dropout: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "B H T D_v"]:
    """Attend: every query takes the mean of the values it may see, weighted by softmax.

    `scale` is 1/sqrt(D) where left out; `softcap` caps a score to +-softcap by tanh before `bias`
    is added and the mask applied. Query head h reads key/value head h // (H / H_kv). A row that
    may see nothing is 0, NaN or the mean over all S keys: `empty_rows` "zero", "nan", "uniform".
    Raises ValueError for shapes and ranges, TypeError for kinds and dtypes.

    Source: "Attention Is All You Need", section 3.2.1; grouped heads: "GQA", section 2.2.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 2, 5, 4))
    >>> from attn_jax import causal
    >>> output = attention(query, key, value, mask=causal())
    >>> bool((output[:, :, 0] == value[:, :, 0]).all())  # the first query sees the first key alone
    True
    """
    query_offset = _check(
        query, key, value, mask, bias, scale, softcap, empty_rows, query_offset, dropout
    )
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "scale": scale_or_default(scale, query.shape[3]),
        "softcap": None if softcap is None else float(softcap),
        "empty_rows": empty_rows,
        "query_offset": query_offset,
    }
    nothing = 0 in (*query.shape, *value.shape)
    if query.shape[2] == 1 and not (dropout or nothing):
        return _step(query, key, value, **options)
    small = query.shape[2] * key.shape[2] <= 128 * 128  # one tile only takes long to compile
    if dropout > 0 or nothing or small:
        steps = attention_steps(query, key, value, **options, dropout=dropout, rngs=rngs)
        return steps.output
    return attention_blocked(query, key, value, **options)


def attention_steps(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H_kv S D"],
    value: Float[Array, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "T S"] | Float[Array, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Array | np.ndarray, "..."] | None = None,
    dropout: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> AttentionSteps:
    """Attend, and return every step: scores, masked scores, weights, output.

    scores are softcap(query . key * scale); masked_scores have the bias added and -inf where
    hidden; weights are taken before dropout. Takes and raises what `attention` does.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 1, 2, 4))
    >>> from attn_jax import causal
    >>> attention_steps(query, key, value, mask=causal()).weights[0, 0, 0]
    Array([1., 0.], dtype=float32)
    """
    query_offset = _check(
        query, key, value, mask, bias, scale, softcap, empty_rows, query_offset, dropout
    )
    if dropout > 0 and rngs is None:
        raise ValueError("dropout needs rngs: got None")
    softcap = None if softcap is None else float(softcap)
    scale = scale_or_default(scale, query.shape[3])
    dropout_key = rngs.dropout() if rngs and 0 < dropout < 1 else None
    arrays = (query, key, value, mask, bias, scale, softcap, query_offset, dropout_key)
    return _steps(*arrays, empty_rows=empty_rows, dropout=float(dropout))


def _check(query, key, value, mask, bias, scale, softcap, empty_rows, query_offset, dropout):
    """Refuse a wrong call; return the position of the first query."""
    checks.check_attention(query, key, value, bias, scale, softcap, empty_rows, dropout)
    if mask is not None:
        checks.check_is_mask("mask must be a Mask", mask, Mask)
    sizes = (*query.shape[:3], key.shape[2])
    checks.check_mask(mask, sizes)
    return checks.check_query_offset(query_offset, mask, sizes)


@partial(jax.jit, static_argnames="empty_rows")
def _step(query, key, value, mask, bias, scale, softcap, query_offset, empty_rows):
    """The formula for one query a head, with what it may see made an array of."""
    sizes = (*query.shape[:3], key.shape[2])
    visible = _visible(mask, bias, sizes, query_offset)
    visible = jnp.broadcast_to(visible, (*visible.shape[:2], 1, sizes[3]))
    return _attend_once(empty_rows, query, key, value, visible, bias, scale, softcap)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend_once(empty_rows, query, key, value, visible, bias, scale, softcap):
    """Attend from one query a head, reading keys and values once and copying neither.

    They are not looked through for what is not finite: where there is any, seen or hidden, a score
    or the output is not finite. Then, and for gradients, the textbook answers.
    """
    arrays = (query, key, value, visible, bias, scale, softcap)
    shared = (*key.shape[:2], -1)  # the heads that share a key stand side by side
    q = upcast(query).reshape(*shared, query.shape[3])
    q = q * jnp.asarray(scale, q.dtype)
    scores = (q @ upcast(key).swapaxes(-1, -2)).reshape(*query.shape[:3], -1)
    none = jnp.zeros((1, 1, 1), bool)
    weights = _weigh(scores, none, visible, bias, softcap, empty_rows)[2]
    output = (weights.reshape(*shared, key.shape[2]) @ upcast(value)).reshape(*query.shape[:3], -1)
    fine = jnp.isfinite(scores).all() & jnp.isfinite(output).all()
    output = output.astype(query.dtype)
    return lax.cond(fine, lambda *_: output, partial(_textbook, empty_rows), *arrays)


@_attend_once.defjvp
def _attend_once_jvp(empty_rows, primals, tangents):
    return jax.jvp(partial(_textbook, empty_rows), primals, tangents)


def _textbook(empty_rows, query, key, value, visible, bias, scale, softcap):
    arrays = (query, key, value, allow(visible), bias, scale, softcap, 0, None)
    return _steps(*arrays, empty_rows=empty_rows, dropout=0.0).output


@partial(jax.jit, static_argnames=("empty_rows", "dropout"))
def _steps(
    query, key, value, mask, bias, scale, softcap, query_offset, dropout_key, *, empty_rows, dropout
):
    """The formula, compiled once for each set of shapes and each structure of a mask."""
    sizes = (*query.shape[:3], key.shape[2])
    visible = _visible(mask, bias, sizes, query_offset)
    q, k, v = (upcast(array) for array in (query, key, value))
    k, v, nonfinite = split_nonfinite(k, v)
    k, v, nonfinite = (
        jnp.repeat(array, sizes[1] // key.shape[1], axis=1) for array in (k, v, nonfinite)
    )

    q = q * jnp.asarray(scale, q.dtype)  # not the scores: XLA would fuse that product with exp's
    scores = q @ k.swapaxes(-1, -2)  # (B, H, T, S)
    scores, masked_scores, weights = _weigh(scores, nonfinite, visible, bias, softcap, empty_rows)
    # A weight of 0 takes no gradient: that of a huge hidden value would be 0 * inf.
    output = _drop(jnp.where(weights == 0, 0, weights), dropout, dropout_key) @ v  # (B, H, T, D_v)
    if not sizes[3] and empty_rows != "zero":
        output = jnp.full_like(output, jnp.nan)  # the mean over no key at all is 0/0
    return AttentionSteps(scores, masked_scores, weights, output.astype(query.dtype))


def _weigh(scores, nonfinite, visible, bias, softcap, empty_rows: str):
    """Return scores, masked scores and weights, made of the products of queries and keys."""
    lost = nonfinite[:, :, None, :] | jnp.isnan(
        scores
    )  # inf - inf is NaN too, and tanh would spread it
    if softcap is not None:
        softcap = jnp.asarray(softcap, scores.dtype)
        scores = softcap * jnp.tanh(jnp.where(lost, 0, scores) / softcap)
    scores = jnp.where(lost, jnp.nan, scores)
    masked_scores = scores if bias is None else scores + upcast(bias)
    masked_scores = jnp.where(visible, masked_scores, -jnp.inf)
    return scores, masked_scores, _softmax(masked_scores, visible, nonfinite, empty_rows)


def _visible(mask, bias, sizes, query_offset):
    """Return what both the mask and the bias leave visible, broadcasting to (B, H, T, S)."""
    visible = jnp.ones((1, 1, 1, 1), bool)
    if mask is not None:
        visible = mask.evaluate(Cells(sizes, query_offset, xp=jnp))
    return visible if bias is None else visible & (bias != -jnp.inf)


def _softmax(masked_scores, visible, nonfinite, empty_rows: str):
    """Softmax over the keys; `empty_rows` says what a row that may see nothing becomes."""
    empty = jnp.broadcast_to(~visible, masked_scores.shape).all(-1, keepdims=True)
    # Equal scores instead of -inf, so that 0/0 never comes up. NaN is put in after the softmax:
    # on a CPU, XLA's exp may answer NaN with stale memory.
    lost = jnp.isnan(masked_scores).any(-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(empty | lost, 0, masked_scores), -1)
    if empty_rows == "uniform":  # a key that is not finite counts again
        lost |= empty & nonfinite.any(-1)[:, :, None, None]
    elif empty_rows == "nan":
        lost |= empty
    else:
        weights = jnp.where(empty, 0, weights)
    return jnp.where(lost, jnp.nan, weights)


def _drop(weights, dropout: float, dropout_key):
    if dropout == 0:
        return weights
    if dropout == 1:
        return jnp.zeros_like(weights)  # 1 / (1 - p) would be 0/0
    kept = jax.random.bernoulli(dropout_key, 1 - dropout, weights.shape)
    return jnp.where(kept, weights / (1 - dropout), 0)
