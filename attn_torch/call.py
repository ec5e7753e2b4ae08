"""One call of attention, checked and completed once: nothing below it checks or derives again."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .masks import Mask
from .numerics import scale_or_default


class Call(NamedTuple):
    """What an attention is told beside query, key and value; `sizes` is (B, H, T, S)."""

    sizes: tuple[int, int, int, int]
    mask: Mask | None
    bias: Tensor | None  # (T, S), or rank 4 with dims of 1
    scale: float
    softcap: float | None
    sinks: Tensor | None  # (H,)
    empty_rows: str
    query_offset: int | Tensor
    dropout: float
    generator: torch.Generator | None


def check_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    empty_rows: str = "zero",
    query_offset: int | Tensor | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Call:
    """Refuse a wrong call, as `attention` says; return what is left to do."""
    checks.check_attention(query, key, value, bias, scale, softcap, sinks, empty_rows, dropout)
    if mask is not None:
        checks.check_is_mask("mask must be a Mask", mask, Mask)
    batch, heads, queries, head_dim = query.shape
    sizes = (batch, heads, queries, key.shape[2])
    checks.check_mask(mask, sizes)
    query_offset = checks.check_query_offset(query_offset, mask, sizes)
    scale = scale_or_default(scale, head_dim)
    softcap = None if softcap is None else float(softcap)
    empty_rows = "zero" if sinks is not None else empty_rows  # what is left goes to the sink
    return Call(
        sizes,
        mask,
        bias,
        scale,
        softcap,
        sinks,
        empty_rows,
        query_offset,
        float(dropout),
        generator,
    )
