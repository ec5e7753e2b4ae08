"""Integers of every dtype, far positions and wide windows give what int64 gives, or are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import attn_jax
import attn_numpy
import attn_torch

pytestmark = pytest.mark.usefixtures("compiles_quickly")
BACKENDS = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}
DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FAR = 2**30
T = 130


def _array(backend, array):
    return {"numpy": np.asarray, "torch": torch.from_numpy, "jax": jnp.asarray}[backend](array)


def _allowed(mask, query_offset=0, size=T):
    return np.asarray(mask.allowed(size, size, query_offset=query_offset, batch=2))


def _masks(m, lengths, ids):
    return {
        "padding": m.padding(lengths),
        "prefix": m.prefix(lengths),
        "not": ~m.padding(lengths),
        "segments": m.segments(ids),
        "pair": m.segments(ids, ids),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_and_offsets_of_every_dtype(backend, dtype):
    m, rng = BACKENDS[backend], np.random.default_rng(0)
    lengths, offsets, ids = np.array([127, 0]), np.array([127, 3]), rng.integers(0, 128, (2, T))
    lengths, offsets, ids = (_array(backend, x) for x in (lengths, offsets, ids))
    narrow = [_array(backend, np.asarray(x).astype(dtype)) for x in (lengths, offsets, ids)]
    wanted = _masks(m, lengths, ids)
    for name, mask in _masks(m, narrow[0], narrow[2]).items():
        np.testing.assert_array_equal(_allowed(mask), _allowed(wanted[name]), name)
    wide = m.causal() & m.sliding_window(200, 2)
    np.testing.assert_array_equal(_allowed(wide, narrow[1]), _allowed(wide, offsets))
    if backend == "jax":
        got = jax.jit(lambda lengths, offsets: _jitted(m, lengths, offsets))(*narrow[:2])
        np.testing.assert_array_equal(got, _jitted(m, lengths, offsets))


def _jitted(m, lengths, offsets):
    mask = m.prefix(lengths) & m.sliding_window(200, 2)
    return mask.allowed(T, T, query_offset=offsets)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cells_and_sizes_are_numbers_of_any_dtype(backend):
    mask, small = BACKENDS[backend].causal(), np.int8
    cell = (0, 0, 127, 127)
    assert mask.explain(*map(small, cell)) == mask.explain(*cell)
    mask = BACKENDS[backend].sliding_window(small(3))
    got = np.asarray(mask.allowed(small(5), small(127), query_offset=small(122)))
    np.testing.assert_array_equal(got, mask.allowed(5, 127, query_offset=122))
    assert mask.draw(small(5), small(7), query_offset=small(2)) == mask.draw(5, 7, query_offset=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_beyond_int64_are_refused(backend):
    m, ids = BACKENDS[backend], np.array([[2**64 - 1, 2**63]], np.uint64)
    ids = torch.from_numpy(ids) if backend == "torch" else ids
    with pytest.raises(ValueError, match=f"key_ids must fit int64: got {2**63}"):
        m.segments([[-1, 0]], ids)
    with pytest.raises(ValueError, match=f"lengths must fit int64: got {2**63}"):
        m.padding(ids[0])
    with pytest.raises(ValueError, match=r"query_offset must lie in .*: got 18446744073709551615"):
        m.causal().allowed(2, 2, query_offset=ids[0], batch=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_arrays_do_not_lose_their_mask(backend):
    m, masked = BACKENDS[backend], np.ma.array([[2, 3]], mask=[[False, True]])
    calls = {
        "lengths": [lambda: m.padding(masked[0]), lambda: m.prefix(masked[0])],
        "query_ids": [lambda: m.segments(masked), lambda: m.segments([masked[0]])],
        "key_ids": [lambda: m.segments([[1, 2]], masked)],
    }
    for name, wrong in calls.items():
        for call in wrong:
            with pytest.raises(TypeError, match=f"{name} must be integers: got numpy.MaskedArray"):
                call()
    with pytest.raises(TypeError, match=r"lengths must be integers: got numpy\.MaskedConstant"):
        m.padding([1, np.ma.masked])


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_frameworks_array_is_named_with_its_framework(backend):
    m, foreign = BACKENDS[backend], "numpy" if backend == "torch" else "torch"
    query = np.zeros((1, 2, 3, 5), np.float32)
    query = query if foreign == "numpy" else pytest.importorskip("torch").asarray(query)
    name = f"{foreign}.{type(query).__name__}"
    with pytest.raises(TypeError, match=f"^query must be an array: got {name}$"):
        m.attention(query, query, query)


WIDTHS = [3, FAR, FAR + 3, 2 * FAR, 2**63]


@pytest.mark.parametrize("offset", [-FAR, 3, FAR])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_windows_at_far_offsets(backend, offset):
    rows, columns = offset + np.arange(4)[:, None], np.arange(4)
    array = _array(backend, np.array([offset], np.int32))
    for before in WIDTHS:
        for after in WIDTHS:
            mask = BACKENDS[backend].sliding_window(before, after)
            wanted = (rows - columns <= before) & (columns - rows <= after)
            for given in (offset, array):
                got = np.asarray(mask.allowed(4, 4, query_offset=given))[0, 0]
                np.testing.assert_array_equal(got, wanted, f"{before}, {after}")
            tile = "all" if wanted.all() else "partial" if wanted.any() else "none"
            assert mask.tile(4, 4, slice(4), slice(4), offset) == tile, (before, after)


@pytest.mark.parametrize("offset", [-FAR, 3, FAR])
def test_wide_windows_at_far_offsets_that_are_traced(offset):
    rows, columns = offset + np.arange(4)[:, None], np.arange(4)
    for before, after in ((3, 2 * FAR), (FAR + 3, FAR), (FAR, 3), (2 * FAR, 2 * FAR)):
        mask = attn_jax.sliding_window(before, after)
        got = jax.jit(lambda at, mask=mask: mask.allowed(4, 4, query_offset=at))(jnp.int32(offset))
        wanted = (rows - columns <= before) & (columns - rows <= after)
        np.testing.assert_array_equal(got[0, 0], wanted, f"{before}, {after}")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
@pytest.mark.parametrize("way", ["vmap", "compile"])
def test_a_traced_offset_may_be_as_far_as_its_dtype_goes_in_torch(dtype, way):
    x = torch.eye(4)[None, None]

    def far(offset):
        return attn_torch.attention(x, x, x, mask=attn_torch.causal(), query_offset=offset)

    function = {"vmap": torch.func.vmap(far), "compile": torch.compile(far, backend="eager")}[way]
    largest, lowest = torch.iinfo(dtype).max, torch.iinfo(dtype).min
    got = function(torch.tensor([largest], dtype=dtype))
    torch.testing.assert_close(got.reshape(x.shape), attn_torch.attention(x, x, x))
    if lowest:
        assert not function(torch.tensor([lowest], dtype=dtype)).any()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_decoding_of_every_dtype(backend, cached):
    rngs = {"rngs": nnx.Rngs(0)} if backend == "jax" else {}
    model = BACKENDS[backend].Seq2SeqTransformer(
        20, 20, d_model=8, nhead=2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=8,
        dropout=0.0, **rngs,
    )  # fmt: skip
    model.eval()

    def decode(src, prompt, new):
        tokens = [_array(backend, np.array(x, dtype)) for x, dtype in (src, prompt)]
        options = {"eos_idx": 2, "max_new_tokens": new, "cached": cached}
        return np.asarray(BACKENDS[backend].greedy_decode(model, *tokens, **options))

    src, prompt = [[7, 1, 3], [5, 0, 0]], [[1, 4], [1, 0]]
    wanted = decode((src, "int64"), (prompt, "int64"), 3)
    for one, other in (("uint8", "uint64"), ("uint16", "int8"), ("uint32", "uint16")):
        got = decode((src, one), (prompt, other), np.uint8(3))
        np.testing.assert_array_equal(got, wanted, f"{one}, {other}")
        assert got.dtype.kind == "i", f"{one}, {other}: {got.dtype}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_a_number_of_any_dtype(backend):
    tokens = np.array([[2**64 - 1, 3]], np.uint64)
    tokens = torch.from_numpy(tokens) if backend == "torch" else tokens
    for padding_idx in (2**64 - 1, np.uint64(2**64 - 1)):
        got = BACKENDS[backend].sequence_mask(tokens, padding_idx)
        assert got.tolist() == [[True, False]]


@pytest.mark.parametrize("dtype", ["int8", "uint64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_counts_in_int32_or_int64(backend, dtype):
    cache = BACKENDS[backend].KVCache.empty(2, 2, 300, 4)
    lengths = np.array([127, 100], dtype)
    lengths = torch.from_numpy(lengths) if backend == "torch" else lengths
    new = _array(backend, np.ones((2, 2, 4, 4), np.float32))
    cache = BACKENDS[backend].KVCache(cache.key, cache.value, lengths)
    with pytest.raises(TypeError, match=f"cache.lengths must be int32 or int64 .*: got {dtype}"):
        cache.append(new, new)
