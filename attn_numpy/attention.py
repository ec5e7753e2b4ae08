"""The textbook formula, softmax(Q K^T * scale) V, with everything a mask can do to it.

`attention_steps` returns every step of it, `attention` only the output.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from . import checks
from .blocked import attention_blocked
from .masks import Mask
from .numerics import scale_or_default, split_nonfinite, upcast
from .tiles import Cells


class AttentionSteps(NamedTuple):
    """What one attention computes on its way: float32 for 16-bit inputs, but for the output."""

    scores: Float[np.ndarray, "B H T S"]
    masked_scores: Float[np.ndarray, "B H T S"]
    weights: Float[np.ndarray, "B H T S"]
    output: Float[np.ndarray, "B H T D_v"]


def attention(
    query: Float[np.ndarray, "B H T D"],
    key: Float[np.ndarray, "B H_kv S D"],
    value: Float[np.ndarray, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[np.ndarray, "T S"] | Float[np.ndarray, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[np.ndarray, "..."] | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Float[np.ndarray, "B H T D_v"]:
    """Attend: every query takes the mean of the values it may see, weighted by softmax.

    `scale` is 1/sqrt(D) where left out; `softcap` caps a score to +-softcap by tanh before `bias`
    is added and the mask applied. Query head h reads key/value head h // (H / H_kv). A row that
    may see nothing is 0, NaN or the mean over all S keys: `empty_rows` "zero", "nan", "uniform".
    Raises ValueError for shapes and ranges, TypeError for kinds and dtypes.

    Source: "Attention Is All You Need", section 3.2.1; grouped heads: "GQA", section 2.2.

    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.normal(size=(3, 1, 2, 5, 4))
    >>> from attn_numpy import causal
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
        "scale": scale,
        "softcap": softcap,
        "empty_rows": empty_rows,
        "query_offset": query_offset,
    }
    if dropout > 0 or 0 in (*query.shape, *value.shape) or _may_overflow(query, key, scale):
        steps = attention_steps(query, key, value, **options, dropout=dropout, rng=rng)
        return steps.output
    return attention_blocked(query, key, value, **options)


@np.errstate(over="ignore", invalid="ignore")  # inf and NaN are answers, not accidents
def attention_steps(
    query: Float[np.ndarray, "B H T D"],
    key: Float[np.ndarray, "B H_kv S D"],
    value: Float[np.ndarray, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[np.ndarray, "T S"] | Float[np.ndarray, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[np.ndarray, "..."] | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> AttentionSteps:
    """Attend, and return every step: scores, masked scores, weights, output.

    scores are softcap(query . key * scale); masked_scores have the bias added and -inf where
    hidden; weights are taken before dropout. Takes and raises what `attention` does.

    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 1, 1, 2, 4))
    >>> from attn_numpy import causal
    >>> attention_steps(query, key, value, mask=causal()).weights[0, 0, 0]
    array([1., 0.])
    """
    query_offset = _check(
        query, key, value, mask, bias, scale, softcap, empty_rows, query_offset, dropout
    )
    sizes = (*query.shape[:3], key.shape[2])
    visible = _visible(mask, bias, sizes, query_offset)
    q, k, v = (upcast(array) for array in (query, key, value))
    k, v, nonfinite = split_nonfinite(k, v)
    k, v, nonfinite = (
        np.repeat(array, sizes[1] // key.shape[1], axis=1) for array in (k, v, nonfinite)
    )

    scores = q @ k.swapaxes(-1, -2) * scale_or_default(scale, query.shape[3])  # (B, H, T, S)
    if softcap is not None:
        scores = float(softcap) * np.tanh(scores / float(softcap))
    scores = np.where(nonfinite[:, :, None, :], np.nan, scores)
    masked_scores = scores if bias is None else scores + upcast(bias)
    masked_scores = np.where(visible, masked_scores, -np.inf)
    weights = _softmax(masked_scores, visible, nonfinite, empty_rows)
    output = _drop(weights, dropout, rng) @ v  # (B, H, T, D_v)
    if not sizes[3] and empty_rows != "zero":
        output[...] = np.nan  # the mean over no key at all is 0/0
    return AttentionSteps(scores, masked_scores, weights, output.astype(query.dtype))


def _check(query, key, value, mask, bias, scale, softcap, empty_rows, query_offset, dropout):
    """Refuse a wrong call; return the position of the first query."""
    checks.check_attention(query, key, value, bias, scale, softcap, empty_rows, dropout)
    if mask is not None:
        checks.check_is_mask("mask must be a Mask", mask, Mask)
    sizes = (*query.shape[:3], key.shape[2])
    checks.check_mask(mask, sizes)
    return checks.check_query_offset(query_offset, mask, sizes)


def _may_overflow(query, key, scale) -> bool:
    """Whether a logit may leave float32: only the textbook tells such a row from an empty one."""
    largest = _largest(query) * _largest(key)
    return largest * query.shape[3] * abs(scale_or_default(scale, query.shape[3])) > 1e38


def _largest(array) -> float:
    """Return the largest absolute value, beside NaN too, which may be hidden."""
    with np.errstate(invalid="ignore"):
        largest = max(array.max(), -array.min()).item()
    if math.isnan(largest):
        largest = abs(array).max(where=~np.isnan(array), initial=0).item()
    return largest


def _visible(mask, bias, sizes, query_offset):
    """Return what both the mask and the bias leave visible, broadcasting to (B, H, T, S)."""
    visible = np.ones((1, 1, 1, 1), bool)
    if mask is not None:
        visible = mask.evaluate(Cells(sizes, query_offset))
    return visible if bias is None else visible & (bias != -np.inf)


def _softmax(masked_scores, visible, nonfinite, empty_rows: str):
    """Softmax over the keys; `empty_rows` says what a row that may see nothing becomes."""
    empty = np.broadcast_to(~visible, masked_scores.shape).all(-1, keepdims=True)
    if empty_rows != "nan":  # equal scores instead of -inf, so that 0/0 never comes up
        fill = np.nan if empty_rows == "uniform" else 0.0  # for keys that are not finite
        level = np.where(nonfinite[:, :, None, :], fill, np.zeros_like(masked_scores))
        masked_scores = np.where(empty, level, masked_scores)
    exp = np.exp(masked_scores - masked_scores.max(-1, keepdims=True, initial=-np.inf))
    weights = exp / exp.sum(-1, keepdims=True)
    return np.where(empty, 0, weights) if empty_rows == "zero" else weights


def _drop(weights, dropout: float, rng):
    if dropout == 0:
        return weights
    if dropout == 1:
        return np.zeros_like(weights)  # 1 / (1 - p) would be 0/0
    kept = np.random.default_rng(rng).random(weights.shape) >= dropout
    return np.where(kept, weights / weights.dtype.type(1 - dropout), 0)
