"""Attention to some of the keys, and how such parts merge into attention to all of them.

For keys that are on several devices, come one after the other, or are shared by many queries.
A part is the softmax before its division. A log-sum-exp beside an output says as much on paper
alone: beside scores of -1e30 float32 holds nothing of the logarithm, and two such parts weigh
the same whatever they hold.
"""

from functools import partial as bind
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Integer

from . import blocked, checks
from .attention import allowed_cells, steps_here
from .blocked import Cuts, backward_tiles, fit_tiles, pass_keys
from .call import Call, check_call, expand_bias
from .devices import by_device, local_sizes, vary_alike
from .linear import apply_linear
from .masks import Mask
from .numerics import split_nonfinite, upcast
from .split import Lanes, split
from .walk import TileLoop, closure_convert


class Partial(NamedTuple):
    """What attention to some of the keys gives: float64, or float32 for all other inputs.

    `maximum` is a constant to every derivative: outputs do not depend on what is subtracted.
    """

    sums: Float[Array, "B H T D_v"]  # of exp(score - maximum) times value
    maximum: Float[Array, "B H T"]  # the largest allowed score of a row, -inf without any
    total: Float[Array, "B H T"]  # the sum of exp(score - maximum)

    @property
    def output(self) -> Float[Array, "B H T D_v"]:
        """What attention to these keys alone gives; a fully masked row is 0."""
        return finish(self)

    @property
    def lse(self) -> Float[Array, "B H T"]:
        """The logarithm of the sum of exp(score); -inf for a fully masked row."""
        return self.maximum + jnp.log(_divisor(self, 1.0))


def attention_part(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H_kv S D"],
    value: Float[Array, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "T S"] | Float[Array, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    query_offset: int | Integer[Array | np.ndarray, "..."] | None = None,
) -> Partial:
    """Attend to some of the keys: `merge` joins parts, and `finish` makes the output of them.

    Mask, bias and offset are those of these keys; key 0 is the first of them. A mask of the whole
    call becomes theirs by `mask.part(rows, columns)`; one that goes by positions alone may be
    given as it is, with a `query_offset`. Everything is as in `attention`, and raises what it
    raises, and ValueError for such a mask without one.

    Source: "FlashAttention", section 3.1, for the sums and how they join.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 2, 5, 4))
    >>> from attn_jax import attention, causal
    >>> first = attention_part(query, key[:, :, :3], value[:, :, :3], mask=causal(), query_offset=0)
    >>> last = attention_part(query, key[:, :, 3:], value[:, :, 3:], mask=causal(), query_offset=-3)
    >>> whole = attention(query, key, value, mask=causal())
    >>> bool(jnp.allclose(finish(merge(first, last)), whole, atol=1e-6))
    True
    """
    checks.check_part_offset(query_offset, mask, Mask)
    call = check_call(query, key, value, mask, bias, scale, softcap, query_offset=query_offset)
    return attend_part(query, key, value, call)


def merge(*partials: Partial) -> Partial:
    """Join parts into the one that all their keys give, whatever their order.

    A part in which a row is fully masked changes nothing in that row. Raises ValueError for no
    part and for shapes that differ, TypeError for what is no part and for other dtypes.

    >>> part = Partial(jnp.ones((1, 1, 1, 2)), jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1)))
    >>> merge(part, part).total
    Array([[[2.]]], dtype=float32)
    """
    checks.check_partials(partials, Partial)
    maximum = lax.stop_gradient(jnp.stack([part.maximum for part in partials]).max(0))
    base = jnp.where(maximum == -jnp.inf, 0, maximum)  # -inf - -inf would be NaN
    shares = [jnp.exp(part.maximum - base) for part in partials]
    sums = [share[..., None] * part.sums for share, part in zip(shares, partials, strict=True)]
    totals = [share * part.total for share, part in zip(shares, partials, strict=True)]
    return Partial(_add(sums), maximum, _add(totals))


def _add(arrays: list[Array]) -> Array:
    return sum(arrays[1:], start=arrays[0])


def finish(
    partial: Partial,
    dtype: Any = None,
    empty_rows: str = "zero",
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B H T D_v"]:
    """Divide the sums by their total: the output of attention to all the keys of a part.

    It is rounded once, to `dtype`, if there is one. A fully masked row is 0 or NaN: `empty_rows`
    "zero" or "nan". Raises ValueError for "uniform", as no part knows the mean of all values, and
    TypeError for a dtype that is no float.
    `sinks` are one more logit a head in the softmax, with no value: then such a row is 0.

    >>> part = Partial(jnp.ones((1, 1, 1, 2)), jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 4.0))
    >>> finish(part)
    Array([[[[0.25, 0.25]]]], dtype=float32)
    """
    checks.check_finish(partial, Partial, dtype, empty_rows, sinks)
    if sinks is not None:
        partial, empty_rows = merge(partial, _sink(partial, sinks)), "zero"
    empty_row_divisor = jnp.nan if empty_rows == "nan" else 1.0
    output = partial.sums / _divisor(partial, empty_row_divisor)[..., None]
    return output if dtype is None else output.astype(dtype)


def _sink(partial: Partial, sinks: Array) -> Partial:
    """Return the part of one key a head, whose logit is the sink and whose value is 0."""
    sinks, shape = sinks.astype(partial.sums.dtype)[:, None], partial.total.shape
    nothing = sinks == -jnp.inf
    sinks = jnp.maximum(sinks, np.nextafter(np.finfo(sinks.dtype).min, sinks.dtype.type(0)))
    maximum = lax.stop_gradient(sinks)
    total = jnp.exp(jnp.where(nothing, 0, sinks - maximum))
    maximum, total = jnp.where(nothing, -jnp.inf, maximum), jnp.where(nothing, 0, total)
    sums = jnp.zeros_like(partial.sums)
    return Partial(sums, jnp.broadcast_to(maximum, shape), jnp.broadcast_to(total, shape))


def _divisor(partial: Partial, empty_row_divisor: float) -> Array:
    """Return the totals, with NaN for rows whose every logit overflowed."""
    maximum, total = partial.maximum, partial.total
    total = jnp.where(maximum == jnp.finfo(maximum.dtype).min, jnp.nan, total)
    return jnp.where(maximum == -jnp.inf, empty_row_divisor, total)


def attend_part(query: Array, key: Array, value: Array, call: Call) -> Partial:
    """Return a checked call's part: by tiles, or by the textbook."""
    if _is_small(value, call):
        sizes = bind(local_sizes, query, key, value, call)
        return _attend_textbook(query, key, value, closure_convert(call, sizes))
    cuts = Cuts(blocked.ROWS, blocked.COLUMNS, blocked.HEADS)
    return _attend_tiles(cuts, query, key, value, closure_convert(call))


def _is_small(value: Array, call: Call) -> bool:
    """Whether the textbook answers, as it does where sizes are not known or 0."""
    sizes = (*call.sizes, value.shape[3])
    textbook = any(map(is_symbolic_dim, sizes)) or 0 in sizes
    return textbook or call.sizes[2] * call.sizes[3] <= blocked.LONE_CELLS


def backward_part(
    query: Array, key: Array, value: Array, call: Call, maximum: Array, grads: tuple
) -> tuple:
    """Return the gradients of query, key, value and bias by those of sums and total.

    These are less a maximum of all keys, of which the part may have some.
    """
    d_sums, d_total = grads
    if _is_small(value, call):

        def textbook(query: Array, key: Array, value: Array, bias: Array | None) -> tuple:
            inputs = query, key, value, call._replace(bias=bias)
            sums, _, total = _sums_by_formula(*inputs, maximum)
            return sums, total

        return jax.vjp(textbook, query, key, value, call.bias)[1](grads)
    cuts = Cuts(blocked.ROWS, blocked.COLUMNS, blocked.HEADS)
    lse = jnp.where(maximum == -jnp.inf, jnp.inf, maximum)
    return backward_tiles(cuts, (query, key, value, call), lse, -d_total, d_sums)


@jax.jit
def _attend_textbook(query: Array, key: Array, value: Array, call: Call) -> Partial:
    """Return the part, by the formula."""
    return Partial(*by_device(_sums_by_formula)(query, key, value, call))


@bind(jax.jit, static_argnums=0)
def _attend_tiles(cuts: Cuts, query: Array, key: Array, value: Array, call: Call) -> Partial:
    def attend(*inputs: Any) -> tuple[Array, Array, Array]:
        *arrays, call = vary_alike(inputs)
        both, maximum = sum_tiles(cuts, *arrays, expand_bias(call))
        return both[..., :-1], lax.stop_gradient(maximum), both[..., -1]

    return Partial(*by_device(attend)(query, key, value, call))


def _sums_by_formula(
    query: Array, key: Array, value: Array, call: Call, maximum: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return the part, by the formula, less a maximum that is given or the row's own.

    The lowest number marks a score that overflowed; a real score that low is raised.
    """
    scores = steps_here(query, key, value, call).masked_scores
    allowed = allowed_cells(expand_bias(call))
    lowest = jnp.finfo(scores.dtype).min
    above = np.nextafter(lowest, lowest.dtype.type(0))
    scores = jnp.where(scores == -jnp.inf, lowest, jnp.maximum(scores, above))
    scores = jnp.where(allowed, scores, -jnp.inf)
    if maximum is None:
        maximum = lax.stop_gradient(scores.max(-1, initial=-jnp.inf))
    # On a CPU, XLA's exp may answer NaN with stale memory: it is put in afterwards.
    lost = jnp.isnan(maximum) | (maximum == jnp.inf)
    base = jnp.where(lost | (maximum == -jnp.inf), 0, maximum)  # -inf - -inf would be NaN
    weights = jnp.exp(jnp.where(lost[..., None], 0, scores - base[..., None]))
    _, value, _ = split_nonfinite(key, upcast(value))
    value = jnp.repeat(value, call.sizes[1] // key.shape[1], axis=1)
    # A weight of 0 takes no gradient: that of a huge hidden value would be 0 * inf.
    kept = jnp.where(weights == 0, 0, weights)
    kept = jnp.where(lost[..., None], jnp.nan, kept)
    return kept @ value, jnp.where(lost, jnp.nan, maximum), kept.sum(-1)


@bind(jax.custom_jvp, nondiff_argnums=(0,))
def sum_tiles(
    cuts: Cuts, query: Array, key: Array, value: Array, call: Call
) -> tuple[Array, Array]:
    """Return sums and total side by side, (B, H, T, D_v + 1), and the maximum, by tiles."""
    both, maximum = split(bind(_sum_tiles, cuts), [0, 0], query, key, value, call)
    return both, maximum


def _sum_tiles(cuts: Cuts, lanes: Lanes, *inputs: Any) -> list[Array]:
    _, key, value, call = inputs
    loop = TileLoop(fit_tiles(cuts, call, key.shape[1], lanes)[0], lanes, *inputs)
    both = loop.zeros((*call.sizes[:3], value.shape[3] + 1))
    maximum = loop.zeros(call.sizes[:3])
    both, maximum = lax.fori_loop(0, loop.count, bind(_sum_block, loop), [both, maximum])
    lost = (maximum == jnp.inf) | (loop.nonfinite_queries & (maximum != -jnp.inf))
    return [jnp.where(lost[..., None], jnp.nan, both), jnp.where(lost, jnp.nan, maximum)]


def _sum_block(loop: TileLoop, work: Array, written: list[Array]) -> list[Array]:
    block = loop.block(work)
    maximum, total, sums = pass_keys(loop, block)
    rows = jnp.concatenate([sums, total[..., None]], -1), maximum
    return [loop.write(array, block, part) for array, part in zip(written, rows, strict=True)]


@sum_tiles.defjvp
def _sum_tiles_jvp(
    cuts: Cuts, primals: tuple, tangents: tuple
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Move with the inputs as the textbook does; a gradient, its transpose, goes by tiles."""
    both, maximum = sum_tiles(cuts, *primals)

    def transpose(kept: tuple, d_both: Array) -> tuple:
        inputs, maximum = kept
        lse = jnp.where(maximum == -jnp.inf, jnp.inf, maximum)
        return backward_tiles(cuts, inputs, lse, -d_both[..., -1], d_both[..., :-1])

    moves = (*tangents[:3], tangents[3].bias)
    kept = (primals, lax.stop_gradient(maximum))
    d_both = apply_linear(_derivative, transpose, kept, moves)
    return (both, maximum), (d_both, jnp.zeros_like(maximum))


def _derivative(kept: tuple, moves: tuple) -> Array:
    """Return by what sums and total move with query, key, value and bias."""
    (*inputs, call), maximum = kept

    def textbook(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
        inputs = query, key, value, call._replace(bias=bias)
        sums, _, total = _sums_by_formula(*inputs, maximum)
        return jnp.concatenate([sums, total[..., None]], -1)

    inputs, moves = jax.tree.map(upcast, ((*inputs, call.bias), moves))
    return jax.linearize(textbook, *inputs)[1](*moves)
