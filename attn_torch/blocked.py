"""Attention without the (T, S) matrix: one block of queries at a time, and the keys it is allowed.

Where the structure is one that torch's fused kernel knows (everything allowed, or plain causal)
the kernel is called. Everything else goes block by block: the mask is evaluated once for all tiles,
and each block of queries meets only the columns of tiles that are not hidden from it.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .call import Call
from .fused import fused, has_exact_kernel, known_structure, products_fit
from .numerics import is_bounded, no_autocast, split_nonfinite, upcast
from .plan import Block, BlockCells, plan, split_heads
from .threads import work_together
from .tiles import Cells, Tiles

# Found by timing windows, packed documents and causal & padding at T = 512 and 4096, in processor
# time on one core, 64 to 256 rows by 32 to 128 columns by 2**17 to 2**20 scores held at once: fewer
# rows pay more for calls, more rows and columns more for cells that only some rows are allowed.
ROWS, COLUMNS = 128, 32
# How many threads of ours share a call: Python runs one at a time, and each holds a block's scores.
THREADS = 8
# Scores that are worth a thread: some 2 milliseconds of work. Waking one takes a tenth of that.
THREAD_CELLS = 2**19


def attention_blocked(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv S D"],
    value: Float[Tensor, "B H_kv S D_v"],
    call: Call,
    bounded: bool = False,
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, "B H T D_v"]:
    """Attend without ever holding the (T, S) matrix: tile by tile, as the mask allows.

    Takes what `attention` has checked, with no size of 0; `tile` is rows by columns, ROWS by
    COLUMNS where left out. Memory grows linearly with T and S, backward too, where the scores of
    a block are computed again. It is differentiable once, `attention` and `attention_steps` any
    number of times. `bounded` saves asking `is_bounded`, whose answer it is.

    Source: "FlashAttention", section 3.1, for the tiles and the recomputation; "Self-attention
    Does Not Need O(n^2) Memory", section 3, for blocks of queries.

    >>> query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    >>> from attn_torch import attention_steps, sliding_window
    >>> from attn_torch.call import check_call
    >>> call = check_call(query, key, value, sliding_window(1))
    >>> output = attention_blocked(query, key, value, call, tile=(2, 2))
    >>> steps = attention_steps(query, key, value, mask=sliding_window(1))
    >>> bool(torch.allclose(output, steps.output, atol=1e-6))
    True
    """
    widths = (query.shape[3], value.shape[3])
    kernel = call.bias is None and call.softcap is None and call.sinks is None
    kernel = kernel and has_exact_kernel(query.device.type, query.dtype, *widths)
    # On a CPU `fused` scales first, and rounds nothing to 16 bits.
    kernel = kernel and (query.is_cpu or bounded or products_fit(query, key))
    known = known_structure(call)
    if kernel and known:
        return fused(query, key, value, call.scale, known == "causal", bounded)
    tile = (ROWS, COLUMNS) if tile is None else tile
    tiles = evaluate_tiles(call, tile, query.device)
    if kernel and tiles[0].all():
        return fused(query, key, value, call.scale, False, bounded)
    return _Blocks.apply(*cut(query, key, value, call, bounded, tile, tiles)).to(query.dtype)


def evaluate_tiles(
    call: Call, tile: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return which tiles are full and which are needed: (B or 1, H or 1, T-tiles, S-tiles)."""
    tiles = [-(-size // length) for size, length in zip(call.sizes[2:], tile, strict=True)]
    if call.mask is None:
        full = torch.ones((1, 1, tiles[0], 1), dtype=torch.bool, device="cpu")
        return full, full
    cells = Cells(call.sizes, call.query_offset, device=device)
    verdict = torch.stack(torch.broadcast_tensors(*call.mask.evaluate(Tiles(cells, *tile)))).cpu()
    full, needed = verdict.expand(*verdict.shape[:3], *tiles)
    return full, needed


def cut(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: Call,
    bounded: bool,
    tile: tuple[int, int],
    tiles: tuple[Tensor, Tensor],
) -> tuple:
    """Cut a call into blocks, by the tiles that are full and that are needed.

    Returns what `_Blocks` takes: the arrays, the call and its blocks.
    """
    bias, nonfinite = call.bias, None
    if bias is not None:
        bias = bias.to(query.device)
        bias = bias[None, None] if bias.ndim == 2 else bias
    bounded = bounded or is_bounded(query, key, value, call.scale)
    if not bounded or (bias is not None and bias.detach().amax().isnan()):
        key, value, nonfinite = split_nonfinite(key, value)
    tile = tile if call.mask is not None else (tile[0], call.sizes[3])
    blocks = plan(*tiles, tile, call, key.shape[1], query.device)
    sinks = None if call.sinks is None else call.sinks.to(query.device)
    arrays = (upcast(query), upcast(key), upcast(value), bias, sinks, nonfinite)
    return *arrays, call, blocks


class BlockPart:
    """One block's share of a call, and its weights; made again in the backward pass."""

    def __init__(
        self,
        block: Block,
        call: Call,
        whole: Cells,
        query: Tensor,
        key: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        nonfinite: Tensor | None,
    ):
        self.block, self.call, self.whole = block, call, whole
        self.groups = query.shape[1] // key.shape[1]
        self.at_rows, self.at_keys = block.queries(self.groups), block.keys()
        self.nonfinite = None if nonfinite is None else nonfinite[self.at_keys]
        self.at_bias = None if bias is None else self._place(bias)
        self.query, self.key = self.join(query[self.at_rows]) * call.scale, key[self.at_keys]
        self.weights, self.tanh, self.empty = self._weights(bias, sinks)

    def join(self, rows: Tensor) -> Tensor:
        """(b, h * G, R, X) -> (b, h, G * R, X): a group's rows meet its one key head at once."""
        if self.groups == 1:
            return rows
        return rows.unflatten(1, (-1, self.groups)).flatten(2, 3)

    def split(self, rows: Tensor) -> Tensor:
        """(b, h, G * R, X) -> (b, h * G, R, X)."""
        if self.groups == 1:
            return rows
        return rows.unflatten(2, (self.groups, -1)).flatten(1, 2)

    def _place(self, bias: Tensor) -> tuple:
        place = zip((*self.at_rows, self.block.columns), bias.shape, strict=True)
        return tuple(slice(None) if size == 1 else part for part, size in place)

    def _weights(
        self, bias: Tensor | None, sinks: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return weights (b, h, G * R, C), tanh(scores / softcap) and which rows are empty."""
        scores, tanh, softcap = self.query @ self.key.mT, None, self.call.softcap
        if softcap is not None:
            tanh = scores.div_(softcap).tanh_()
            scores = tanh * softcap
        if self.nonfinite is not None:
            scores.masked_fill_(self.nonfinite[:, :, None], torch.nan)
        cells = self.split(scores)
        self._hide(cells, bias)
        if sinks is not None:  # one more column
            column = sinks[self.at_rows[1], None, None].expand(*cells.shape[:3], 1).to(cells.dtype)
            hidden = cells.amax(-1, keepdim=True) == -torch.inf
            column = torch.where(hidden, _known_sinks(column), column)  # else it could tie a fill
            weights = torch.cat((scores, self.join(column)), -1).softmax(-1)
            self.sink_weights = weights[..., -1:]
            return weights[..., :-1], tanh, None if self.nonfinite is None else hidden
        empty = None if self.block.has_full else cells.amax(-1, keepdim=True) == -torch.inf
        if empty is not None and empty.device.type == "cpu" and not empty.any():
            empty = None
        if empty is not None:  # no 0/0; what comes of it is selected away
            torch.maximum(cells, torch.where(empty, 0.0, -torch.inf), out=cells)
        return self.exponentiate(scores), tanh, empty

    def exponentiate(self, scores: Tensor) -> Tensor:
        """Return the weights of masked scores, which may be written to."""
        return scores.softmax(-1)

    def _hide(self, cells: Tensor, bias: Tensor | None) -> None:
        """Add the bias and put -inf where a cell is hidden, in place."""
        call, block, allowed = self.call, self.block, None
        if call.mask is not None and block.partial is not None:
            allowed = call.mask.evaluate(BlockCells(block, self.groups, self.whole))
        if bias is not None:
            cells += bias[self.at_bias]
        if self.nonfinite is not None:  # NaN is in the way of what is faster
            if allowed is not None:
                cells[..., block.place].masked_fill_(~allowed, -torch.inf)
            if bias is not None:
                cells.masked_fill_(bias[self.at_bias] == -torch.inf, -torch.inf)
        elif allowed is not None:
            top = allowed.to(cells.dtype).sub_(0.5).mul_(torch.inf)  # inf if allowed, else -inf
            part = cells[..., block.place]
            torch.minimum(part, top, out=part)  # a select, and ten times as fast as one


class _Blocks(torch.autograd.Function):
    """The loop over blocks; its backward pass computes each block's weights again."""

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        nonfinite: Tensor | None,
        call: Call,
        blocks: list[Block],
    ) -> Tensor:
        batch, heads, queries, _ = call.sizes
        output = query.new_empty((batch, queries, heads, value.shape[3])).transpose(1, 2)
        empty_value = empty_row_value(call._replace(sinks=sinks), value, nonfinite)
        whole = Cells(call.sizes, call.query_offset, device=query.device)

        def attend(blocks: Iterable[Block]) -> None:
            for block in blocks:
                at = block.queries(heads // key.shape[1])
                if block.columns is None:
                    output[at] = empty_value[at[:2]]
                    continue
                part = BlockPart(block, call, whole, query, key, bias, sinks, nonfinite)
                rows = part.split(part.weights @ value[part.at_keys])
                if part.empty is not None:
                    rows = rows.where(~part.empty, empty_value[at[:2]])
                output[at] = rows

        work_together(attend, blocks, count_threads(call, blocks, query.device))
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.call, ctx.blocks = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None) -> tuple:
        if d_output is None:  # somebody else has given the gradients
            return (None,) * 8
        if torch.is_grad_enabled():
            rule = "blocks are differentiable once, use attention or attention_steps"
            raise NotImplementedError(f"{rule}: got create_graph=True")
        query, key, value, bias, sinks, nonfinite = ctx.saved_tensors
        inputs = query, key, value, bias  # a bias alone may have 16 bits, in which sums stall
        grads = [None if x is None else torch.zeros_like(upcast(x)) for x in inputs]
        grads.append(None if sinks is None else upcast(sinks).new_zeros(query.shape[:2]))
        groups = query.shape[1] // key.shape[1]
        d_mean = d_output.new_zeros((*d_output.shape[:2], 1, d_output.shape[3]))
        whole = Cells(ctx.call.sizes, ctx.call.query_offset, device=query.device)

        def give_back(lists: Iterable[list[Block]]) -> None:
            for block in chain.from_iterable(lists):
                at = block.queries(groups)
                d_rows, empty = d_output[at], None
                if block.columns is not None:
                    part = BlockPart(block, ctx.call, whole, query, key, bias, sinks, nonfinite)
                    empty = part.empty
                    backward_block(part, d_rows, value, grads)
                if block.columns is None or empty is not None:
                    d_rows = d_rows if empty is None else d_rows.where(empty, 0)
                    d_mean[at[:2]] += d_rows.sum(2, keepdim=True)

        threads = count_threads(ctx.call, ctx.blocks, query.device) if bias is None else 1
        with no_autocast(query):  # who asks for a gradient may have it on
            work_together(give_back, split_heads(ctx.blocks, key.shape[1], threads), threads)
        if ctx.call.empty_rows == "uniform":
            grads[2] += d_mean.unflatten(1, (-1, groups)).sum(2) / ctx.call.sizes[3]
        *grads, d_sinks = grads
        d_sinks = None if d_sinks is None else d_sinks.sum(0)  # of all samples
        return *grads, d_sinks, None, None, None  # autograd rounds to the dtype of the input


def count_threads(call: Call, blocks: list[Block], device: torch.device) -> int:
    """Return how many threads of ours share the blocks out; 1 leaves each block to torch's own."""
    if device.type != "cpu" or (
        call.mask is not None and any(leaf.name == "predicate" for leaf in call.mask.leaves())
    ):
        return 1
    cells = sum(map(Block.cells, blocks))
    return max(min(THREADS, torch.get_num_threads(), cells // THREAD_CELLS), 1)


def empty_row_value(call: Call, value: Tensor, nonfinite: Tensor | None) -> Tensor:
    """Return what a fully masked row becomes: (B, H, 1, D_v)."""
    batch, heads = call.sizes[:2]
    if call.sinks is not None:  # 0, or NaN from a sink that is not finite
        row = 0 * _known_sinks(call.sinks)[None, :, None, None].to(value)
        return row.expand(batch, -1, 1, value.shape[3])
    row = value.new_full((batch, value.shape[1], 1, 1), torch.nan)
    if call.empty_rows == "zero":
        row = torch.zeros_like(row)
    elif call.empty_rows == "uniform":
        row = value.mean(2, keepdim=True)
        if nonfinite is not None:
            row = row.masked_fill(nonfinite.any(2)[..., None, None], torch.nan)
    return row.repeat_interleave(heads // value.shape[1], 1).expand(-1, -1, -1, value.shape[3])


def _known_sinks(sinks: Tensor) -> Tensor:
    """Return the sinks without -inf: the lowest number has the same weight, 0, beside a score."""
    return upcast(sinks).clamp(min=torch.finfo(upcast(sinks).dtype).min)


def backward_block(
    part: BlockPart, d_output: Tensor, value: Tensor, grads: list, d_total: Tensor | None = None
) -> None:
    """Add what one block gives to the gradients of query, key, value, bias and sinks.

    `d_total` is that of the sum of weights, (b, h * G, R, 1), where weights are not divided by it.
    """
    d_query, d_key, d_value, d_bias, d_sinks = grads
    if part.empty is not None:
        d_output = d_output.masked_fill(part.empty, 0)
    d_output, weights, careful = part.join(d_output), part.weights, part.nonfinite is not None
    d_value[part.at_keys] += weights.mT @ d_output
    d_scores = d_output @ value[part.at_keys].mT
    if careful:  # else 0 * inf, should a hidden gradient overflow
        d_scores.masked_fill_(weights == 0, 0)
    d_scores.mul_(weights)
    means = d_scores.sum(-1, keepdim=True) if d_total is None else -part.join(d_total)
    d_scores.addcmul_(weights, means, value=-1)
    if d_sinks is not None:
        d_sinks[part.at_rows[:2]] -= part.split(part.sink_weights * means).sum((2, 3))
    if d_bias is not None:
        at = part.at_bias
        d_bias[at] += part.split(d_scores).sum_to_size(d_bias[at].shape)
    if part.tanh is not None:
        d_scores.mul_(1 - part.tanh.square())
        if careful:
            d_scores.masked_fill_(weights == 0, 0)
    query = part.query
    if careful and part.empty is not None:  # its query may be NaN, and the derivative of tanh
        empty = part.join(part.empty)
        query, d_scores = query.masked_fill(empty, 0), d_scores.masked_fill(empty, 0)
    d_query[part.at_rows] = part.split(d_scores @ part.key) * part.call.scale
    d_key[part.at_keys] += d_scores.mT @ query
