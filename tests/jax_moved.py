"""What `test_jax_sharded.py` runs, too: what devices send each other, counted in the program.

A compiled program is asked, not a clock, and not the plan that it was made from.
"""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from attn_jax import (
    allow,
    attention,
    causal,
    contiguous,
    planned,
    segments,
    sharded_attention,
    sliding_window,
    zigzag,
)

T, D = 8192, 16
DOCUMENTS = [112, 399, 1433, 2252, 351, 264, 444, 105, 1024, 67, 462, 3427]  # 1024 in the middle
PACKED = segments(np.repeat(np.arange(12), DOCUMENTS)[None, :T]) & causal()
MOST = {  # the share of all rows that is sent, at most, as all of it is by a ring
    ("causal", "zigzag"): 0.75,
    ("window", "contiguous"): 0.07,
    ("window", "planned"): 0.07,
    ("packed", "contiguous"): 0.13,
    ("packed", "planned"): 0.2,
    ("nothing", "contiguous"): 0.0,
}
MASKS = {"causal": causal(), "window": causal() & sliding_window(511), "packed": PACKED}
MASKS["nothing"] = ~(causal() | ~causal())
KINDS = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"


def mesh(*sizes, names=("context",), kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(names), devices=devices)


def collectives(call, where, spec, shape=(1, 1, T, D), backward=False):
    """Return by kind how many collectives a compiled call makes, and the bytes that all receive."""
    aval = jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(where, spec))
    if backward:
        attend, call = call, jax.grad(lambda *inputs: attend(*inputs).sum(), (0, 1, 2))
    text = jax.jit(call).lower(aval, aval, aval).compile().as_text()
    return count(text, where.size)


def count(text, world):
    """Count what a compiled program sends, in a loop as often as it turns."""
    turns = re.findall(r"body=%?([\w.-]+).*?known_trip_count\":{\"n\":\"(\d+)\"", text)
    turns, totals = {body: int(times) for body, times in turns}, {}
    for part in re.split(r"\n(?=\S)", text):
        name = re.match(r"(?:ENTRY )?%?([\w.-]+)", part)
        times = turns.get(name[1], 1) if name else 1
        for sizes, kind, rest in re.findall(rf"= \w+\[([\d,]*)\]\S* ({KINDS})\((.*)", part):
            size = 4 * times * int(np.prod([int(n) for n in sizes.split(",") if n]))
            pairs = len(re.findall(r"{\d+,\d+}", rest))
            factors = {"collective-permute": pairs, "all-gather": world - 1}
            size *= factors.get(kind, world * (world - 1))
            old = totals.get(kind, (0, 0))
            totals[kind] = old[0] + times, old[1] + size
    return totals


def rows_of(layout, mask, world):
    if layout == "planned":
        return planned(mask, (1, 1, T, T), world)
    return {"contiguous": contiguous, "zigzag": zigzag}[layout](T, world)


def exchanged():
    """Only what the mask allows is sent."""
    for world in (4, 8):
        where, all_rows = mesh(world), (world - 1) * T * D * 2 * 4
        for (name, layout), most in MOST.items():
            if world == 8 and layout == "contiguous":
                continue
            rows = rows_of(layout, MASKS[name], world)
            told = {"mask": MASKS[name], "mesh": where, "length": "context", "rows": rows}
            call = partial(sharded_attention, exchange="exchanged", **told)
            kinds = collectives(call, where, P(None, None, "context"))
            share = sum(size for _, size in kinds.values()) / all_rows
            what = f"{name}, {layout} on {world}: {share:.3f} of a ring, {kinds}"
            print(what)
            assert share <= most, what
            assert {*kinds} <= {"collective-permute"}, what


def gathered_and_ring():
    """Both send each row to everyone, once; a ring stops after the last hop that anyone needs."""
    world = 4
    where, spec = mesh(world), P(None, None, "context")
    told = {"mesh": where, "length": "context", "rows": zigzag(T, world)}
    rows = 2 * T * D * 4
    all_rows = (world - 1) * rows
    for exchange, mask, backward, wanted in (
        ("gathered", causal(), False, {"all-gather": (2, all_rows)}),
        (
            "gathered",
            causal(),
            True,
            {"all-gather": (2, all_rows), "reduce-scatter": (2, all_rows)},
        ),
        ("ring", causal(), False, {"collective-permute": (6, all_rows)}),
        # Forward; back with the gradients; and these home
        ("ring", causal(), True, {"collective-permute": (20, 3 * all_rows + rows)}),
        ("ring", MASKS["nothing"], False, {}),
    ):
        call = partial(sharded_attention, mask=mask, exchange=exchange, **told)
        kinds = collectives(call, where, spec, backward=backward)
        assert kinds == wanted, f"{exchange}, backward {backward}: {kinds} for {wanted}"
    told["rows"] = contiguous(T, world)
    call = partial(sharded_attention, mask=MASKS["window"], exchange="ring", **told)
    kinds = collectives(call, where, spec)
    assert kinds == {"collective-permute": (2, rows)}, f"one hop for a window: {kinds}"


def samples_and_heads():
    """Nothing at all is sent for samples and heads, forward or backward."""
    for kind in (AxisType.Auto, AxisType.Explicit):
        where = mesh(2, 2, names=("d", "m"), kind=kind)
        told = {"mask": causal(), "mesh": where, "batch": "d", "heads": "m"}
        with jax.set_mesh(where):
            for backward in (False, True):
                call = partial(sharded_attention, **told)
                shape = (2, 2, 512, D)
                kinds = collectives(call, where, P("d", "m"), shape, backward)
                assert not kinds, f"{kind}, backward {backward}: {kinds}"


def chosen():
    """By itself a call takes the exchange that its mask is worth."""
    where = mesh(4)
    for mask, layout, empty_rows, wanted in (
        (MASKS["window"], "contiguous", "zero", "collective-permute"),
        (causal(), "zigzag", "zero", "all-gather"),
        (MASKS["window"], "contiguous", "uniform", "all-gather"),
    ):
        told = {"mask": mask, "mesh": where, "length": "context", "empty_rows": empty_rows}
        call = partial(sharded_attention, rows=rows_of(layout, mask, 4), **told)
        kinds = collectives(call, where, P(None, None, "context"))
        assert [*kinds] == [wanted], f"{mask} {empty_rows}: {kinds}"
    aval = jax.ShapeDtypeStruct((8, 128, T, 32), jnp.float32)  # two of 1 GiB: never made
    call = partial(sharded_attention, mesh=where, length="context")
    program = str(jax.make_jaxpr(call)(aval, aval, aval))
    assert "ppermute" in program, "keys of 2 GiB go round"
    assert "all_gather" not in program, "keys of 2 GiB go round"


def tables():
    """A table that is closed over stands behind a barrier: XLA would fold it for a minute."""
    table = jnp.asarray(np.random.default_rng(0).random((1, 1, 512, 512)) < 0.1)
    aval = jax.ShapeDtypeStruct((1, 1, 512, D), np.float32)
    call = jax.grad(lambda x: attention(x, x, x, mask=allow(table)).sum())
    text = jax.jit(call).lower(aval).as_text()
    assert re.search(r"stablehlo.constant [^\n]*: tensor<1x1x512x512xi1>", text), "a constant"
    reads = re.findall(r"stablehlo.(\w+) %arg\d+[^\n]*tensor<1x1x512x512xi1>", text)
    assert {*reads} == {"optimization_barrier", "dynamic_slice"}, f"read by {reads}"


if __name__ == "__main__":
    for part in sys.argv[1:]:
        globals()[part]()
