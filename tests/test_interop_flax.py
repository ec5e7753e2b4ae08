"""This attention inside flax's modules, nnx and linen, and in JAX's order of axes.

Exact is the oracle's multi-head attention with the module's own weights; flax's own answer is held
to it as well, so that "the same numbers" means something, but for what flax gets wrong.
"""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from attn_jax import attention, causal, padding
from attn_jax.interop.bthd import attention_bthd
from attn_jax.interop.flax import attention_fn
from conformance.oracle import expected
from conformance.oracle.tolerance import compare
from conformance.subjects import load

B, T, S, E, H = 3, 5, 7, 12, 4
rng = np.random.default_rng


def normal(seed: int, *shape: int) -> np.ndarray:
    return rng(seed).normal(size=shape).astype(np.float32)


def shaken(tree):
    return jax.tree.map(lambda x: x + 0.5 * normal(x.size, *x.shape), tree)


def of_nnx(function, kv_heads: int = H, **settings):
    """Return a module as a function, and its weights; biases are not 0, attention is sharp."""
    settings |= {"num_kv_heads": kv_heads, "decode": False, "rngs": nnx.Rngs(0)}
    settings |= {} if function is None else {"attention_fn": function}
    module = nnx.MultiHeadAttention(H, E, **settings)
    nnx.update(module, shaken(nnx.state(module, nnx.Param)))
    return module, nnx.to_pure_dict(nnx.state(module, nnx.Param))


def of_linen(function, **settings):
    settings |= {} if function is None else {"attention_fn": function}
    module, x = linen.MultiHeadDotProductAttention(H, **settings), jnp.ones((1, 2, E))
    params = shaken(module.init(jax.random.key(0), x, x, deterministic=True))
    return lambda *inputs, **options: module.apply(params, *inputs, **options), params["params"]


MODULES = {"nnx": of_nnx, "linen": of_linen}
PAD = np.arange(S) < np.array([7, 3, 1])[:, None]
CAUSAL = np.tri(T, S, 2, dtype=bool)
# Masks in flax's axes, for (B, H, T, S).
MASKS = {
    "none": None,
    "causal": CAUSAL[None, None],
    "padding": PAD[:, None, None],
    "both_as_floats": (PAD[:, None, None] & CAUSAL).astype(np.float32),
    "heads": rng(1).random((1, H, T, S)) < 0.7,
    "all": rng(2).random((B, H, T, S)) < 0.7,
}


def exact_and_naive(weights, mask, *inputs, kv_heads: int = H) -> tuple[np.ndarray, np.ndarray]:
    """Return the oracle's output for a module of flax."""
    config = {"embed_dim": E, "num_heads": H, "num_kv_heads": kv_heads}
    numpy = load("numpy")
    model = numpy.module.MultiHeadAttention(**config)
    numpy.module.import_weights(model, weights, "auto")
    flat = [x.reshape(-1, *x.shape[-2:]) for x in inputs]
    sizes = (len(flat[0]), H, flat[0].shape[1], flat[1].shape[1])
    allowed = np.ones(sizes, bool) if mask is None else np.broadcast_to(mask, sizes).astype(bool)
    parameters = numpy.take(model)
    exact, naive = expected.multihead(parameters, H, kv_heads, *flat, allowed=allowed)
    shape = (*inputs[0].shape[:-1], E)
    return exact["output"].reshape(shape), naive["output"].reshape(shape)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", MODULES)
def test_a_module_gives_flaxs_numbers(kind, name):
    inputs, mask = [normal(3, B, T, E), normal(4, B, S, E), normal(5, B, S, E)], MASKS[name]
    budget = None
    for function in (None, attention_fn):
        module, weights = MODULES[kind](function)
        budget = budget or exact_and_naive(weights, mask, *inputs)
        full = mask if function or mask is None else np.broadcast_to(mask, (B, H, T, S))
        rows = np.ones((B, T), bool)  # flax has another answer where every key is hidden
        if function is None and mask is not None:
            rows = np.broadcast_to(mask, (B, H, T, S)).any(-1).all(1)
        got = np.asarray(module(*inputs, mask=full))
        compare(got[rows], budget[0][rows], budget[1][rows], f"output by {function}")


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_give_flaxs_numbers(kv_heads):
    x, weights = normal(3, B, T, E), None
    for function in (None, attention_fn):
        module, weights = of_nnx(function, kv_heads)
        exact, naive = exact_and_naive(weights, CAUSAL[:, :T], x, x, x, kv_heads=kv_heads)
        mask = np.broadcast_to(CAUSAL[:, :T], (B, 1, T, T))
        compare(np.asarray(module(x, mask=mask)), exact, naive, f"output by {function}")


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("kind", MODULES)
def test_any_number_of_batch_axes(kind, batch):
    inputs = [normal(3, *batch, T, E), *(normal(n, *batch, S, E) for n in (4, 5))]
    module, weights = MODULES[kind](attention_fn)
    masks = [np.ones((1,) * len(batch) + (1, T, S), bool), rng(1).random((*batch, 1, 1, S)) < 0.8]
    if batch:
        masks += [rng(1).random((*batch[:-1], 1, H, T, S)) < 0.8]
    for mask in masks:
        allowed = np.broadcast_to(mask, (*batch, H, T, S)).reshape(-1, H, T, S)
        exact, naive = exact_and_naive(weights, allowed, *inputs)
        compare(np.asarray(module(*inputs, mask=mask)), exact, naive, f"mask {mask.shape}")


def test_is_causal_is_a_causal_mask():
    module, weights = of_nnx(attention_fn)
    x, allowed = normal(3, B, T, E), PAD[:, None, None, :T] & np.tri(T, dtype=bool)
    got = module(x, mask=PAD[:, None, None, :T], is_causal=True)
    compare(np.asarray(got), *exact_and_naive(weights, allowed, x, x, x), "output")


@pytest.mark.parametrize("kind", MODULES)
def test_a_fully_masked_row_is_zero_and_has_no_gradient(kind):
    """Flax returns the mean over all keys there, NaN included."""
    module, weights = MODULES[kind](attention_fn)
    theirs, _ = MODULES[kind](None)
    x, mask = normal(3, B, T, E), np.ones((B, H, T, T), bool)
    mask[1] = False
    empty = np.asarray(weights["out"]["bias"])
    got = np.asarray(module(x, mask=mask))
    np.testing.assert_array_equal(got[1], np.broadcast_to(empty, (T, E)))
    assert abs(np.asarray(theirs(x, mask=mask))[1] - empty).max() > 0.1
    gradient = jax.grad(lambda x: jnp.sum(module(x, mask=mask) ** 2))(jnp.asarray(x))
    assert not gradient[1].any() and gradient[0].all()


def test_what_padding_holds_does_not_reach_real_tokens():
    query, key, value = (jnp.asarray(normal(n, B, S, H, 4)) for n in (3, 4, 5))
    dirty = [array.at[:, 3:].set(jnp.nan) for array in (key, value)]
    mask = np.broadcast_to(np.arange(S) < 3, (B, 1, S, S))
    got, clean = attention_fn(query, *dirty, mask=mask), attention_fn(query, key, value, mask=mask)
    np.testing.assert_array_equal(got, clean)
    assert np.isnan(nnx.dot_product_attention(query, *dirty, mask=mask)).all()


# Decoding


@pytest.mark.parametrize("compiled", [False, True])
def test_nnx_decodes_token_by_token(compiled):
    module, weights = of_nnx(attention_fn)
    x, hidden = normal(3, B, S, E), np.arange(S) < np.array([0, 2, 1])[:, None]  # padded left
    module.init_cache(x.shape)
    step = lambda module, token, mask: module(token, decode=True, mask=mask)  # noqa: E731
    step = nnx.jit(step) if compiled else step
    mask = jnp.asarray(~hidden)[:, None, None]
    got = np.concatenate([step(module, x[:, i : i + 1], mask) for i in range(S)], 1)
    allowed = ~hidden[:, None, None] & np.tri(S, dtype=bool)
    compare(got, *exact_and_naive(weights, allowed, x, x, x), "decoded")


def test_linen_decodes_token_by_token():
    module = linen.MultiHeadDotProductAttention(H, decode=True, attention_fn=attention_fn)
    x = normal(3, B, T, E)
    variables = module.init(jax.random.key(0), x, x)
    params, cache = shaken(variables["params"]), variables["cache"]
    got = []
    for i in range(T):
        token = x[:, i : i + 1]
        state = {"params": params, "cache": cache}
        output, changed = module.apply(state, token, token, mutable=["cache"])
        got.append(output)
        cache = changed["cache"]
    allowed = np.tri(T, dtype=bool)
    compare(np.concatenate(got, 1), *exact_and_naive(params, allowed, x, x, x), "decoded")


# Dropout, weights, dtypes


@pytest.mark.parametrize("broadcast", [True, False])
@pytest.mark.parametrize("kind", MODULES)
def test_dropout_drops_what_flax_drops(kind, broadcast):
    settings = {"dropout_rate": 0.4, "broadcast_dropout": broadcast}
    x, outputs = normal(3, 2, B, T, E), {}
    mask = np.ones((1, 1, 1, T, T), bool)
    key = {
        "nnx": lambda: {"rngs": nnx.Rngs(9)},
        "linen": lambda: {"rngs": {"dropout": jax.random.key(9)}},
    }
    for function in (None, attention_fn):
        module, _ = MODULES[kind](function, **settings)
        full = np.broadcast_to(mask, (2, B, H, T, T))
        outputs[function] = np.asarray(module(x, mask=full, deterministic=False, **key[kind]()))
        outputs["off"] = np.asarray(module(x, mask=full, deterministic=True))
    ours, theirs = outputs[attention_fn], outputs[None]
    assert abs(theirs - outputs["off"]).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2**-23 * 16 * abs(theirs).max())


def test_dropout_of_everything_is_zero_and_none_is_none():
    query, key, value = (normal(n, B, S, H, 4) for n in (3, 4, 5))
    options = {"dropout_rng": jax.random.key(0), "deterministic": False}
    assert not attention_fn(query, key, value, dropout_rate=1.0, **options).any()
    np.testing.assert_array_equal(
        attention_fn(query, key, value, **options), attention_fn(query, key, value)
    )


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
@pytest.mark.parametrize("kind", MODULES)
def test_weights_are_sown_as_flax_sows_them(kind, batch):
    x, mask = normal(3, *batch, T, E), rng(1).random((*batch, 1, T, T)) < 0.8
    mask |= np.eye(T, dtype=bool)
    sown = []
    for function in (None, attention_fn):
        if kind == "nnx":
            module, _ = of_nnx(function)
            output, state = nnx.capture(module, nnx.Intermediate)(x, mask=mask, sow_weights=True)
            (weights,) = state["attention_weights"].get_value()
        else:
            module, _ = of_linen(function)
            output, state = module(x, mask=mask, sow_weights=True, mutable=["intermediates"])
            (weights,) = state["intermediates"]["attention_weights"]
        sown.append((np.asarray(weights), np.asarray(output)))
    assert sown[1][0].shape == (*batch, H, T, T)
    np.testing.assert_allclose(sown[1][0], sown[0][0], rtol=0, atol=2**-23 * 8)
    assert not sown[1][0][~np.broadcast_to(mask, sown[1][0].shape)].any()
    plain = MODULES[kind](attention_fn)[0](x, mask=mask)
    np.testing.assert_allclose(sown[1][1], plain, rtol=0, atol=2**-23 * 16)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, None])
def test_dtype_is_the_outputs_and_sums_are_wide(dtype):
    arrays = [normal(n, B, length, H, 8) for n, length in ((3, T), (4, 300), (5, 300))]
    name = jnp.dtype(dtype or jnp.float32).name
    query, key, value = (array.astype(name) for array in arrays)
    got = attention_fn(*arrays, dtype=dtype)
    assert got.dtype == name
    assert attention_fn(query, key, arrays[2]).dtype == jnp.float32  # the widest, if not told
    first = [array.swapaxes(1, 2) for array in (query, key, value)]
    exact, naive = expected.attention(*first, allowed=np.ones((B, H, T, 300), bool))
    compare(np.asarray(got).swapaxes(1, 2), exact["output"], naive["output"], "output")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, T, S), (B, 1, 1, S), (B, H, T, S)])
def test_bias_is_added_to_the_scores(shape, dtype):
    query, key, value = (normal(n, B, length, H, 8) for n, length in ((3, T), (4, S), (5, S)))
    bias = (2 * normal(6, *shape)).astype(dtype)
    got = attention_fn(query, key, value, bias, mask=MASKS["causal"])
    first = [array.swapaxes(1, 2) for array in (query, key, value)]
    allowed = np.broadcast_to(CAUSAL, (B, H, T, S))
    wide = np.broadcast_to(bias.astype(np.float32), (B, H, T, S))
    exact, naive = expected.attention(*first, allowed=allowed, bias=wide)
    compare(np.asarray(got).swapaxes(1, 2), exact["output"], naive["output"], "output")


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST])
def test_precision_reaches_the_products(precision):
    arrays = [normal(n, B, T, H, 8) for n in (3, 4, 5)]
    for said, count in ((None, 0), (precision, 2)):
        call = partial(attention_fn, precision=said)
        with jax.default_matmul_precision("default"):  # whatever another test has set
            text = str(jax.make_jaxpr(call)(*arrays))
        assert text.count("precision=(Precision.HIGHEST") + text.count("precision=HIGHEST") >= count
        assert ("HIGHEST" in text) == bool(count)


# Transforms


def test_compiled_and_mapped_calls_are_the_eager_one():
    query, key, value = (normal(n, B, length, H, 8) for n, length in ((3, T), (4, S), (5, S)))
    call = lambda q, k, v, mask: attention_fn(q, k, v, mask=mask)  # noqa: E731
    mask = np.broadcast_to(MASKS["both_as_floats"], (B, 1, T, S))
    eager = call(query, key, value, mask)
    for other in (jax.jit(call), jax.vmap(call)):
        np.testing.assert_allclose(other(query, key, value, mask), eager, rtol=0, atol=2**-21)


def test_other_numbers_in_a_compiled_mask_give_nan():
    query, key, value = (normal(n, B, T, H, 8) for n in (3, 4, 5))
    added = np.where(np.tri(T, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
    call = jax.jit(lambda mask: attention_fn(query, key, value, mask=mask))
    assert np.isnan(call(added)).all()
    assert np.isfinite(call(np.isfinite(added).astype(np.float32))).all()


# Refusals

QUERY = jnp.ones((B, T, H, 8))
KEY = jnp.ones((B, S, H, 8))
REFUSED = {
    "additive": ({"mask": jnp.full((1, 1, T, S), -jnp.inf)}, ValueError, "mask must be bool, or 1"),
    "two_axes": ({"mask": jnp.ones((T, S), bool)}, ValueError,
                 r"mask must have all axes .*: got \(5, 7\) for \(3, 4, 5, 7\)"),
    "padding": ({"mask": jnp.ones((B, S), bool)}, ValueError, r"mask .* got \(3, 7\) for"),
    "wrong_mask": ({"mask": jnp.ones((B, 2, T, S), bool)}, ValueError, r"got \(3, 2, 5, 7\) for"),
    "bias": ({"bias": jnp.ones((T, S))}, ValueError, "bias must have all axes"),
    "bool_bias": ({"bias": jnp.ones((1, 1, T, S), bool)}, TypeError, "bias must .*: got bool"),
    "is_causal": ({"is_causal": True}, ValueError, "as many queries as keys, .*: got 5 and 7"),
    "no_rng": ({"dropout_rate": 0.5}, ValueError, "dropout needs dropout_rng: got None"),
    "rate": ({"dropout_rate": 1.5}, ValueError, "dropout must lie in 0..1: got 1.5"),
    "precision": ({"precision": ("high", "highest")}, TypeError, "precision must be one for all"),
    "einsum": ({"qk_attn_weights_einsum": jnp.einsum}, TypeError, "einsums must be None"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused(name):
    options, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        attention_fn(QUERY, KEY, KEY, **options)


def test_other_batches_are_refused():
    with pytest.raises(ValueError, match=r"same batch: got \(3, 5, 4, 8\), \(2, 7, 4, 8\) and"):
        attention_fn(QUERY, KEY[:2], KEY[:2])
    with pytest.raises(ValueError, match=r"same batch: got \(4, 8\)"):
        attention_fn(QUERY[0, 0], KEY[0, 0], KEY[0, 0])


def test_einsums_of_a_quantized_linen_module_are_refused():
    options = dict.fromkeys(("qk_attn_weights_einsum_cls", "attn_weights_value_einsum_cls"))
    options = {name: lambda: jnp.einsum for name in options}
    module = linen.MultiHeadDotProductAttention(H, attention_fn=attention_fn, **options)
    with pytest.raises(TypeError, match="einsums must be None"):
        module.init(jax.random.key(0), jnp.ones((1, 2, E)))


# JAX's order of axes, and the page


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_bthd_is_jaxs_own_order(kv_heads):
    query, key, value = normal(3, B, T, H, 8), *(normal(n, B, S, kv_heads, 8) for n in (4, 5))
    mask = causal() & padding([7, 3, 1])
    got = attention_bthd(query, key, value, mask=mask, query_offset=S - T, scale=0.3)
    allowed = np.broadcast_to(np.tri(T, S, S - T, dtype=bool) & PAD[:, None, None], (B, H, T, S))
    first = [array.swapaxes(1, 2) for array in (query, key, value)]
    exact, naive = expected.attention(*first, allowed=allowed, scale=0.3)
    compare(np.asarray(got).swapaxes(1, 2), exact["output"], naive["output"], "output")


def test_bthd_refuses_what_attention_refuses():
    with pytest.raises(ValueError, match=r"query must be \(B, H, T, D\): got \(5, 4, 8\)"):
        attention_bthd(QUERY[0], KEY, KEY)


def test_the_page_runs_and_says_what_attention_does_with_the_other_order():
    page = (Path(__file__).parents[1] / "docs/flax.md").read_text("utf-8")
    names: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(code, names)
    query, key, value, mask = (names[name] for name in ("query", "key", "value", "causal"))
    wrong = attention(query, key, value, mask=mask())
    assert wrong.shape == names["output"].shape == (2, 5, 4, 8)
    assert abs(wrong - names["output"]).max() > 0.5
