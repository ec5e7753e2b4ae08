"""The textbook formula, softmax(Q K^T * scale) V, with everything a mask can do to it.

`attention_steps` returns every step of it, `attention` only the output.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Integer

from . import blocked, checks
from .blocked import Cuts, attend_tiles, attention_blocked, backward
from .call import Call, check_call, expand_bias
from .cudnn import (
    attend_known,
    attention_known,
    backward_known,
    has_cudnn,
    known_to_cudnn,
)
from .devices import by_device, local_sizes, vary_alike
from .kernel import CudnnCall
from .linear import apply_linear
from .masks import Mask, allow
from .numerics import multiply, split_nonfinite, upcast, zero_where_empty
from .tiles import Cells
from .walk import closure_convert


class AttentionSteps(NamedTuple):
    """What one attention computes on its way: float32 for 16-bit inputs, but for the output."""

    scores: Float[Array, "... T S"]
    masked_scores: Float[Array, "... T S"]
    weights: Float[Array, "... T S"]
    output: Float[Array, "... T D_v"]


def attention(
    query: Float[Array, "B H T D"],
    key: Float[Array, "B H_kv S D"],
    value: Float[Array, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "T S"] | Float[Array, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Array | np.ndarray, "..."] | None = None,
    dropout: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Float[Array, "B H T D_v"]:
    """Attend: every query takes the mean of the values it is allowed, weighted by softmax.

    `scale` is 1/sqrt(D) where left out; `softcap` caps a score to +-softcap by tanh before `bias`
    is added and the mask applied. Query head h reads key/value head h // (H / H_kv). A fully
    masked row is 0, NaN or the mean over all S keys: `empty_rows` "zero", "nan", "uniform".
    `sinks` are one more logit a head in the softmax of each row, with no value: they are neither
    scaled, capped nor masked, the weights sum to less than 1, and a fully masked row is 0.
    Raises ValueError for shapes and ranges, TypeError for kinds and dtypes.

    As everywhere in JAX, a NumPy array that is given must not be written to before the output and
    its gradients are there. `jax_debug_infs` is not supported: it stops at the -inf of hidden keys.

    Source: "Attention Is All You Need", section 3.2.1; grouped heads: "GQA", section 2.2;
    sinks: "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 2, 5, 4))
    >>> from attn_jax import causal
    >>> output = attention(query, key, value, mask=causal())
    >>> bool((output[:, :, 0] == value[:, :, 0]).all())  # its own key is all it is allowed
    True
    """
    options = (mask, bias, scale, softcap, sinks, empty_rows, query_offset, dropout, rngs)
    call = check_call(query, key, value, *options)
    return attend(query, key, value, call)


def attention_steps(
    query: Float[Array, "... T D"],
    key: Float[Array, "... S D"],
    value: Float[Array, "... S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[Array, "T S"] | Float[Array, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[Array | np.ndarray, "..."] | None = None,
    dropout: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> AttentionSteps:
    """Attend, and return every step: scores, masked scores, weights, output.

    scores are softcap(query . key * scale); masked_scores have the bias added and -inf where
    hidden; weights are those of the keys, before dropout. Takes and raises what `attention` does,
    and for lessons also (B, T, D), one head, and (T, D), one sample; every step keeps the rank.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 1, 2, 4))
    >>> from attn_jax import causal
    >>> attention_steps(query, key, value, mask=causal()).weights[0, 0, 0]
    Array([1., 0.], dtype=float32)
    """
    rank = checks.check_same_rank(query, key, value)
    query, key, value = (_in_rank_four(array) for array in (query, key, value))
    options = (mask, bias, scale, softcap, sinks, empty_rows, query_offset, dropout, rngs)
    call = check_call(query, key, value, *options)
    steps = attend_steps(query, key, value, call)
    return AttentionSteps(*(_in_rank(rank, step) for step in steps))


def _in_rank_four(array: Array) -> Array:
    """Read (B, T, D) as one head, and (T, D) as one head of one sample."""
    return array[None, None] if array.ndim == 2 else array[:, None] if array.ndim == 3 else array


def _in_rank(rank: int, step: Array) -> Array:
    return step[0, 0] if rank == 2 else step[:, 0] if rank == 3 else step


def attend(query: Array, key: Array, value: Array, call: Call) -> Array:
    """Return the output of a checked call: by tiles, or by the textbook."""
    textbook = call.dropout > 0 or 0 in (*call.sizes, value.shape[3])
    textbook = textbook or any(map(is_symbolic_dim, (*call.sizes, value.shape[3])))
    if call.sizes[2] == 1 and not textbook:
        sizes = partial(local_sizes, query, key, value, call)
        return _attend_one_query(query, key, value, closure_convert(call, sizes))
    if textbook or call.sizes[2] * call.sizes[3] <= blocked.LONE_CELLS:
        return attend_steps(query, key, value, call).output
    if has_cudnn() and jax.typeof(query).sharding.mesh.empty:
        known = known_to_cudnn(query.dtype, query.shape[3], value.shape[3], call)
        if known is not None:
            return attention_known(known, query, key, value, closure_convert(call))
    return attention_blocked(query, key, value, call)


def attend_steps(query: Array, key: Array, value: Array, call: Call) -> AttentionSteps:
    """Return every step of a checked call."""
    dropout_key = call.rngs.dropout() if call.rngs and 0 < call.dropout < 1 else None
    sizes = partial(local_sizes, query, key, value, call)
    return _steps(query, key, value, closure_convert(call, sizes), dropout_key)


@jax.jit
def _steps(
    query: Array, key: Array, value: Array, call: Call, dropout_key: Array | None
) -> AttentionSteps:
    """The formula, compiled once for each set of shapes and each structure of a mask."""
    if dropout_key is None:
        return steps_here(query, key, value, call)
    drawn = jax.random.bernoulli(dropout_key, 1 - call.dropout, call.sizes)
    return steps_here(query, key, value, call, drawn)


@by_device
def steps_here(
    query: Array, key: Array, value: Array, call: Call, drawn: Array | None = None
) -> AttentionSteps:
    """Return every step, by array operations alone; `drawn` says what dropout keeps."""
    call = expand_bias(call)
    allowed = allowed_cells(call)
    q, k, v = (upcast(array) for array in (query, key, value))
    q = zero_where_empty(q, ~allowed.any(-1, keepdims=True))
    k, v, nonfinite = split_nonfinite(k, v)
    groups = call.sizes[1] // key.shape[1]
    k, v, nonfinite = (jnp.repeat(array, groups, axis=1) for array in (k, v, nonfinite))

    q = q * jnp.asarray(call.scale, q.dtype)  # not the scores: XLA would fuse that with exp's
    scores = q @ k.swapaxes(-1, -2)  # (B, H, T, S)
    scores, masked_scores, weights = _weigh(scores, nonfinite, allowed, call)
    # A weight of 0 takes no gradient: that of a huge hidden value would be 0 * inf.
    kept = jnp.where(weights == 0, 0, weights)
    output = _drop(kept, call.dropout, drawn) @ v  # (B, H, T, D_v)
    if not call.sizes[3] and call.empty_rows != "zero":
        output = jnp.full_like(output, jnp.nan)  # the mean over no key at all is 0/0
    return AttentionSteps(scores, masked_scores, weights, output.astype(query.dtype))


@jax.jit
@by_device
def _attend_one_query(query: Array, key: Array, value: Array, call: Call) -> Array:
    """The formula for one query a head, with the keys that it is allowed made an array of."""
    call = expand_bias(call)
    allowed = allowed_cells(call)
    allowed = jnp.broadcast_to(allowed, (*allowed.shape[:2], 1, call.sizes[3]))
    call = call._replace(mask=allow(allowed), query_offset=0)
    return _attend_or_textbook(*vary_alike((query, key, value, call)))


@jax.custom_jvp
def _attend_or_textbook(query: Array, key: Array, value: Array, call: Call) -> Array:
    """Attend from one query a head, reading keys and values once and copying neither.

    They are not looked through for what is not finite: where there is any, allowed or hidden, a
    score or the output is not finite. Then, and for gradients, the textbook answers.
    """
    shared = (*key.shape[:2], -1)  # the heads that share a key stand side by side
    q = upcast(query).reshape(*shared, query.shape[3])
    q = q * jnp.asarray(call.scale, q.dtype)
    scores = multiply("bkgd,bksd->bkgs", q, key).reshape(*query.shape[:3], -1)
    none = jnp.zeros((1, 1, 1), bool)
    weights = _weigh(scores, none, allowed_cells(call), call)[2]
    weights = weights.reshape(*shared, key.shape[2])
    output = multiply("bkgs,bksd->bkgd", weights, value).reshape(*query.shape[:3], -1)
    fine = jnp.isfinite(scores).all() & jnp.isfinite(output).all()
    output = output.astype(query.dtype)
    return lax.cond(fine, lambda *_: output, _textbook, query, key, value, call)


@_attend_or_textbook.defjvp
def _attend_or_textbook_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return jax.jvp(_textbook, primals, tangents)


def _textbook(query: Array, key: Array, value: Array, call: Call) -> Array:
    return _steps(query, key, value, call, None).output


def _derivative(kept: tuple, moves: tuple) -> Array:
    """Return by what the output moves with query, key, value, bias and sinks.

    `kept[0]` are those of the call.
    """

    def textbook(
        query: Array, key: Array, value: Array, bias: Array | None, sinks: Array | None
    ) -> Array:
        return _textbook(query, key, value, call._replace(bias=bias, sinks=sinks))

    *inputs, call = kept[0]
    inputs, moves = jax.tree.map(upcast, ((*inputs, call.bias, call.sinks), moves))
    return jax.linearize(textbook, *inputs)[1](*moves)


@attend_known.defjvp
def _attend_known_jvp(known: CudnnCall, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Move with the inputs as the textbook does; a gradient, its transpose, is the kernel's."""

    def transpose(kept: tuple, d_output: Array) -> tuple:
        return (*backward_known(known, kept[0], d_output), None, None)

    output = attend_known(known, *primals)
    moves = (*tangents[:3], None, None)
    d_output = apply_linear(_derivative, transpose, (primals,), moves)
    return output, d_output.astype(output.dtype)


@attend_tiles.defjvp
def _attend_tiles_jvp(
    cuts: Cuts, primals: tuple, tangents: tuple
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Move with the inputs as the textbook does; a gradient, its transpose, goes by tiles."""
    output, lse = attend_tiles(cuts, *primals)

    def transpose(kept: tuple, d_output: Array) -> tuple:
        inputs, lse, output = kept
        return backward(cuts, inputs, lse, output, d_output)

    kept = (primals, *lax.stop_gradient((lse, output)))
    moves = (*tangents[:3], tangents[3].bias, tangents[3].sinks)
    # Only `transpose` takes the log-sum-exp, and what that moves by is the derivative's to say.
    d_output = apply_linear(_derivative, transpose, kept, moves)
    return (output, lse), (d_output, jnp.zeros_like(lse))


def _weigh(
    scores: Array, nonfinite: Array, allowed: Array, call: Call
) -> tuple[Array, Array, Array]:
    """Return scores, masked scores and weights, made of the products of queries and keys."""
    # inf - inf is NaN too, and tanh would spread it
    lost = nonfinite[:, :, None, :] | jnp.isnan(scores)
    if call.softcap is not None:
        softcap = jnp.asarray(call.softcap, scores.dtype)
        scores = softcap * jnp.tanh(jnp.where(lost, 0, scores) / softcap)
    scores = jnp.where(lost, jnp.nan, scores)
    masked_scores = scores if call.bias is None else scores + upcast(call.bias)
    masked_scores = jnp.where(allowed, masked_scores, -jnp.inf)
    return scores, masked_scores, _softmax(masked_scores, allowed, nonfinite, call)


def allowed_cells(call: Call) -> Array:
    """Return where both the mask and the bias allow a key, broadcasting to (B, H, T, S)."""
    allowed = jnp.ones((1, 1, 1, 1), dtype=bool)
    if call.mask is not None:
        allowed = call.mask.evaluate(Cells(call.sizes, call.query_offset, xp=jnp))
    return allowed if call.bias is None else allowed & (call.bias != -jnp.inf)


def _softmax(masked_scores: Array, allowed: Array, nonfinite: Array, call: Call) -> Array:
    """Softmax over the keys, and the sink; what a fully masked row becomes without one."""
    empty = jnp.broadcast_to(~allowed, masked_scores.shape).all(-1, keepdims=True)
    # Equal scores instead of -inf, so that 0/0 never comes up. NaN is put in after the softmax:
    # on a CPU, XLA's exp may answer NaN with stale memory.
    lost = jnp.isnan(masked_scores).any(-1, keepdims=True)
    if call.sinks is not None:
        sinks = upcast(call.sinks).reshape(1, -1, 1, 1)
        lost |= ~(sinks < jnp.inf)
        columns = masked_scores, jnp.broadcast_to(sinks, lost.shape)
        masked_scores = jnp.concatenate(columns, -1)
    weights = jax.nn.softmax(jnp.where(empty | lost, 0, masked_scores), -1)
    weights = weights if call.sinks is None else weights[..., :-1]
    if call.empty_rows == "uniform":  # a key that is not finite counts again
        lost |= empty & nonfinite.any(-1)[:, :, None, None]
    elif call.empty_rows == "nan":
        lost |= empty
    else:
        weights = jnp.where(empty, 0, weights)
    return jnp.where(lost, jnp.nan, weights)


def _drop(weights: Array, dropout: float, drawn: Array | None) -> Array:
    if dropout == 0:
        return weights
    if dropout == 1:
        return jnp.zeros_like(weights)  # 1 / (1 - p) would be 0/0
    return jnp.where(cast(Array, drawn), weights / (1 - dropout), 0)
