"""A plugin of pytest: in the suite, JAX's attention goes through three devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=3 PYTHONPATH=tests \\
        python -m pytest -p played_devices conformance/test_empty.py --backend jax

Calls are filled up to sizes that many share, and what a mask allows is given as a table: so a few
programs serve them all, and a call compiles next to nothing. `merged.py` says what is left out.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from merged import Play, allow_merged

import attn_jax
from attn_jax import allow, attention
from attn_jax.call import Call, check_call, expand_bias
from attn_jax.devices import Layout
from attn_jax.sharded import attend_sharded
from conformance.subjects import attn_jax as adapter

WORLD = 3
EXCHANGE = os.environ.get("PLAYED_EXCHANGE", "ring")
PLAYS: list[Play] = []  # what counts the calls
ROWS, NUMBERS = 8 * WORLD, 16  # lengths, and numbers a head, are filled up to multiples


def attention_of_three(query, key, value, **told):
    """Attend as `attention` does, on three devices, whose rows are in no order."""
    call = check_call(query, key, value, **{n: told[n] for n in told.keys() - {"dropout", "rngs"}})
    if (reason := why_not(call, told.get("dropout"))) is not None:
        PLAYS[0].leave_out(reason)
        return attention(query, key, value, **told)
    PLAYS[0].calls["played"] += 1
    B, H, T, S = call.sizes
    allowed = jnp.ones((1, 1, 1, 1), bool)
    if call.mask is not None:
        allowed = call.mask.allowed(T, S, query_offset=call.query_offset, batch=B, heads=H)
    allowed = jnp.broadcast_to(allowed, (B, H, T, S))
    bias = expand_bias(call).bias
    arrays = {"query": query, "key": key, "value": value}
    arrays = {name: fill(x, ROWS, NUMBERS) for name, x in arrays.items()}
    if bias is not None:
        arrays["bias"] = fill(jnp.broadcast_to(bias, allowed.shape), ROWS, ROWS)
    if call.sinks is not None:
        arrays["sinks"] = call.sinks
    numbers = {name: getattr(call, name) for name in ("scale", "softcap")}
    output = played(call.empty_rows, arrays, fill(allowed, ROWS, ROWS), numbers)
    return output[:, :, :T, : value.shape[3]]


def why_not(call, dropout):
    """Return which of what is left out a call is, if any."""
    if dropout:
        return "dropout"
    return "uniform" if call.empty_rows == "uniform" else None


def fill(array, *sizes):
    """Fill up the last two axes to multiples, with zeros: they are hidden, and left out again."""
    pairs = zip(array.shape[2:], sizes, strict=True)
    return jnp.pad(array, [(0, 0)] * 2 + [(0, -size % step) for size, step in pairs])


def attend(empty_rows, arrays, allowed, numbers):
    """Attend on three devices; queries and keys that go together lie in no order."""
    query, key, value = (arrays[name] for name in ("query", "key", "value"))
    mesh = jax.make_mesh((WORLD,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    told = {"bias": arrays.get("bias"), "sinks": arrays.get("sinks"), **numbers}
    call = Call(
        sizes=allowed.shape, mask=allow(allowed), empty_rows=empty_rows, query_offset=0,
        dropout=0.0, rngs=None, **told,
    )  # fmt: skip
    order = None
    if query.shape[2] == key.shape[2]:
        order = np.random.default_rng(7).permutation(key.shape[2])
        query, key, value = (x[:, :, order] for x in (query, key, value))
        order = order.reshape(WORLD, -1)
    layout = Layout(mesh, (), (), ("context",))
    output = attend_sharded(query, key, value, call, layout, order, EXCHANGE)
    return output if order is None else output[:, :, np.argsort(order.reshape(-1))]


@partial(jax.jit, static_argnums=0)
def forward(empty_rows, *inputs):
    return attend(empty_rows, *inputs)


@partial(jax.jit, static_argnums=0)
def backward(empty_rows, inputs, grad):
    arrays, *others = inputs
    pull = jax.vjp(lambda own: attend(empty_rows, own, *others), arrays)[1]
    return pull(grad)[0], None, None


played = jax.custom_vjp(forward, nondiff_argnums=(0,))
played.defvjp(lambda empty_rows, *inputs: (forward(empty_rows, *inputs), inputs), backward)


def pytest_configure(config):
    allow_merged()
    PLAYS.append(Play(adapter.Adapter, attn_jax, attention_of_three, patient=False))
    config.pluginmanager.register(PLAYS[0])
    adapter._gradients = adapter._gradients.__wrapped__  # for its programs would be of one call
