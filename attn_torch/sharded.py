"""Attention whose rows lie on several ranks, right for every mask.

The mask is that of the whole call; where a rank's rows stand in it is all that a rank needs to
know. Keys and values come from other ranks in one of three ways: all at once, those that are
allowed, or round a ring. `shard_sequences` has modules attend so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from jaxtyping import Float, Integer
from torch import Tensor

from . import checks, shard_checks
from .arrays import is_autocast
from .attention import attend
from .call import Call, check_call
from .dtensors import are_shards
from .masks import Mask
from .numerics import cast_alike, upcast
from .partial import finish
from .ring import RingCall, attend_ring
from .rows import columns_of, everything, moved_share, needed_rows
from .traced import may_look

GATHERED = 2**30  # bytes of keys and values that a rank takes in; more go round
EXCHANGED = 0.9  # the largest share of all rows that is chosen from; gathering needs no choice


def sharded_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv T D"],
    value: Float[Tensor, "B H_kv T D_v"],
    *,
    mask: Mask | None = None,
    rows: list[Integer[Tensor, "T"]],
    group: Any = None,
    exchange: str = "auto",
    bias: Float[Tensor, "T S"] | Float[Tensor, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    empty_rows: str = "zero",
) -> Float[Tensor, "B H T D_v"]:
    """Attend from this rank's rows to those of all ranks of `group`, and return its rows.

    `rows` says, for each rank, at which positions of the whole call its rows stand: `contiguous`,
    `zigzag` or `planned` ones, of any lengths. Query, key and value are this rank's; mask and bias
    are those of the whole call, (T, T) in all, and the same on every rank. Every rank must call,
    and take gradients: those of query, key and value are whole, those of bias and sinks are this
    rank's share, as every replicated parameter's.

    `exchange` is "gathered" (every rank gets all keys), "exchanged" (those that its queries may be
    allowed, as far as the mask is known), "ring" (keys go round; no rank holds more than two
    shares of them, and gradients go round, too) or "auto": a ring where a rank would take in more
    than 2**30 bytes, exchanged where that moves no more than 0.9 of the rows, else gathered. A
    ring has first derivatives only.

    Raises what `attention` raises, ValueError for rows that are not each position once, and for
    "uniform" where no rank has all values.

    Source: "Ring Attention with Blockwise Transformers", section 3, for the ring.

    >>> import torch.distributed as dist
    >>> from attn_torch import attention, causal, contiguous
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> query, key, value = torch.randn(3, 1, 2, 6, 4)
    >>> output = sharded_attention(query, key, value, mask=causal(), rows=contiguous(6, 1))
    >>> bool(torch.allclose(output, attention(query, key, value, mask=causal()), atol=1e-6))
    True
    >>> dist.destroy_process_group()
    """
    call = check_call(query, key, value, None, None, scale, softcap, sinks, empty_rows)
    shard_checks.check_plain_call(may_look(query, key, value, call))
    shards = _check_shards(rows, group, exchange, query, key)
    call = shards.widen(call, query, mask, bias)
    return attend_sharded(query, key, value, call, shards)


class Shards(NamedTuple):
    """Where the rows of all ranks stand, and how keys get to those that need them."""

    rows: list[Tensor]
    group: Any
    rank: int
    exchange: str

    @property
    def length(self) -> int:
        """Return how many rows there are in all."""
        return sum(map(len, self.rows))

    def widen(self, call: Call, query: Tensor, mask: Mask | None, bias: Tensor | None) -> Call:
        """Return the whole call that a rank's is part of, with its mask and bias."""
        sizes = (*call.sizes[:2], self.length, self.length)
        if mask is not None:
            checks.check_is_mask("mask must be a Mask", mask, Mask)
        checks.check_mask(mask, sizes)
        if bias is not None:
            checks.check_bias("bias", bias, query, sizes)
        return call._replace(sizes=sizes, mask=mask, bias=bias)


_SHARES: WeakKeyDictionary[Any, set] = WeakKeyDictionary()  # shapes that modules took in shards
_SHARDS: list[Shards] = []  # the innermost comes last; compilers read no context variable


@contextmanager
def shard_sequences(
    rows: list[Integer[Tensor, "T"]], group: Any = None, exchange: str = "auto"
) -> Iterator[None]:
    """Have modules attend to the rows of all ranks, as `sharded_attention` does.

    Inside, `MultiHeadAttention` and all that is made of it take this rank's tokens, (B, T', E),
    and masks of the whole call; `process_heads` is told where the tokens stand. Attention is
    self-attention without weights; other calls are refused, decoding too. What is added up over
    positions, as a loss or a parameter's gradient, is this rank's share. Take gradients inside,
    where checkpointed modules are called again. It holds for all threads of a process. Every rank
    enters; all of them raise ValueError where they are not given the same rows and exchange.
    """
    shards = _check_shards(rows, group, exchange)
    _check_agreed(shards)
    _SHARDS.append(shards)
    try:
        yield
    finally:  # another thread may have entered since
        _SHARDS[:] = [others for others in _SHARDS if others is not shards]


def current_shards() -> Shards | None:
    """Return what `shard_sequences` says, None outside of it."""
    return _SHARDS[-1] if _SHARDS else None


def note_share(module: Any, x: Tensor) -> None:
    """Remember what a module took inside of `shard_sequences`."""
    _SHARES.setdefault(module, set()).add(x.shape)


def check_no_share(module: Any, x: Tensor) -> None:
    """Refuse what a backward pass gives a module again, outside of `shard_sequences`.

    As a checkpoint does: the module would attend to this rank's rows alone.
    """
    if _SHARES and not torch.compiler.is_compiling() and x.shape in _SHARES.get(module, ()):
        shard_checks.check_not_again(torch._C._current_graph_task_id() != -1)


def _check_shards(
    rows: Any, group: Any, exchange: Any, query: Any = None, key: Any = None
) -> Shards:
    shard_checks.check_exchange(exchange, "zero")
    shard_checks.check_group(dist.is_available() and dist.is_initialized())
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    rows = shard_checks.check_rank_rows(rows, rank, world)
    for name, array in {"query": query, "key": key}.items():
        if array is not None:
            shard_checks.check_rank_length(name, array.shape[2], len(rows[rank]))
    return Shards(rows, group, rank, exchange)


def _check_agreed(shards: Shards) -> None:
    """Check, once for many calls, that all ranks were given the same."""
    digest = sha256(repr([shards.exchange, *map(len, shards.rows)]).encode())
    digest.update(torch.cat(shards.rows).long().cpu().numpy().tobytes())
    digests = [b""] * len(shards.rows)
    dist.all_gather_object(digests, digest.digest(), group=shards.group)
    shard_checks.check_agreed([each == digests[shards.rank] for each in digests])


def attend_sharded(query: Tensor, key: Tensor, value: Tensor, call: Call, shards: Shards) -> Tensor:
    """Return this rank's rows of a checked call, which is the whole one."""
    shard_checks.check_exchange(shards.exchange, call.empty_rows)
    shard_checks.check_local("arrays of a shard", are_shards(query, key, value, call.mask))
    shard_checks.check_no_dropout(call.dropout)
    shard_checks.check_plain_call(may_look(query, key, value, call))
    if is_autocast(query.device):
        query, key, value = cast_alike(query, key, value)
    rows, rank = shards.rows, shards.rank
    exchange, needed = _choose(shards, call, key, value)
    bias = _rows_of_bias(call.bias, rows[rank])
    if exchange == "ring":
        wanted = [bool(len(places)) for places in needed[rank]]
        ring = RingCall(call, rows, wanted, shards.group, rank)
        partial = attend_ring(query, key, value, bias, ring)
        return finish(partial, query.dtype, call.empty_rows, call.sinks)
    take, send = needed[rank], [theirs[rank] for theirs in needed]
    pair = torch.cat((key, value), 3)
    pair = Routes(send, [len(places) for places in take], shards.group).send(pair)
    key, value = pair.split([key.shape[3], value.shape[3]], 3)
    columns = columns_of(rows, take)
    mask = None if call.mask is None else call.mask.part(rows[rank], columns)
    if bias is not None and bias.shape[3] > 1:
        bias = bias.index_select(3, columns.to(bias.device))
    sizes = (*query.shape[:3], len(columns))
    return attend(query, key, value, call._replace(sizes=sizes, mask=mask, bias=bias))


def _choose(
    shards: Shards, call: Call, key: Tensor, value: Tensor
) -> tuple[str, list[list[Tensor]]]:
    """Return the exchange, "auto" as the cheapest, and which rows each rank needs of each.

    It is the same on every rank.
    """
    rows, exchange = shards.rows, shards.exchange
    if exchange == "gathered" or call.empty_rows == "uniform":
        return "gathered", everything(rows)
    needed = needed_rows(call.mask, call.sizes, rows)
    if exchange != "auto":
        return exchange, needed
    chosen = moved_share(needed, rows) <= EXCHANGED
    exchange, taken = ("exchanged", needed) if chosen else ("gathered", everything(rows))
    numbers = key.shape[0] * key.shape[1] * (key.shape[3] + value.shape[3])
    if max(sum(map(len, asks)) for asks in taken) * numbers * key.itemsize > GATHERED:
        return "ring", needed
    return exchange, taken


def _rows_of_bias(bias: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return the rows of a whole call's bias that a rank has, in rank 4."""
    if bias is None:
        return None
    bias = bias[None, None] if bias.ndim == 2 else bias
    return bias if bias.shape[2] == 1 else bias.index_select(2, rows.to(bias.device))


class Routes(NamedTuple):
    """Which of this rank's rows go to whom, and how many come from whom."""

    send_to: list[Tensor]
    take: list[int]
    group: Any

    def send(self, array: Tensor) -> Tensor:
        """Return the rows of (B, H, T', D) that come here, from rank 0, 1, and so on."""
        return _Send.apply(array.movedim(2, 0), self).movedim(0, 2)

    def scatter(self, array: Tensor) -> Tensor:
        """Return the rows that go out."""
        return array.index_select(0, torch.cat(self.send_to).to(array.device))

    def exchange(self, array: Tensor, back: bool = False) -> Tensor:
        """Exchange rows, which lie along the first axis, or give back what came."""
        out, come = [len(places) for places in self.send_to], self.take
        out, come = (come, out) if back else (out, come)
        got = array.new_empty((sum(come), *array.shape[1:]))
        dist.all_to_all_single(got, array.contiguous(), come, out, self.group)
        return got


class _Send(torch.autograd.Function):
    """Send rows to the ranks that need them; the gradient of it brings theirs home."""

    @staticmethod
    def forward(ctx: Any, array: Tensor, routes: Routes) -> Tensor:
        ctx.routes, ctx.count = routes, len(array)
        return routes.exchange(routes.scatter(array))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _BringHome.apply(grad, ctx.routes, ctx.count), None


class _BringHome(torch.autograd.Function):
    """Add up, for each row, what all ranks to which it was sent have of it."""

    @staticmethod
    def forward(ctx: Any, array: Tensor, routes: Routes, count: int) -> Tensor:
        ctx.routes = routes
        got = upcast(routes.exchange(array, back=True))
        home = got.new_zeros((count, *got.shape[1:]))
        index = torch.cat(routes.send_to).to(got.device)
        return home.index_add_(0, index, got).to(array.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _Send.apply(grad, ctx.routes), None, None
