"""Attention tile by tile: the softmax of a block of queries is built up as its keys pass by.

A few heads at a time, one block of their queries at a time, over the tiles of keys that the mask
allows it. All of it is loops whose bounds are looked up, so nothing grows with T or S when it is
compiled, and new lengths, segments or offsets compile nothing anew.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .call import Call, expand_bias
from .devices import by_device, vary_alike
from .masks import Mask
from .numerics import upcast
from .split import Lanes, split
from .tiles import cut
from .walk import Block, Tile, TileLoop, closure_convert

# Queries by keys, and how many heads at once, forward and backward. Found on two CPU cores, causal,
# float32, at (1, 8, 4096, 64) and (8, 8, 512, 64), with sides of 128 to 1024 and 1 to 8 heads. XLA
# shares a product out over cores only from about 512 x 256 x 64 on, however many heads it is for:
# smaller tiles leave a core idle and take nearly twice as long. Larger ones gain nothing and waste
# more beside the diagonal (512: an eighth of 4096). Four heads are 5 to 10 % faster than two
# forward and up to 12 % slower backward. Other machines, and accelerators, were not measured.
ROWS, COLUMNS = 512, 512
HEADS = 4, 2
# Scores that the textbook makes at once: one tile only takes long to compile.
LONE_CELLS = 128 * 128


class Cuts(NamedTuple):
    """Queries by keys of a tile, and how many heads at once, forward and backward.

    A program is compiled for each.
    """

    rows: int
    columns: int
    heads: tuple[int, int]


def attention_blocked(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H_kv S D"],
    value: Float[Array, "B H_kv S D_v"],
    call: Call,
    tile: tuple[int, int] | None = None,
) -> Float[Array, "B H T D_v"]:
    """Attend without ever holding the (T, S) matrix: tile by tile, as the mask allows.

    Takes what `attention` has checked, with no size of 0; `tile` is rows by columns. Memory grows
    with T + S, forward and backward: the backward pass computes every tile's scores again. Forward
    mode and second derivatives are the textbook's, with its memory.

    Source: "FlashAttention", section 3.1, for the tiles and both passes; "Self-attention Does Not
    Need O(n^2) Memory", section 2, for the running maximum.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 2, 300, 4))
    >>> from attn_jax import causal
    >>> from attn_jax.call import check_call
    >>> output = attention_blocked(query, key, value, check_call(query, key, value, causal()))
    >>> bool((output[:, :, 0] == value[:, :, 0]).all())  # its own key is all it is allowed
    True
    """
    cuts = Cuts(*((ROWS, COLUMNS) if tile is None else tile), HEADS)
    return _attend(cuts, query, key, value, closure_convert(call))


def fit_tiles(cuts: Cuts, call: Call, kv_heads: int, lanes: Lanes) -> tuple[Tile, Tile]:
    """Fit a tile to a call: for the forward pass, and with fewer heads for the backward one."""
    _, heads, queries, keys = call.sizes
    tile = (cuts.rows, cuts.columns)
    while lanes.cells * tile[0] * tile[1] > 64 * ROWS * COLUMNS and min(tile) > 128:
        tile = (tile[0] // 2, tile[1] // 2)
    rows, columns = min(tile[0], queries), tile[1]
    columns = max(columns, min(tile[0] * columns // rows, 8 * columns))  # where queries are few
    if call.mask is not None and any(_reach(leaf) < columns for leaf in call.mask.leaves()):
        rows = -(-rows // 2)  # so that less lies beside a narrow window
    rows, columns = _even(queries, rows), _even(keys, columns)
    room = tile[0] * tile[1] // (rows * columns)
    counts = [_heads(heads, heads // kv_heads, most * room) for most in cuts.heads]
    return Tile(counts[0], rows, columns), Tile(counts[1], rows, columns)


def _heads(heads: int, group: int, most: int) -> int:
    """Return how many heads to take at once: all or an equal part of what some keys serve."""
    fits = (
        n for n in range(2, min(most, heads) + 1) if not (heads % n or (n % group and group % n))
    )
    return max(fits, default=1)


def _reach(mask: Mask) -> int | float:
    return sum(mask.settings) if mask.name in ("sliding_window", "chunked") else math.inf


def _even(length: int, most: int) -> int:
    """Return the least size that cuts a length into no more parts than `most` does."""
    return -(-length // -(-length // most))


@partial(jax.jit, static_argnums=0)
def _attend(cuts: Cuts, query: Array, key: Array, value: Array, call: Call) -> Array:
    def attend(*inputs: Any) -> Array:
        *arrays, call = vary_alike(inputs)
        return attend_tiles(cuts, *arrays, expand_bias(call))[0].astype(query.dtype)

    return by_device(attend)(query, key, value, call)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend_tiles(
    cuts: Cuts, query: Array, key: Array, value: Array, call: Call
) -> tuple[Array, Array]:
    """Return the output in the width of the sums, and the log-sum-exp of every row.

    `attention.py` says what its derivative is.
    """
    output, lse = split(partial(_attend_tiles, cuts), [0, 0], query, key, value, call)
    return output, lse


def _attend_tiles(cuts: Cuts, lanes: Lanes, *inputs: Any) -> list[Array]:
    _, key, value, call = inputs
    loop = TileLoop(fit_tiles(cuts, call, key.shape[1], lanes)[0], lanes, *inputs)
    lse = loop.zeros(call.sizes[:3])
    output = loop.zeros((*call.sizes[:3], value.shape[3]))
    lse, output = lax.fori_loop(0, loop.count, partial(_attend_block, loop), [lse, output])
    empty, lost = lse == jnp.inf, jnp.isnan(lse)
    if call.empty_rows == "uniform":
        nonfinite = loop.nonfinite_keys.any(-1)[..., None]
        mean = jnp.where(nonfinite, jnp.nan, upcast(value).mean(2))
        mean = jnp.repeat(mean, loop.group, axis=1)[:, :, None]  # (B, H, 1, D_v)
        output = jnp.where(empty[..., None], mean, output)
    elif call.empty_rows == "nan":
        lost |= empty
    output = jnp.where(lost[..., None], jnp.nan, output)
    return [output, lse]


def _attend_block(loop: TileLoop, work: Array, written: list[Array]) -> list[Array]:
    """Write a block's log-sum-exp and output: inf and 0 for a fully masked row."""
    block = loop.block(work)
    running_max, total, sums = pass_keys(loop, block)
    spoilt = loop.read(loop.nonfinite_queries, block) & (running_max != -jnp.inf)
    if loop.call.sinks is not None:
        running_max, total, sums = _add_sink(loop.sinks(block), running_max, total, sums)
    empty = running_max == -jnp.inf
    total = jnp.where(empty, 1, total)
    lse = jnp.where(empty, jnp.inf, running_max + jnp.log(total))
    lost = spoilt | (running_max == jnp.inf) | (running_max == loop.lowest[0])
    rows = (jnp.where(lost, jnp.nan, lse), sums / total[..., None])
    return [loop.write(array, block, part) for array, part in zip(written, rows, strict=True)]


def _add_sink(
    sink: Array, running_max: Array, total: Array, sums: Array
) -> tuple[Array, Array, Array]:
    new_max = jnp.maximum(running_max, sink)
    base = jnp.where(jnp.isfinite(new_max), new_max, 0)
    keep = jnp.exp(running_max - base)
    return new_max, total * keep + jnp.exp(sink - base), sums * keep[..., None]


def pass_keys(loop: TileLoop, block: Block) -> tuple[Array, Array, Array]:
    """Let a block's keys pass by: return the maximum, sum and weighted values of its rows."""
    query = loop.queries(block)

    def step(i: Array, state: tuple) -> tuple:
        at = (*block, first + i * loop.columns // loop.step)
        ways = [partial(_online_softmax_step, loop, at, query, masked) for masked in (True, False)]
        return lax.switch(loop.kind(at), [lambda state: state, *ways], state)

    zeros, sums = loop.zeros(query.shape[:2]), loop.zeros((*query.shape[:2], loop.value.shape[3]))
    first, count = loop.key_range(block)
    return loop.over_keys(count, step, (zeros - jnp.inf, zeros, sums))


def _online_softmax_step(
    loop: TileLoop, at: tuple, query: Array, masked: bool, state: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """Update the running maximum, sum and weighted values of the rows by one tile."""
    running_max, total, sums = state
    key, value = loop.keys(at, masked)
    scores, _ = loop.scores(at, query, key, masked)
    new_max = jnp.maximum(running_max, scores.max(-1))
    base = jnp.where(jnp.isfinite(new_max), new_max, 0)  # inf - inf would be NaN
    keep, exp = jnp.exp(running_max - base), jnp.exp(scores - base[..., None])
    return new_max, total * keep + exp.sum(-1), sums * keep[..., None] + exp @ value


def backward(cuts: Cuts, inputs: tuple, lse: Array, output: Array, d_output: Array) -> tuple:
    """Return the gradients of query, key, value, bias and sinks; nothing else takes one."""
    call, d_sinks = inputs[3], None
    delta = (upcast(d_output) * output).sum(-1)
    grads = backward_tiles(cuts, inputs, lse, delta, d_output)
    if call.sinks is not None:  # a sink's weight, of a value of 0
        weights = jnp.exp(upcast(call.sinks)[None, :, None] - lse)
        d_sinks = (weights * -delta).sum((0, 2)).astype(call.sinks.dtype)
    return *grads, d_sinks


def backward_tiles(cuts: Cuts, inputs: tuple, lse: Array, delta: Array, d_output: Array) -> tuple:
    """Return the gradients where weights are exp(score - lse), (B, H, T).

    A weight's gradient is d_output . value - delta; lse is inf for a fully masked row.
    """
    like = [0, 1, 2] if inputs[3].bias is None else [0, 1, 2, 3]
    grads = split(partial(_backward, cuts), like, *inputs, lse, delta, d_output)
    return tuple([*grads, None][:4])


def _backward(cuts: Cuts, lanes: Lanes, *inputs: Any) -> list[Array]:
    query, key, value, call, *rows = inputs
    lse, _, d_output = rows
    loop = TileLoop(fit_tiles(cuts, call, key.shape[1], lanes)[1], lanes, query, key, value, call)
    arrays = [x for x in (query, key, value, call.bias) if x is not None]
    grads = [loop.zeros(x.shape) for x in arrays]
    grads[1:3] = (jnp.swapaxes(x, 2, 3) for x in grads[1:3])
    grads = lax.fori_loop(0, loop.count, partial(_backward_block, loop, tuple(rows)), grads)
    grads[1:3] = (jnp.swapaxes(x, 2, 3) for x in grads[1:3])
    if call.empty_rows == "uniform":
        shares = jnp.where(lse[..., None] == jnp.inf, upcast(d_output), 0).sum(2)  # (B, H, D_v)
        shares = shares.reshape(*value.shape[:2], loop.group, -1).sum(2) / call.sizes[3]
        grads[2] += lax.psum(shares, lanes.key)[:, :, None]
    return [grad.astype(x.dtype) for grad, x in zip(grads, arrays, strict=True)]


def _backward_block(loop: TileLoop, rows: tuple, work: Array, grads: list[Array]) -> list[Array]:
    """Add what one block of queries gives to every gradient."""
    block = loop.block(work)
    query = loop.queries(block)
    lse, delta, d_output = (upcast(loop.read(array, block)) for array in rows)
    lost = jnp.isnan(lse)
    d_output = jnp.where(lost[..., None], jnp.nan, d_output)
    rows = (d_output, jnp.where(lost, jnp.inf, lse), delta)
    turned = (query.swapaxes(1, 2), d_output.swapaxes(1, 2))

    def step(i: Array, state: list[Array]) -> list[Array]:
        at = (*block, first + i * loop.columns // loop.step)
        ways = [
            partial(_backward_tile, loop, at, query, rows, turned, masked)
            for masked in (True, False)
        ]
        shapes = jax.eval_shape(ways[0])
        none = partial(jax.tree.map, lambda part: loop.zeros(part.shape), shapes)
        d_query, *parts = lax.switch(loop.kind(at), [none, *ways])
        batch, head, column, _ = loop.corner(at, of_keys=True)
        corners = [(batch, head, 0, column)] * 2 + [loop.corner(at)]
        totals = zip(state[1:], corners, parts, strict=False)
        return [state[0] + d_query, *(_add(*total) for total in totals)]

    state = [jnp.zeros_like(query), *grads[1:]]
    first, count = loop.key_range(block)
    d_query, *others = loop.over_keys(count, step, state)
    return [loop.write(grads[0], block, d_query * loop.scale), *others]


def _backward_tile(
    loop: TileLoop, at: tuple, query: Array, rows: tuple, turned: tuple, masked: bool
) -> tuple[Array, ...]:
    """Return a tile's part of the gradients of query (before scaling), key, value and bias.

    Those of key and value come transposed: a product whose left side XLA would have to transpose
    takes about twice as long on a CPU, so the small factors are turned round, once a block.
    """
    d_output, lse, delta = rows
    key, value = loop.keys(at, masked)
    scores, slope = loop.scores(at, query, key, masked)
    weights = jnp.exp(scores - lse[..., None])
    d_scores = weights * (d_output @ value.swapaxes(1, 2) - delta[..., None])
    if masked:  # not 0 * inf, where a hidden value is huge
        d_scores = jnp.where(scores == -jnp.inf, 0, d_scores)
    d_bias = []
    if loop.call.bias is not None:
        sums = [axis for axis in (1, 2, 3) if loop.call.bias.shape[axis] == 1]
        d_bias = [loop.ungrouped(d_scores).sum(sums, keepdims=True)]
        d_bias = [lax.psum(d_bias[0], loop.lanes.bias)]
    d_scores = d_scores if slope is None else d_scores * slope
    d_key, d_value = lax.psum((turned[0] @ d_scores, turned[1] @ weights), loop.lanes.key)
    return d_scores @ key, d_key, d_value, *d_bias


def _add(array: Array, corner: tuple, part: Array) -> Array:
    """Add a part to an array in place; where the array has a dim of 1, there."""
    part = part.reshape((1,) * (array.ndim - part.ndim) + part.shape)
    return lax.dynamic_update_slice(array, cut(array, corner, part.shape) + part, corner)
