"""What `test_jax_sharded.py` runs in a process with eight devices: python jax_sharded.py PART.

Answers are compared with the suite's oracle, not with our own on one device.
"""

import sys
from itertools import cycle

import jax
import numpy as np
from jax.sharding import AxisType

from attn_jax import contiguous, planned, sharded_attention, zigzag
from conformance.cases.attention import Case, Shape
from conformance.mask_spec import (
    allow,
    causal,
    hide,
    packed,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from conformance.oracle import expected
from conformance.oracle.tolerance import MERGED, check_dtype, compare
from conformance.subjects.attn_jax import Adapter

JAX = Adapter("cpu")
WORLD = 4
SHAPE = Shape(B=3, H=4, H_kv=2, T=24, S=24, D=3, D_v=5)
T, B = SHAPE.T, SHAPE.B
RANDOM = np.random.default_rng(7)
DOCUMENTS = np.cumsum(RANDOM.random((B, T)) < 0.2, 1)
LENGTHS = [17, 0, 24]


def _four(batch, head, query, key):
    return (7 * query + 3 * key + head + 5 * batch) % 4 == 0


MASKS = {
    "none": None,
    "causal": causal(),
    "window": causal() & sliding_window(5),
    "band": sliding_window(2, 3),
    "packed_causal": segments(DOCUMENTS) & causal(),
    "packed": packed([[7, 3, 11], [24, 0, 0], [1, 1, 5]]),
    "padding": padding(LENGTHS),
    "causal_and_padding": causal() & padding(LENGTHS),
    "scattered_padding": padding(hidden=RANDOM.random((B, T)) < 0.5),
    "prefix": prefix([8, 0, 20]),
    "predicate": predicate(_four),
    "allow": allow(RANDOM.random((B, 1, T, T)) < 0.2),
    "hide": hide(RANDOM.random((1, SHAPE.H, T, T)) < 0.7),
    "not_window": ~sliding_window(6, 4),
    "sinks_or_window": (causal() & padding([2] * B)) | (causal() & sliding_window(4)),
    "nothing": ~(causal() | ~causal()),
}
EXCHANGES = ("gathered", "exchanged", "ring")
LAYOUTS = ("zigzag", "contiguous", "planned")


def mesh(*sizes, names=("context",), kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(names), devices=devices)


def rows_of(layout, case, world):
    if layout == "planned":
        mask = JAX.mask(case.mask or padding([T] * B))
        return planned(mask, case.shape.call, world)
    return {"contiguous": contiguous, "zigzag": zigzag}[layout](case.shape.T, world)


def answer(case, dtype_name, rows, inputs=None, **told):
    """Return output and gradients of a sharded call, in the order of the whole call."""
    inputs = case.inputs(dtype_name) if inputs is None else inputs
    options = JAX.options(case.options(dtype_name))
    leaves = dict(zip(("query", "key", "value"), inputs, strict=True))
    leaves |= {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    order = np.arange(case.shape.T) if rows is None else rows.reshape(-1)
    back = np.argsort(order)

    def call(leaves):
        query, key, value = (leaves[name] for name in ("query", "key", "value"))
        others = {name: leaves[name] for name in leaves.keys() & {"bias", "sinks"}}
        return sharded_attention(query, key, value, rows=rows, **others, **options, **told)

    def both(leaves, grad):
        output, pull = jax.vjp(call, leaves)
        return output, pull(grad)[0]

    moved = ("query", "key", "value")
    leaves = {n: x[:, :, order] if n in moved else x for n, x in leaves.items()}
    output, grads = jax.jit(both)(leaves, case.grad(dtype_name)[:, :, order])
    output, grads = jax.tree.map(np.asarray, (output, grads))
    return output[:, :, back], {n: x[:, :, back] if n in moved else x for n, x in grads.items()}


def check(case, dtype_name, rows, what, inputs=None, **told):
    """Compare a sharded call with the oracle; what is merged may miss by one more rounding."""
    numbers = case.numbers(dtype_name)
    call = (*case.inputs(dtype_name), case.grad(dtype_name))
    output, grads = answer(case, dtype_name, rows, inputs, **told)
    exact, rough = (steps["output"] for steps in case.expected(dtype_name))
    check_dtype(output, rough.dtype, what)
    compare(output, exact, rough, f"output, {what}", MERGED)
    exact, rough = case.expected_gradients(dtype_name)
    more = expected.cancelled(*call, allowed=case.allowed(), **numbers)
    for name in exact:
        check_dtype(grads[name], rough[name].dtype, what)
        compare(
            grads[name],
            exact[name],
            rough[name],
            f"gradient of {name}, {what}",
            MERGED,
            more.get(name, 0),
        )


def masks(every=False):
    """Every mask by every exchange, in one layout each; `every` takes all of them."""
    where = mesh(WORLD)
    turns = cycle(LAYOUTS)
    for name, mask in MASKS.items():
        case = Case(name, SHAPE, mask)
        for exchange in EXCHANGES:
            for layout in LAYOUTS if every else [next(turns)]:
                rows, what = rows_of(layout, case, WORLD), f"{name} {layout} {exchange}"
                check(case, "float32", rows, what, mesh=where, length="context", exchange=exchange)
        next(turns)


if __name__ == "__main__":
    globals()[sys.argv[1]](*map(eval, sys.argv[2:]))
