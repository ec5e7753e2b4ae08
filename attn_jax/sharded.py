"""Attention whose samples, heads and rows lie on several devices, right for every mask.

The mask is that of the whole call; where the rows of a device stand in it is all that a device
needs to know. Samples and heads need nothing of each other. Rows need keys and values of other
devices, and get them in one of three ways: all at once, those that are allowed, or round a ring.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial as bind
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from . import shard_checks
from .attention import attend
from .call import Call, check_call, expand_bias
from .devices import Axes, Layout, call_letters, for_columns, share_out, vary_alike
from .masks import Mask, padding
from .numerics import upcast
from .ring import attend_ring
from .rows import Piece, contiguous, last_hop, moved_share, needed_blocks, plan_pieces
from .walk import closure_convert

GATHERED = 2**30  # bytes of keys and values that a device gathers; more go round
EXCHANGED = 0.5  # the largest share of all rows that is exchanged: gathering is one operation


def sharded_attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H_kv S D"],
    value: Float[Array, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    mesh: Any,
    batch: str | Axes | None = None,
    heads: str | Axes | None = None,
    length: str | Axes | None = None,
    rows: Integer[np.ndarray, "devices T/devices"] | None = None,
    exchange: str = "auto",
    bias: Float[Array, "T S"] | Float[Array, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
    empty_rows: str = "zero",
) -> Float[Array, "B H T D_v"]:
    """Attend on a mesh: `batch`, `heads` and `length` name the axes that each is spread over.

    Mask, bias and sinks are those of the whole call, whose positions are 0 to T - 1. `rows` says
    at which of them each device's rows stand: `contiguous`, `zigzag` or `planned` ones. Arrays are
    given, and returned, in that order: `query[:, :, rows.reshape(-1)]` is query in it. Where T is
    not S, queries and keys are contiguous.

    `exchange` is "gathered" (every device gets all keys), "exchanged" (those that its queries may
    attend to, as far as the mask is known while tracing), "ring" (keys go round; the memory is
    that of two shares, and gradients go round, too) or "auto": exchanged where that moves no more
    than half, a ring where all keys are more than 2**30 bytes, else gathered. Works eagerly and
    under `jax.jit`, with automatic and explicit axes.

    Raises what `attention` raises; ValueError where sizes are no multiples of the devices, for a
    mask of positions where rows are shared and T is not S, for axes that the mesh has not got, and
    for "uniform" where no device has all values.

    Source: "Ring Attention with Blockwise Transformers", section 3, for the ring.

    >>> from attn_jax import attention, causal
    >>> mesh = jax.make_mesh((1,), ("context",))
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 2, 6, 4))
    >>> output = sharded_attention(query, key, value, mask=causal(), mesh=mesh, length="context")
    >>> bool(jnp.allclose(output, attention(query, key, value, mask=causal()), atol=1e-6))
    True
    """
    if length is not None:
        shard_checks.check_aligned(mask, query, key)
    call = check_call(query, key, value, mask, bias, scale, softcap, sinks, empty_rows)
    layout = Layout(mesh, *map(_as_axes, (batch, heads, length)))
    return attend_sharded(query, key, value, call, layout, rows, exchange)


@dataclass(frozen=True)
class Shards:
    """Which axes what modules attend from is spread over, and where rows stand."""

    layout: Layout
    rows: bytes | None  # which compare quickly
    exchange: str

    @property
    def order(self) -> np.ndarray | None:
        """Return the positions of all rows, one device after the other."""
        return None if self.rows is None else np.frombuffer(self.rows, np.int64)

    def lay_out(self, call: Call) -> Call:
        """Lay a whole call's mask and bias out as the tokens are."""
        if self.order is None:
            return call
        shard_checks.check_same_rows(*call.sizes[2:])
        shard_checks.check_rows_fit(len(self.order), call.sizes[2])
        return _in_order(call, self.order, self.order)

    def attend(self, query: Array, key: Array, value: Array, call: Call) -> Array:
        """Attend from a call that is laid out."""
        return attend_sharded(query, key, value, call, self.layout, None, self.exchange)


_SHARDS = jax.make_user_context(None)  # what is compiled inside is compiled anew outside


@contextmanager
def shard_sequences(
    mesh: Any,
    *,
    length: str | Axes,
    batch: str | Axes | None = None,
    heads: str | Axes | None = None,
    rows: Integer[np.ndarray, "devices T/devices"] | None = None,
    exchange: str = "auto",
) -> Iterator[None]:
    """Have modules attend on a mesh, as `sharded_attention` does, which says what these are.

    Inside, `MultiHeadAttention` and all that is made of it take tokens (B, T, E) in the order of
    `rows`, and masks of the whole call; `process_heads` is told where the tokens stand. Attention
    gives no weights and drops nothing; with `rows` it is self-attention; caches are refused. It
    may stand around a compiled function or inside of one. Raises as `sharded_attention` does.

    >>> from attn_jax import MultiHeadAttention, causal
    >>> from flax import nnx
    >>> attn, x = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0)), jnp.ones((1, 6, 8))
    >>> with shard_sequences(jax.make_mesh((1,), ("context",)), length="context"):
    ...     output, _ = attn(x, attn_mask=causal(), need_weights=False)
    >>> bool(jnp.allclose(output, attn(x, attn_mask=causal())[0], atol=1e-6))
    True
    """
    layout = Layout(mesh, *map(_as_axes, (batch, heads, length)))
    shard_checks.check_exchange(exchange, "zero")
    shard_checks.check_axes(layout, {"B": 0, "H": 0, "T": 0, "S": 0})
    order = None
    if rows is not None:
        rows = np.asarray(shard_checks.check_rows(rows, np.size(rows), layout.count(layout.length)))
        order = rows.astype(np.int64).tobytes()
    with _SHARDS(Shards(layout, order, exchange)):
        yield


def current_shards() -> Shards | None:
    """Return what `shard_sequences` says, None outside of it."""
    return _SHARDS.value


class Exchange(NamedTuple):
    """How keys and values get to the devices that need them."""

    kind: str  # "none", "gathered", "exchanged" or "ring"
    hops: int = 0  # of a ring
    pieces: tuple[Piece, ...] = ()  # of an exchange


def attend_sharded(
    query: Array,
    key: Array,
    value: Array,
    call: Call,
    layout: Layout,
    rows: Any = None,
    exchange: str = "auto",
) -> Array:
    """Attend from a checked call, of which each device has its share."""
    shard_checks.check_exchange(exchange, call.empty_rows)
    shard_checks.check_no_dropout(call.dropout)
    shard_checks.check_axes(layout, dict(zip("BHTS", call.sizes, strict=True)))
    if not layout.length:
        shard_checks.check_no_rows(rows)
        return _attend(layout, Exchange("none"), query, key, value, closure_convert(call), ())
    world = layout.count(layout.length)
    if rows is None:
        orders = [contiguous(size, world).reshape(-1) for size in call.sizes[2:]]
    else:
        shard_checks.check_same_rows(*call.sizes[2:])
        orders = [np.reshape(shard_checks.check_rows(rows, call.sizes[2], world), -1)] * 2
    call = closure_convert(_in_order(call, *orders))
    others = layout.count(layout.batch) * layout.count(layout.heads)
    chosen, tables = _choose(call, world, exchange, (key.nbytes + value.nbytes) // others)
    return _attend(layout, chosen, query, key, value, call, tables)


def _as_axes(names: str | Axes | None) -> Axes:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _in_order(call: Call, rows: np.ndarray, columns: np.ndarray) -> Call:
    """Lay a call's mask and bias out as queries and keys are."""
    call = expand_bias(call)
    mask, bias = call.mask, call.bias
    if mask is not None:
        mask = mask.part(rows, columns, call.query_offset)
    for axis, order in ((2, rows), (3, columns)):
        if bias is not None and bias.shape[axis] > 1 and (np.diff(order) != 1).any():
            bias = jnp.take(bias, order, axis)
    return call._replace(mask=mask, bias=bias, query_offset=0)


def _choose(call: Call, world: int, exchange: str, size: int) -> tuple[Exchange, tuple]:
    """Choose an exchange of keys and values of a size in bytes; its tables lie as rows do."""
    if exchange == "gathered" or call.empty_rows == "uniform":
        return Exchange("gathered"), ()
    needed = needed_blocks(call.mask, call.sizes, world)
    if exchange == "auto":
        exchange = _cheapest(moved_share(needed), size)
    if exchange == "exchanged":
        pieces, tables = plan_pieces(needed, call.sizes[3] // world)
        return Exchange(exchange, pieces=pieces), tables
    return Exchange(exchange, last_hop(needed) if exchange == "ring" else 0), ()


def _cheapest(moved: float, size: int) -> str:
    return "exchanged" if moved <= EXCHANGED else "ring" if size > GATHERED else "gathered"


@bind(jax.jit, static_argnums=(0, 1))
def _attend(
    layout: Layout,
    exchange: Exchange,
    query: Array,
    key: Array,
    value: Array,
    call: Call,
    tables: tuple,
) -> Array:
    kv_heads = key.shape[1]

    def local(query: Array, key: Array, value: Array, call: Call, tables: tuple) -> Array:
        key, value = layout.local_heads((key, value), call.sizes[1], kv_heads)
        inputs = vary_alike((query, key, value, layout.local_call(call)))
        match exchange.kind:
            case "ring":
                return attend_ring(layout, exchange.hops, *inputs)
            case "gathered":
                inputs = _gather(layout, *inputs)
            case "exchanged":
                inputs = _exchange(layout, exchange.pieces, inputs, tables)
        return attend(*inputs)

    rows = "BKTD" if layout.length else "BKSD"
    letters = ("BHTD", rows, rows, call_letters(call), ("TN",) * len(tables))
    return share_out(layout, local, letters, (query, key, value, call, tables))


def _gather(layout: Layout, query: Array, key: Array, value: Array, call: Call) -> tuple:
    """Give a device all keys and values."""
    collect = bind(lax.all_gather, axis_name=layout.length, axis=2, tiled=True)
    return query, _move(collect, key), _move(collect, value), call


def _exchange(layout: Layout, pieces: tuple[Piece, ...], inputs: tuple, tables: tuple) -> tuple:
    """Give a device the keys and values that its queries may attend to, behind its own."""
    query, key, value, call = inputs
    (sent,), (columns,) = tables
    each = key.shape[2]

    def collect(array: Array, sent: Array) -> Array:
        parts, start = [array], 0
        for count, pairs in pieces:
            rows = jnp.take(array, lax.slice_in_dim(sent, start, start + count), 2)
            parts.append(lax.ppermute(rows, layout.length, pairs))
            start += count
        return jnp.concatenate(parts, 2)

    places = lax.axis_index(layout.length) * each + jnp.arange(each)
    columns = jnp.concatenate([places, columns])
    call = for_columns(call, len(columns), lambda x, axis: jnp.take(x, columns.clip(0), axis))
    got = padding(hidden=columns[None] < 0)
    call = call._replace(mask=got if call.mask is None else call.mask & got)
    return query, _move(collect, key, sent), _move(collect, value, sent), call


def _move(collect: Callable, array: Array, *tables: Array) -> Array:
    """Return what a device collects: 16 bits move as such, their gradients in float32.

    These are summed over devices, and a sum in 16 bits stalls.
    """
    if array.dtype == upcast(array).dtype:
        return collect(array, *tables)

    @jax.custom_vjp
    def move(array: Array, *tables: Array) -> Array:
        return upcast(collect(array, *tables))

    def forward(*inputs: Array) -> tuple[Array, tuple]:
        return move(*inputs), inputs

    def backward(inputs: tuple, grad: Array) -> tuple:
        array, *tables = inputs
        transpose = jax.vjp(lambda x: collect(x, *tables), upcast(array))[1]
        return transpose(grad)[0].astype(array.dtype), *[None] * len(tables)

    move.defvjp(forward, backward)
    return move(array, *tables)
