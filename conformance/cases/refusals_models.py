"""The rows of ERR-1 for caches, layers, tokens and weights; `refusals.py` says how to read them."""

from .refusals import READINGS, SHARE, Wrong

ENCODER, DECODER = "TransformerEncoderLayer", "TransformerDecoderLayer"
FIT = "must fit (T, S) ="
NARROW = "a projection must give 3 heads of 4 features: got"


def layer(m, a, *shapes, name=ENCODER, sizes=(12, 3, 8), settings=None, **options):
    model = a.new(name, *sizes, **settings or {})
    return model(*(a(*shape) for shape in shapes or [(2, 5, 12)]), **options)


def decoder(m, a, tgt=(2, 5, 12), memory=(2, 7, 12), **options):
    return layer(m, a, tgt, memory, name=DECODER, **options)


def cache(m, heads=3):
    """Return a cache of two samples and seven slots."""
    return m.KVCache.empty(2, heads, 7, 4)


def append(m, a, key=(2, 3, 5, 4), value=(2, 3, 5, 4), counts=None, times=1):
    written = cache(m)
    for _ in range(times):
        written = written.append(a(*key), a(*value), counts)
    return written


def decode(m, a, *shape, sizes=(12, 3), settings=None, given=None, attn=None, times=1, **options):
    attn = attn or a.new("MultiHeadAttention", *sizes, **settings or {})
    written = attn.new_cache(2, 7) if given is None else given
    for _ in range(times):
        _, written = attn.decode(a(*shape or (2, 5, 12)), written, **options)


def made_by_hand(m, a, key=(2, 3, 7, 4), value=None, lengths=None, dtype="float32"):
    """Return a cache as anyone may make one."""
    lengths = 0 * a(2, dtype="int32") if lengths is None else lengths
    return m.KVCache(a(*key), a(*value or (2, 3, 7, 4), dtype=dtype), lengths)


def looked_at(m, a, given, query=(2, 5, 12), **options):
    return attention(a)(a(*query), given, **options)


def decode_layer(m, a, tgt=(2, 5, 12), memory=(2, 7, 12), **options):
    model = a.new(DECODER, 12, 3, 8)
    caches = model.self_attn.new_cache(2, 9), model.multihead_attn.project(a(*memory))
    return model.decode(a(*tgt), *caches, **options)


def stack(m, a, layers=2, other=None, x=(2, 5, 12), **options):
    encoders = [a.new("TransformerEncoder", n, 12, 3, 8) for n in (layers, other or layers)]
    return encoders[0].decode(a(*x), encoders[1].start(2, 7), **options)


SMALL = {"d_model": 12, "nhead": 3, "num_encoder_layers": 1, "num_decoder_layers": 1,
         "dim_feedforward": 8}  # fmt: skip


def tokens(m, a, src=(2, 5), tgt=(2, 4), dtype="int32", vocabularies=(11, 13), **settings):
    model = a.new("Seq2SeqTransformer", *vocabularies, **SMALL | settings)
    return model(abs(a(*src, dtype=dtype)), abs(a(*tgt, dtype="int32")))


def greedy(m, a, prompt=None, **options):
    model = a.new("Seq2SeqTransformer", 11, 13, **SMALL)
    ones = 1 + 0 * a(2, 4, dtype="int32")
    options = {"eos_idx": 2, "max_new_tokens": 4} | options
    return m.greedy_decode(model, ones, ones if prompt is None else prompt, **options)


def ones(a):
    return 1 + 0 * a(2, 4, dtype="int32")


def second_is_padding(a):
    """Return a prompt whose second sample has no token."""
    prompt = a.subject.numpy(ones(a)).copy()
    prompt[1] = 0
    return a.subject.array(prompt)


def seq2seq(a, **vocabularies):
    """Return a model of tokens; an embedding may be replaced by one of so many tokens."""
    model = a.new("Seq2SeqTransformer", 11, 13, **SMALL)
    for name, size in vocabularies.items():
        setattr(model, name, getattr(a.new("Seq2SeqTransformer", size, size, **SMALL), name))
    return model


def decode_tokens(a, tgt, window=None):
    model = seq2seq(a)
    if window is None:
        return model.decode(tgt, model.start(ones(a), 7))
    return model.decode(tgt, model.transformer.start(a(2, 4, 12), window=window))


def mixed(a, name, **settings):
    """Return an attention with one projection of another one."""
    attn = attention(a)
    setattr(attn, name, getattr(attention(a, **settings), name))
    return attn


def tied(a):
    """Return a stack whose layers share their first map."""
    model = a.new("TransformerEncoder", 2, 12, 3, 8)
    model.layers[1].linear1 = model.layers[0].linear1
    return model


def attention(a, **settings):
    return a.new("MultiHeadAttention", 12, 3, **settings)


def replaced(a, *names, by=None):
    """Return an attention with projections of another one, whose keys have one head."""
    attn, other = attention(a), attention(a, num_kv_heads=1)
    for name in names:
        setattr(attn, name, getattr(other, by or name))
    return attn


def with_weights(m, a, attn):
    """Return an attention's weights, one of another dtype and one too many."""
    weights = dict(m.export_weights(attn))
    return weights | {"q_proj.weight": a(12, 12, dtype="float16"), "extra": a(3)}


LAYOUT = (
    "layout must be 'rosetta', 'torch', 'nnx', 'linen', 'keras', 'equinox', 'timm', 'bert', "
    "'gpt2', 'llama', 'qwen3', 'gemma' or 'gpt_oss': got"
)
FULL = "capacity must hold every token: got"
WRITTEN = "must be at most what is written: got"
LAYERS = [
    Wrong("activation", ValueError, "activation must be 'relu' or 'gelu': got 'tanh'",
          lambda m, a: layer(m, a, settings={"activation": "tanh"})),
    Wrong("activation_function", ValueError, "activation must be 'relu' or 'gelu': got 3",
          lambda m, a: layer(m, a, settings={"activation": 3})),
    Wrong("feedforward", ValueError, "dim_feedforward must be at least 1: got 0",
          lambda m, a: layer(m, a, sizes=(12, 3, 0))),
    Wrong("feedforward_float", TypeError, "dim_feedforward must be an integer: got float",
          lambda m, a: layer(m, a, sizes=(12, 3, 8.0))),
    Wrong("norm_eps", TypeError, "layer_norm_eps must be a number: got str",
          lambda m, a: layer(m, a, settings={"layer_norm_eps": "small"})),
    Wrong("norm_eps_negative", ValueError, "layer_norm_eps must be at least 0 and finite: got -1.0",
          lambda m, a: layer(m, a, settings={"layer_norm_eps": -1.0})),
    Wrong("norm_eps_inf", ValueError, "layer_norm_eps must be at least 0 and finite: got inf",
          lambda m, a: a.new("TransformerDecoder", 2, 12, 3, 8, layer_norm_eps=float("inf"))),
    Wrong("norm_first", TypeError, "norm_first must be True or False: got int",
          lambda m, a: layer(m, a, settings={"norm_first": 1})),
    Wrong("norm_of_a_stack", TypeError, "norm must be True or False: got str",
          lambda m, a: a.new("TransformerEncoder", 2, 12, 3, 8, norm="layer")),
    Wrong("batch_first", TypeError, "batch_first must be True or False: got NoneType",
          lambda m, a: attention(a, batch_first=None)),
    Wrong("bias_of_projections", TypeError, "bias must be True or False: got str",
          lambda m, a: attention(a, bias="no")),
    Wrong("layer_heads", ValueError, "embed_dim must be a multiple of num_heads: got 12 and 5",
          lambda m, a: layer(m, a, sizes=(12, 5, 8))),
    Wrong("layer_dropout", ValueError, "dropout must lie in 0..1: got 1.5",
          lambda m, a: layer(m, a, settings={"dropout": 1.5})),
    Wrong("layer_policy", ValueError, "empty_rows must be 'zero', 'nan' or 'uniform': got 'mean'",
          lambda m, a: layer(m, a, settings={"empty_rows": "mean"})),
    Wrong("no_layers", ValueError, "num_layers must be at least 1: got 0",
          lambda m, a: a.new("TransformerEncoder", 0, 12, 3, 8)),
    Wrong("layer_features", ValueError, "query must have 12 features: got 11",
          lambda m, a: layer(m, a, (2, 5, 11)), True),
    Wrong("layer_rank", ValueError, "query must be (B, T, E): got (5, 12)",
          lambda m, a: layer(m, a, (5, 12)), True),
    Wrong("layer_rank_sequence_first", ValueError, "query must be (T, B, E): got (5, 12)",
          lambda m, a: layer(m, a, (5, 12), settings={"batch_first": False}), True),
    Wrong("layer_dtype", TypeError, "query must have the dtype of the weights, float32: got float16",
          lambda m, a: a.new(ENCODER, 12, 3, 8)(a(2, 5, 12, dtype="float16")), True),
    Wrong("pre_norm_features", ValueError, "query must have 12 features: got 11",
          lambda m, a: layer(m, a, (2, 5, 11), settings={"norm_first": True}), True),
    Wrong("pre_norm_dtype", TypeError, "query must have the dtype of the weights, float32: got float16",
          lambda m, a: a.new(ENCODER, 12, 3, 8, norm_first=True)(a(2, 5, 12, dtype="float16")), True),
    Wrong("pre_norm_rank", ValueError, "query must be (B, T, E): got (5, 12)",
          lambda m, a: layer(m, a, (5, 12), settings={"norm_first": True}), True),
    Wrong("narrow_keys", ValueError, f"{NARROW} 4 features",
          lambda m, a: replaced(a, "k_proj", "v_proj")(a(2, 5, 12)), True),
    Wrong("narrow_query", ValueError, f"{NARROW} 4 features",
          lambda m, a: replaced(a, "q_proj", by="k_proj")(a(2, 5, 12)), True),
    Wrong("decode_narrow_keys", ValueError, f"{NARROW} 4 features",
          lambda m, a: decode(m, a, attn=replaced(a, "k_proj", "v_proj"))),
    Wrong("src_mask", ValueError, f"attn_mask {FIT} (5, 5): got (5, 7)",
          lambda m, a: layer(m, a, src_mask=a(5, 7)), True),
    Wrong("src_mask_ints", TypeError, "attn_mask must be bool or float32: got int32",
          lambda m, a: layer(m, a, src_mask=a(5, 5, dtype="int32")), True),
    Wrong("src_padding", ValueError, "key_padding_mask must be (B, S) = (2, 5): got (5, 2)",
          lambda m, a: layer(m, a, src_key_padding_mask=a(5, 2, dtype="bool")), True),
    Wrong("src_padding_float", TypeError, "key_padding_mask must be bool, True hides: got float32",
          lambda m, a: layer(m, a, src_key_padding_mask=a(2, 5)), True),
    Wrong("memory_batch", ValueError, f"{SHARE} a batch size: got 2, 3 and 3",
          lambda m, a: decoder(m, a, memory=(3, 7, 12)), True),
    Wrong("memory_features", ValueError, "key must have 12 features: got 11",
          lambda m, a: decoder(m, a, memory=(2, 7, 11)), True),
    Wrong("memory_mask", ValueError, f"attn_mask {FIT} (5, 7): got (7, 5)",
          lambda m, a: decoder(m, a, memory_mask=a(7, 5)), True),
    Wrong("memory_padding", ValueError, "key_padding_mask must be (B, S) = (2, 7): got (2, 5)",
          lambda m, a: decoder(m, a, memory_key_padding_mask=a(2, 5, dtype="bool")), True),
]  # fmt: skip

CACHES = [
    Wrong("cache_capacity", ValueError, "capacity must be at least 1: got 0",
          lambda m, a: m.KVCache.empty(2, 3, 0, 4)),
    Wrong("cache_batch", TypeError, "batch_size must be an integer: got float",
          lambda m, a: m.KVCache.empty(2.0, 3, 7, 4)),
    Wrong("append_rank", ValueError, "key must be (B, H_kv, T, D): got (2, 5, 4)",
          lambda m, a: append(m, a, key=(2, 5, 4)), True),
    Wrong("append_heads", ValueError, "key must be (B, H_kv, T, D) = (2, 3, 5, 4): got (2, 1, 5, 4)",
          lambda m, a: append(m, a, key=(2, 1, 5, 4)), True),
    Wrong("append_lengths", ValueError, "value must be (B, H_kv, T, D) = (2, 3, 5, 4): got (2, 3, 6, 4)",
          lambda m, a: append(m, a, value=(2, 3, 6, 4)), True),
    Wrong("append_dtype", TypeError, "key must have the dtype of the cache, float32: got float16",
          lambda m, a: cache(m).append(a(2, 3, 5, 4, dtype="float16"), a(2, 3, 5, 4)), True),
    Wrong("append_beyond", ValueError, f"{FULL} 10 tokens for 7 slots",
          lambda m, a: append(m, a, times=2)),
    Wrong("append_longer_than_capacity", ValueError, f"{FULL} 8 tokens for 7 slots",
          lambda m, a: append(m, a, key=(2, 3, 8, 4), value=(2, 3, 8, 4))),
    Wrong("counts_float", TypeError, "counts must be integers (B,): got float32 array",
          lambda m, a: append(m, a, counts=a(2)), True),
    Wrong("counts_shape", ValueError, "counts must be (B,) = (2,): got (3,)",
          lambda m, a: append(m, a, counts=a(3, dtype="int32")), True),
    Wrong("counts_beyond", ValueError, "counts must lie in 0..5: got 6",
          lambda m, a: append(m, a, counts=6 + 0 * a(2, dtype="int32"))),
    Wrong("index_float", TypeError, "index must be integers (B,): got float32 array",
          lambda m, a: cache(m).reorder(a(2)), True),
    Wrong("index_beyond", ValueError, "index must lie in 0..1: got 2",
          lambda m, a: cache(m).reorder(2 + 0 * a(2, dtype="int32"))),
    Wrong("truncate_beyond", ValueError, f"lengths {WRITTEN} 6 of 5",
          lambda m, a: append(m, a).truncate(6)),
    Wrong("truncate_negative", ValueError, "lengths must be at least 0: got -1",
          lambda m, a: append(m, a).truncate(-1)),
    Wrong("truncate_shape", ValueError, "lengths must be (B,) = (2,): got (3,)",
          lambda m, a: append(m, a).truncate(0 * a(3, dtype="int32")), True),
    Wrong("decode_no_cache", TypeError, "cache must be a KVCache: got NoneType",
          lambda m, a: attention(a).decode(a(2, 5, 12), None)),
    Wrong("decode_features", ValueError, "x must have 12 features: got 11",
          lambda m, a: decode(m, a, 2, 5, 11), True),
    Wrong("decode_rank", ValueError, "x must be (B, T, E): got (5, 12)",
          lambda m, a: decode(m, a, 5, 12), True),
    Wrong("decode_dtype", TypeError, "x must have the dtype of the weights, float32: got float16",
          lambda m, a: attention(a).decode(a(2, 5, 12, dtype="float16"), attention(a).new_cache(2, 7)), True),
    Wrong("decode_batch", ValueError, "cache must be (B, H_kv, C, D) = (3, 3, 7, 4): got (2, 3, 7, 4)",
          lambda m, a: decode(m, a, 3, 5, 12), True),
    Wrong("decode_heads", ValueError, "cache must be (B, H_kv, C, D) = (2, 3, 7, 4): got (2, 1, 7, 4)",
          lambda m, a: decode(m, a, given=cache(m, heads=1)), True),
    Wrong("decode_cache_dtype", TypeError, "cache must have the dtype of the weights, float32: got float16",
          lambda m, a: decode(m, a, given=a.new("MultiHeadAttention", 12, 3, dtype="float16").new_cache(2, 7)), True),
    Wrong("decode_beyond", ValueError, f"{FULL} 10 tokens for 7 slots",
          lambda m, a: decode(m, a, times=2)),
    Wrong("decode_widths", ValueError, "kdim and vdim must be embed_dim to decode: got 6 and 12 beside 12",
          lambda m, a: decode(m, a, settings={"kdim": 6}), True),
    Wrong("hidden_shape", ValueError, "hidden must be (B, T) = (2, 5): got (5, 2)",
          lambda m, a: decode(m, a, hidden=a(5, 2, dtype="bool")), True),
    Wrong("hidden_float", TypeError, "hidden must be bool, True hides: got float32",
          lambda m, a: decode(m, a, hidden=a(2, 5)), True),
    Wrong("decode_bare_mask", TypeError,
          "attn_mask must be a Mask, write allow(array) or hide(array): got bool array",
          lambda m, a: decode(m, a, attn_mask=a(5, 7, dtype="bool")), True),
    Wrong("decode_mask_shape", ValueError, "allow's array must fit (B, H, T, S) = (2, 3, 5, 7): got (2, 3, 5, 5)",
          lambda m, a: decode(m, a, attn_mask=m.allow(a(2, 3, 5, 5, dtype="bool"))), True),
    Wrong("hidden_and_table", ValueError, "attn_mask must go by positions where tokens are hidden: got allow",
          lambda m, a: decode(m, a, hidden=a(2, 5, dtype="bool"), attn_mask=m.allow(a(2, 3, 5, 7, dtype="bool")))),
    Wrong("cache_and_value", TypeError, "value must be None where key is a cache: got float32 array",
          lambda m, a: attention(a)(a(2, 5, 12), attention(a).new_cache(2, 7), a(2, 7, 12)), True),
    Wrong("cache_as_key_without_offset", ValueError, READINGS,
          lambda m, a: attention(a)(a(2, 5, 12), attention(a).new_cache(2, 7), attn_mask=m.causal()), True),
    Wrong("cache_value_shape", ValueError, "cache.value must be (2, 3, 7, 4), as cache.key: got (2, 3, 7, 5)",
          lambda m, a: decode(m, a, given=made_by_hand(m, a, value=(2, 3, 7, 5))), True),
    Wrong("cache_key_rank", ValueError, "cache.key must be (B, H_kv, C, D): got (2, 7, 4)",
          lambda m, a: decode(m, a, given=made_by_hand(m, a, key=(2, 7, 4))), True),
    Wrong("cache_value_rank", ValueError, "cache.value must be (B, H_kv, C, D): got (2, 7, 4)",
          lambda m, a: decode(m, a, given=made_by_hand(m, a, value=(2, 7, 4))), True),
    Wrong("cache_value_dtype", TypeError, "cache.value must have the dtype of the cache.key, float32: got float16",
          lambda m, a: decode(m, a, given=made_by_hand(m, a, dtype="float16")), True),
    Wrong("cache_lengths_float", TypeError, "cache.lengths must be int32 or int64 (B,): got float32 array",
          lambda m, a: decode(m, a, given=made_by_hand(m, a, lengths=a(2))), True),
    Wrong("cache_lengths_shape", ValueError, "cache.lengths must be (B,) = (2,): got (3,)",
          lambda m, a: decode(m, a, given=made_by_hand(m, a, lengths=0 * a(3, dtype="int32"))), True),
    Wrong("cache_lengths_negative", ValueError, "cache.lengths must be at least 0: got -1",
          lambda m, a: decode(m, a, given=made_by_hand(m, a, lengths=0 * a(2, dtype="int32") - 1))),
    Wrong("cache_lengths_beyond", ValueError, f"{FULL} 8 tokens for 7 slots",
          lambda m, a: looked_at(m, a, made_by_hand(m, a, lengths=0 * a(2, dtype="int32") + 8))),
    Wrong("look_at_features", ValueError, "query must have 12 features: got 11",
          lambda m, a: looked_at(m, a, attention(a).new_cache(2, 7), (2, 5, 11)), True),
    Wrong("look_at_batch", ValueError, "cache must be (B, H_kv, C, D) = (3, 3, 7, 4): got (2, 3, 7, 4)",
          lambda m, a: looked_at(m, a, attention(a).new_cache(2, 7), (3, 5, 12)), True),
    Wrong("truncate_beyond_capacity", ValueError, "lengths must lie in 0..7: got 8",
          lambda m, a: append(m, a).truncate(8)),
    Wrong("truncate_float", TypeError, "lengths must be integers (B,): got float",
          lambda m, a: append(m, a).truncate(2.0)),
    Wrong("truncate_one_sample", ValueError, f"lengths {WRITTEN} 6 of 5",
          lambda m, a: append(m, a).truncate(6 + 0 * a(2, dtype="int32"))),
    Wrong("index_negative", ValueError, "index must lie in 0..1: got -1",
          lambda m, a: cache(m).reorder(0 * a(2, dtype="int32") - 1)),
    Wrong("index_rank", ValueError, "index must be (B,) = (2,): got (2, 1)",
          lambda m, a: cache(m).reorder(0 * a(2, 1, dtype="int32")), True),
    Wrong("counts_negative", ValueError, "counts must lie in 0..5: got -1",
          lambda m, a: append(m, a, counts=0 * a(2, dtype="int32") - 1)),
    Wrong("append_value_dtype", TypeError, "value must have the dtype of the cache, float32: got float16",
          lambda m, a: cache(m).append(a(2, 3, 5, 4), a(2, 3, 5, 4, dtype="float16")), True),
    Wrong("hidden_rank", ValueError, "hidden must be (B, T): got (2, 5, 1)",
          lambda m, a: decode(m, a, hidden=a(2, 5, 1, dtype="bool")), True),
    Wrong("hidden_shape_sequence_first", ValueError, "hidden must be (B, T) = (2, 5): got (5, 2)",
          lambda m, a: decode(m, a, 5, 2, 12, settings={"batch_first": False}, hidden=a(5, 2, dtype="bool")), True),
    Wrong("hidden_and_memory_array", ValueError, "memory_mask must go by positions where tokens are hidden: got float32 array",
          lambda m, a: decode_layer(m, a, hidden=a(2, 5, dtype="bool"), memory_mask=a(5, 7))),
    Wrong("hidden_and_memory_table", ValueError, "memory_mask must go by positions where tokens are hidden: got hide",
          lambda m, a: decode_layer(m, a, hidden=a(2, 5, dtype="bool"),
                                    memory_mask=m.hide(a(2, 3, 5, 7, dtype="bool")))),
    Wrong("hidden_and_pair_of_ids", ValueError, "attn_mask must go by positions where tokens are hidden: got segments",
          lambda m, a: decode(m, a, hidden=a(2, 5, dtype="bool"),
                              attn_mask=m.causal() & m.segments([[1] * 5] * 2, [[1] * 7] * 2))),
    Wrong("decode_memory_mask", ValueError, f"attn_mask {FIT} (5, 7): got (7, 5)",
          lambda m, a: decode_layer(m, a, memory_mask=a(7, 5)), True),
    Wrong("decode_memory_padding", ValueError, "key_padding_mask must be (B, S) = (2, 7): got (2, 5)",
          lambda m, a: decode_layer(m, a, memory_key_padding_mask=a(2, 5, dtype="bool")), True),
    Wrong("decode_memory_batch", ValueError, "cache must be (B, H_kv, C, D) = (2, 3, 7, 4): got (3, 3, 7, 4)",
          lambda m, a: decode_layer(m, a, memory=(3, 7, 12)), True),
    Wrong("project_features", ValueError, "key must have 12 features: got 11",
          lambda m, a: attention(a).project(a(2, 7, 11)), True),
    Wrong("project_value_features", ValueError, "value must have 12 features: got 11",
          lambda m, a: attention(a).project(a(2, 7, 12), a(2, 7, 11)), True),
    Wrong("project_lengths", ValueError, "key and value must share a length: got 7 and 6",
          lambda m, a: attention(a).project(a(2, 7, 12), a(2, 6, 12)), True),
    Wrong("project_rank_sequence_first", ValueError, "key must be (S, B, E): got (7, 12)",
          lambda m, a: attention(a, batch_first=False).project(a(7, 12)), True),
    Wrong("new_cache_capacity", ValueError, "capacity must be at least 1: got 0",
          lambda m, a: attention(a).new_cache(2, 0)),
    Wrong("new_cache_neither", ValueError, "give either capacity or window: got neither",
          lambda m, a: attention(a).new_cache(2)),
    Wrong("new_cache_both", ValueError, "give either capacity or window: got both",
          lambda m, a: attention(a).new_cache(2, 7, window=3)),
    Wrong("new_cache_window", ValueError, "window must be at least 0: got -1",
          lambda m, a: attention(a).new_cache(2, window=-1)),
    Wrong("window_with_mask", ValueError,
          "attn_mask must be None where the cache has a window: got one beside it",
          lambda m, a: decode(m, a, given=attention(a).new_cache(2, window=3), attn_mask=m.causal())),
    Wrong("window_looked_at", ValueError,
          "key must be a cache without a window, which is for decode: got one",
          lambda m, a: looked_at(m, a, attention(a).new_cache(2, window=3))),
    Wrong("window_truncated", ValueError,
          "lengths must be 0, or all, once the 4 slots of a window are written: got 3 of 5",
          lambda m, a: m.WindowCache.empty(2, 3, 4, 4).append(a(2, 3, 5, 4), a(2, 3, 5, 4)).truncate(3)),
    Wrong("new_cache_batch", ValueError, "batch_size must be at least 0: got -1",
          lambda m, a: attention(a).new_cache(-1, 7)),
    Wrong("start_capacity", ValueError, "capacity must be at least 1: got 0",
          lambda m, a: a.new("TransformerEncoder", 2, 12, 3, 8).start(2, 0)),
    Wrong("decoder_start_capacity", ValueError, "capacity must be at least 1: got 0",
          lambda m, a: a.new("TransformerDecoder", 2, 12, 3, 8).start(a(2, 7, 12), 0)),
    Wrong("decoder_start_neither", ValueError, "give either capacity or window: got neither",
          lambda m, a: a.new("TransformerDecoder", 2, 12, 3, 8).start(a(2, 7, 12))),
    Wrong("transformer_start_both", ValueError, "give either capacity or window: got both",
          lambda m, a: a.new("Transformer", **SMALL).start(a(2, 7, 12), 7, window=3)),
    Wrong("tokens_in_a_window", ValueError,
          "cache must have no window here, Transformer.decode takes one: got one",
          lambda m, a: decode_tokens(a, ones(a), window=3)),
    Wrong("stack_without_memories", ValueError, "cache must have 2 memories: got 0",
          lambda m, a: a.new("TransformerDecoder", 2, 12, 3, 8).decode(
              a(2, 5, 12), a.new("TransformerEncoder", 2, 12, 3, 8).start(2, 7)), True),
    Wrong("stack_of_another_depth", ValueError, "cache must have 2 layers: got 3",
          lambda m, a: stack(m, a, 2, 3), True),
    Wrong("stack_given_a_layers_cache", TypeError, "cache must be a StackCache: got KVCache",
          lambda m, a: a.new("TransformerEncoder", 2, 12, 3, 8).decode(a(2, 5, 12), cache(m))),
    Wrong("stack_beyond", ValueError, f"{FULL} 8 tokens for 7 slots",
          lambda m, a: stack(m, a, x=(2, 8, 12))),
    Wrong("stack_rank", ValueError, "x must be (B, T, E): got (5, 12)",
          lambda m, a: stack(m, a, x=(5, 12)), True),
    Wrong("stack_features", ValueError, "x must have 12 features: got 11",
          lambda m, a: stack(m, a, x=(2, 5, 11)), True),
]  # fmt: skip

TOKENS = [
    Wrong("vocabulary", ValueError, "src_vocab must be at least 1: got 0",
          lambda m, a: tokens(m, a, vocabularies=(0, 13))),
    Wrong("padding_idx", ValueError, "padding_idx must be in both vocabularies, 0..10: got 11",
          lambda m, a: tokens(m, a, padding_idx=11)),
    Wrong("positions", ValueError, "positions must be 'sinusoidal' or 'none': got 'rotary'",
          lambda m, a: tokens(m, a, positions="rotary")),
    Wrong("tokens_sequence_first", ValueError, "tokens are (B, T), so batch_first must be True: got False",
          lambda m, a: tokens(m, a, batch_first=False)),
    Wrong("token_floats", TypeError, "src must be integers: got float32",
          lambda m, a: tokens(m, a, dtype="float32"), True),
    Wrong("token_rank", ValueError, "src must be (B, S): got (2, 5, 1)",
          lambda m, a: tokens(m, a, src=(2, 5, 1)), True),
    Wrong("token_beyond", ValueError, "src must lie in its vocabulary, 0..10: got 11",
          lambda m, a: seq2seq(a)(11 + 0 * a(2, 5, dtype="int32"), ones(a))),
    Wrong("token_negative", ValueError, "tgt must lie in its vocabulary, 0..12: got -1",
          lambda m, a: seq2seq(a)(ones(a), 0 * a(2, 4, dtype="int32") - 1)),
    Wrong("start_token_beyond", ValueError, "src must lie in its vocabulary, 0..10: got 11",
          lambda m, a: seq2seq(a).start(11 * ones(a), 7)),
    Wrong("start_token_rank", ValueError, "src must be (B, S): got (5,)",
          lambda m, a: seq2seq(a).start(abs(a(5, dtype="int32")), 7), True),
    Wrong("decode_token_beyond", ValueError, "tgt must lie in its vocabulary, 0..12: got 13",
          lambda m, a: decode_tokens(a, 13 * ones(a))),
    Wrong("decode_token_batch", ValueError, "tgt and cache must share a batch size: got 3 and 2",
          lambda m, a: decode_tokens(a, abs(a(3, 4, dtype="int32"))), True),
    Wrong("small_embedding", ValueError, "an embedding must hold 11 tokens: got 10",
          lambda m, a: seq2seq(a, src_embedding=10)(ones(a), ones(a)), True),
    Wrong("small_target_embedding", ValueError, "an embedding must hold 13 tokens: got 10",
          lambda m, a: seq2seq(a, tgt_embedding=10)(ones(a), ones(a)), True),
    Wrong("target_vocabulary", ValueError, "tgt_vocab must be at least 1: got 0",
          lambda m, a: tokens(m, a, vocabularies=(11, 0))),
    Wrong("padding_idx_negative", ValueError, "padding_idx must be in both vocabularies, 0..10: got -1",
          lambda m, a: tokens(m, a, padding_idx=-1)),
    Wrong("padding_idx_text", TypeError, "padding_idx must be an integer: got str",
          lambda m, a: tokens(m, a, padding_idx="<pad>")),
    Wrong("positions_none", ValueError, "positions must be 'sinusoidal' or 'none': got None",
          lambda m, a: tokens(m, a, positions=None)),
    Wrong("target_rank", ValueError, "tgt must be (B, T): got (2, 4, 1)",
          lambda m, a: tokens(m, a, tgt=(2, 4, 1)), True),
    Wrong("encoder_layers", ValueError, "num_layers must be at least 1: got 0",
          lambda m, a: tokens(m, a, num_encoder_layers=0)),
    Wrong("token_batch", ValueError, "src and tgt must share a batch size: got 2 and 3",
          lambda m, a: tokens(m, a, tgt=(3, 4)), True),
    Wrong("eos", TypeError, "eos_idx must be an integer: got str",
          lambda m, a: greedy(m, a, eos_idx="end")),
    Wrong("no_new_tokens", ValueError, "max_new_tokens must be at least 1: got 0",
          lambda m, a: greedy(m, a, max_new_tokens=0)),
    Wrong("empty_prompt", ValueError, "every prompt must have a token: got none in sample 0",
          lambda m, a: greedy(m, a, 0 * a(2, 4, dtype="int32"))),
    Wrong("empty_prompt_of_a_sample", ValueError, "every prompt must have a token: got none in sample 1",
          lambda m, a: greedy(m, a, second_is_padding(a))),
    Wrong("no_prompt", ValueError, "every prompt must have a token: got none in sample 0",
          lambda m, a: greedy(m, a, a(2, 0, dtype="int32"))),
    Wrong("prompt_batch", ValueError, "src and tgt must share a batch size: got 2 and 3",
          lambda m, a: greedy(m, a, 1 + 0 * a(3, 4, dtype="int32"))),
    Wrong("prompt_beyond", ValueError, "tgt must lie in its vocabulary, 0..12: got 13",
          lambda m, a: greedy(m, a, 13 + 0 * a(2, 4, dtype="int32"))),
    Wrong("new_tokens_float", TypeError, "max_new_tokens must be an integer: got float",
          lambda m, a: greedy(m, a, max_new_tokens=4.0)),
    Wrong("greedy_capacity", ValueError, f"{FULL} 7 tokens for 6 slots",
          lambda m, a: greedy(m, a, capacity=6)),
]  # fmt: skip

WEIGHTS = [
    Wrong("layout", ValueError, f"{LAYOUT} 'auto'",
          lambda m, a: m.export_weights(attention(a), "auto")),
    Wrong("layout_of_layers", ValueError, "layout 'nnx' is that of one MultiHeadAttention: got another model",
          lambda m, a: m.export_weights(a.new(ENCODER, 12, 3, 8), "nnx")),
    Wrong("layout_of_llama", ValueError,
          "layout 'llama' is that of one MultiHeadAttention: got another model",
          lambda m, a: m.export_weights(a.new(ENCODER, 12, 3, 8), "llama")),
    Wrong("layout_of_wide_heads", ValueError,
          "layout 'torch' has heads that make up embed_dim: got 3 heads of 6 for 12",
          lambda m, a: m.export_weights(attention(a, head_dim=6), "torch")),
    Wrong("layout_of_rotary", ValueError, "layout 'nnx' has no softcap and no process_heads: got one",
          lambda m, a: m.export_weights(
              attention(a, softcap=3.0, process_heads=m.rotary()), "nnx")),
    Wrong("layout_of_unturned_heads", ValueError,
          "layout 'llama' turns heads by position and needs process_heads; if the model turns none, rename "
          "o_proj to out_proj and use layout 'rosetta': got an attention without process_heads",
          lambda m, a: m.export_weights(attention(a), "llama")),
    Wrong("file_of_a_process", ValueError,
          "model must be what load builds of its settings, keep others by export_weights: "
          "got a function, which is none of Rotary, QKNorm",
          lambda m, a: m.save(attention(a, process_heads=lambda q, k, places: (q, k)), "nowhere")),
    Wrong("layout_of_groups", ValueError, "layout 'torch' has as many key heads as query heads: got 1 for 3",
          lambda m, a: m.export_weights(attention(a, num_kv_heads=1), "torch")),
    Wrong("layout_of_linen", ValueError, "layout 'linen' has as many key heads as query heads: got 1 for 3",
          lambda m, a: m.export_weights(attention(a, num_kv_heads=1), "linen")),
    Wrong("layout_of_widths", ValueError, "layout 'timm' has keys and values of embed_dim: got 5 and 12 for 12",
          lambda m, a: m.export_weights(attention(a, kdim=5), "timm")),
    Wrong("layout_of_scaled_heads", ValueError, "layout 'equinox' has no scale and no sinks: got one",
          lambda m, a: m.export_weights(attention(a, scale=0.5, sinks=True), "equinox")),
    Wrong("layout_unknown_to_auto", ValueError,
          "layout 'auto' needs the names of one layout, name it or give its prefix: got a, b, c, d and 1 more",
          lambda m, a: m.import_weights(attention(a), dict.fromkeys("abcde", a(3)), "auto")),
    Wrong("layout_of_auto_elsewhere", ValueError,
          "layout 'auto' needs the names of one layout, name it or give its prefix: got 'timm' under prefix 'blocks.0.'",
          lambda m, a: m.import_weights(
              attention(a), {"blocks.0.qkv.weight": a(36, 12), "blocks.0.proj.weight": a(12, 12)}, "auto")),
    Wrong("layout_of_norms", ValueError,
          "layout 'auto' cannot tell 'qwen3' from 'gemma', whose norms add 1, name one: got q_norm.weight",
          lambda m, a: m.import_weights(
              attention(a), dict.fromkeys(["q_proj.weight", "o_proj.weight", "q_norm.weight"], a(3)), "auto")),
    Wrong("weights_of_another_layout", ValueError,
          "weights must be those of the model, these look like layout 'bert' under prefix 'attention.': "
          "got no q_proj.weight; no k_proj.weight; no v_proj.weight; no out_proj.weight; "
          "attention.self.query.weight, which is unexpected; attention.output.dense.weight, which is unexpected",
          lambda m, a: m.import_weights(
              attention(a, bias=False), {"attention.self.query.weight": a(3), "attention.output.dense.weight": a(3)})),
    Wrong("weights_named_twice", ValueError, "weights must have names of their own: got q_proj.bias twice",
          lambda m, a: m.import_weights(attention(a), {"q_proj/bias": a(12), "q_proj.bias": a(12)})),
    Wrong("prefix_of_nothing", ValueError, "prefix must begin some of the names: got 'b.' for a.q_proj.bias",
          lambda m, a: m.import_weights(attention(a), {"a.q_proj.bias": a(12)}, prefix="b")),
    Wrong("prefix_misspelt", ValueError,
          "prefix must begin some of the names, try 'model.attn.' or 'model.': got 'modl.attn.' for model.attn.q_proj",
          lambda m, a: m.import_weights(attention(a), {"model.attn.q_proj": a(12)}, prefix="modl.attn")),
    Wrong("prefix_number", TypeError, "prefix must be a string: got int",
          lambda m, a: m.import_weights(attention(a), {"q_proj.bias": a(12)}, prefix=3)),
    Wrong("cast_dtype", TypeError, "cast must be True or False: got str",
          lambda m, a: m.import_weights(attention(a), {"q_proj.bias": a(12)}, cast="float32")),
    Wrong("weights_list", TypeError, "weights must be a mapping or a path: got list",
          lambda m, a: m.import_weights(attention(a), [1.0])),
    Wrong("weights_missing", ValueError,
          "weights must be those of the model: got no k_proj.weight; no v_proj.weight; no out_proj.weight; "
          "q_proj.weight (12, 11) for (12, 12)",
          lambda m, a: m.import_weights(attention(a, bias=False), {"q_proj.weight": a(12, 11)})),
    Wrong("weights_dtype", ValueError,
          "weights must be those of the model: got extra, which is unexpected; q_proj.weight float16 for float32",
          lambda m, a: m.import_weights(attention(a, bias=False), with_weights(m, a, attention(a, bias=False)))),
    Wrong("weights_layout", ValueError, f"{LAYOUT} None",
          lambda m, a: m.import_weights(attention(a), {}, None)),
    Wrong("weights_bias_k", ValueError, "bias_k and bias_v have no counterpart here: got bias_k",
          lambda m, a: m.import_weights(attention(a), {"bias_k": a(1, 1, 12)}, "torch")),
    Wrong("layout_of_other_biases", ValueError, "layout 'torch' has a weight and a bias a projection: got k_proj.bias",
          lambda m, a: m.export_weights(mixed(a, "k_proj", bias=False), "torch")),
    Wrong("layout_of_two_dtypes", ValueError,
          "layout 'torch' has one dtype for all projections: got k_proj.bias float32, k_proj.weight float32, "
          "out_proj.bias float32, out_proj.weight float32, q_proj.bias float16, q_proj.weight float16, "
          "v_proj.bias float32, v_proj.weight float32",
          lambda m, a: m.export_weights(mixed(a, "q_proj", dtype="float16"), "torch")),
    Wrong("tied_weights_differ", ValueError,
          "weights of tied parameters must be equal: got others for "
          "layers.1.linear1.weight and layers.0.linear1.weight",
          lambda m, a: m.import_weights(tied(a), m.export_weights(a.new("TransformerEncoder", 2, 12, 3, 8)))),
]  # fmt: skip

MODELS = [*LAYERS, *CACHES, *TOKENS, *WEIGHTS]
