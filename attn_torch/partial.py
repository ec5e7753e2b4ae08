"""Attention to some of the keys, and how such parts merge into attention to all of them.

For keys that are on several devices, come one after the other, or are shared by many queries.
A part is the softmax before its division. A log-sum-exp beside an output says as much on paper
alone: beside scores of -1e30 float32 holds nothing of the logarithm, and two such parts weigh
the same whatever they hold.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from . import blocked, checks
from .arrays import is_autocast
from .attention import attend_steps
from .blocked import BlockPart, backward_block, count_threads, evaluate_tiles
from .call import Call, check_call
from .dtensors import are_shards, attend_shards
from .gradients import differentiable_again
from .masks import Mask
from .numerics import (
    cast_alike,
    is_bounded,
    may_overflow,
    no_autocast,
    split_nonfinite,
    upcast,
)
from .plan import Block, split_heads
from .threads import work_together
from .tiles import Cells
from .traced import allowed_cells, may_look


class Partial(NamedTuple):
    """What attention to some of the keys gives: float64, or float32 for all other inputs.

    `maximum` is a constant to every derivative: outputs do not depend on what is subtracted.
    """

    sums: Float[Tensor, "B H T D_v"]  # of exp(score - maximum) times value
    maximum: Float[Tensor, "B H T"]  # the largest allowed score of a row, -inf without any
    total: Float[Tensor, "B H T"]  # the sum of exp(score - maximum)

    @property
    def output(self) -> Float[Tensor, "B H T D_v"]:
        """What attention to these keys alone gives; a fully masked row is 0."""
        return finish(self)

    @property
    def lse(self) -> Float[Tensor, "B H T"]:
        """The logarithm of the sum of exp(score); -inf for a fully masked row."""
        return self.maximum + torch.log(_divisor(self, 1.0))


def attention_part(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv S D"],
    value: Float[Tensor, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Tensor, "T S"] | Float[Tensor, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    query_offset: int | Integer[Tensor, "..."] | None = None,
) -> Partial:
    """Attend to some of the keys: `merge` joins parts, and `finish` makes the output of them.

    Mask, bias and offset are those of these keys; key 0 is the first of them. A mask of the whole
    call becomes theirs by `mask.part(rows, columns)`; one that goes by positions alone may be
    given as it is, with a `query_offset`. Everything is as in `attention`, and raises what it
    raises, and ValueError for such a mask without one.

    Source: "FlashAttention", section 3.1, for the sums and how they join.

    >>> query, key, value = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    >>> from attn_torch import attention, causal
    >>> first = attention_part(query, key[:, :, :3], value[:, :, :3], mask=causal(), query_offset=0)
    >>> last = attention_part(query, key[:, :, 3:], value[:, :, 3:], mask=causal(), query_offset=-3)
    >>> whole = attention(query, key, value, mask=causal())
    >>> bool(torch.allclose(finish(merge(first, last)), whole, atol=1e-6))
    True
    """
    checks.check_part_offset(query_offset, mask, Mask)
    call = check_call(query, key, value, mask, bias, scale, softcap, query_offset=query_offset)
    return attend_part(query, key, value, call)


def merge(*partials: Partial) -> Partial:
    """Join parts into the one that all their keys give, whatever their order.

    A part in which a row is fully masked changes nothing in that row. Raises ValueError for no
    part and for shapes that differ, TypeError for what is no part and for other dtypes.

    >>> part = Partial(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    >>> merge(part, part).total
    tensor([[[2.]]])
    """
    checks.check_partials(partials, Partial)
    maximum = torch.stack([part.maximum for part in partials]).amax(0).detach()
    base = torch.where(maximum == -torch.inf, 0, maximum)  # -inf - -inf would be NaN
    shares = [torch.exp(part.maximum - base) for part in partials]
    sums = [share[..., None] * part.sums for share, part in zip(shares, partials, strict=True)]
    totals = [share * part.total for share, part in zip(shares, partials, strict=True)]
    return Partial(_add(sums), maximum, _add(totals))


def _add(arrays: list[Tensor]) -> Tensor:
    return sum(arrays[1:], start=arrays[0])


def finish(
    partial: Partial,
    dtype: torch.dtype | None = None,
    empty_rows: str = "zero",
    sinks: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "B H T D_v"]:
    """Divide the sums by their total: the output of attention to all the keys of a part.

    It is rounded once, to `dtype`, if there is one. A fully masked row is 0 or NaN: `empty_rows`
    "zero" or "nan". Raises ValueError for "uniform", as no part knows the mean of all values, and
    TypeError for a dtype that is no float.
    `sinks` are one more logit a head in the softmax, with no value: then such a row is 0.

    >>> part = Partial(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1), torch.full((1, 1, 1), 4.0))
    >>> finish(part)
    tensor([[[[0.2500, 0.2500]]]])
    """
    checks.check_finish(partial, Partial, dtype, empty_rows, sinks)
    if sinks is not None:
        partial, empty_rows = merge(partial, _sink(partial, sinks)), "zero"
    empty_row_divisor = torch.nan if empty_rows == "nan" else 1.0
    output = partial.sums / _divisor(partial, empty_row_divisor)[..., None]
    return output if dtype is None else output.to(dtype)


def _sink(partial: Partial, sinks: Tensor) -> Partial:
    """Return the part of one key a head, whose logit is the sink and whose value is 0."""
    sinks, shape = sinks.to(partial.sums)[:, None], partial.total.shape
    nothing = sinks == -torch.inf
    sinks = torch.maximum(sinks, _above_lowest(sinks))
    maximum = sinks.detach()
    total = torch.exp(torch.where(nothing, 0, sinks - maximum))
    maximum, total = torch.where(nothing, -torch.inf, maximum), torch.where(nothing, 0, total)
    sums = torch.zeros_like(partial.sums)
    return Partial(sums, torch.broadcast_to(maximum, shape), torch.broadcast_to(total, shape))


def _divisor(partial: Partial, empty_row_divisor: float) -> Tensor:
    """Return the totals, with NaN for rows whose every logit overflowed."""
    maximum, total = partial.maximum, partial.total
    total = torch.where(maximum == torch.finfo(maximum.dtype).min, torch.nan, total)
    return torch.where(maximum == -torch.inf, empty_row_divisor, total)


def attend_part(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Partial:
    """Return a checked call's part: by tiles, or by the textbook."""
    if are_shards(query, key, value, call.mask):
        return Partial(*attend_shards(attend_part, query, key, value, call))
    if is_autocast(query.device):
        query, key, value = cast_alike(query, key, value)
        with no_autocast(query):
            return attend_part(query, key, value, call)
    if 0 in (*call.sizes, value.shape[3]) or not may_look(query, key, value, call):
        return _attend_textbook(query, key, value, call)
    bounded = is_bounded(query, key, value, call.scale)
    overflows = not bounded and may_overflow(query, key, call.scale)
    if overflows or (call.bias is not None and _is_far(call.bias)):
        return _attend_textbook(query, key, value, call)
    tile = blocked.ROWS, blocked.COLUMNS
    tiles = evaluate_tiles(call, tile, query.device)
    partial = Partial(*_Sums.apply(*blocked.cut(query, key, value, call, bounded, tile, tiles)))
    if not partial.sums.requires_grad:
        return partial

    def again(name: str) -> Tensor:
        def textbook(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
            return getattr(_attend_textbook(query, key, value, call._replace(bias=bias)), name)

        inputs = query, key, value, call.bias
        return differentiable_again(getattr(partial, name), call, textbook, *inputs)

    return Partial(again("sums"), partial.maximum, again("total"))


def _is_far(bias: Tensor) -> bool:
    """Whether a bias may push a score out of float32, as the lowest number does as a fill."""
    return float(torch.where(bias == -torch.inf, 0, bias).detach().amin()) < -1e38


def _above_lowest(array: Tensor) -> Tensor:
    """Return the number beside the lowest of a dtype, which marks what overflowed."""
    limits = torch.finfo(array.dtype)
    return torch.full((), limits.min * (1 - limits.eps), dtype=array.dtype, device=array.device)


def _attend_textbook(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Partial:
    """Return the part, by the formula.

    The lowest number marks a score that overflowed; a real score that low is raised.
    """
    query, key, value = cast_alike(query, key, value)
    with no_autocast(query):
        scores = attend_steps(query, key, value, call).masked_scores
        allowed = allowed_cells(call, query.device)
        lowest = torch.finfo(scores.dtype).min
        raised = torch.maximum(scores, _above_lowest(scores))
        scores = torch.where(scores == -torch.inf, lowest, raised)
        scores = torch.where(allowed, scores, -torch.inf)
        maximum = scores.new_full(call.sizes[:3], -torch.inf)
        if call.sizes[3]:
            maximum = scores.detach().amax(-1)
        base = torch.where(maximum == -torch.inf, 0, maximum)  # -inf - -inf would be NaN
        weights = torch.exp(scores - base[..., None])
        _, value, _ = split_nonfinite(key, upcast(value))
        value = value.repeat_interleave(call.sizes[1] // key.shape[1], dim=1)
        # A weight of 0 takes no gradient: that of a huge hidden value would be 0 * inf.
        kept = torch.where(weights == 0, 0, weights)
        return Partial(kept @ value, maximum, kept.sum(-1))


class _SumsPart(BlockPart):
    """A block's share of a call, of which the weights are not divided by their sum."""

    def exponentiate(self, scores: Tensor) -> Tensor:
        """Return exp(score - maximum), and keep the maximum."""
        maximum = scores.amax(-1, keepdim=True)
        self.maximum = self.split(maximum)
        return scores.sub_(maximum).exp_()


class _Sums(torch.autograd.Function):
    """The loop over blocks, as `blocked._Blocks` is, for sums, maximum and total."""

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        sinks: None,
        nonfinite: Tensor | None,
        call: Call,
        blocks: list[Block],
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums = query.new_zeros((*call.sizes[:3], value.shape[3]))
        maximum = query.new_full(call.sizes[:3], -torch.inf)
        total = query.new_zeros(call.sizes[:3])
        whole = Cells(call.sizes, call.query_offset, device=query.device)

        def attend(blocks: Iterable[Block]) -> None:
            for block in blocks:
                if block.columns is None:
                    continue
                part = _SumsPart(block, call, whole, query, key, bias, None, nonfinite)
                rows = part.split(part.weights @ value[part.at_keys])
                largest, count = part.maximum, part.split(part.weights.sum(-1, keepdim=True))
                if part.empty is not None:
                    rows, count = rows.where(~part.empty, 0), count.where(~part.empty, 0)
                    largest = largest.where(~part.empty, -torch.inf)
                at = part.at_rows
                sums[at], maximum[at], total[at] = rows, largest[..., 0], count[..., 0]

        work_together(attend, blocks, count_threads(call, blocks, query.device))
        return sums, maximum, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.call, ctx.blocks = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_sums: Tensor | None, _: None, d_total: Tensor | None) -> tuple:
        if d_sums is None and d_total is None:  # somebody else has given the gradients
            return (None,) * 8
        if torch.is_grad_enabled():
            rule = "blocks are differentiable once, use attention_part"
            raise NotImplementedError(f"{rule}: got create_graph=True")
        query, key, value, bias, _, nonfinite = ctx.saved_tensors
        inputs = (query, key, value, bias, None)  # no sinks
        grads = [None if x is None else torch.zeros_like(upcast(x)) for x in inputs]
        zero = query.new_zeros(())
        if d_sums is None:
            d_sums = zero.expand(*ctx.call.sizes[:3], value.shape[3])
        d_total = zero.expand(ctx.call.sizes[:3]) if d_total is None else d_total
        whole = Cells(ctx.call.sizes, ctx.call.query_offset, device=query.device)

        def give_back(lists: Iterable[list[Block]]) -> None:
            for block in chain.from_iterable(lists):
                if block.columns is None:
                    continue
                part = _SumsPart(block, ctx.call, whole, query, key, bias, None, nonfinite)
                d_rows, d_count = d_sums[part.at_rows], d_total[part.at_rows][..., None]
                if part.empty is not None:
                    d_count = d_count.where(~part.empty, 0)
                backward_block(part, d_rows, value, grads, d_count)

        threads = count_threads(ctx.call, ctx.blocks, query.device) if bias is None else 1
        with no_autocast(query):  # who asks for a gradient may have it on
            work_together(give_back, split_heads(ctx.blocks, key.shape[1], threads), threads)
        return *grads, None, None, None  # autograd rounds to the dtype of the input
