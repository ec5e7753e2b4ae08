"""The textbook formula, softmax(Q K^T * scale) V, with everything a mask can do to it.

`attention_steps` returns every step of it, `attention` only the output.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from . import checks
from .arrays import is_concrete
from .blocked import attention_blocked
from .masks import Mask
from .numerics import no_autocast, scale_or_default, split_nonfinite, upcast
from .tiles import Cells


class AttentionSteps(NamedTuple):
    """What one attention computes on its way: float32 for 16-bit inputs, but for the output."""

    scores: Float[Tensor, "B H T S"]
    masked_scores: Float[Tensor, "B H T S"]
    weights: Float[Tensor, "B H T S"]
    output: Float[Tensor, "B H T D_v"]


def attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv S D"],
    value: Float[Tensor, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Tensor, "T S"] | Float[Tensor, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Tensor, "..."] | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B H T D_v"]:
    """Attend: every query takes the mean of the values it may see, weighted by softmax.

    `scale` is 1/sqrt(D) where left out; `softcap` caps a score to +-softcap by tanh before `bias`
    is added and the mask applied. Query head h reads key/value head h // (H / H_kv). A row that
    may see nothing is 0, NaN or the mean over all S keys: `empty_rows` "zero", "nan", "uniform".
    Without dropout no (T, S) matrix is held, and the result is differentiable once; the steps
    are any number of times. Raises ValueError for shapes and ranges, TypeError for kinds and
    dtypes.

    Source: "Attention Is All You Need", section 3.2.1; grouped heads: "GQA", section 2.2.

    >>> query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    >>> from attn_torch import causal
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
    nothing = 0 in (*query.shape, *value.shape)
    if dropout > 0 or nothing or query.is_meta or _may_overflow(query, key, scale):
        options |= {"dropout": dropout, "generator": generator}
        return attention_steps(query, key, value, **options).output
    with no_autocast(query):
        return attention_blocked(query, key, value, **options)


def attention_steps(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv S D"],
    value: Float[Tensor, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Tensor, "T S"] | Float[Tensor, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Tensor, "..."] | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> AttentionSteps:
    """Attend, and return every step: scores, masked scores, weights, output.

    scores are softcap(query . key * scale); masked_scores have the bias added and -inf where
    hidden; weights are taken before dropout. Takes and raises what `attention` does.

    >>> query, key, value = torch.randn(3, 1, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    >>> from attn_torch import causal
    >>> attention_steps(query, key, value, mask=causal()).weights[0, 0, 0]
    tensor([1., 0.])
    """
    query_offset = _check(
        query, key, value, mask, bias, scale, softcap, empty_rows, query_offset, dropout
    )
    sizes = (*query.shape[:3], key.shape[2])
    with no_autocast(query):
        if bias is not None:
            bias = bias.to(query.device)
        visible = _visible(mask, bias, sizes, query_offset, query.device)
        q, k, v = (upcast(array) for array in (query, key, value))
        k, v, nonfinite = split_nonfinite(k, v)
        groups = sizes[1] // key.shape[1]
        k, v, nonfinite = (array.repeat_interleave(groups, dim=1) for array in (k, v, nonfinite))

        scores = q @ k.mT * scale_or_default(scale, query.shape[3])  # (B, H, T, S)
        if softcap is not None:
            scores = torch.where(visible, scores, scores.detach())  # tanh' of a hidden NaN is NaN
            scores = float(softcap) * torch.tanh(scores / float(softcap))
        scores = torch.where(nonfinite[:, :, None, :], torch.nan, scores)
        masked_scores = scores if bias is None else scores + upcast(bias)
        masked_scores = torch.where(visible, masked_scores, -torch.inf)
        weights = _softmax(masked_scores, visible, nonfinite, empty_rows)
        # A weight of 0 takes no gradient: that of a huge hidden value would be 0 * inf.
        kept = weights.masked_fill(weights == 0, 0)
        output = _drop(kept, dropout, generator) @ v  # (B, H, T, D_v)
        if not sizes[3] and empty_rows != "zero":
            output = output + torch.nan  # the mean over no key at all is 0/0
        return AttentionSteps(scores, masked_scores, weights, output.to(query.dtype))


def _check(query, key, value, mask, bias, scale, softcap, empty_rows, query_offset, dropout):
    """Refuse a wrong call; return the position of the first query."""
    checks.check_attention(query, key, value, bias, scale, softcap, empty_rows, dropout)
    sizes = (*query.shape[:3], key.shape[2])
    if mask is not None:
        checks.check_is_mask("mask must be a Mask", mask, Mask)
    checks.check_mask(mask, sizes)
    return checks.check_query_offset(query_offset, mask, sizes)


def _may_overflow(query, key, scale) -> bool:
    """Whether a logit may leave float32: only the textbook tells such a row from an empty one."""
    if not is_concrete(query):
        return False
    largest = _largest(query.detach()) * _largest(key.detach())
    return largest * query.shape[3] * abs(scale_or_default(scale, query.shape[3])) > 1e38


def _largest(array) -> float:
    """Return the largest absolute value, beside NaN too, which may be hidden."""
    lowest, highest = (float(end) for end in torch.aminmax(array))
    if math.isnan(highest):
        return float(torch.where(array.isnan(), 0, array).abs().max())
    return max(-lowest, highest)


def _visible(mask, bias, sizes, query_offset, device):
    """Return what both the mask and the bias leave visible, broadcasting to (B, H, T, S)."""
    visible = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
    if mask is not None:
        visible = mask.evaluate(Cells(sizes, query_offset, device=device))
    return visible if bias is None else visible & (bias != -torch.inf)


def _softmax(masked_scores, visible, nonfinite, empty_rows: str):
    """Softmax over the keys; `empty_rows` says what a row that may see nothing becomes."""
    empty = (~visible).expand(masked_scores.shape).all(-1, keepdim=True)
    if empty_rows != "nan":  # equal scores instead of -inf, so that 0/0 never comes up
        fill = torch.nan if empty_rows == "uniform" else 0.0  # for keys that are not finite
        level = torch.where(nonfinite[:, :, None, :], fill, torch.zeros_like(masked_scores))
        masked_scores = torch.where(empty, level, masked_scores)
    weights = masked_scores.softmax(-1)
    return torch.where(empty, 0, weights) if empty_rows == "zero" else weights


def _drop(weights, dropout: float, generator):
    if dropout == 0:
        return weights
    if dropout == 1:
        everything = torch.ones_like(weights, dtype=torch.bool)
        return weights.masked_fill(everything, 0)  # 1 / (1 - p) would be 0/0
    kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= dropout
    return torch.where(kept, weights / (1 - dropout), 0)
