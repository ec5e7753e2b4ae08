"""Attention whose keys and values go round a ring of ranks, each attending to what comes by.

Both passes go all the way round on every rank, whatever it is allowed: who leaves a part out still
passes it on, or the others would wait for ever. No rank holds more than two shares of the keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import shard_checks
from .call import Call
from .numerics import upcast
from .partial import Partial, attention_part, merge


class RingCall(NamedTuple):
    """What goes round: the call, the ranks' rows, and which parts of it this rank may attend to."""

    call: Call  # the whole one
    rows: list[Tensor]
    needed: list[bool]
    group: Any
    rank: int

    def owner(self, step: int) -> int:
        """Return whose keys are here after some hops."""
        return (self.rank - step) % len(self.rows)

    def options(self, step: int) -> dict[str, Any]:
        """Return what attention to those keys is told."""
        mask, owner = self.call.mask, self.owner(step)
        if mask is not None:
            mask = mask.part(self.rows[self.rank], self.rows[owner])
        return {"mask": mask, "scale": self.call.scale, "softcap": self.call.softcap}

    def start_hop(self, array: Tensor, step: int, tag: int = 0) -> Callable[[], Tensor]:
        """Hand an array on, and return a function that waits for the one of the rank before."""
        size = (*array.shape[:2], len(self.rows[self.owner(step + 1)]), array.shape[3])
        got = array.new_empty(size)
        if len(self.rows) == 1:
            return lambda: array
        ahead, behind = (self._global_rank(self.rank + way) for way in (1, -1))
        sent, taken = (_or_one_number(x) for x in (array.contiguous(), got))
        ends = [dist.P2POp(dist.isend, sent, ahead, self.group, tag)]
        ends.append(dist.P2POp(dist.irecv, taken, behind, self.group, tag))
        works = dist.batch_isend_irecv(ends)

        def wait() -> Tensor:
            for work in works:
                work.wait()
            return got

        return wait

    def _global_rank(self, rank: int) -> int:
        group: Any = self.group or dist.group.WORLD
        return dist.get_global_rank(group, rank % len(self.rows))


def _or_one_number(array: Tensor) -> Tensor:
    """Return an array, or a number in place of none: a hop that some leave out may hang."""
    return array if array.numel() else array.new_zeros(1)


def attend_ring(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, ring: RingCall
) -> Partial:
    """Return the part that all ranks' keys give; `bias` is that of this rank's rows, rank 4."""
    return Partial(*_AttendRing.apply(query, torch.cat((key, value), 3), bias, ring))


def _attend(
    query: Tensor, pair: Tensor, bias: Tensor | None, ring: RingCall, step: int
) -> tuple[Partial, list[Tensor]]:
    """Attend to the keys of a step; return the part, and what it was made from."""
    key, value = pair.split([query.shape[3], pair.shape[3] - query.shape[3]], 3)
    inputs = [query, key, value]
    if bias is not None:
        if bias.shape[3] > 1:
            bias = bias.index_select(3, ring.rows[ring.owner(step)].to(bias.device))
        inputs.append(bias)
    if torch.is_grad_enabled():  # a part's gradient is not rounded to 16 bits
        inputs = [upcast(x).detach().requires_grad_() for x in inputs]
    options = ring.options(step) | ({} if bias is None else {"bias": inputs[3]})
    return attention_part(inputs[0], inputs[1], inputs[2], **options), inputs


class _AttendRing(torch.autograd.Function):
    """Forward keys go round; backward they do so again, and take their gradients along."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, pair: Tensor, bias: Tensor | None, ring: RingCall
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.ring = ring
        like, shape = upcast(query[:0]), query.shape[:3]
        nothing = like.new_zeros(*shape, pair.shape[3] - query.shape[3])
        whole = Partial(nothing, like.new_full(shape, -torch.inf), like.new_zeros(shape))
        held, last = pair, len(ring.rows) - 1
        for step in range(last + 1):
            arrive = ring.start_hop(held, step) if step < last else None
            if ring.needed[ring.owner(step)]:
                whole = merge(whole, _attend(query, held, bias, ring, step)[0])
            held = held if arrive is None else arrive()
        ctx.save_for_backward(query, pair, bias, whole.maximum)
        ctx.mark_non_differentiable(whole.maximum)
        return whole.sums, whole.maximum, whole.total

    @staticmethod
    def backward(ctx: Any, d_sums: Tensor, _: None, d_total: Tensor) -> tuple:
        shard_checks.check_once(torch.is_grad_enabled())
        ring, (query, held, bias, maximum) = ctx.ring, ctx.saved_tensors
        d_query = torch.zeros_like(upcast(query))
        d_bias = None if bias is None else torch.zeros_like(upcast(bias))
        d_held = torch.zeros_like(upcast(held))
        d_arrive: Any = None
        base, last = torch.where(maximum == -torch.inf, 0, maximum), len(ring.rows) - 1
        for step in range(last + 1):
            arrive = ring.start_hop(held, step) if step < last else None
            grads: Any = None
            if ring.needed[ring.owner(step)]:
                with torch.enable_grad():
                    part, inputs = _attend(query, held, bias, ring, step)
                share = torch.exp(part.maximum - base)
                d_parts = share[..., None] * d_sums, share * d_total
                grads = torch.autograd.grad((part.sums, part.total), inputs, d_parts)
            if step:
                d_held = d_arrive()
            if grads is not None:
                d_query += grads[0]
                d_held += torch.cat(grads[1:3], 3)
                _add_columns(d_bias, grads[3:], ring.rows[ring.owner(step)])
            d_arrive = ring.start_hop(d_held, step, tag=1)  # the last hop brings it home
            held = held if arrive is None else arrive()
        return d_query, d_arrive(), d_bias, None  # autograd rounds to the dtype of the input


def _add_columns(d_bias: Tensor | None, grads: tuple[Tensor, ...], columns: Tensor) -> None:
    """Add a part's gradient to that of a bias, if there is one."""
    if d_bias is None:
        return
    if d_bias.shape[3] == 1:
        d_bias += grads[0]
    else:
        d_bias.index_add_(3, columns.to(d_bias.device), grads[0].to(d_bias))
