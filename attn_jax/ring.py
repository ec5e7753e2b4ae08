"""Attention to keys and values that go round from device to device, and its gradient.

Every device makes the same hops, forward and backward, whatever its queries are allowed.
"""

from functools import partial as bind
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .call import Call
from .devices import Layout, for_columns
from .numerics import upcast
from .partial import Partial, attend_part, backward_part, finish, merge


def attend_ring(
    layout: Layout, hops: int, query: Array, key: Array, value: Array, call: Call
) -> Array:
    """Attend to the keys that come round, part by part."""
    bias, sinks, empty_rows = call.bias, call.sinks, call.empty_rows
    call = call._replace(bias=None, sinks=None)
    whole = Partial(*_sums(layout, hops, query, key, value, bias, call))
    return finish(whole, query.dtype, empty_rows, sinks)


@bind(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(
    layout: Layout,
    hops: int,
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    call: Call,
) -> Partial:
    """Return the part that all keys give which come round in so many hops.

    Its gradient is a second ring, on which that of keys and values goes along with them: no
    device ever has more than two shares. Every device makes the same hops in both.
    """

    def visit(step: Any, held: tuple, whole: Partial) -> Partial:
        part = _part(layout, step, held[0], bias, call)
        return merge(whole, attend_part(query, held[0], held[1], part))

    def turn(step: Any, state: tuple) -> tuple:
        held, whole = state
        return _pass_on(layout, held, 1), visit(step, held, whole)

    shape, zeros = (*query.shape[:3], value.shape[3]), bind(jnp.zeros_like, upcast(query))
    nothing = Partial(zeros(shape=shape), zeros(shape=shape[:3]) - jnp.inf, zeros(shape=shape[:3]))
    held, whole = lax.fori_loop(0, hops, turn, ((key, value), nothing))
    return visit(hops, held, whole)


def _sums_forward(layout: Layout, hops: int, *inputs: Any) -> tuple[Partial, tuple]:
    whole = _sums(layout, hops, *inputs)
    return whole, (*inputs, whole.maximum)


def _sums_backward(layout: Layout, hops: int, kept: tuple, grads: Partial) -> tuple:
    query, key, value, bias, call, maximum = kept
    upcast_query = upcast(query)

    def visit(step: Any, state: tuple) -> tuple:
        d_query, d_bias, key, value, d_key, d_value = state
        part = _part(layout, step, key, bias, call)
        inputs = upcast_query, upcast(key), upcast(value), part
        new = backward_part(*inputs, maximum, (grads.sums, grads.total))
        d_bias = _add_columns(layout, step, key, d_bias, new[3])
        return d_query + new[0], d_bias, key, value, d_key + new[1], d_value + new[2]

    def turn(step: Any, state: tuple) -> tuple:
        state = visit(step, state)
        return *state[:2], *_pass_on(layout, state[2:], 1)

    d_bias = None if bias is None else jnp.zeros_like(bias)
    zeros = [jnp.zeros_like(upcast(x)) for x in (query, key, value)]
    state = (zeros[0], d_bias, key, value, *zeros[1:])
    state = visit(hops, lax.fori_loop(0, hops, turn, state))
    d_key, d_value = _pass_on(layout, state[4:], -hops)  # home
    pairs = zip((state[0], d_key, d_value), (query, key, value), strict=True)
    return *(grad.astype(x.dtype) for grad, x in pairs), state[1], None


_sums.defvjp(_sums_forward, _sums_backward)


def _pass_on(layout: Layout, arrays: Any, distance: int) -> Any:
    """Hand arrays to the device that many places on."""
    world = layout.count(layout.length)
    pairs = [(i, (i + distance) % world) for i in range(world)]
    if not distance % world:
        return arrays
    return jax.tree.map(lambda x: lax.ppermute(x, layout.length, pairs), arrays)


def _first_column(layout: Layout, step: Any, key: Array) -> Array:
    """Return where the keys begin that have come here in so many hops."""
    world = layout.count(layout.length)
    return (lax.axis_index(layout.length) - step) % world * key.shape[2]


def _part(layout: Layout, step: Any, key: Array, bias: Array | None, call: Call) -> Call:
    """Return the call of the keys that have come here in so many hops."""
    first, count = _first_column(layout, step, key), key.shape[2]

    def take(array: Array, axis: int) -> Array:
        return lax.dynamic_slice_in_dim(array, first, count, axis)

    return for_columns(call._replace(bias=bias), count, take)


def _add_columns(
    layout: Layout, step: Any, key: Array, total: Array | None, part: Array | None
) -> Array | None:
    """Add the gradient of a part's bias to that of the bias."""
    if total is None or part is None:
        return None
    if part.shape == total.shape:
        return total + part
    first = _first_column(layout, step, key)
    old = lax.dynamic_slice_in_dim(total, first, key.shape[2], 3)
    return lax.dynamic_update_slice_in_dim(total, old + part, first, 3)
