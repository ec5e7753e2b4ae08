"""What `test_jax_devices.py` runs in a process with four devices: python jax_devices.py PART ...

Numbers are float64, so that what is left out or added twice stands out from rounding. Blocks are
small: compiled without optimizations, large ones would take most of the time.
"""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from attn_jax import (
    MultiHeadAttention,
    Seq2SeqTransformer,
    allow,
    attention,
    attention_steps,
    blocked,
    causal,
    greedy_decode,
    hide,
    padding,
    predicate,
    rotary,
    segments,
    shard_sequences,
    sharded_attention,
    sliding_window,
    zigzag,
)
from conformance.oracle import naive

B, H, D, E = 4, 8, 3, 5
SMALL, LARGE, ONE = (13, 17), (37, 71), (1, 19)  # the formula, two blocks of queries, one query
SPECS = {"samples and heads": P("d", "m"), "samples": P(("d", "m")), "heads": P(None, ("d", "m"))}


def arrays(sizes, kv_heads):
    """Return query, key, value and what a gradient begins with."""
    (T, S), random = sizes, np.random.default_rng(sum(sizes))
    shapes = (B, H, T, D), (B, kv_heads, S, D), (B, kv_heads, S, E), (B, H, T, E)
    return [random.normal(size=shape) for shape in shapes]


def shared_options(sizes):
    """Return what calls are told where nothing differs between samples or heads."""
    (T, S), random = sizes, np.random.default_rng(sizes)

    def some(_batch, _head, query, key):
        return jnp.where(query > key, jnp.arange(5)[key % 5] < 3, jnp.clip(query, 3, 9) % 4 > 1)

    bias = random.normal(size=(1, 1, T, S))
    return {
        "nothing": {},
        "causal": {"mask": causal() & padding([S - 1]), "query_offset": S - T, "softcap": 2.0},
        "predicate": {"mask": predicate(some), "query_offset": 0},
        "bias": {"mask": ~sliding_window(3), "query_offset": 0, "bias": bias, "empty_rows": "nan"},
    }


def options(sizes):
    """Return what calls are told about samples and heads, too."""
    (T, S), random = sizes, np.random.default_rng(sizes)

    def all_four(batch, head, query, key):
        even = (query + batch) % 2 == 0
        return jnp.where(
            even, (key + head) % 3 > 0, jnp.clip(head, 0, 5) * jnp.arange(B)[batch] < 6
        )

    query_ids, key_ids = (random.integers(0, 3, (B, length)) for length in sizes)
    cells = jnp.asarray(random.random((1, H, T, S)) < 0.3)
    rows = jnp.asarray(random.random((B, 1, T, S)) < 0.3)
    return {
        "predicate": {"mask": predicate(all_four), "query_offset": 0},
        "padding": {"mask": padding([S // 2, 0, S, 3]) & ~sliding_window(2), "query_offset": 1},
        "segments": {"mask": segments(query_ids, key_ids), "empty_rows": "uniform"},
        "cells": {"mask": allow(cells) | hide(rows), "softcap": 2.0},
        "offsets": {
            "mask": causal(),
            "query_offset": np.arange(B),
            "bias": random.normal(size=(B, 1, T, S)),
        },
        "bias": {"bias": random.normal(size=(1, H, 1, S))},
    }


def output_and_gradients(attend, *arrays):
    """Return the output of a function of query, key, value and bias, and their gradients."""
    *inputs, cotangent, bias = arrays
    output, pull = jax.vjp(attend, *inputs, bias)
    return output, pull(cotangent)


def call(told, query, key, value, bias):
    return attention(query, key, value, **told | {"bias": bias})


def textbook(told, arrays):
    """Return what the textbook's formula answers, on no device of JAX."""
    told, (T, S) = dict(told), (arrays[0].shape[2], arrays[1].shape[2])
    mask, offset = told.pop("mask", None), told.pop("query_offset", 0)
    cells = {"query_offset": offset, "batch": B, "heads": H}
    allowed = True if mask is None else np.asarray(mask.allowed(T, S, **cells))
    told["allowed"] = np.broadcast_to(allowed, (B, H, T, S))
    grads = naive.gradients(*arrays, **told)
    names = ("query", "key", "value", *["bias"] * ("bias" in told))
    return naive.attention(*arrays[:3], **told)["output"], [grads[name] for name in names]


def check(found, wanted, what):
    """Compare two pytrees, with an error of a share of each array's largest number."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        error = 1e-12 * max(np.abs(other).max(initial=0, where=~np.isnan(other)), 1)
        np.testing.assert_allclose(np.asarray(one), other, rtol=0, atol=error, err_msg=what)


def put(mesh, tree, spec):
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), tree)


def new_mesh(kind):
    return jax.make_mesh((2, 2), ("d", "m"), axis_types=(kind,) * 2)


def check_places(found, given, what):
    """Check that an array lies as another one does."""
    same = found.sharding.is_equivalent_to(given.sharding, found.ndim)
    assert same, f"{what}: lies as {found.sharding.spec}, given as {given.sharding.spec}"


def shard_map():
    mesh, spec = new_mesh(AxisType.Auto), P("d", "m")
    for sizes in (SMALL, LARGE, ONE):
        inputs = arrays(sizes, 4)
        for name, told in shared_options(sizes).items():
            bias = None if told.get("bias") is None else jnp.asarray(told["bias"])
            specs = (spec, spec, spec, None if bias is None else P())
            attend = jax.shard_map(partial(call, told), mesh=mesh, in_specs=specs, out_specs=spec)
            found = jax.jit(partial(output_and_gradients, attend))(*inputs, bias)
            check(found, textbook(told, inputs), f"{name} {sizes}")


LAYOUTS = {  # where what is told lies, with how many key heads
    "predicate": ("heads", 4),
    "padding": ("samples and heads", 2),
    "segments": ("heads", 2),  # every device has all key heads, and reads some
    "cells": ("samples and heads", 8),
    "offsets": ("samples", 4),
    "bias": ("samples and heads", 1),
}


def each_layout(mesh, sizes):
    """Yield names, what calls are told, the inputs as they lie, and the answer."""
    for name, told in options(sizes).items():
        where, kv_heads = LAYOUTS[name]
        inputs, spec = arrays(sizes, kv_heads), SPECS[where]
        keys = P(*spec[:1]) if name in ("segments", "bias") else spec
        lie = (spec, keys, keys, spec)
        given = [put(mesh, x, of) for x, of in zip(inputs, lie, strict=True)]
        bias = None if told.get("bias") is None else put(mesh, told["bias"], P())
        yield f"{name} {sizes} by {where}", told, (*given, bias), textbook(told, inputs)


def explicit_axes():
    mesh = new_mesh(AxisType.Explicit)
    for sizes in (SMALL, LARGE, ONE):
        for what, told, given, wanted in each_layout(mesh, sizes):
            with jax.set_mesh(mesh):
                every = jax.jit(partial(output_and_gradients, partial(call, told)))(*given)
            check(every, wanted, what)
            check_places(every[0], given[0], what)
            for gradient, array in zip(every[1][:3], given, strict=False):
                check_places(gradient, array, f"{what}, a gradient")


def automatic_axes():
    mesh = new_mesh(AxisType.Auto)
    for sizes in (LARGE, SMALL, ONE):
        for what, told, given, wanted in each_layout(mesh, sizes):
            every = jax.jit(partial(output_and_gradients, partial(call, told)))
            program = every.lower(*given).compile()
            found = program(*given)
            check(found, wanted, what)
            check_places(found[0], given[0], what)
            check_places(found[1][0], given[0], f"{what}, a gradient")
            moved = re.findall(r"= (\S+) (all-gather|all-to-all|collective)", program.as_text())
            assert not moved, f"{what}: devices exchange {moved}"


def other_dims():
    mesh = new_mesh(AxisType.Explicit)
    told = {"mask": causal(), "query_offset": 0}
    for sizes in ((12, 16), (40, 72), (1, 16)):
        inputs = arrays(sizes, 4)
        wanted = textbook(told, inputs)
        lie = {"keys": (P(), P(None, None, "d")), "unlike": (P("d"), P("m"))}
        if sizes[0] > 1:
            lie |= {"queries": (P("m", None, "d"), P("m")), "both": (P(None, None, "d"),) * 2}
        for name, (queries, keys) in lie.items():
            specs = (queries, keys, keys, queries)
            given = [put(mesh, x, spec) for x, spec in zip(inputs, specs, strict=True)]
            with jax.set_mesh(mesh):
                every = jax.jit(partial(output_and_gradients, partial(call, told)))(*given, None)
            check(every, wanted, f"{name} {sizes}")
            check_places(every[0], given[0], f"{name} {sizes}")


def modules():
    mesh = new_mesh(AxisType.Explicit)
    attn = MultiHeadAttention(24, 4, num_kv_heads=2, dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(B, 7, 24))
    hidden = np.array([[0] * 7, [0, 1] * 3 + [0], [1] * 7, [0] * 5 + [1] * 2], bool)

    def attend(x, hidden):
        return attn(x, attn_mask=causal(), key_padding_mask=hidden)

    def decode(x, cache, hidden):
        first, cache = attn.decode(x[:, :5], cache, hidden=hidden[:, :5])
        second, cache = attn.decode(x[:, 5:6], cache)
        return first, second, cache.reorder(jnp.array([3, 0, 0, 2])).truncate(1)

    def loss(attn, x, hidden):
        return (attn(x, attn_mask=causal(), key_padding_mask=hidden)[0] ** 2).sum()

    cache = attn.new_cache(B, 8)
    wanted = attend(x, hidden), decode(x, cache, hidden), nnx.grad(loss)(attn, x, hidden)
    wanted = jax.tree.map(np.asarray, wanted)
    with jax.set_mesh(mesh):
        for spec in (P("d"), P(("d", "m"))):
            given = [put(mesh, array, spec) for array in (x, cache, hidden)]
            for way in (lambda function: function, jax.jit):
                found = way(attend)(given[0], given[2])
                check(found, wanted[0], f"module, {spec}")
                check_places(found[0], given[0], f"module, {spec}")
                found = way(decode)(*given)
                check(found, wanted[1], f"decode, {spec}")
                check_places(found[2].key, given[1].key, f"decode, {spec}")
            check(nnx.grad(loss)(attn, given[0], given[2]), wanted[2], f"parameters, {spec}")
        x, hidden = (put(mesh, array, P("d")) for array in (x, hidden))
        for layer in (attn.q_proj, attn.k_proj, attn.v_proj):  # their heads, and a sum over them
            layer.kernel = nnx.Param(put(mesh, layer.kernel[...], P(None, "m")))
            layer.bias = nnx.Param(put(mesh, layer.bias[...], P("m")))
        attn.out_proj.kernel = nnx.Param(put(mesh, attn.out_proj.kernel[...], P("m")))
        check(attend(x, hidden), wanted[0], "module by heads")
        check(nnx.grad(loss)(attn, x, hidden), wanted[2], "parameters by heads")


def steps():
    mesh = new_mesh(AxisType.Explicit)
    *inputs, _ = arrays(SMALL, 4)
    told = {"mask": causal(), "query_offset": 2, "dropout": 0.5}
    wanted = attention_steps(*map(jnp.asarray, inputs), **told, rngs=nnx.Rngs(0))
    wanted = jax.tree.map(np.asarray, wanted)
    with jax.set_mesh(mesh):
        given = put(mesh, inputs, P("d", "m"))
        found = attention_steps(*given, **told, rngs=nnx.Rngs(0))
    scores, *others = (jax.tree.map(lambda x: np.nan_to_num(x), every) for every in (found, wanted))
    check(scores, others, "steps")
    check_places(found.weights, given[0], "steps")


def narrow_caches():
    attn = MultiHeadAttention(24, 4, num_kv_heads=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, 1, 24)), jnp.bfloat16)
    written = attn.decode(x, attn.new_cache(B, 8))[1]
    wanted = jax.tree.map(lambda array: np.asarray(array, float), attn.decode(x, written))
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = new_mesh(kind)
        given = [put(mesh, array, P("d")) for array in (x, written)]
        with jax.set_mesh(mesh):
            program = jax.jit(attn.decode).lower(*given).compile()
            found = jax.tree.map(lambda array: array.astype(float), program(*given))
        check(found, wanted, f"{kind}")
        check_places(found[1].key, given[1].key, f"{kind}")
        assert "all-gather" not in program.as_text(), f"{kind}: every device gets the whole cache"


def greedy():
    sizes = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    model = Seq2SeqTransformer(11, 13, **sizes, dim_feedforward=5, rngs=nnx.Rngs(0))
    tokens = np.array([[5, 3, 4], [7, 0, 0], [1, 2, 0], [9, 8, 7]]), np.array([[1], [1], [3], [2]])
    settings = {"eos_idx": 2, "max_new_tokens": 5}
    wanted = np.asarray(greedy_decode(model, *map(jnp.asarray, tokens), **settings))
    assert len(np.unique(wanted)) > 2, "one token says nothing"
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = new_mesh(kind)
        given = [put(mesh, array, P(("d", "m"))) for array in tokens]
        with jax.set_mesh(mesh):
            for cached in (True, False):
                found = greedy_decode(model, *given, **settings, cached=cached)
                assert (np.asarray(found) == wanted).all(), f"{kind}, cached {cached}: {found}"
                check_places(found, given[0], f"{kind}, cached {cached}")


def layers():
    """Modules whose rows are shared out, in zigzag; masks are those of the whole call."""
    rows = zigzag(24, 2)
    order, mask = rows.reshape(-1), causal() & sliding_window(9)
    x = np.random.default_rng(1).normal(size=(B, 24, 16))
    hidden = np.random.default_rng(2).random((B, 24)) < 0.3
    hidden[1] = True
    for told in ({"process_heads": rotary()}, {"sinks": True, "num_kv_heads": 1}):
        new = partial(MultiHeadAttention, 16, 4, **told, dtype=jnp.float64)

        def run(attn, x):
            output, _ = attn(x, attn_mask=mask, key_padding_mask=hidden, need_weights=False)
            return (output**3).sum(), output

        both = nnx.jit(nnx.value_and_grad(run, has_aux=True))
        wanted = jax.tree.map(np.asarray, both(new(rngs=nnx.Rngs(0)), x))
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = new_mesh(kind)
            with jax.set_mesh(mesh):
                given = put(mesh, x[:, order], P("d", "m"))
                for exchange in ("ring", "gathered"):
                    shards = {"batch": "d", "length": "m", "rows": rows, "exchange": exchange}
                    with shard_sequences(mesh, **shards):
                        (loss, output), grads = both(new(rngs=nnx.Rngs(0)), given)
                    found = (loss, np.asarray(output)[:, np.argsort(order)]), grads
                    check(found, wanted, f"{told} {kind} {exchange}")
    hidden_nan(new_mesh(AxisType.Auto))
    attn = new(rngs=nnx.Rngs(0))
    with shard_sequences(mesh, length="m", rows=rows):
        for text, call in {
            "decoding knows no shards": lambda: attn.decode(x[:, :1], attn.new_cache(B, 4)),
            "need_weights must be False": lambda: attn(x),
            "keys must be the query's own": lambda: attn(x, x + 1, need_weights=False),
            "query_offset must be 0": lambda: attn(x, need_weights=False, query_offset=1),
        }.items():
            with pytest.raises((ValueError, RuntimeError), match=text):
                call()
    with pytest.raises(ValueError, match="mesh must have the axis 'x'"):
        shard_sequences(mesh, length="x").__enter__()


def second_gradients():
    """The gradient of a ring's gradient is that of one device."""
    query, key, value = np.random.default_rng(0).normal(size=(3, 1, 2, 8, 3))
    told = {"mesh": jax.make_mesh((4,), ("m",)), "length": "m", "exchange": "ring"}

    def twice(attend):
        once = jax.grad(lambda query: (attend(query, key, value, mask=causal()) ** 2).sum())
        return jax.jit(jax.grad(lambda query: (once(query) ** 2).sum()))(query)

    of_one = twice(attention)
    difference = abs(twice(partial(sharded_attention, **told)) - of_one).max()
    assert difference < 1e-12 * abs(of_one).max(), difference


def hidden_nan(mesh):
    """NaN in hidden tokens is in no gradient of what projects keys, by any way to share rows."""
    rows, x = zigzag(32, 2), np.random.default_rng(1).normal(size=(B, 32, 16))
    hidden = np.random.default_rng(2).random((B, 32)) < 0.3
    x[hidden] = np.nan  # as a query's it would be in them: such rows are fully masked, too
    mask = causal() & padding(hidden=hidden) & allow(np.tile(~hidden[:, None, :, None], 32))

    def run(attn, *tokens):
        output, _ = attn(*tokens, attn_mask=mask, need_weights=False)
        return (output**3).sum()

    both = nnx.jit(nnx.value_and_grad(run))
    memory = np.nan_to_num(x), x
    for tokens, order in (((x,), rows), (memory, None)):
        attn = MultiHeadAttention(16, 4, dtype=jnp.float64, rngs=nnx.Rngs(0))
        wanted = both(attn, *tokens)
        with shard_sequences(mesh, length="m", rows=order):
            places = slice(None) if order is None else order.reshape(-1)
            found = both(attn, *(put(mesh, each[:, places], P(None, "m")) for each in tokens))
        for one, other in ((found[0], wanted[0]), *projected(found[1], wanted[1])):
            assert jnp.isfinite(other).all()
            check(one, np.asarray(other), f"hidden NaN, rows {order is not None}")
    words = "must be those of the 32 tokens: got rows of 16"
    others = shard_sequences(mesh, length="m", rows=zigzag(16, 2))
    with others, pytest.raises(ValueError, match=words):
        run(attn, memory[0])


def projected(*grads):
    """Return the gradients of the weights that project keys and values, side by side."""
    return [[grad[name].kernel[...] for grad in grads] for name in ("k_proj", "v_proj")]


def heads_and_rows():
    """Modules by heads on one axis and by rows on the other: sinks, a bias, a predicate."""
    rows, random = zigzag(24, 2), np.random.default_rng(3)
    x, hidden = random.normal(size=(2, 24, 16)), np.arange(24) >= np.array([[24], [5]])
    some = predicate(lambda b, h, i, j: (7 * i + 3 * j + h + 2 * b) % 3 > 0)
    told = {"bias": random.normal(size=(2, 4, 24, 24)), "predicate": some}
    for kind, (name, mask) in zip((AxisType.Auto, AxisType.Explicit), told.items(), strict=True):
        attn = MultiHeadAttention(16, 4, num_kv_heads=2, sinks=True, dtype=float, rngs=nnx.Rngs(0))
        attn.sinks[...] = jnp.asarray(random.normal(size=4))

        def run(attn, x, mask=mask):
            masks = {"attn_mask": mask, "key_padding_mask": hidden, "need_weights": False}
            output, _ = attn(x, **masks)
            return (output**3).sum(), output

        both = nnx.jit(nnx.value_and_grad(run, has_aux=True))
        wanted, mesh = jax.tree.map(np.asarray, both(attn, x)), new_mesh(kind)
        for layer in (attn.q_proj, attn.k_proj, attn.v_proj):
            layer.kernel = nnx.Param(put(mesh, layer.kernel[...], P(None, "d")))
            layer.bias = nnx.Param(put(mesh, layer.bias[...], P("d")))
        attn.out_proj.kernel = nnx.Param(put(mesh, attn.out_proj.kernel[...], P("d")))
        given = put(mesh, x[:, rows.reshape(-1)], P(None, "m"))
        shards = {"heads": "d", "length": "m", "rows": rows, "exchange": "ring"}
        with jax.set_mesh(mesh), shard_sequences(mesh, **shards):
            (loss, output), grads = both(attn, given)
        found = (loss, np.asarray(output)[:, np.argsort(rows.reshape(-1))]), grads
        check(found, wanted, f"heads and rows, {name}, {kind}")


if __name__ == "__main__":
    blocked.ROWS = blocked.COLUMNS = 32
    blocked.LONE_CELLS = 600
    for part in sys.argv[1:]:
        globals()[part]()
