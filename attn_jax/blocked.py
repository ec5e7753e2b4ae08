"""Attention tile by tile: the softmax of a block of queries is built up as its keys pass by.

A few heads at a time, one block of their queries at a time, over the tiles of keys that the mask
lets it see. All of it is loops whose bounds are looked up, so nothing grows with T or S when it is
compiled, and new lengths, segments or offsets compile nothing anew.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from .masks import Mask
from .numerics import upcast
from .tiles import cut
from .walk import Tile, Walk, opened

# Queries by keys, and how many heads at once, forward and backward. Found on two CPU cores, causal,
# float32, at (1, 8, 4096, 64) and (8, 8, 512, 64), with sides of 128 to 1024 and 1 to 8 heads. XLA
# shares a product out over cores only from about 512 x 256 x 64 on, however many heads it is for:
# smaller tiles leave a core idle and take nearly twice as long. Larger ones gain nothing and waste
# more beside the diagonal (512: an eighth of 4096). Four heads are 5 to 10 % faster than two
# forward and up to 12 % slower backward. Other machines, and accelerators, were not measured.
ROWS, COLUMNS = 512, 512
HEADS = 4, 2


def attention_blocked(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H_kv S D"],
    value: Float[Array, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "T S"] | Float[Array, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Array | np.ndarray, "..."] = 0,
    tile: tuple[int, int] = (ROWS, COLUMNS),
) -> Float[Array, "B H T D_v"]:
    """Attend without ever holding the (T, S) matrix: tile by tile, as the mask allows.

    Takes what `attention` has checked; B, H, T and S must be above 0. Memory grows with T + S,
    forward and backward: the backward pass computes every tile's scores again. Reverse mode only.

    Source: "FlashAttention", section 3.1, for the tiles and both passes; "Self-attention Does Not
    Need O(n^2) Memory", section 2, for the running maximum.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 2, 300, 4))
    >>> from attn_jax import causal
    >>> output = attention_blocked(query, key, value, mask=causal())
    >>> bool((output[:, :, 0] == value[:, :, 0]).all())  # the first query sees the first key alone
    True
    """
    if bias is not None:
        bias = jnp.reshape(bias, (1,) * (4 - bias.ndim) + bias.shape)
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else scale
    tiles = _tiles(tile, query.shape, key.shape, mask)
    mask = None if mask is None else opened(mask, tiles[0])
    arrays = (query, key, value, mask, bias, scale, softcap, query_offset)
    return _compiled(empty_rows, tiles, *arrays)


def _tiles(tile, queries, keys, mask) -> tuple[Tile, Tile]:
    """Fit a tile to a call: for the forward pass, and with fewer heads for the backward one."""
    rows, columns = min(tile[0], queries[2]), tile[1]
    columns = max(columns, min(tile[0] * columns // rows, 8 * columns))  # where queries are few
    if mask is not None and any(_reach(leaf) < columns for leaf in mask.leaves()):
        rows = -(-rows // 2)  # so that less lies beside a narrow window
    rows, columns = _even(queries[2], rows), _even(keys[2], columns)
    room = tile[0] * tile[1] // (rows * columns)
    heads = [_heads(queries[1], queries[1] // keys[1], most * room) for most in HEADS]
    return Tile(heads[0], rows, columns), Tile(heads[1], rows, columns)


def _heads(heads: int, group: int, most: int) -> int:
    """Return how many heads to take at once: all or an equal part of what some keys serve."""
    fits = (
        n for n in range(2, min(most, heads) + 1) if not (heads % n or (n % group and group % n))
    )
    return max(fits, default=1)


def _reach(mask: Mask) -> int | float:
    return sum(mask.settings) if mask.name == "sliding_window" else math.inf


def _even(length: int, most: int) -> int:
    """Return the least size that cuts a length into no more parts than `most` does."""
    return -(-length // -(-length // most))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(empty_rows, tiles, *arrays):
    return _forward(empty_rows, tiles, *arrays)[0]


_compiled = jax.jit(_attend, static_argnums=(0, 1))


def _forward(empty_rows, tiles, *arrays):
    """Return the output, and what the backward pass needs."""
    walk = Walk(tiles[0], *arrays)
    lse = jnp.zeros(walk.sizes[:3], walk.dtype)
    output = jnp.zeros((*walk.sizes[:3], walk.value.shape[3]), walk.dtype)
    lse, output = lax.fori_loop(0, walk.count, partial(_attend_block, walk), [lse, output])
    empty = lse == jnp.inf
    lse = jnp.where(walk.nonfinite_queries & ~empty, jnp.nan, lse)
    lost = jnp.isnan(lse)
    if empty_rows == "uniform":
        mean = jnp.where(
            walk.nonfinite_keys.any(-1)[..., None], jnp.nan, upcast(walk.value).mean(2)
        )
        mean = jnp.repeat(mean, walk.group, axis=1)[:, :, None]  # (B, H, 1, D_v)
        output = jnp.where(empty[..., None], mean, output)
    elif empty_rows == "nan":
        lost |= empty
    output = jnp.where(lost[..., None], jnp.nan, output)
    return output.astype(walk.query.dtype), (arrays, lse, output)


def _attend_block(walk, work, kept):
    """Write the log-sum-exp and the output of one block of queries: inf and 0 where empty."""
    block = walk.block(work)
    query = walk.queries(block)

    def step(i, state):
        at = (*block, first + i * walk.columns // walk.grain)
        fold = [partial(_fold, walk, at, query, masked) for masked in (True, False)]
        return lax.switch(walk.kind(at), [lambda state: state, *fold], state)

    zeros = jnp.zeros(query.shape[:2], walk.dtype)
    sums = jnp.zeros((*query.shape[:2], walk.value.shape[3]), walk.dtype)
    first, count = walk.span(block)
    level, total, sums = lax.fori_loop(0, count, step, (zeros - jnp.inf, zeros, sums))
    empty = level == -jnp.inf
    total = jnp.where(empty, 1, total)
    lse = jnp.where(empty, jnp.inf, level + jnp.log(total))
    lse = jnp.where((level == jnp.inf) | (level == walk.lowest[0]), jnp.nan, lse)
    rows = (lse, sums / total[..., None])
    return [walk.write(array, block, part) for array, part in zip(kept, rows, strict=True)]


def _fold(walk, at, query, masked, state):
    """Take one tile into the running maximum, sum and weighted values of its rows."""
    level, total, sums = state
    key, value = walk.keys(at, masked)
    scores, _ = walk.scores(at, query, key, masked)
    top = jnp.maximum(level, scores.max(-1))
    base = jnp.where(jnp.isfinite(top), top, 0)  # inf - inf would be NaN
    keep, exp = jnp.exp(level - base), jnp.exp(scores - base[..., None])
    return top, total * keep + exp.sum(-1), sums * keep[..., None] + exp @ value


def _backward(empty_rows, tiles, kept, grad):
    """Return the gradients of query, key, value and bias; nothing else takes one."""
    arrays, lse, output = kept
    walk = Walk(tiles[1], *arrays)
    inputs = [x for x in (walk.query, walk.key, walk.value, walk.bias) if x is not None]
    found = [jnp.zeros(x.shape, walk.dtype) for x in inputs]
    found[1:3] = (jnp.swapaxes(x, 2, 3) for x in found[1:3])
    found = lax.fori_loop(0, walk.count, partial(_pull_block, walk, (lse, output, grad)), found)
    found[1:3] = (jnp.swapaxes(x, 2, 3) for x in found[1:3])
    if empty_rows == "uniform":
        shares = jnp.where(lse[..., None] == jnp.inf, upcast(grad), 0).sum(2)  # (B, H, D_v)
        shares = shares.reshape(*walk.value.shape[:2], walk.group, -1).sum(2) / walk.sizes[3]
        found[2] += shares[:, :, None]
    found = [grad.astype(x.dtype) for grad, x in zip(found, inputs, strict=True)]
    query, key, value, bias = (*found, None)[:4]
    return query, key, value, None, bias, None, None, None


_attend.defvjp(_forward, _backward)


def _pull_block(walk, rows, work, found):
    """Add what one block of queries gives to every gradient."""
    block = walk.block(work)
    query = walk.queries(block)
    lse, output, grad = (upcast(walk.read(array, block)) for array in rows)
    lost = jnp.isnan(lse)
    grad = jnp.where(lost[..., None], jnp.nan, grad)
    rows = (grad, jnp.where(lost, jnp.inf, lse), (grad * output).sum(-1))
    turned = (query.swapaxes(1, 2), grad.swapaxes(1, 2))

    def step(i, state):
        at = (*block, first + i * walk.columns // walk.grain)
        pull = [partial(_pull, walk, at, query, rows, turned, masked) for masked in (True, False)]
        shapes = jax.eval_shape(pull[0])
        none = partial(jax.tree.map, lambda part: jnp.zeros(part.shape, part.dtype), shapes)
        of_query, *parts = lax.switch(walk.kind(at), [none, *pull])
        batch, head, column, _ = walk.corner(at, of_keys=True)
        corners = [(batch, head, 0, column)] * 2 + [walk.corner(at)]
        totals = zip(state[1:], corners, parts, strict=False)
        return [state[0] + of_query, *(_add(*total) for total in totals)]

    state = [jnp.zeros_like(query), *found[1:]]
    first, count = walk.span(block)
    of_query, *others = lax.fori_loop(0, count, step, state)
    return [walk.write(found[0], block, of_query * walk.scale), *others]


def _pull(walk, at, query, rows, turned, masked):
    """Return a tile's part of the gradients of query (before scaling), key, value and bias.

    Those of key and value come transposed: a product whose left side XLA would have to transpose
    takes about twice as long on a CPU, so the small factors are turned round, once a block.
    """
    grad, lse, delta = rows
    key, value = walk.keys(at, masked)
    scores, slope = walk.scores(at, query, key, masked)
    weights = jnp.exp(scores - lse[..., None])
    of_scores = weights * (grad @ value.swapaxes(1, 2) - delta[..., None])
    if masked:  # not 0 * inf, where a hidden value is huge
        of_scores = jnp.where(scores == -jnp.inf, 0, of_scores)
    of_bias = []
    if walk.bias is not None:
        sums = [axis for axis in (1, 2, 3) if walk.bias.shape[axis] == 1]
        of_bias = [walk.ungrouped(of_scores).sum(sums, keepdims=True)]
    of_scores = of_scores if slope is None else of_scores * slope
    return of_scores @ key, turned[0] @ of_scores, turned[1] @ weights, *of_bias


def _add(array, corner, part):
    """Add a part to an array in place; where the array has a dim of 1, there."""
    part = part.reshape((1,) * (array.ndim - part.ndim) + part.shape)
    return lax.dynamic_update_slice(array, cut(array, corner, part.shape) + part, corner)
