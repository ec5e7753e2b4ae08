"""JAX's transforms over attention: right at every size, a single query and beyond a tile included.

The truth of derivatives is the formula written out once more, in float64; that of vmap, scan and
export is the same call without them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, lax

from attn_jax import (
    KVCache,
    MultiHeadAttention,
    QKNorm,
    Seq2SeqTransformer,
    allow,
    attention,
    attention_steps,
    causal,
    hide,
    padding,
    predicate,
    prefix,
    rotary,
    segments,
    sliding_window,
)

pytestmark = [pytest.mark.untyped, pytest.mark.usefixtures("compiles_quickly")]
B, H, H_KV, D, D_V = 2, 4, 2, 5, 3
SIZES = {"textbook": (7, 11), "one_query": (1, 13), "blocked": (129, 131)}
EVERY_SIZE = pytest.mark.parametrize(("T", "S"), list(SIZES.values()), ids=list(SIZES))


def at_sizes(**names: str) -> pytest.MarkDecorator:
    """Give each size cases of its own: every case compiles much, and few depend on the size."""
    pairs = [(size, name) for size in names for name in names[size].split()]
    cases = [(name, *SIZES[size]) for size, name in pairs]
    return pytest.mark.parametrize(("name", "T", "S"), cases, ids=["-".join(p) for p in pairs])


MASKS = {
    "none": lambda T, S: None,
    "causal_and_padding": lambda T, S: causal() & padding([S - 3, 0]),
    "window_or_segments": lambda T, S: sliding_window(2) | segments(ids(T), ids(S)),
    "four_parts": lambda T, S: (
        causal() & padding([S - 3, 0]) | sliding_window(2) & segments(ids(T), ids(S))),
    "not_prefix": lambda T, S: ~prefix([S // 2, S]),
    "cells": lambda T, S: allow(jnp.asarray(drawn(T, S))),
    "padding_hidden": lambda T, S: padding(hidden=jnp.asarray(ids(S)) == 1),
    "predicate": lambda T, S: predicate(lambda b, h, q, k: ((q + 2 * k + h) % 3 != b) & (q != 2)),
}  # fmt: skip


def ids(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 3, (B, length))


def drawn(T: int, S: int) -> np.ndarray:
    return np.random.default_rng(T).random((1, H, T, S)) < 0.3


def arrays(T: int, S: int, seed: int = 0, dtype: str = "float32") -> tuple:
    """Return query, key, value and a bias."""
    rng = np.random.default_rng(seed)
    shapes = (B, H, T, D), (B, H_KV, S, D), (B, H_KV, S, D_V), (1, H, T, S)
    return tuple(jnp.asarray(rng.normal(size=shape).astype(dtype)) for shape in shapes)


@partial(jax.jit, static_argnames=("softcap", "empty_rows"))
def formula(query, key, value, bias=None, *, mask, softcap=None, empty_rows="zero"):
    """Compute attention as it is defined, where every number is finite."""
    T, S = query.shape[2], key.shape[2]
    allowed = jnp.ones((1, 1, 1, 1), bool)
    if mask is not None:
        allowed = mask.allowed(T, S, query_offset=0, batch=B, heads=H)
    key, value = (jnp.repeat(x, H // H_KV, 1) for x in (key, value))
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key) / D**0.5
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias
    allowed = jnp.broadcast_to(allowed, scores.shape)
    empty = ~allowed.any(-1, keepdims=True)
    exp = jnp.where(allowed | empty, jnp.exp(scores), 0)
    weights = exp / exp.sum(-1, keepdims=True)
    filled = {"zero": 0, "uniform": 1 / S, "nan": jnp.nan}[empty_rows]
    return jnp.where(empty, filled, weights) @ value


def derivatives(attend, inputs, moves) -> dict:
    """Every order of forward and reverse mode, of a loss that is not linear in the output."""

    def loss(*inputs):
        return jnp.sin(attend(*inputs)).sum()

    def slope(*inputs):
        return jax.jvp(loss, inputs, moves)[1]

    def along(*inputs):
        return sum(map(jnp.vdot, gradient(*inputs), moves))

    gradient = jax.grad(loss, (0, 1, 2, 3))
    reverse, forward_over_reverse = jax.jvp(gradient, inputs, moves)
    return {
        "forward": jax.jvp(attend, inputs, moves)[1],
        "linearize": jax.linearize(attend, *inputs)[1](*moves),
        "reverse": reverse,
        "forward over reverse": forward_over_reverse,
        "reverse over reverse": jax.grad(along, (0, 1, 2, 3))(*inputs),
        "reverse over forward": jax.grad(slope, (0, 1, 2, 3))(*inputs),
    }


OPTIONS = {
    "causal_and_padding": {"empty_rows": "uniform", "softcap": 1.5},
}


@at_sizes(
    textbook="causal_and_padding",
    one_query="window_or_segments predicate",
    blocked="causal_and_padding predicate",
)
def test_first_and_second_derivatives_are_the_formulas(name, T, S):
    with jax.enable_x64(True):
        inputs, moves = (arrays(T, S, seed, "float64") for seed in (1, 2))
        options = OPTIONS.get(name, {}) | {"mask": MASKS[name](T, S)}

        def ours(query, key, value, bias):
            return attention(query, key, value, bias=bias, query_offset=0, **options)

        found = jax.jit(partial(derivatives, ours))(inputs, moves)
        right = jax.jit(partial(derivatives, partial(formula, **options)))(inputs, moves)
    for kind, wanted in right.items():
        check(found[kind], wanted, kind, 1e-12)


def check(found, wanted, what: str, share: float) -> None:
    """Compare two pytrees, with an error of a share of the largest number, or of the inputs' 1."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        error = share * np.abs(other).max(initial=1, where=~np.isnan(other))
        np.testing.assert_allclose(one, other, rtol=0, atol=error, err_msg=what)


@EVERY_SIZE
def test_forward_mode_where_a_fully_masked_row_is_nan(T, S):
    inputs, moves = arrays(T, S), arrays(T, S, 1)
    options = {"mask": padding([S, 0]), "empty_rows": "nan"}
    found = jax.jvp(partial(attention, **options), inputs[:3], moves[:3])[1]
    right = jax.jvp(partial(formula, **options), inputs[:3], moves[:3])[1]
    check(found[0], right[0], "forward", 1e-5)


@EVERY_SIZE
def test_hessian_and_jacobians_of_few_numbers(T, S):
    """Each maps a derivative over directions: some of its inputs are mapped, others are not."""
    with jax.enable_x64(True):
        query, key, value, _ = arrays(T, S, 3, "float64")

        def of(attend):
            def few(numbers):
                moved = query * numbers[0], key + numbers[1] * key[:, :, ::-1], value * numbers[2]
                return attend(*moved, mask=padding([S - 1, S]))[:, ::3, -1].ravel()

            def loss(numbers):
                return (few(numbers) ** 2).sum()

            numbers = jnp.array([1.0, 0.5, -2.0])
            ways = jax.jacfwd(few), jax.hessian(loss), jax.jacrev(jax.jacrev(loss))
            return [way(numbers) for way in ways]

        found, right = (jax.jit(partial(of, attend))() for attend in (attention, formula))
    check(found, right, "Jacobians and Hessians", 1e-12)


@EVERY_SIZE
def test_gradient_through_vmap_and_vmap_of_a_gradient(T, S):
    """Values that all samples share get the sum of what each gives, or each its own."""
    query, key, value, _ = arrays(T, S)
    lengths = jnp.array([S - 2, 1])

    def loss(query, key, value, length):
        one = attention(query[None], key[None], value[None], mask=padding(length[None]))
        return jnp.sin(one).sum()

    def together(attend_all):
        grad = jax.grad(lambda *x: attend_all(*x).sum(), (0, 1, 2))
        return jax.jit(grad)(query, key, value[0])

    def loop(query, key, value):
        return sum(loss(query[i], key[i], value, lengths[i]) for i in range(B))

    mapped = jax.vmap(loss, (0, 0, None, 0))
    check(together(lambda *x: mapped(*x, lengths)), together(loop), "grad of vmap", 1e-5)

    each = jax.jit(jax.grad(loss, (0, 1, 2)))
    found = jax.vmap(each, (0, 0, None, 0))(query, key, value[0], lengths)
    right = [each(query[i], key[i], value[0], lengths[i]) for i in range(B)]
    check(found, jax.tree.map(lambda *x: jnp.stack(x), *right), "vmap of grad", 1e-5)


def moved_by(number, T: int, S: int) -> dict:
    """Options whose numbers hang on one that vmap or scan hands out."""
    lengths, offsets = jnp.stack([number, number + 2]), jnp.stack([number, number * 2])
    same = segments(ids(T) % (number + 1), ids(S))
    seen = hide(jnp.asarray(drawn(T, S)) & (number > 1))
    return {
        "lengths": {"mask": padding(lengths)},
        "segments": {"mask": same},
        "offset": {"mask": causal(), "query_offset": number},
        "offsets": {"mask": sliding_window(3), "query_offset": offsets},
        "cells": {"mask": seen},
        "together": {
            "mask": (padding(lengths) | sliding_window(3)) & same & seen,
            "query_offset": offsets,
        },
        "predicate": {
            "mask": predicate(lambda b, h, q, k: (q + k + h) % 4 < number + b),
            "query_offset": 0,
        },
    }


@at_sizes(
    textbook="lengths offsets predicate",
    one_query="segments offset cells",
    blocked="offset together predicate",
)
def test_vmap_and_scan_over_what_a_mask_is_made_of_equal_the_loop(name, T, S):
    inputs = arrays(T, S)[:3]

    def attend(number):
        return jax.value_and_grad(
            lambda *x: attention(*x, **moved_by(number, T, S)[name]).sum(), (0, 1, 2)
        )(*inputs)

    numbers = jnp.array([2, 0, 3])
    right = [jax.jit(attend)(number) for number in numbers]
    right = jax.tree.map(lambda *x: jnp.stack(x), *right)
    check(jax.vmap(attend)(numbers), right, "vmap", 1e-5)
    scanned = lax.scan(lambda carry, number: (carry, attend(number)), 0, numbers)[1]
    check(scanned, right, "scan", 1e-5)


@EVERY_SIZE
def test_rematerialized_gradients_are_equal(T, S):
    inputs = arrays(T, S)[:3]

    def loss(*inputs):
        return jnp.sin(attention(*inputs, mask=causal() & padding([S, 0]), query_offset=0)).sum()

    found = jax.grad(jax.checkpoint(loss), (0, 1, 2))(*inputs)
    check(found, jax.grad(loss, (0, 1, 2))(*inputs), "checkpoint", 1e-6)


def exported(T: int, S: int, options) -> tuple:
    """Return a program of sizes left open, and the function that it is of."""

    def attend(query, key, value, lengths, cells):
        return attention(query, key, value, **options(lengths, cells))

    b, t, s = export.symbolic_shape("b, t, s")
    s = t if S == T else s
    shapes = [(b, H, t, D), (b, H_KV, s, D), (b, H_KV, s, D_V)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lengths = jax.ShapeDtypeStruct((b,), jnp.int32)
    cells = jax.ShapeDtypeStruct((b, 1, t, s), bool)
    return export.export(jax.jit(attend))(*inputs, lengths, cells), attend


EXPORTED = {
    "none": lambda lengths, cells: {},
    "causal_and_padding": lambda lengths, cells: {"mask": causal() & padding(lengths)},
    "prefix": lambda lengths, cells: {"mask": prefix(lengths)},
    "window_from_offsets": lambda lengths, cells: {
        "mask": sliding_window(2), "query_offset": lengths},
    "segments": lambda lengths, cells: {"mask": segments(cells[:, 0, :, 0] * 1)},
    "hidden": lambda lengths, cells: {"mask": padding(hidden=cells[:, 0, 0])},
    "cells": lambda lengths, cells: {"mask": allow(cells), "empty_rows": "uniform"},
    "hide": lambda lengths, cells: {"mask": ~hide(cells), "empty_rows": "nan"},
    "predicate": lambda lengths, cells: {
        "mask": predicate(lambda b, h, q, k: (k < lengths[b]) | (q == h))},
    "bias": lambda lengths, cells: {"bias": cells * 2.0, "softcap": 1.5},
}  # fmt: skip


@pytest.mark.parametrize("name", list(EXPORTED))
def test_exported_with_sizes_left_open_equals_the_call(name):
    program, attend = exported(2, 2, EXPORTED[name])
    for samples, length in ((1, 1), (3, 129)):
        rng = np.random.default_rng(length)
        shapes = (H, length, D), (H_KV, length, D), (H_KV, length, D_V)
        inputs = [rng.normal(size=(samples, *shape)).astype(np.float32) for shape in shapes]
        inputs.append(rng.integers(0, length + 1, samples).astype(np.int32))
        inputs.append(rng.random((samples, 1, length, length)) < 0.5)
        inputs = [jnp.asarray(x) for x in inputs]
        check(program.call(*inputs), attend(*inputs), f"{samples} x {length}", 1e-5)


def test_exported_with_queries_and_keys_of_different_lengths():
    program, attend = exported(2, 3, lambda lengths, cells: {"mask": padding(lengths)})
    inputs = (*arrays(7, 11)[:3], jnp.array([3, 0]), jnp.ones((B, 1, 7, 11), bool))
    check(program.call(*inputs), attend(*inputs), "padding", 1e-5)


CLOSURES = {
    "number": (lambda seen: lambda b, h, q, k: k < seen["now"], lambda seen, n: n),
    "numpy_table": (
        lambda seen: lambda b, h, q, k: jnp.asarray(seen["now"])[k % 2] < k,
        lambda seen, n: np.array([n, 2 * n]),
    ),
    "jax_table": (
        lambda seen: lambda b, h, q, k: seen["now"][k % 2] < k, lambda seen, n: jnp.array([n, n])),
    "of_head_and_sample": (
        lambda seen: lambda b, h, q, k: k < seen["now"] + h - b, lambda seen, n: n),
    "inner_jit": (
        lambda seen: lambda b, h, q, k: jax.jit(lambda k: k < seen["now"].sum())(k),
        lambda seen, n: jnp.array([n, 1])),
}  # fmt: skip


@at_sizes(
    textbook="numpy_table of_head_and_sample inner_jit",
    one_query="number jax_table",
    blocked="number jax_table inner_jit",
)
def test_a_predicate_that_changes_is_followed(name, T, S):
    make, number = CLOSURES[name]
    seen: dict = {}
    mask = predicate(make(seen))
    mask = mask & ~predicate(lambda b, h, q, k: k == 2) | predicate(lambda b, h, q, k: q + k == 1)
    changing = formula.__wrapped__  # JAX's own cache does not follow, as it says
    inputs = arrays(T, S)[:3]

    def loss(attend, *inputs):
        return jnp.sin(attend(*inputs)).sum()

    for n in (1, 5, 1):
        seen["now"] = number(seen, n)
        right = partial(changing, mask=mask)
        found = partial(attention, mask=mask, query_offset=0)
        check(found(*inputs), right(*inputs), f"{n}", 1e-5)
        wanted = jax.grad(partial(loss, right))(*inputs)
        check(jax.grad(partial(loss, found))(*inputs), wanted, f"gradient, {n}", 1e-4)


@EVERY_SIZE
def test_a_traced_closure_is_an_input_of_the_program(T, S):
    inputs = arrays(T, S)[:3]

    def attend(attend, number, table):
        mask = predicate(lambda b, h, q, k: (k * h < number) | (k == table[b]))
        return attend(*inputs, mask=mask)

    ours = jax.jit(partial(attend, partial(attention, query_offset=0)))
    for number in (0, 3, 9):
        table = jnp.array([number, 1])
        check(ours(number, table), attend(formula, number, table), f"{number}", 1e-5)


@at_sizes(
    textbook="cells not_prefix",
    one_query="padding_hidden predicate",
    blocked="four_parts predicate",
)
def test_strict_ranks_and_a_watch_for_nan_change_nothing(name, T, S):
    inputs, moves = arrays(T, S), arrays(T, S, 1)
    inputs, moves = ((*x[:3], x[3][0, 0]) for x in (inputs, moves))  # a bias of rank 2
    mask, options = MASKS[name](T, S), {"query_offset": 0, "softcap": 2.0}

    def loss(attend, *inputs):
        return jnp.sin(attend(*inputs)).sum()

    def ours(query, key, value, bias):
        return attention(query, key, value, mask=mask, bias=bias, **options)

    with jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        found = jax.value_and_grad(partial(loss, ours), (0, 1, 2, 3))(*inputs)
        moved = jax.jvp(partial(loss, ours), inputs, moves)
        steps = attention_steps(*inputs[:3], mask=mask, bias=inputs[3], **options).output
        mask.allowed(T, S, query_offset=jnp.array([0, 1]), batch=B, heads=H)
        mask.additive(T, S, query_offset=0, batch=B, heads=H)
    right = partial(formula, mask=mask, softcap=2.0)
    check(steps, right(*inputs), "steps", 1e-5)
    check(moved, jax.jvp(partial(loss, right), inputs, moves), "forward mode", 1e-4)
    wanted = jax.value_and_grad(partial(loss, right), (0, 1, 2, 3))(*inputs)
    check(found, wanted, "value and gradients", 1e-4)


# Heads that are processed


def processed(seed: int = 0) -> MultiHeadAttention:
    """Return an attention whose heads are normed and turned, no parameter at its start."""
    rngs = nnx.Rngs(seed)
    heads = QKNorm(6, rotary(base=99.0, dim=4), rngs=rngs)
    attn = MultiHeadAttention(
        16, 4, num_kv_heads=2, head_dim=6, sinks=True, process_heads=heads, rngs=rngs
    )
    state = nnx.state(attn)
    moved = jax.tree.map(lambda x: x + jax.random.normal(rngs(), x.shape) / 4, state)
    nnx.update(attn, moved)
    return attn


def tokens(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=(*shape, 16)), jnp.float32)


def test_processed_heads_compiled_mapped_and_differentiated_are_the_loop():
    attn, x = processed(), tokens(3, 2, 5)
    graph, state = nnx.split(attn)
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
    assert {"process_heads/q_norm/scale", "process_heads/k_norm/scale"} <= paths

    def loss(state, x):
        output, weights = nnx.merge(graph, state)(x, attn_mask=causal())
        return jnp.sin(output).sum() + jnp.square(weights).sum()

    gradient = jax.grad(loss, (0, 1))
    got = jax.jit(jax.vmap(gradient, (None, 0)))(state, x)
    for i in range(3):
        one = gradient(state, x[i])
        pairs = zip(*map(jax.tree.leaves, (got, one)), strict=True)
        for mapped, alone in pairs:
            check(mapped[i], alone, f"sample {i}", 1e-4)


def test_layers_of_processed_heads_are_scanned():
    models, x = [processed(seed) for seed in range(3)], tokens(2, 5)
    graph = nnx.graphdef(models[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, models))

    def layer(x, state):
        return x + nnx.merge(graph, state)(x, attn_mask=causal(), need_weights=False)[0], None

    wanted = x
    for model in models:
        wanted = wanted + model(wanted, attn_mask=causal(), need_weights=False)[0]
    check(lax.scan(layer, x, stacked)[0], wanted, "three layers", 1e-4)


def test_processed_heads_are_exported_for_sizes_left_open():
    attn = processed()
    b, t = export.symbolic_shape("b, t")
    program = export.export(jax.jit(lambda x: attn(x, attn_mask=causal(), need_weights=False)[0]))
    program = program(jax.ShapeDtypeStruct((b, t, 16), jnp.float32))
    for shape in ((1, 1), (3, 7)):
        x = tokens(*shape)
        wanted = attn(x, attn_mask=causal(), need_weights=False)[0]
        check(program.call(x), wanted, str(shape), 1e-5)


def test_tokens_beyond_a_table_of_sinusoids_are_exported_for_sizes_left_open():
    sizes = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    model = Seq2SeqTransformer(11, 13, **sizes, dim_feedforward=16, rngs=nnx.Rngs(0))
    model.eval()
    s, t = export.symbolic_shape("s, t")
    program = export.export(jax.jit(model))(
        jax.ShapeDtypeStruct((1, s), jnp.int32), jax.ShapeDtypeStruct((1, t), jnp.int32)
    )
    for lengths in ((2, 5), (1100, 700)):
        src, tgt = (jnp.arange(1, n + 1, dtype=jnp.int32)[None] % 9 + 1 for n in lengths)
        check(program.call(src, tgt), model(src, tgt), str(lengths), 1e-4)


@pytest.mark.parametrize("made", ["compiled", "differentiated", "branching"])
def test_predicates_around_programs_of_other_arrays_are_others(made):
    def mask(table):
        return predicate(lambda b, h, i, j: programs(table)[made](j) & (i >= 0))

    tables = [jnp.arange(200) < kept for kept in (100, 3)]
    inputs = jax.random.normal(jax.random.key(0), (3, 1, 2, 200, 8))
    for table in tables:
        wanted = attention(*inputs, mask=allow(jnp.broadcast_to(table, (1, 1, 200, 200))))
        check(attention(*inputs, mask=mask(table)), wanted, made, 1e-5)


def programs(table) -> dict:
    """Return what looks up keys in a table, by how JAX keeps it inside of another program."""

    @jax.custom_jvp
    def differentiated(key):
        return table[key]

    differentiated.defjvp(lambda at, along: (table[at[0]], along[0]))
    branching = partial(lax.cond, True, lambda x: table[x], lambda x: table[x] & (x < 0))
    compiled = jax.jit(lambda key: table[key])
    return {"compiled": compiled, "differentiated": differentiated, "branching": branching}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_of_processed_heads_is_exported_for_any_batch_and_cache(dtype):
    heads = QKNorm(4, rotary(base=99.0), dtype=dtype, rngs=nnx.Rngs(1))
    attn = MultiHeadAttention(16, 4, process_heads=heads, dtype=dtype, rngs=nnx.Rngs(0))

    def step(x, key, value, lengths):
        output, cache = attn.decode(x, KVCache(key, value, lengths))
        return output, cache.key, cache.lengths

    b, c = export.symbolic_shape("b, c")
    slots = jax.ShapeDtypeStruct((b, 4, c, 4), dtype)
    x, lengths = jax.ShapeDtypeStruct((b, 1, 16), dtype), jax.ShapeDtypeStruct((b,), jnp.int32)
    program = export.export(jax.jit(step))(x, slots, slots, lengths)
    for samples, capacity in ((1, 3), (3, 7)):
        cache, x = attn.new_cache(samples, capacity), tokens(samples, 2).astype(dtype)
        _, cache = attn.decode(x[:, :1], cache)
        given = x[:, 1:], cache.key, cache.value, cache.lengths
        for got, wanted in zip(program.call(*given), step(*given), strict=True):
            check(got.astype(float), wanted.astype(float), f"{samples} x {capacity}", 1e-5)
