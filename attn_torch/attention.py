"""The textbook formula, softmax(Q K^T * scale) V, with everything a mask can do to it.

`attention_steps` returns every step of it, `attention` only the output.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from . import checks
from .arrays import is_autocast
from .blocked import attention_blocked
from .call import Call, check_call
from .dtensors import are_shards, attend_shards
from .everyday import attention_on_cpu, narrow
from .flex import attention_on_gpu, launch_kernel
from .fused import known_structure
from .gradients import differentiable_again
from .masks import Mask
from .numerics import (
    cast_alike,
    is_bounded,
    may_overflow,
    no_autocast,
    split_nonfinite,
    upcast,
    zero_where_empty,
)
from .traced import allowed_cells, attend_traced, kernel_serves, may_look


class AttentionSteps(NamedTuple):
    """What one attention computes on its way: float32 for 16-bit inputs, but for the output."""

    scores: Float[Tensor, "... T S"]
    masked_scores: Float[Tensor, "... T S"]
    weights: Float[Tensor, "... T S"]
    output: Float[Tensor, "... T D_v"]


def attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv S D"],
    value: Float[Tensor, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Tensor, "T S"] | Float[Tensor, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Tensor, "..."] | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B H T D_v"]:
    """Attend: every query takes the mean of the values it is allowed, weighted by softmax.

    `scale` is 1/sqrt(D) where left out; `softcap` caps a score to +-softcap by tanh before `bias`
    is added and the mask applied. Query head h reads key/value head h // (H / H_kv). A fully
    masked row is 0, NaN or the mean over all S keys: `empty_rows` "zero", "nan", "uniform".
    `sinks` are one more logit a head in the softmax of each row, with no value: they are neither
    scaled, capped nor masked, the weights sum to less than 1, and a fully masked row is 0.
    Without dropout no (T, S) matrix is held, nor in the first derivative. The second and further
    ones, forward mode and `torch.func` are right too, and hold it, as the steps do. Raises
    ValueError for shapes and ranges, TypeError for kinds and dtypes.

    Source: "Attention Is All You Need", section 3.2.1; grouped heads: "GQA", section 2.2;
    sinks: "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2.

    >>> query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    >>> from attn_torch import causal
    >>> output = attention(query, key, value, mask=causal())
    >>> bool((output[:, :, 0] == value[:, :, 0]).all())  # its own key is all it is allowed
    True
    """
    options = (mask, bias, scale, softcap, sinks, empty_rows, query_offset, dropout, generator)
    call = check_call(query, key, value, *options)
    return attend(query, key, value, call)


def attention_steps(
    query: Float[Tensor, "... T D"],
    key: Float[Tensor, "... S D"],
    value: Float[Tensor, "... S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Tensor, "T S"] | Float[Tensor, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Tensor, "..."] | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> AttentionSteps:
    """Attend, and return every step: scores, masked scores, weights, output.

    scores are softcap(query . key * scale); masked_scores have the bias added and -inf where
    hidden; weights are those of the keys, before dropout. Takes and raises what `attention` does,
    and for lessons also (B, T, D), one head, and (T, D), one sample; every step keeps the rank.

    >>> query, key, value = torch.randn(3, 1, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    >>> from attn_torch import causal
    >>> attention_steps(query, key, value, mask=causal()).weights[0, 0, 0]
    tensor([1., 0.])
    """
    rank = checks.check_same_rank(query, key, value)
    query, key, value = (_in_rank_four(array) for array in (query, key, value))
    options = (mask, bias, scale, softcap, sinks, empty_rows, query_offset, dropout, generator)
    call = check_call(query, key, value, *options)
    steps = attend_steps(query, key, value, call)
    return AttentionSteps(*(_in_rank(rank, step) for step in steps))


def _in_rank_four(array: Tensor) -> Tensor:
    """Read (B, T, D) as one head, and (T, D) as one head of one sample."""
    return array[None, None] if array.ndim == 2 else array[:, None] if array.ndim == 3 else array


def _in_rank(rank: int, step: Tensor) -> Tensor:
    return step[0, 0] if rank == 2 else step[:, 0] if rank == 3 else step


def attend(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Return the output of a checked call: by tiles, or by the textbook."""
    if are_shards(query, key, value, call.mask):
        return attend_shards(lambda *shards: (attend(*shards),), query, key, value, call)[0]
    if is_autocast(query.device):
        query, key, value = cast_alike(query, key, value)
        with no_autocast(query):
            return attend(query, key, value, call)
    look = may_look(query, key, value, call)
    fast = look or kernel_serves(query, key, value, call)
    if call.dropout > 0 or 0 in (*call.sizes, value.shape[3]) or not fast:
        return attend_steps(query, key, value, call).output
    if not look:
        known = call.bias is None and known_structure(call)
        allowed = None if known else allowed_cells(call, query.device)
        return attend_traced(query, key, value, call, allowed)
    if query.is_cpu and call.sizes[2] == 1:
        key, value, call = narrow(key, value, call)
    # A GPU begins with what is most often right, before anybody waits for what it must be told.
    early = launch_kernel(query, key, value, call) if query.is_cuda else None
    bounded = is_bounded(query, key, value, call.scale)
    if not bounded and may_overflow(query, key, call.scale):
        return attend_steps(query, key, value, call).output
    if early is not None and bounded:
        output = early
    elif call.sinks is not None:
        output = attention_blocked(query, key, value, call, bounded)
    elif query.is_cpu:
        output = attention_on_cpu(query, key, value, call, bounded)
    elif query.is_cuda:
        output = attention_on_gpu(query, key, value, call, bounded)
    else:
        output = attention_blocked(query, key, value, call, bounded)
    if not output.requires_grad:
        return output

    def textbook(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, sinks: Tensor | None
    ) -> Tensor:
        return attend_steps(query, key, value, call._replace(bias=bias, sinks=sinks)).output

    return differentiable_again(output, call, textbook, query, key, value, call.bias, call.sinks)


def attend_steps(query: Tensor, key: Tensor, value: Tensor, call: Call) -> AttentionSteps:
    """Return every step of a checked call."""
    if are_shards(query, key, value, call.mask):
        return AttentionSteps(*attend_shards(attend_steps, query, key, value, call))
    query, key, value = cast_alike(query, key, value)
    bias, sinks = (x if x is None else x.to(query.device) for x in (call.bias, call.sinks))
    call = call._replace(bias=bias, sinks=sinks)
    with no_autocast(query):
        allowed = allowed_cells(call, query.device)
        q, k, v = (upcast(array) for array in (query, key, value))
        q = zero_where_empty(q, ~allowed.any(-1, keepdim=True))
        k, v, nonfinite = split_nonfinite(k, v)
        groups = call.sizes[1] // key.shape[1]
        k, v, nonfinite = (array.repeat_interleave(groups, dim=1) for array in (k, v, nonfinite))

        scores = q * call.scale @ k.mT  # (B, H, T, S)
        if call.softcap is not None:
            scores = torch.where(allowed, scores, scores.detach())  # tanh' of a hidden NaN is NaN
            scores = call.softcap * torch.tanh(scores / call.softcap)
        scores = torch.where(nonfinite[:, :, None, :], torch.nan, scores)
        masked_scores = scores if call.bias is None else scores + upcast(call.bias)
        masked_scores = torch.where(allowed, masked_scores, -torch.inf)
        weights = _softmax(masked_scores, allowed, nonfinite, call)
        # A weight of 0 takes no gradient: that of a huge hidden value would be 0 * inf.
        kept = weights.masked_fill(weights == 0, 0)
        output = _drop(kept, call.dropout, call.generator) @ v  # (B, H, T, D_v)
        if not call.sizes[3] and call.empty_rows != "zero":
            output = output + torch.nan  # the mean over no key at all is 0/0
        return AttentionSteps(scores, masked_scores, weights, output.to(query.dtype))


def _softmax(masked_scores: Tensor, allowed: Tensor, nonfinite: Tensor, call: Call) -> Tensor:
    """Softmax over the keys, and the sink; what a fully masked row becomes without one."""
    empty = torch.broadcast_to(~allowed, masked_scores.shape).all(-1, keepdim=True)
    if call.sinks is not None:
        sinks = upcast(call.sinks)[:, None, None]
        sinks = torch.where(empty, sinks.clamp(min=torch.finfo(sinks.dtype).min), sinks)
        masked_scores = torch.cat((masked_scores, sinks), -1)
    elif call.empty_rows != "nan":  # equal scores instead of -inf, so that 0/0 never comes up
        fill = torch.nan if call.empty_rows == "uniform" else 0.0  # for keys that are not finite
        equal = torch.where(nonfinite[:, :, None, :], fill, torch.zeros_like(masked_scores))
        masked_scores = torch.where(empty, equal, masked_scores)
    weights = masked_scores.softmax(-1)
    if call.sinks is not None:
        return weights[..., :-1]
    return torch.where(empty, 0, weights) if call.empty_rows == "zero" else weights


def _drop(weights: Tensor, dropout: float, generator: torch.Generator | None) -> Tensor:
    if dropout == 0:
        return weights
    if dropout == 1:
        everything = torch.ones_like(weights, dtype=torch.bool)
        return weights.masked_fill(everything, 0)  # 1 / (1 - p) would be 0/0
    kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= dropout
    return torch.where(kept, weights / (1 - dropout), 0)
