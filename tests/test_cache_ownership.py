"""What a refused call leaves behind, and what a cache shares with its caller: nothing."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import attn_jax
import attn_numpy
import attn_torch
from conformance.subjects import load

pytestmark = pytest.mark.usefixtures("compiles_quickly")
MODULES = {"numpy": attn_numpy, "torch": attn_torch, "jax": attn_jax}
OWNING = ["numpy", "torch"]  # JAX's caches are values
X = np.random.default_rng(3).normal(size=(2, 3, 8)).astype(np.float32)


def new(backend: str, name: str, *sizes, **options):
    """Return the backend's module, its adapter, and a new model in evaluation mode."""
    if backend == "jax":
        options["rngs"] = nnx.Rngs(0)
    elif backend == "numpy":
        options["rng"] = np.random.default_rng(0)
    torch.manual_seed(0)
    model = getattr(MODULES[backend], name)(*sizes, **options)
    model.eval()
    return MODULES[backend], load(backend, "cpu"), model


@pytest.mark.parametrize("backend", OWNING)
def test_refused_decode_gives_the_cache_back(backend):
    module, subject, attn = new(backend, "MultiHeadAttention", 8, 2)
    x, cache = subject.array(X), attn.new_cache(2, 5)
    with pytest.raises(TypeError, match="predicate must return a bool array"):
        attn.decode(x, cache, attn_mask=module.predicate(lambda b, h, q, k: q + k))
    expected = attn.decode(x, attn.new_cache(2, 5))[0]
    got, written = attn.decode(x, cache)
    assert np.array_equal(subject.numpy(got), subject.numpy(expected))
    assert written.lengths.tolist() == [3, 3]


@pytest.mark.parametrize("backend", OWNING)
def test_interrupted_decode_gives_the_cache_back(backend):
    def interrupt(*at):
        raise KeyboardInterrupt

    module, subject, attn = new(backend, "MultiHeadAttention", 8, 2)
    x, cache = subject.array(X), attn.new_cache(2, 5)
    with pytest.raises(KeyboardInterrupt):
        attn.decode(x, cache, attn_mask=module.predicate(interrupt))
    got, _ = attn.decode(x, cache)
    expected, _ = attn.decode(x, attn.new_cache(2, 5))
    assert np.array_equal(subject.numpy(got), subject.numpy(expected))


@pytest.mark.parametrize("backend", OWNING)
def test_refused_decode_does_not_revive_a_consumed_cache(backend):
    _, subject, layer = new(backend, "TransformerEncoderLayer", 8, 2, 16)
    x, cache = subject.array(X), layer.self_attn.new_cache(2, 9)
    layer.decode(x, cache)
    for _ in range(2):
        with pytest.raises(ValueError, match="a cache is used once"):
            layer.decode(x, cache)


@pytest.mark.parametrize("backend", OWNING)
def test_stack_that_fails_midway_gives_every_cache_back(backend):
    module, subject, decoder = new(backend, "TransformerDecoder", 2, 8, 2, 16)
    x, memory = subject.array(X), subject.array(X[:, :2])
    cache = decoder.start(memory, 5)
    other = decoder.start(memory[:1], 5)
    broken = module.StackCache(cache.layers, (cache.memory[0], other.memory[1]))
    with pytest.raises(ValueError, match="cache must be"):
        decoder.decode(x, broken)
    got, _ = decoder.decode(x, cache)
    expected, _ = decoder.decode(x, decoder.start(memory, 5))
    assert np.array_equal(subject.numpy(got), subject.numpy(expected))


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("kind", ["array", "mask"])
def test_memory_mask_by_rows_is_refused_where_tokens_are_hidden(backend, kind):
    module, subject, decoder = new(backend, "TransformerDecoder", 1, 8, 2, 16)
    cache = decoder.start(subject.array(X[:, :2]), 5)
    hidden = subject.array(np.array([[True, False, False], [False] * 3]))
    rows = subject.array(np.random.default_rng(5).random((3, 2)) < 0.5)
    mask = rows if kind == "array" else module.hide(rows[None, None])
    with pytest.raises(ValueError, match="memory_mask must go by positions where tokens are"):
        decoder.decode(subject.array(X), cache, hidden=hidden, memory_mask=mask)
    decoder.decode(subject.array(X), cache, hidden=hidden, memory_mask=module.causal())


@pytest.mark.parametrize("backend", OWNING)
def test_copy_of_a_stack_shares_nothing(backend):
    _, subject, decoder = new(backend, "TransformerDecoder", 2, 8, 2, 16)
    cache = decoder.start(subject.array(X[:, :2]), 5)
    cache.copy().memory[0].truncate(1)
    decoder.decode(subject.array(X), cache)


@pytest.mark.parametrize("backend", MODULES)
def test_cache_keeps_its_own_padding(backend):
    _, subject, decoder = new(backend, "TransformerDecoder", 1, 8, 2, 16)
    hidden = np.array([[False, True], [False, False]])
    given = hidden.copy() if backend == "numpy" else subject.array(hidden)
    cache = decoder.start(subject.array(X[:, :2]), 5, memory_key_padding_mask=given)
    if backend != "jax":  # whose arrays cannot be written to
        given[:] = True
    assert np.array_equal(subject.numpy(cache.memory_key_padding_mask), hidden)


@pytest.mark.parametrize("backend", MODULES)
def test_truncated_cache_keeps_its_own_lengths(backend):
    _, subject, attn = new(backend, "MultiHeadAttention", 8, 2)
    _, cache = attn.decode(subject.array(X), attn.new_cache(2, 5))
    lengths = np.array([1, 2])
    given = lengths.copy() if backend == "numpy" else subject.array(lengths)
    cache = cache.truncate(given)
    if backend != "jax":
        given[0] = 3
    assert cache.lengths.tolist() == [1, 2]


@pytest.mark.parametrize("backend", MODULES)
def test_greedy_decoding_leaves_a_model_in_training(backend):
    sizes = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    options = {"dim_feedforward": 16, "dropout": 0.5}
    _, subject, model = new(backend, "Seq2SeqTransformer", 11, 13, **sizes, **options)
    src, prompt = (subject.array(np.array(t)) for t in ([[3, 4], [5, 1]], [[1], [1]]))
    model.train()
    MODULES[backend].greedy_decode(model, src, prompt, eos_idx=2, max_new_tokens=2)
    one, other = (subject.numpy(model(src, prompt)[0]) for _ in range(2))
    assert not np.array_equal(one, other), "nothing is dropped any more"


@pytest.mark.parametrize("backend", MODULES)
def test_embeddings_start_as_large_as_the_sinusoids(backend):
    _, subject, model = new(backend, "Seq2SeqTransformer", 500, 400, d_model=64, nhead=2)
    for embedding in (model.src_embedding, model.tgt_embedding):
        table = embedding.embedding[...] if backend == "jax" else embedding.weight
        spread = subject.numpy(table).std() * 8  # times the root of d_model, as tokens are
        assert abs(spread - 1) < 5 / (2 * 64 * 400) ** 0.5  # five times the error of so many draws


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_tokens_do_not_wrap_in_a_narrow_dtype(backend, cached):
    sizes = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    _, subject, model = new(backend, "Seq2SeqTransformer", 11, 300, **sizes, dim_feedforward=16)
    decode, found = MODULES[backend].greedy_decode, []
    for dtype in (np.int32, np.int8):
        tokens = [subject.array(np.array(t, dtype)) for t in ([[3, 4], [5, 0]], [[1], [1]])]
        got = decode(model, *tokens, eos_idx=2, max_new_tokens=5, cached=cached)
        found.append(subject.numpy(got))
    assert found[0].max() > 127
    assert np.array_equal(*found)


@pytest.mark.parametrize("backend", MODULES)
def test_no_sample_at_all_decodes_to_none(backend):
    _, subject, attn = new(backend, "MultiHeadAttention", 8, 2)
    output, cache = attn.decode(subject.array(X[:0]), attn.new_cache(0, 5))
    assert tuple(output.shape) == (0, 3, 8)
    assert len(cache.lengths) == 0


@pytest.mark.parametrize("backend", MODULES)
def test_encoder_refuses_a_decoders_cache(backend):
    _, subject, decoder = new(backend, "TransformerDecoder", 1, 8, 2, 16)
    _, _, encoder = new(backend, "TransformerEncoder", 1, 8, 2, 16)
    x = subject.array(X)
    with pytest.raises(ValueError, match="cache must have 0 memories: got 1"):
        encoder.decode(x, decoder.start(x, 5))
    with pytest.raises(ValueError, match="cache must have 1 memories: got 0"):
        decoder.decode(x, encoder.start(2, 5))


@pytest.mark.parametrize("use", ["copy", "reorder", "truncate", "append", "key", "decode"])
@pytest.mark.parametrize("backend", OWNING)
def test_consumed_cache_cannot_be_used_in_any_way(backend, use):
    _, subject, attn = new(backend, "MultiHeadAttention", 8, 2)
    x, cache = subject.array(X), attn.new_cache(2, 9)
    attn.decode(x, cache)
    uses = {
        "copy": cache.copy,
        "reorder": lambda: cache.reorder(subject.array(np.array([1, 0]))),
        "truncate": lambda: cache.truncate(0),
        "append": lambda: cache.append(cache.key[:, :, :1], cache.value[:, :, :1]),
        "key": lambda: attn(x, cache),
        "decode": lambda: attn.decode(x, cache),
    }
    with pytest.raises(ValueError, match="a cache is used once, copy"):
        uses[use]()


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("changed", ["lengths", "heads", "empty_rows"])
def test_layers_of_a_stack_may_differ(backend, changed):
    module, subject, decoder = new(backend, "TransformerDecoder", 2, 8, 2, 16)
    x = subject.array(X)
    lengths = (3, 5) if changed == "lengths" else (3, 3)
    memory = np.random.default_rng(5).normal(size=(2, 5, 8)).astype(np.float32)
    memories = [subject.array(memory[:, :length]) for length in lengths]
    last = decoder.layers[1].multihead_attn
    mask = module.sliding_window(1, 1) | module.causal()
    if changed == "heads":
        options = {"rngs": nnx.Rngs(1)} if backend == "jax" else {}
        last = decoder.layers[1].multihead_attn = module.MultiHeadAttention(8, 4, **options)
        last.eval()
    if changed == "empty_rows":
        last.empty_rows, mask = "nan", ~module.causal() & module.sliding_window(9)
    layers = list(decoder.layers)
    projected = [
        layer.multihead_attn.project(one) for layer, one in zip(layers, memories, strict=True)
    ]
    expected = x
    for layer, one in zip(layers, projected, strict=True):
        expected, _ = layer.decode(expected, layer.self_attn.new_cache(2, 5), one, memory_mask=mask)
    own = tuple(layer.self_attn.new_cache(2, 5) for layer in layers)
    cache = module.StackCache(own, tuple(projected))
    got, _ = decoder.decode(x, cache, memory_mask=mask)
    got, expected = subject.numpy(got), subject.numpy(expected)
    assert np.array_equal(got, expected, equal_nan=True)
    assert np.isnan(expected).all() == (changed == "empty_rows")


@pytest.mark.parametrize("backend", OWNING)
def test_cache_twice_in_a_call_is_refused(backend):
    module, subject, encoder = new(backend, "TransformerEncoder", 2, 8, 2, 16)
    x, cache = subject.array(X), encoder.layers[0].self_attn.new_cache(2, 5)
    with pytest.raises(ValueError, match="a cache is used once"):
        encoder.decode(x, module.StackCache((cache, cache)))
    _, _, layer = new(backend, "TransformerDecoderLayer", 8, 2, 16)
    with pytest.raises(ValueError, match="a cache is used once"):
        layer.decode(x, cache, cache)
    assert not cache.consumed


@pytest.mark.parametrize("backend", MODULES)
def test_mask_of_the_memory_that_knows_no_positions_is_refused_where_tokens_are_hidden(backend):
    module, subject, layer = new(backend, "TransformerDecoderLayer", 8, 2, 16)
    x, cache = subject.array(X), layer.self_attn.new_cache(2, 5)
    memory, hidden = layer.multihead_attn.project(x), np.zeros((2, 3), bool)
    mask = module.allow(subject.array(np.tri(3, dtype=bool)[None, None]))
    with pytest.raises(ValueError, match="memory_key_padding_mask must go by positions"):
        layer.decode(x, cache, memory, hidden=subject.array(hidden), memory_key_padding_mask=mask)


class Shorter:
    """A projection that loses a key."""

    def __init__(self, projection):
        self.projection = projection

    def __call__(self, x):
        return self.projection(x)[:, 1:]


@pytest.mark.parametrize("backend", MODULES)
def test_projection_that_changes_the_length_is_refused(backend):
    _, subject, attn = new(backend, "MultiHeadAttention", 8, 2)
    if backend == "torch":
        for name in ("k_proj", "v_proj"):
            projection = Shorter(getattr(attn, name))
            delattr(attn, name)
            object.__setattr__(attn, name, projection)
    else:
        attn.k_proj, attn.v_proj = Shorter(attn.k_proj), Shorter(attn.v_proj)
    rule = r"projections must keep \(B, H, T, S\) = \(2, 2, 3, 3\): got \(2, 2, 3, 2\)"
    with pytest.raises(ValueError, match=rule):
        attn(subject.array(X))


def test_mixed_dtypes_in_a_cache_are_refused_without_autocast():
    _, subject, attn = new("torch", "MultiHeadAttention", 8, 2)
    x, cache = subject.array(X), attn.new_cache(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attn.new_cache(2, 5)
        attn.decode(x, cache.copy())
    with pytest.raises(TypeError, match="cache must have the dtype of the weights, float32"):
        attn.decode(x, inside)
    with pytest.raises(TypeError, match="key must have the dtype of the cache, float32"):
        cache.append(inside.key, inside.value)
    assert not cache.consumed
    assert not inside.consumed


def test_dropout_that_was_set_later_needs_rngs():
    _, subject, attn = new("jax", "MultiHeadAttention", 8, 2)
    attn.train()
    attn.dropout, attn.rngs = 0.5, None
    with pytest.raises(ValueError, match="dropout needs rngs: got None"):
        attn(subject.array(X))


def test_cache_copies_the_mask_of_the_memory():
    _, subject, decoder = new("jax", "TransformerDecoder", 1, 8, 2, 16)
    hidden = np.zeros((2, 3), bool)
    cache = decoder.start(subject.array(X), 5, memory_key_padding_mask=hidden)
    hidden[:] = True
    assert not np.asarray(cache.memory_key_padding_mask).any()


WRONG = {  # what is wrong with a cache that somebody made: the error, its text, what is changed
    "negative": (ValueError, r"cache\.lengths must be at least 0: got -1", {"lengths": [-1, 2]}),
    "beyond": (ValueError, "capacity must hold every token: got ", {"lengths": [9, 2]}),
    "floats": (TypeError, r"int32 or int64 \(B,\): got float64 array", {"lengths": [1.0, 2.0]}),
    "bools": (TypeError, r"int32 or int64 \(B,\): got bool array", {"lengths": [True, False]}),
    "bytes": (TypeError, "got uint8 array", {"lengths": np.array([1, 2], np.uint8)}),
    "samples": (ValueError, r"\(B,\) = \(2,\): got \(3,\)", {"lengths": [1, 2, 1]}),
    "one sample": (ValueError, r"\(B,\) = \(2,\): got \(1,\)", {"lengths": [1]}),
    "rank": (ValueError, r"\(B,\) = \(2,\): got \(1, 2\)", {"lengths": [[1, 2]]}),
    "no lengths": (TypeError, "be int32 or int64 .*: got NoneType", {"lengths": None}),
    "fewer values": (ValueError, r"cache\.value must be \(2, 2, 5, 4\)", {"value": (2, 2, 4, 4)}),
    "narrow values": (ValueError, r"cache\.value must be \(2, 2, 5, 4\)", {"value": (2, 2, 5, 3)}),
    "no values": (TypeError, r"cache\.value must be an array: got NoneType", {"value": None}),
    "no keys": (TypeError, r"cache\.key must be an array: got NoneType", {"key": None}),
    "rank of keys": (ValueError, r"cache\.key must be \(B, H_kv, C, D\)", {"key": (2, 5, 4)}),
}
USES = {
    "decode": lambda attn, x, one, cache: attn.decode(x, cache),
    "key": lambda attn, x, one, cache: attn(x, cache, need_weights=False),
    "append": lambda attn, x, one, cache: cache.append(one, one),
    "truncate": lambda attn, x, one, cache: cache.truncate(0),
    "copy": lambda attn, x, one, cache: cache.copy(),
}


def made(backend, part):
    """Return an array of the backend's: of these values, or of zeros in a shape."""
    if part is None:
        return None
    array = np.zeros(part, np.float32) if isinstance(part, tuple) else np.asarray(part)
    return torch.from_numpy(array) if backend == "torch" else array


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("case", WRONG)
def test_cache_that_does_not_fit_itself_is_refused(backend, case):
    module, subject, attn = new(backend, "MultiHeadAttention", 8, 2)
    kind, message, change = WRONG[case]
    parts = {"key": (2, 2, 5, 4), "value": (2, 2, 5, 4), "lengths": [1, 2]} | change
    x, one = subject.array(X[:, :1]), subject.array(np.ones((2, 2, 1, 4), np.float32))
    for use, call in USES.items():
        if use == "copy" and case in ("negative", "beyond"):
            continue  # what is copied is looked at when it is used
        cache = module.KVCache(**{name: made(backend, part) for name, part in parts.items()})
        with pytest.raises(kind, match=message):
            call(attn, x, one, cache)


@pytest.mark.parametrize("backend", MODULES)
def test_stack_of_other_things_than_caches_is_refused(backend):
    module, _, model = new(backend, "Seq2SeqTransformer", 5, 6, d_model=8, nhead=2)
    tokens = made(backend, [[1, 2], [3, 4]])
    cache = model.start(tokens, 5)
    none = module.StackCache((), cache.memory)
    with pytest.raises(ValueError, match="cache must have 6 layers: got 0"):
        model.decode(tokens, none)
    other = module.StackCache((None,) * 6, cache.memory)
    with pytest.raises(TypeError, match="cache must be a KVCache: got NoneType"):
        model.decode(tokens, other)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("use", ["decode", "key"])
def test_negative_lengths_that_nobody_can_see_give_nan(backend, use):
    module, subject, attn = new(backend, "MultiHeadAttention", 8, 2)
    x, slots = subject.array(X[:, :1]), subject.array(X.reshape(2, 2, 3, 4))

    def call(x, lengths):
        output = USES[use](attn, x, None, module.KVCache(slots + 0, slots + 0, lengths))
        return output[0]

    compiled = torch.compile(call, backend="eager") if backend == "torch" else jax.jit(call)
    lengths = subject.array(np.array([-1, 1]))
    output = subject.numpy(compiled(x, lengths if backend == "jax" else lengths.long()))
    assert np.isnan(output[0]).all()
    assert np.isfinite(output[1]).all()


@pytest.mark.parametrize("backend", OWNING)
@pytest.mark.parametrize("steps", [1, 2])
def test_window_that_was_written_before_a_failure_is_what_it_was(backend, steps):
    _, subject, encoder = new(backend, "TransformerEncoder", 2, 8, 2, 16)
    x, cache = subject.array(X), encoder.start(2, window=1)
    _, cache = encoder.decode(x, cache)
    copy, last = cache.copy(), encoder.layers[1].self_attn
    last.process_heads = lambda query, key, positions: query  # the first layer has written by then
    with pytest.raises(TypeError, match="process_heads must return a query and a key"):
        encoder.decode(x[:, :steps], cache)
    last.process_heads = None
    got, _ = encoder.decode(x[:, 1:2], cache)
    expected, _ = encoder.decode(x[:, 1:2], copy)
    assert np.array_equal(subject.numpy(got), subject.numpy(expected))
