"""The public calls of the three backends: names, order and kinds of parameters, defaults.

What is the framework's own is left out: where random numbers come from, a device and a dtype.
"""

import inspect
import re

OWN = {"rng", "rngs", "generator", "device", "dtype"}
THEIRS = {"forward", "reset_parameters"}  # methods that torch.nn calls by these names
# Calls on several devices, which are told in each framework's terms; NumPy has one device.
DEVICES = {"contiguous", "planned", "shard_sequences", "sharded_attention", "zigzag"}

PUBLIC = """
AttentionSteps(scores, masked_scores, weights, output)
KVCache(key, value, lengths)
KVCache.empty(batch_size, num_kv_heads, capacity, head_dim)
KVCache.capacity: property
KVCache.is_full()
KVCache.append(key, value, counts=None)
KVCache.copy()
KVCache.reorder(index)
KVCache.truncate(lengths)
Mask.leaves()
Mask.tables()
Mask.evaluate(at)
Mask.allowed(T, S, *, query_offset=None, batch=1, heads=1)
Mask.hidden(T, S, *, query_offset=None, batch=1, heads=1)
Mask.additive(T, S, *, query_offset=None, batch=1, heads=1)
Mask.tile(T, S, rows, columns, query_offset=None, *, batch=1, heads=1)
Mask.part(rows, columns, query_offset=0)
Mask.explain(batch, head, query, key, *, query_offset=0)
Mask.draw(T, S=None, *, batch=0, head=0, query_offset=None)
Mask.sizes(batch, heads, T, S)
MultiHeadAttention(embed_dim, num_heads, *, num_kv_heads=None, head_dim=None, kdim=None,
    vdim=None, bias=True, qkv_bias=None, scale=None, softcap=None, sinks=False,
    process_heads=None, dropout=0.0, batch_first=True, empty_rows='zero')
MultiHeadAttention.__call__(query, key=None, value=None, *, key_padding_mask=None,
    attn_mask=None, need_weights=True, average_weights=True, query_offset=None)
MultiHeadAttention.new_cache(batch_size, capacity=None, *, window=None)
MultiHeadAttention.project(key, value=None)
MultiHeadAttention.decode(x, cache, *, hidden=None, attn_mask=None)
Partial(sums, maximum, total)
Partial.output: property
Partial.lse: property
QKNorm(head_dim, then=None, *, eps=1e-06)
QKNorm.__call__(query, key, positions)
Seq2SeqTransformer(src_vocab, tgt_vocab, *, padding_idx=0, positions='sinusoidal', d_model=512,
    nhead=8, num_encoder_layers=6, num_decoder_layers=6, dim_feedforward=2048, dropout=0.1,
    activation='relu', layer_norm_eps=1e-05, batch_first=True, norm_first=False, bias=True,
    empty_rows='zero')
Seq2SeqTransformer.__call__(src, tgt, *, need_weights=False)
Seq2SeqTransformer.start(src, capacity)
Seq2SeqTransformer.decode(tgt, cache)
StackCache(layers, memory=(), memory_key_padding_mask=None)
StackCache.lengths: property
StackCache.capacity: property
StackCache.copy()
StackCache.reorder(index)
StackCache.truncate(lengths)
StackCache.with_layers(layers)
Transformer(d_model=512, nhead=8, num_encoder_layers=6, num_decoder_layers=6,
    dim_feedforward=2048, dropout=0.1, *, activation='relu', layer_norm_eps=1e-05,
    batch_first=True, norm_first=False, bias=True, empty_rows='zero')
Transformer.__call__(src, tgt, src_mask=None, tgt_mask=None, memory_mask=None,
    src_key_padding_mask=None, tgt_key_padding_mask=None, memory_key_padding_mask=None, *,
    need_weights=False)
Transformer.start(src, capacity=None, *, window=None, src_mask=None, src_key_padding_mask=None,
    memory_key_padding_mask=None)
Transformer.decode(tgt, cache, *, hidden=None, tgt_mask=None, memory_mask=None)
TransformerDecoder(num_layers, d_model, nhead, dim_feedforward=2048, dropout=0.1, *, norm=False,
    activation='relu', layer_norm_eps=1e-05, batch_first=True, norm_first=False, bias=True,
    empty_rows='zero')
TransformerDecoder.__call__(tgt, memory, tgt_mask=None, memory_mask=None,
    tgt_key_padding_mask=None, memory_key_padding_mask=None, *, need_weights=False)
TransformerDecoder.start(memory, capacity=None, *, window=None, memory_key_padding_mask=None)
TransformerDecoder.decode(tgt, cache, *, hidden=None, tgt_mask=None, memory_mask=None)
TransformerDecoderLayer(d_model, nhead, dim_feedforward=2048, dropout=0.1, *, activation='relu',
    layer_norm_eps=1e-05, batch_first=True, norm_first=False, bias=True, empty_rows='zero')
TransformerDecoderLayer.__call__(tgt, memory, tgt_mask=None, memory_mask=None,
    tgt_key_padding_mask=None, memory_key_padding_mask=None, *, need_weights=False)
TransformerDecoderLayer.decode(tgt, cache, memory, *, hidden=None, tgt_mask=None,
    memory_mask=None, memory_key_padding_mask=None)
TransformerEncoder(num_layers, d_model, nhead, dim_feedforward=2048, dropout=0.1, *, norm=False,
    activation='relu', layer_norm_eps=1e-05, batch_first=True, norm_first=False, bias=True,
    empty_rows='zero')
TransformerEncoder.__call__(src, mask=None, src_key_padding_mask=None, *, need_weights=False)
TransformerEncoder.start(batch_size, capacity=None, *, window=None)
TransformerEncoder.decode(src, cache, *, hidden=None, mask=None)
TransformerEncoderLayer(d_model, nhead, dim_feedforward=2048, dropout=0.1, *, activation='relu',
    layer_norm_eps=1e-05, batch_first=True, norm_first=False, bias=True, empty_rows='zero')
TransformerEncoderLayer.__call__(src, src_mask=None, src_key_padding_mask=None, *,
    need_weights=False)
TransformerEncoderLayer.decode(src, cache, *, hidden=None, src_mask=None)
TransformerWeights(encoder, decoder)
WindowCache(key, value, lengths)
WindowCache.beside(key, value, counts)
WindowCache.slots()
allow(array)
attention(query, key, value, *, mask=None, bias=None, scale=None, softcap=None, sinks=None,
    empty_rows='zero', query_offset=None, dropout=0.0)
attention_part(query, key, value, *, mask=None, bias=None, scale=None, softcap=None,
    query_offset=None)
attention_steps(query, key, value, *, mask=None, bias=None, scale=None, softcap=None, sinks=None,
    empty_rows='zero', query_offset=None, dropout=0.0)
causal()
chunked(size)
draw_weights(weights, *, query_labels=None, key_labels=None)
export_weights(model, layout='rosetta')
finish(partial, empty_rows='zero', sinks=None)
greedy_decode(model, src, prompt, *, eos_idx, max_new_tokens, capacity=None, cached=True)
hide(array)
import_weights(model, weights, layout='rosetta', *, prefix='', cast=False)
load(path)
look_ahead_mask(tgt_len, src_len)
merge(*partials)
packed(lengths)
padding(lengths=None, *, hidden=None)
predicate(function)
prefix(lengths)
rotary(base=10000.0, *, dim=None, interleaved=False, scale=1.0, frequencies=None)
save(model, path)
segments(query_ids, key_ids=None)
sequence_mask(tokens, padding_idx)
sliding_window(before, after=0)
"""
SIGNATURES = {
    re.split(r"[(:]", line)[0]: line for line in re.sub(r"\n +", " ", PUBLIC).strip().split("\n")
}


def signature(module, name: str) -> str:
    """Return a public call of a backend as a line of the table, or "" where there is none."""
    owner, _, method = name.partition(".")
    place = getattr(module, owner, None)
    if method:
        method = _call_of(place) if method == "__call__" else method
        member = inspect.getattr_static(place, method, None)
        if isinstance(member, property):
            return f"{name}: property"
        place = getattr(place, method, None)
        return "" if place is None else name + _parameters(place, skip=not inspect.ismethod(place))
    if inspect.isclass(place) and place.__init__ is not object.__init__:
        return name + _parameters(place.__init__, skip=True)
    return "" if place is None else name + _parameters(place)


def _call_of(place) -> str:
    """Return the name under which a class defines what calling it does."""
    return "__call__" if "__call__" in vars(place) else "forward"


def _parameters(function, skip: bool = False) -> str:
    """Return the parameters without annotations; the framework's own are among the last."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    kept = [p.replace(annotation=inspect.Parameter.empty) for p in parameters if p.name not in OWN]
    return str(inspect.Signature(kept))


def unlisted(module) -> list[str]:
    """Return the public functions, classes and methods that a backend has beyond the table."""
    found = list(module.__all__)
    for owner in module.__all__:
        own = vars(getattr(module, owner)) if inspect.isclass(getattr(module, owner)) else {}
        methods = [name for name, member in own.items() if inspect.isfunction(member)]
        found += [f"{owner}.{name}" for name in methods if name[0] != "_" and name not in THEIRS]
    return sorted(set(found) - SIGNATURES.keys() - {"Mask"} - DEVICES)  # builders make one
