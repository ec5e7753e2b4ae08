"""The textbook formula, softmax(Q K^T * scale) V, with everything a mask can do to it.

`attention_steps` returns every step of it, `attention` only the output.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from . import checks
from .blocked import ScoreOverflow, attention_blocked
from .call import Call, check_call
from .masks import Mask
from .numerics import split_nonfinite, upcast, without_warnings
from .tiles import Cells


class AttentionSteps(NamedTuple):
    """What one attention computes on its way: float32 for 16-bit inputs, but for the output."""

    scores: Float[np.ndarray, "... T S"]
    masked_scores: Float[np.ndarray, "... T S"]
    weights: Float[np.ndarray, "... T S"]
    output: Float[np.ndarray, "... T D_v"]


def attention(
    query: Float[np.ndarray, "B H T D"],
    key: Float[np.ndarray, "B H_kv S D"],
    value: Float[np.ndarray, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[np.ndarray, "T S"] | Float[np.ndarray, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[np.ndarray, " H"] | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[np.ndarray, "..."] | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Float[np.ndarray, "B H T D_v"]:
    """Attend: every query takes the mean of the values it is allowed, weighted by softmax.

    `scale` is 1/sqrt(D) where left out; `softcap` caps a score to +-softcap by tanh before `bias`
    is added and the mask applied. Query head h reads key/value head h // (H / H_kv). A fully
    masked row is 0, NaN or the mean over all S keys: `empty_rows` "zero", "nan", "uniform".
    `sinks` are one more logit a head in the softmax of each row, with no value: they are neither
    scaled, capped nor masked, the weights sum to less than 1, and a fully masked row is 0.
    Raises ValueError for shapes and ranges, TypeError for kinds and dtypes.

    Source: "Attention Is All You Need", section 3.2.1; grouped heads: "GQA", section 2.2;
    sinks: "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2.

    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.normal(size=(3, 1, 2, 5, 4))
    >>> from attn_numpy import causal
    >>> output = attention(query, key, value, mask=causal())
    >>> bool((output[:, :, 0] == value[:, :, 0]).all())  # its own key is all it is allowed
    True
    """
    options = (mask, bias, scale, softcap, sinks, empty_rows, query_offset, dropout, rng)
    call = check_call(query, key, value, *options)
    return attend(query, key, value, call)


def attention_steps(
    query: Float[np.ndarray, "... T D"],
    key: Float[np.ndarray, "... S D"],
    value: Float[np.ndarray, "... S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[np.ndarray, "T S"] | Float[np.ndarray, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[np.ndarray, " H"] | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[np.ndarray, "..."] | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> AttentionSteps:
    """Attend, and return every step: scores, masked scores, weights, output.

    scores are softcap(query . key * scale); masked_scores have the bias added and -inf where
    hidden; weights are those of the keys, before dropout. Takes and raises what `attention` does,
    and for lessons also (B, T, D), one head, and (T, D), one sample; every step keeps the rank.

    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 1, 1, 2, 4))
    >>> from attn_numpy import causal
    >>> attention_steps(query, key, value, mask=causal()).weights[0, 0, 0]
    array([1., 0.])
    """
    rank = checks.check_same_rank(query, key, value)
    query, key, value = (_in_rank_four(array) for array in (query, key, value))
    options = (mask, bias, scale, softcap, sinks, empty_rows, query_offset, dropout, rng)
    call = check_call(query, key, value, *options)
    steps = attend_steps(query, key, value, call)
    return AttentionSteps(*(_in_rank(rank, step) for step in steps))


def _in_rank_four(array: np.ndarray) -> np.ndarray:
    """Read (B, T, D) as one head, and (T, D) as one head of one sample."""
    return array[None, None] if array.ndim == 2 else array[:, None] if array.ndim == 3 else array


def _in_rank(rank: int, step: np.ndarray) -> np.ndarray:
    return step[0, 0] if rank == 2 else step[:, 0] if rank == 3 else step


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, call: Call) -> np.ndarray:
    """Return the output of a checked call: by tiles, or by the textbook."""
    if call.dropout > 0 or 0 in (*call.sizes, value.shape[3]):
        return attend_steps(query, key, value, call).output
    try:
        return attention_blocked(query, key, value, call)
    except ScoreOverflow:
        return attend_steps(query, key, value, call).output


@without_warnings
def attend_steps(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, call: Call
) -> AttentionSteps:
    """Return every step of a checked call."""
    allowed = allowed_cells(call)
    q, k, v = (upcast(array) for array in (query, key, value))
    k, v, nonfinite = split_nonfinite(k, v)
    groups = call.sizes[1] // key.shape[1]
    k, v, nonfinite = (np.repeat(array, groups, axis=1) for array in (k, v, nonfinite))

    scores = q * call.scale @ k.swapaxes(-1, -2)  # (B, H, T, S)
    if call.softcap is not None:
        scores = call.softcap * np.tanh(scores / call.softcap)
    scores = np.where(nonfinite[:, :, None, :], np.nan, scores)
    masked_scores = scores if call.bias is None else scores + upcast(call.bias)
    masked_scores = np.where(allowed, masked_scores, -np.inf)
    weights = _softmax(masked_scores, allowed, nonfinite, call)
    output = _drop(weights, call.dropout, call.rng) @ v  # (B, H, T, D_v)
    if not call.sizes[3] and call.empty_rows != "zero":
        output[...] = np.nan  # the mean over no key at all is 0/0
    return AttentionSteps(scores, masked_scores, weights, output.astype(query.dtype))


def allowed_cells(call: Call) -> np.ndarray:
    """Return where both the mask and the bias allow a key, broadcasting to (B, H, T, S)."""
    allowed = np.ones((1, 1, 1, 1), dtype=bool)
    if call.mask is not None:
        allowed = call.mask.evaluate(Cells(call.sizes, call.query_offset))
    return allowed if call.bias is None else allowed & (call.bias != -np.inf)


def _softmax(
    masked_scores: np.ndarray, allowed: np.ndarray, nonfinite: np.ndarray, call: Call
) -> np.ndarray:
    """Softmax over the keys, and the sink; what a fully masked row becomes without one."""
    empty = np.broadcast_to(~allowed, masked_scores.shape).all(-1, keepdims=True)
    if call.sinks is not None:
        sinks = upcast(call.sinks)[:, None, None]
        sinks = np.where(empty, np.maximum(sinks, np.finfo(sinks.dtype).min), sinks)
        masked_scores = np.concatenate((masked_scores, sinks), -1)
    elif call.empty_rows != "nan":  # equal scores instead of -inf, so that 0/0 never comes up
        fill = np.nan if call.empty_rows == "uniform" else 0.0  # for keys that are not finite
        equal = np.where(nonfinite[:, :, None, :], fill, np.zeros_like(masked_scores))
        masked_scores = np.where(empty, equal, masked_scores)
    exp = np.exp(masked_scores - masked_scores.max(-1, keepdims=True, initial=-np.inf))
    weights = exp / exp.sum(-1, keepdims=True)
    if call.sinks is not None:
        return weights[..., :-1]
    return np.where(empty, 0, weights) if call.empty_rows == "zero" else weights


def _drop(weights: np.ndarray, dropout: float, rng: np.random.Generator | None) -> np.ndarray:
    if dropout == 0:
        return weights
    if dropout == 1:
        return np.zeros_like(weights)  # 1 / (1 - p) would be 0/0
    kept = np.random.default_rng(rng).random(weights.shape) >= dropout
    return np.where(kept, weights / weights.dtype.type(1 - dropout), 0)
