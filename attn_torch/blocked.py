"""Attention without the (T, S) matrix: one block of queries at a time, and the keys that it sees.

Where the structure is one that torch's fused kernel knows (everything visible, or plain causal)
the kernel is called. Everything else is walked: the mask is asked once about all tiles, and each
block of queries meets only the columns of tiles in which it may see something.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused import fused, has_kernel, known_structure
from .masks import Mask
from .numerics import all_finite, scale_or_default, split_nonfinite, upcast
from .plan import Block, BlockCells, plan
from .tiles import Cells, Tiles

# Found by timing windows, packed documents and causal & padding at T = 512 and 4096, in processor
# time on one core, 64 to 256 rows by 32 to 128 columns by 2**17 to 2**20 scores held at once: fewer
# rows pay more for calls, more rows and columns more for cells that only some rows see.
ROWS, COLUMNS = 128, 32


class _Call(NamedTuple):
    """What all blocks of a call share."""

    sizes: tuple[int, int, int, int]
    mask: Mask | None
    query_offset: Any
    scale: float
    softcap: float | None
    empty_rows: str
    nonfinite: Tensor | None  # (B, H_kv, S), the keys that were not finite; None: no score is NaN


def attention_blocked(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv S D"],
    value: Float[Tensor, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Tensor, "T S"] | Float[Tensor, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Tensor, "..."] = 0,
    tile: tuple[int, int] = (ROWS, COLUMNS),
) -> Float[Tensor, "B H T D_v"]:
    """Attend without ever holding the (T, S) matrix: tile by tile, as the mask allows.

    Takes what `attention` has checked, with no size of 0; `tile` is rows by columns. Memory grows
    linearly with T and S, backward too, where the scores of a block are computed again. It is
    differentiable once; `attention_steps` is differentiable any number of times.

    Source: "FlashAttention", section 3.1, for the tiles and the recomputation; "Self-attention
    Does Not Need O(n^2) Memory", section 3, for blocks of queries.

    >>> query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    >>> from attn_torch import attention_steps, sliding_window
    >>> output = attention_blocked(query, key, value, mask=sliding_window(1), tile=(2, 2))
    >>> steps = attention_steps(query, key, value, mask=sliding_window(1))
    >>> bool(torch.allclose(output, steps.output, atol=1e-6))
    True
    """
    sizes = (*query.shape[:3], key.shape[2])
    scale = scale_or_default(scale, query.shape[3])
    softcap = None if softcap is None else float(softcap)
    known = known_structure(mask, sizes, query_offset)
    widths = (query.shape[3], value.shape[3])
    kernel = bias is None and softcap is None
    kernel = kernel and has_kernel(query.device.type, query.dtype, *widths)
    if kernel and known:
        return fused(query, key, value, scale, causal=known == "causal")
    call = _Call(sizes, mask, query_offset, scale, softcap, empty_rows, None)
    return _walk(query, key, value, bias, call, tile, kernel)


@torch.compiler.disable  # which blocks there are depends on the mask's values
def _walk(query, key, value, bias, call: _Call, tile, kernel: bool):
    """Attend block by block, or by the fused kernel after all, should everything be visible."""
    every, some = _verdict(call, tile, query.device)
    if kernel and every.all():
        return fused(query, key, value, call.scale, causal=False)
    if bias is not None:
        bias = bias.to(query.device)
        bias = bias[None, None] if bias.ndim == 2 else bias
    if not all_finite(query, key, value) or (bias is not None and bias.detach().amax().isnan()):
        key, value, nonfinite = split_nonfinite(key, value)
        call = call._replace(nonfinite=nonfinite)
    tile = tile if call.mask is not None else (tile[0], call.sizes[3])
    blocks = plan(every, some, tile, call.sizes, key.shape[1], bias is not None, query.device)
    output = _Blocks.apply(upcast(query), upcast(key), upcast(value), bias, call, blocks)
    return output.to(query.dtype)


def _verdict(call: _Call, tile, device):
    """Ask the mask about all tiles: (B or 1, H or 1, T-tiles, S-tiles), on the CPU."""
    tiles = [-(-size // length) for size, length in zip(call.sizes[2:], tile, strict=True)]
    if call.mask is None:
        every = some = torch.ones((1, 1, tiles[0], 1), dtype=torch.bool)
    else:
        cells = Cells(call.sizes, call.query_offset, device=device)
        verdict = torch.stack(
            torch.broadcast_tensors(*call.mask.evaluate(Tiles(cells, *tile)))
        ).cpu()
        every, some = verdict.expand(*verdict.shape[:3], *tiles)
    return every, some


class _Part:
    """One block's share of a call, and its weights; made again in the backward pass."""

    def __init__(self, block: Block, call: _Call, query, key, bias):
        self.block, self.call = block, call
        self.groups = query.shape[1] // key.shape[1]
        self.at_rows, self.at_keys = block.queries(self.groups), block.keys()
        self.at_bias = None if bias is None else self._place(bias)
        self.query, self.key = self.join(query[self.at_rows]) * call.scale, key[self.at_keys]
        self.weights, self.tanh, self.empty = self._weights(bias)

    def join(self, rows):
        """(b, h * G, R, X) -> (b, h, G * R, X): a group's rows meet its one key head at once."""
        if self.groups == 1:
            return rows
        return rows.unflatten(1, (-1, self.groups)).flatten(2, 3)

    def split(self, rows):
        """(b, h, G * R, X) -> (b, h * G, R, X)."""
        if self.groups == 1:
            return rows
        return rows.unflatten(2, (self.groups, -1)).flatten(1, 2)

    def _place(self, bias):
        place = (*self.at_rows, self.block.columns)
        where = zip(place, bias.shape, self.call.sizes, strict=True)
        return tuple(slice(None) if got == 1 else part for part, got, _ in where)

    def _weights(self, bias):
        """Return weights (b, h, G * R, C), tanh(scores / softcap) and which rows are empty."""
        scores, tanh, call, block = self.query @ self.key.mT, None, self.call, self.block
        if call.softcap is not None:
            tanh = scores.div_(call.softcap).tanh_()
            scores = tanh * call.softcap
        if call.nonfinite is not None:
            scores.masked_fill_(call.nonfinite[self.at_keys][:, :, None], torch.nan)
        cells = self.split(scores)
        self._hide(cells, bias)
        empty = None if block.sure else cells.amax(-1, keepdim=True) == -torch.inf
        if empty is not None and empty.device.type == "cpu" and not empty.any():
            empty = None
        if empty is not None:  # no 0/0; what comes of it is selected away
            torch.maximum(cells, torch.where(empty, 0.0, -torch.inf), out=cells)
        return scores.softmax(-1), tanh, empty

    def _hide(self, cells, bias) -> None:
        """Add the bias and put -inf where a cell is hidden, in place."""
        call, block, visible = self.call, self.block, None
        if call.mask is not None and block.mixed is not None:
            at = BlockCells(block, self.groups, call.sizes, call.query_offset, cells.device)
            visible = call.mask.evaluate(at)
        if bias is not None:
            cells += bias[self.at_bias]
        if call.nonfinite is not None:  # NaN is in the way of what is faster
            if visible is not None:
                cells[..., block.place].masked_fill_(~visible, -torch.inf)
            if bias is not None:
                cells.masked_fill_(bias[self.at_bias] == -torch.inf, -torch.inf)
        elif visible is not None:
            top = visible.to(cells.dtype).sub_(0.5).mul_(torch.inf)  # inf where seen, else -inf
            part = cells[..., block.place]
            torch.minimum(part, top, out=part)  # a select, and ten times as fast as one


class _Blocks(torch.autograd.Function):
    """The walk; its backward pass computes each block's weights again."""

    @staticmethod
    def forward(query, key, value, bias, call, blocks):
        batch, heads, queries, _ = call.sizes
        output = query.new_empty((batch, queries, heads, value.shape[3])).transpose(1, 2)
        level = _level(call, value)
        for block in blocks:
            at = block.queries(heads // key.shape[1])
            if block.columns is None:
                output[at] = level[at[:2]]
                continue
            part = _Part(block, call, query, key, bias)
            rows = part.split(part.weights @ value[part.at_keys])
            output[at] = rows if part.empty is None else rows.where(~part.empty, level[at[:2]])
        return output

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call, ctx.blocks = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, bias = ctx.saved_tensors
        grads = [None if x is None else torch.zeros_like(x) for x in (query, key, value, bias)]
        groups = query.shape[1] // key.shape[1]
        uniform = grad.new_zeros((*grad.shape[:2], 1, grad.shape[3]))  # from the means over all
        for block in ctx.blocks:
            at = block.queries(groups)
            rows, empty = grad[at], None
            if block.columns is not None:
                part = _Part(block, ctx.call, query, key, bias)
                empty = part.empty
                _backward(part, rows, value, grads)
            if block.columns is None or empty is not None:
                rows = rows if empty is None else rows.where(empty, 0)
                uniform[at[:2]] += rows.sum(2, keepdim=True)
        if ctx.call.empty_rows == "uniform":
            grads[2] += uniform.unflatten(1, (-1, groups)).sum(2) / ctx.call.sizes[3]
        return *grads, None, None


def _level(call: _Call, value):
    """Return what an empty row is: (B, H, 1, D_v)."""
    batch, heads = call.sizes[:2]
    level = value.new_full((batch, value.shape[1], 1, 1), torch.nan)
    if call.empty_rows == "zero":
        level = torch.zeros_like(level)
    elif call.empty_rows == "uniform":
        level = value.mean(2, keepdim=True)
        if call.nonfinite is not None:
            level = level.masked_fill(call.nonfinite.any(2)[..., None, None], torch.nan)
    return level.repeat_interleave(heads // value.shape[1], 1).expand(-1, -1, -1, value.shape[3])


def _backward(part: _Part, grad, value, grads) -> None:
    """Add what one block gives to the gradients of query, key, value and bias."""
    d_query, d_key, d_value, d_bias = grads
    if part.empty is not None:
        grad = grad.masked_fill(part.empty, 0)
    grad, weights, careful = part.join(grad), part.weights, part.call.nonfinite is not None
    d_value[part.at_keys] += weights.mT @ grad
    d_scores = grad @ value[part.at_keys].mT
    if careful:  # else 0 * inf, should a hidden gradient overflow
        d_scores.masked_fill_(weights == 0, 0)
    d_scores.mul_(weights)
    d_scores.addcmul_(weights, d_scores.sum(-1, keepdim=True), value=-1)
    if d_bias is not None:
        at = part.at_bias
        d_bias[at] += part.split(d_scores).sum_to_size(d_bias[at].shape)
    if part.tanh is not None:
        d_scores.mul_(1 - part.tanh.square())
        if careful:
            d_scores.masked_fill_(weights == 0, 0)
    d_query[part.at_rows] = part.split(d_scores @ part.key) * part.call.scale
    d_key[part.at_keys] += d_scores.mT @ part.query
