"""A plugin of pytest: in the suite, JAX's attention goes through three devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=3 PYTHONPATH=tests \\
        python -m pytest -p played_devices conformance/test_empty.py --backend jax

Dropout, and a mean over all values, go their usual way. Calls are filled up to what three devices
share: copies of the last query, which are left out again, and of the last key, which are hidden.
At the end it is said how many calls were played.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from merged import allow_merged

import attn_jax
from attn_jax import attention, padding, sharded_attention
from attn_jax.call import check_call, expand_bias

WORLD = 3
EXCHANGE = os.environ.get("PLAYED_EXCHANGE", "ring")
PLAYED = {"calls": 0}  # so that a run that played nothing is noticed


def attention_of_three(query, key, value, **told):
    """Attend as `attention` does, on three devices, whose rows are in no order."""
    names = ("mask", "bias", "scale", "softcap", "sinks", "empty_rows", "query_offset")
    options = {name: told[name] for name in names if name in told}
    call = check_call(query, key, value, **options)
    if told.get("dropout") or 0 in (*call.sizes, value.shape[3]) or call.empty_rows == "uniform":
        return attention(query, key, value, **told)
    PLAYED["calls"] += 1
    T, S = call.sizes[2:]
    rows, columns = (np.arange(-(-size // WORLD) * WORLD) for size in (T, S))
    order = np.random.default_rng(T).permutation(rows) if len(rows) == len(columns) else None
    filled = rows.clip(max=T - 1), columns.clip(max=S - 1)
    mask = None if call.mask is None else call.mask.part(*filled, call.query_offset)
    if len(columns) > S:
        filler = padding(hidden=(columns >= S)[None])
        mask = filler if mask is None else mask & filler
    bias = expand_bias(call).bias
    for axis, places in ((2, filled[0]), (3, filled[1])):
        if bias is not None and bias.shape[axis] > 1:
            bias = jnp.take(bias, places, axis)
    arrays = [jnp.take(query, filled[0], 2), *(jnp.take(x, filled[1], 2) for x in (key, value))]
    if order is not None:
        arrays = [x[:, :, order] for x in arrays]
        options["rows"] = order.reshape(WORLD, -1)
    kind = (jax.sharding.AxisType.Auto,)
    options |= {"mesh": jax.make_mesh((WORLD,), ("context",), axis_types=kind)}
    options |= {"mask": mask, "bias": bias, "length": "context", "exchange": EXCHANGE}
    options.pop("query_offset", None)
    output = sharded_attention(*arrays, **options)
    return (output if order is None else output[:, :, np.argsort(order)])[:, :, :T]


def pytest_configure():
    allow_merged()
    attn_jax.attention = attention_of_three


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{PLAYED['calls']} calls were played by {WORLD} devices")
