"""Wrong calls and strict modes that were found by trying."""

import re
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import attn_jax
import attn_numpy
import attn_torch

pytestmark = pytest.mark.usefixtures("compiles_quickly")
BACKENDS = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}
SIZES = {"d_model": 8, "nhead": 2, "dim_feedforward": 8, "dropout": 0.0}
DEPTHS = {"num_encoder_layers": 1, "num_decoder_layers": 1}


def _array(backend, array):
    return {"numpy": np.asarray, "torch": torch.as_tensor, "jax": jnp.asarray}[backend](array)


def _seq2seq(backend, **settings):
    rngs = {"rngs": nnx.Rngs(0)} if backend == "jax" else {}
    return BACKENDS[backend].Seq2SeqTransformer(11, 13, **SIZES, **DEPTHS, **settings, **rngs)


def test_tiles_under_strict_promotion():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 2, 130, 4))

    def total(query):
        return (attn_jax.attention(query, key, value, mask=attn_jax.causal()) ** 2).sum()

    with jax.numpy_dtype_promotion("strict"):
        assert jnp.isfinite(jax.grad(total)(query)).all()


@pytest.mark.parametrize("kind", [np.ma.MaskedArray, np.matrix])
@pytest.mark.parametrize("backend", ["numpy", "jax"])
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_arrays_that_are_more_than_arrays_are_refused(backend, kind):
    query = _array(backend, np.ones((1, 1, 3, 2), np.float32))
    bias = np.zeros((3, 3), np.float32).view(kind)
    with pytest.raises(TypeError, match=f"bias must be an array: got numpy.{kind.__name__}"):
        BACKENDS[backend].attention(query, query, query, bias=bias)


@pytest.mark.parametrize("backend", BACKENDS)
def test_embedding_of_fewer_tokens_is_refused(backend):
    model = _seq2seq(backend)
    if backend == "numpy":
        model.src_embedding.weight = model.src_embedding.weight[:5]
    elif backend == "torch":
        model.src_embedding = torch.nn.Embedding(5, 8)
    else:
        model.src_embedding = nnx.Embed(5, 8, rngs=nnx.Rngs(0))
    src, tgt = _array(backend, [[7, 1]]), _array(backend, [[1]])
    with pytest.raises(ValueError, match="an embedding must hold 11 tokens: got 5"):
        model(src, tgt)
    with pytest.raises(ValueError, match="an embedding must hold 11 tokens: got 5"):
        BACKENDS[backend].greedy_decode(model, src, tgt, eos_idx=2, max_new_tokens=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_epsilon_may_be_any_number(backend):
    rngs = {"rngs": nnx.Rngs(0)} if backend == "jax" else {}
    make = BACKENDS[backend].TransformerEncoderLayer
    layer = make(*SIZES.values(), layer_norm_eps=Fraction(1, 8), **rngs)
    same = make(*SIZES.values(), layer_norm_eps=0.125, **rngs)
    BACKENDS[backend].import_weights(same, BACKENDS[backend].export_weights(layer))
    x = _array(backend, np.eye(8, dtype=np.float32)[None])
    assert (layer(x) == same(x)).all()


def test_decoding_is_exported_for_unknown_sizes():
    attn = attn_jax.MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    b, t, c = jax.export.symbolic_shape("b, t, c")

    def decode(x, key, value, lengths):
        output, cache = attn.decode(x, attn_jax.KVCache(key, value, lengths))
        return output, cache.lengths

    floats, integers = (jnp.float32,), (jnp.int32,)
    shapes = [((b, t, 8), *floats), *[((b, 2, c, 4), *floats)] * 2, ((b,), *integers)]
    exported = jax.export.export(jax.jit(decode))(*(jax.ShapeDtypeStruct(*s) for s in shapes))
    for batch, steps, slots in ((1, 1, 3), (2, 3, 5)):
        cache = attn.new_cache(batch, slots)
        x = jax.random.normal(jax.random.key(batch), (batch, steps, 8))
        want, written = attn.decode(x, cache)
        output, lengths = exported.call(x, cache.key, cache.value, cache.lengths)
        np.testing.assert_allclose(output, want, atol=1e-6)
        np.testing.assert_array_equal(lengths, written.lengths)


def test_sinusoids_are_exported_for_unknown_sizes():
    model = _seq2seq("jax")
    b, s, t = jax.export.symbolic_shape("b, s, t")
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((b, s), (b, t))]
    exported = jax.export.export(jax.jit(lambda src, tgt: model(src, tgt)))(*shapes)
    for batch, sources, targets in ((1, 1, 1), (2, 3, 1500)):
        tokens = np.random.default_rng(0).integers(0, 11, (batch, sources + targets), np.int32)
        src, tgt = jnp.asarray(tokens[:, :sources]), jnp.asarray(tokens[:, sources:])
        np.testing.assert_allclose(exported.call(src, tgt), model(src, tgt), atol=2e-5)


@pytest.mark.parametrize("length", [5, 131])
@pytest.mark.parametrize("offset", [2**31 - 1, -(2**31), 2**30 + 7])
def test_a_traced_offset_may_be_as_far_as_its_dtype_goes(length, offset):
    x = jax.random.normal(jax.random.key(0), (1, 2, length, 4))
    far = jax.jit(partial(attn_jax.attention, mask=attn_jax.causal()))
    got = far(x, x, x, query_offset=jnp.int32(offset))
    wanted = attn_jax.attention(x, x, x) if offset > 0 else jnp.zeros_like(x)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def _boxes():
    boxes = {"param[...]": nnx.Param, "cache[...]": nnx.Cache, "ref[...]": jax.new_ref}
    return boxes | {"partitioned.unbox()": lambda array: linen.Partitioned(array, ())}


@pytest.mark.parametrize("way", _boxes())
def test_a_box_is_refused_with_the_way_to_its_array(way):
    box, x = _boxes()[way], jnp.ones((1, 2, 3, 4))
    tables = {
        "query": lambda: attn_jax.attention(box(x), x, x),
        "bias": lambda: attn_jax.attention(x, x, x, bias=box(jnp.zeros((3, 3)))),
        "mask": lambda: attn_jax.attention(x, x, x, mask=box(jnp.ones((3, 3), bool))),
        "allow": lambda: attn_jax.allow(box(jnp.ones((1, 1, 3, 3), bool))),
        "lengths": lambda: jax.jit(attn_jax.padding)(box(jnp.array([2]))),
        "query_ids": lambda: attn_jax.segments(box(jnp.array([[1, 1, 2]]))),
        "query_offset": lambda: attn_jax.causal().allowed(3, 3, query_offset=box(jnp.array([2]))),
    }
    for name, call in tables.items():
        with pytest.raises(TypeError, match=rf"^{name} .*: got .* \({re.escape(way)} is its array"):
            call()


@pytest.mark.parametrize("length", [1, 5, 140])
def test_a_predicate_is_never_stale(length):
    x = jax.random.normal(jax.random.key(0), (1, 2, length, 4))
    seen, settings = np.ones(length, bool), {"least": 0}

    def function(batch, head, query, key):
        return jnp.asarray(seen)[key] & (key >= settings["least"])

    mask = attn_jax.predicate(function)

    def attend(mask):
        return jax.value_and_grad(lambda x: attn_jax.attention(x, x, x, mask=mask).sum())(x)

    for change in (lambda: seen.__setitem__(0, False), lambda: settings.update(least=3)):
        jax.block_until_ready(attend(mask))
        change()
        cells = np.broadcast_to(mask.allowed(length, length), (1, 1, length, length))
        wanted = attend(attn_jax.allow(cells))
        jax.tree.map(np.testing.assert_array_equal, attend(mask), wanted)


def test_a_cache_that_overflowed_where_nobody_can_look_stays_wrong_when_it_is_truncated():
    attn, x = attn_jax.MultiHeadAttention(8, 2, rngs=nnx.Rngs(0)), jnp.ones((1, 5, 8))

    @jax.jit
    def decode(x, cache):
        for i in range(5):
            _, cache = attn.decode(x[:, i : i + 1], cache)
        return attn.decode(x[:, 2:3], cache.truncate(2))[0]

    assert jnp.isnan(decode(x, attn.new_cache(1, 4))).all()
    assert not jnp.isnan(decode(x, attn.new_cache(1, 5))).any()


def test_a_window_of_a_sample_that_there_is_not_is_wrong_where_nobody_can_look():
    attn, x = attn_jax.MultiHeadAttention(8, 2, rngs=nnx.Rngs(0)), jnp.ones((2, 5, 8))
    _, cache = attn.decode(x[:, :4], attn.new_cache(2, window=2))
    decode = jax.jit(lambda x, cache, index: attn.decode(x, cache.reorder(index))[0])
    output = decode(x[:, 4:], cache, jnp.array([0, 5]))
    assert jnp.isnan(output).all((1, 2)).tolist() == [False, True]
