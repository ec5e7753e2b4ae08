"""Every message that a wrong call gets: the rule, then what was given. Nothing is computed here."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import dtype_name, is_array, is_concrete

FLOATS = ("float16", "bfloat16", "float32", "float64")
FARTHEST = 2**30  # positions must fit 32 bits
EMPTY_ROWS = ("zero", "nan", "uniform")
CALL = ("B", "H", "T", "S")


def kind(value) -> str:
    """Name what was given, without the name of an array class."""
    return f"{dtype_name(value)} array" if is_array(value) else type(value).__name__


def as_integers(name: str, value, rank: int):
    """Return an array of integers of the given rank, made from an array or a list."""
    array = value if is_array(value) else np.asarray(value)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must be integers: got {dtype_name(array)}")
    if array.ndim != rank:
        axes = "(B,)" if rank == 1 else "(B, S)"
        raise ValueError(f"{name} must be {axes}: got {tuple(array.shape)}")
    if isinstance(array, np.ndarray):
        array = np.array(array)  # the mask's own
    return array if array.dtype.kind == "i" else array.astype(int)


def check_array(name: str, array, axes: tuple[str, ...]) -> None:
    if not is_array(array):
        raise TypeError(f"{name} must be an array: got {kind(array)}")
    if array.ndim != len(axes):
        raise ValueError(f"{name} must be ({', '.join(axes)}): got {tuple(array.shape)}")


def check_rank_and_float(name: str, array, axes: tuple[str, ...]) -> None:
    check_array(name, array, axes)
    if dtype_name(array) not in FLOATS:
        rule = f"{name} must be {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
        raise TypeError(f"{rule}: got {dtype_name(array)}")


def check_bool(name: str, array, meaning: str) -> None:
    if dtype_name(array) != "bool":
        raise TypeError(f"{name} must be bool, {meaning}: got {dtype_name(array)}")


def check_number(name: str, value) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number: got {kind(value)}")


def check_integer(name: str, value) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer: got {kind(value)}")


def check_count(name: str, value, least: int) -> None:
    check_integer(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}: got {value}")


def check_callable(name: str, value) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function of batch, head, query, key: got {kind(value)}")


def check_one_of(first: str, one, second: str, other) -> None:
    if (one is None) == (other is None):
        given = "neither" if one is None else "both"
        raise ValueError(f"give either {first} or {second}: got {given}")


# Masks


def no_truth_value() -> TypeError:
    return TypeError("a mask has no truth value, combine masks with & | ~: got bool(mask)")


def check_is_mask(rule: str, value, mask_class: type) -> None:
    if not isinstance(value, mask_class):
        raise TypeError(f"{rule}, write allow(array) or hide(array): got {kind(value)}")


def check_tokens(tokens, padding_idx) -> None:
    check_integer("padding_idx", padding_idx)
    check_token_array("tokens", tokens, ("B", "S"))


def check_lengths(lengths):
    lengths = as_integers("lengths", lengths, 1)
    if is_concrete(lengths) and (np.asarray(lengths) < 0).any():
        raise ValueError(f"lengths must be at least 0: got {np.asarray(lengths).min()}")
    return lengths


def check_ids(name: str, ids):
    ids = as_integers(name, ids, 2)
    held = jnp.iinfo(jax.dtypes.canonicalize_dtype(int))  # int32, unless x64 is enabled
    if is_concrete(ids) and ids.size:
        low, high = np.asarray(ids).min(), np.asarray(ids).max()
        if low < held.min or high > held.max:  # two ids could become one
            raise ValueError(f"{name} must fit {held.dtype}: got {low}..{high}")
    return ids


def check_hidden(hidden):
    check_array("hidden", hidden, ("B", "S"))
    check_bool("hidden", hidden, "True hides")
    return hidden


def check_cells(name: str, array):
    check_array(name, array, CALL)
    check_bool(name, array, "True is seen" if name == "allow" else "True is hidden")
    return array


def check_verdict(seen, sizes: tuple[int, int, int, int]):
    if not is_array(seen) or dtype_name(seen) != "bool":
        raise TypeError(f"predicate must return a bool array: got {kind(seen)}")
    pairs = zip(seen.shape, sizes, strict=False)
    if seen.ndim != 4 or not all(got in (1, size) for got, size in pairs):
        rule = f"predicate must return {_call(CALL)} = {tuple(sizes)}, or 1 for a dim"
        raise ValueError(f"{rule}: got {tuple(seen.shape)}")
    return seen


def check_mask(mask, sizes: tuple[int, int, int, int]) -> None:
    """Hold every table of a mask against the call it is used in."""
    for leaf, name, axes, table in () if mask is None else _tables(mask):
        wanted = tuple(sizes[CALL.index(axis)] for axis in axes)
        pairs = zip(axes, table.shape, wanted, strict=True)
        if not all(got == size or (got == 1 and axis in "BH") for axis, got, size in pairs):
            rule = f"{leaf.name}'s {name} must fit {_call(axes)} = {wanted}"
            raise ValueError(f"{rule}: got {tuple(table.shape)}")
        if name == "lengths" and is_concrete(table) and (np.asarray(table) > sizes[3]).any():
            longest = np.asarray(table).max()
            raise ValueError(f"lengths must be at most S = {sizes[3]}: got {longest}")


def check_cell(mask, cell: tuple[int, int, int, int]) -> None:
    for letter, index in zip(("batch", "head", "query", "key"), cell, strict=True):
        check_count(letter, index, 0)
    for leaf, name, axes, table in _tables(mask):
        inside = [cell[CALL.index(axis)] for axis in axes]
        pairs = zip(axes, table.shape, inside, strict=True)
        if not all(i < size or (size == 1 and axis in "BH") for axis, size, i in pairs):
            rule = f"a cell must lie inside {leaf.name}'s {name} {tuple(table.shape)}"
            raise ValueError(f"{rule}: got {cell}")


def _tables(mask):
    for leaf in mask.leaves():
        names = leaf.arguments[len(leaf.settings) :]
        for name, axes, table in zip(names, leaf.axes, leaf.tables, strict=True):
            yield leaf, name, axes, table


def _call(axes) -> str:
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def check_query_offset(query_offset, mask, sizes: tuple[int, int, int, int]):
    """Return the position of the first query: an int, or an int array with one a sample."""
    batch, _, queries, keys = sizes
    if query_offset is None:
        if queries != keys and mask is not None and mask.positional:
            raise ValueError(
                "query_offset is needed where T != S: 0 where queries and keys start together, "
                f"S - T = {keys - queries} where the queries are the last positions: "
                f"got None with T = {queries} and S = {keys}"
            )
        return 0
    if isinstance(query_offset, numbers.Integral) and not isinstance(query_offset, bool):
        check_far(query_offset, query_offset)
        return int(query_offset)
    if not is_array(query_offset) or query_offset.dtype.kind not in "iu":
        raise TypeError(f"query_offset must be an int or integers (B,): got {kind(query_offset)}")
    if query_offset.shape not in ((), (1,), (batch,)):
        got = tuple(query_offset.shape)
        raise ValueError(f"query_offset must be an int or (B,) = ({batch},): got {got}")
    if is_concrete(query_offset) and query_offset.size:
        check_far(np.min(query_offset), np.max(query_offset))
    return query_offset.astype(int)


def check_far(low, high) -> None:
    if low < -FARTHEST or high > FARTHEST:
        got = low if low < -FARTHEST else high
        raise ValueError(f"query_offset must lie in -2**30..2**30: got {int(got)}")


def count_samples(query_offset) -> int:
    """Return for how many samples an offset speaks."""
    return query_offset.shape[0] if is_array(query_offset) and query_offset.ndim == 1 else 1


# Attention


def check_attention(query, key, value, bias, scale, softcap, empty_rows, dropout) -> None:
    _check_shapes(query, key, value)
    if scale is not None:
        check_number("scale", scale)
    if softcap is not None:
        check_number("softcap", softcap)
        if not softcap > 0:
            raise ValueError(f"softcap must be above 0: got {softcap}")
    check_empty_rows(empty_rows)
    check_dropout(dropout)
    if bias is not None:
        check_bias("bias", bias, query, (*query.shape[:3], key.shape[2]))


def _check_shapes(query, key, value) -> None:
    check_rank_and_float("query", query, ("B", "H", "T", "D"))
    check_rank_and_float("key", key, ("B", "H_kv", "S", "D"))
    check_rank_and_float("value", value, ("B", "H_kv", "S", "D_v"))
    check_same_dtype(query, key, value)
    check_same_batch(query.shape[0], key.shape[0], value.shape[0])
    if query.shape[3] != key.shape[3]:
        got = f"{query.shape[3]} and {key.shape[3]}"
        raise ValueError(f"query and key must share head_dim: got {got}")
    if not query.shape[3]:
        raise ValueError("head_dim must be at least 1: got 0")
    check_same_length(key.shape[2], value.shape[2])
    if key.shape[1] != value.shape[1]:
        got = f"{key.shape[1]} and {value.shape[1]}"
        raise ValueError(f"key and value must share their number of heads: got {got}")
    if not key.shape[1] or query.shape[1] % key.shape[1]:
        got = f"{query.shape[1]} and {key.shape[1]}"
        raise ValueError(f"query heads must be a multiple of key heads: got {got}")


def check_same_dtype(query, key, value) -> None:
    names = [dtype_name(array) for array in (query, key, value)]
    if len(set(names)) > 1:
        got = f"{names[0]}, {names[1]} and {names[2]}"
        raise TypeError(f"query, key and value must share a dtype: got {got}")


def check_same_batch(query: int, key: int, value: int) -> None:
    if not query == key == value:
        got = f"{query}, {key} and {value}"
        raise ValueError(f"query, key and value must share a batch size: got {got}")


def check_same_length(keys: int, values: int) -> None:
    if keys != values:
        raise ValueError(f"key and value must share a length: got {keys} and {values}")


def check_empty_rows(empty_rows) -> None:
    if not isinstance(empty_rows, str) or empty_rows not in EMPTY_ROWS:
        raise ValueError(f"empty_rows must be 'zero', 'nan' or 'uniform': got {empty_rows!r}")


def check_dropout(dropout) -> None:
    check_number("dropout", dropout)
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie in 0..1: got {dropout}")


def check_rngs(dropout, rngs) -> None:
    if dropout > 0 and rngs is None:
        raise ValueError("dropout needs rngs: got None")


def check_bias(name: str, bias, query, sizes: tuple[int, int, int, int]) -> None:
    if not is_array(bias):
        raise TypeError(f"{name} must be an array: got {kind(bias)}")
    allowed = sorted({"float32", dtype_name(query)})
    if dtype_name(bias) not in allowed:
        raise TypeError(f"{name} must be {' or '.join(allowed)}: got {dtype_name(bias)}")
    if bias.ndim not in (2, 4):
        raise ValueError(f"{name} must be (T, S) or (B, H, T, S): got {tuple(bias.shape)}")
    wanted = tuple(sizes[-bias.ndim :])
    loose = bias.ndim == 4
    pairs = zip(bias.shape, wanted, strict=True)
    if not all(got == size or (loose and got == 1) for got, size in pairs):
        rule = f"{name} must fit {_call(CALL[-bias.ndim :])} = {wanted}"
        raise ValueError(f"{rule}: got {tuple(bias.shape)}")


# Multi-head attention


def check_multihead(embed_dim, num_heads, num_kv_heads, kdim, vdim, dropout, empty_rows) -> None:
    names = ("embed_dim", "num_heads", "num_kv_heads", "kdim", "vdim")
    for name, size in zip(names, (embed_dim, num_heads, num_kv_heads, kdim, vdim), strict=True):
        check_count(name, size, 1)
    if embed_dim % num_heads:
        got = f"{embed_dim} and {num_heads}"
        raise ValueError(f"embed_dim must be a multiple of num_heads: got {got}")
    if num_heads % num_kv_heads:
        got = f"{num_heads} and {num_kv_heads}"
        raise ValueError(f"num_heads must be a multiple of num_kv_heads: got {got}")
    check_dropout(dropout)
    check_empty_rows(empty_rows)


def check_inputs(query, key, value, dims: dict[str, int], dtype: str, batch_first: bool) -> None:
    """Hold the inputs of a multi-head attention against its `dims` and its weights' dtype."""
    inputs = {"query": query, "key": key, "value": value}
    for (name, array), length in zip(inputs.items(), "TSS", strict=True):
        axes = ("B", length, "E") if batch_first else (length, "B", "E")
        check_features(name, array, axes, dims[name], dtype)
    samples, steps = (0, 1) if batch_first else (1, 0)
    check_same_batch(query.shape[samples], key.shape[samples], value.shape[samples])
    check_same_length(key.shape[steps], value.shape[steps])


def check_memory(key, value, dims: dict[str, int], dtype: str, batch_first: bool) -> None:
    """Hold keys and values that are projected for later against the weights."""
    axes = ("B", "S", "E") if batch_first else ("S", "B", "E")
    check_features("key", key, axes, dims["key"], dtype)
    check_inputs(key, key, value, dims | {"query": dims["key"]}, dtype, batch_first)


def check_features(name: str, array, axes: tuple[str, ...], features: int, dtype: str) -> None:
    check_rank_and_float(name, array, axes)
    if array.shape[2] != features:
        raise ValueError(f"{name} must have {features} features: got {array.shape[2]}")
    if dtype_name(array) != dtype:
        rule = f"{name} must have the dtype of the weights, {dtype}"
        raise TypeError(f"{rule}: got {dtype_name(array)}")


def check_key_padding_mask(mask, sizes: tuple[int, int, int, int]) -> None:
    check_array("key_padding_mask", mask, ("B", "S"))
    check_bool("key_padding_mask", mask, "True hides")
    wanted = (sizes[0], sizes[3])
    if tuple(mask.shape) != wanted:
        rule = f"key_padding_mask must be (B, S) = {wanted}"
        raise ValueError(f"{rule}: got {tuple(mask.shape)}")


def check_attn_mask(mask, query, sizes: tuple[int, int, int, int]) -> None:
    """Accept a bool or additive mask of rank 2 (T, S), 3 (B*H, T, S) or 4 (B, H, T, S)."""
    if not is_array(mask):
        raise TypeError(f"attn_mask must be a Mask or an array: got {kind(mask)}")
    allowed = ["bool", *sorted({"float32", dtype_name(query)})]
    if dtype_name(mask) not in allowed:
        rule = f"attn_mask must be {', '.join(allowed[:-1])} or {allowed[-1]}"
        raise TypeError(f"{rule}: got {dtype_name(mask)}")
    batch, heads, queries, keys = sizes
    shapes = {2: (queries, keys), 3: (batch * heads, queries, keys), 4: sizes}
    axes = {2: CALL[2:], 3: ("B*H", *CALL[2:]), 4: CALL}
    if mask.ndim not in shapes:
        rule = "attn_mask must be (T, S), (B*H, T, S) or (B, H, T, S)"
        raise ValueError(f"{rule}: got {tuple(mask.shape)}")
    wanted = shapes[mask.ndim]
    pairs = zip(axes[mask.ndim], mask.shape, wanted, strict=True)
    if not all(got == size or (axis in "BH" and got == 1) for axis, got, size in pairs):
        rule = f"attn_mask must fit {_call(axes[mask.ndim])} = {wanted}"
        raise ValueError(f"{rule}: got {tuple(mask.shape)}")


# Caches


def check_counts(**sizes) -> None:
    for name, size in sizes.items():
        check_count(name, size, 0 if name == "batch_size" else 1)


def check_append(cache, key, value, counts) -> None:
    batch, heads, _, head_dim = cache.key.shape
    for name, array in (("key", key), ("value", value)):
        check_rank_and_float(name, array, ("B", "H_kv", "T", "D"))
        got = tuple(array.shape)
        wanted = (batch, heads, key.shape[2], head_dim)
        if got != wanted:
            raise ValueError(f"{name} must be (B, H_kv, T, D) = {wanted}: got {got}")
        if dtype_name(array) != dtype_name(cache.key):
            rule = f"{name} must have the dtype of the cache, {dtype_name(cache.key)}"
            raise TypeError(f"{rule}: got {dtype_name(array)}")
    if counts is not None:
        check_samples("counts", counts, batch, key.shape[2])
    check_room(cache, key.shape[2] if counts is None else counts)


def check_room(cache, counts) -> None:
    """Hold what shall be written against the capacity."""
    if not (is_concrete(cache.lengths) and is_concrete(counts)):
        return
    needed = np.asarray(cache.lengths) + np.asarray(counts)
    if needed.size and needed.max() > cache.capacity:
        got = f"{int(needed.max())} tokens for {cache.capacity} slots"
        raise ValueError(f"capacity must hold every token: got {got}")


def check_samples(name: str, array, batch: int, most: int) -> None:
    """Accept integers (B,) from 0 to `most`."""
    if not is_array(array) or array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers (B,): got {kind(array)}")
    if tuple(array.shape) != (batch,):
        raise ValueError(f"{name} must be (B,) = ({batch},): got {tuple(array.shape)}")
    if is_concrete(array) and array.size:
        low, high = int(np.asarray(array).min()), int(np.asarray(array).max())
        if low < 0 or high > most:
            raise ValueError(f"{name} must lie in 0..{most}: got {low if low < 0 else high}")


def check_index(index, batch: int) -> None:
    if not is_array(index) or index.dtype.kind not in "iu":
        raise TypeError(f"index must be integers (B,): got {kind(index)}")
    check_samples("index", index, index.shape[0] if index.ndim == 1 else batch, batch - 1)


def check_truncate(cache, lengths):
    """Return how many slots of each sample remain."""
    check_room(cache, 0)  # a compiled call may have gone beyond
    if isinstance(lengths, numbers.Integral) and not isinstance(lengths, bool):
        check_count("lengths", lengths, 0)
        lengths = np.full(len(cache.lengths), lengths)
    check_samples("lengths", lengths, len(cache.lengths), cache.capacity)
    if is_concrete(lengths) and is_concrete(cache.lengths):
        wanted, written = np.asarray(lengths), np.asarray(cache.lengths)
        if (wanted > written).any():
            sample = int((wanted > written).argmax())
            got = f"{int(wanted[sample])} of {int(written[sample])}"
            raise ValueError(f"lengths must be at most what is written: got {got}")
    return lengths.astype(cache.lengths.dtype)


def check_cached(query, cache, value, dims: dict[str, int], dtype: str, batch_first: bool) -> None:
    """Hold a query against the weights and the cache that it looks at."""
    check_room(cache, 0)  # a compiled call may have gone beyond
    if value is not None:
        raise TypeError(f"value must be None where key is a cache: got {kind(value)}")
    check_features("query", query, _steps(batch_first), dims["query"], dtype)
    check_fits(cache, query.shape[0 if batch_first else 1], dims, dtype)


def _steps(batch_first: bool) -> tuple[str, ...]:
    return ("B", "T", "E") if batch_first else ("T", "B", "E")


def check_fits(cache, batch: int, dims: dict[str, int], dtype: str) -> None:
    got = tuple(cache.key.shape)
    wanted = (batch, dims["kv_heads"], cache.capacity, dims["head_dim"])
    if got != wanted:
        raise ValueError(f"cache must be (B, H_kv, C, D) = {wanted}: got {got}")
    if dtype_name(cache.key) != dtype:
        rule = f"cache must have the dtype of the weights, {dtype}"
        raise TypeError(f"{rule}: got {dtype_name(cache.key)}")


def check_is_cache(cache, cache_class: type) -> None:
    if not isinstance(cache, cache_class):
        raise TypeError(f"cache must be a {cache_class.__name__}: got {kind(cache)}")


def check_decode(x, cache, hidden, dims: dict[str, int], dtype: str, batch_first: bool) -> None:
    """Hold the tokens of a step, a chunk or a prompt against the weights and their cache."""
    check_features("x", x, _steps(batch_first), dims["query"], dtype)
    if not dims["query"] == dims["key"] == dims["value"]:
        got = f"{dims['key']} and {dims['value']} beside {dims['query']}"
        raise ValueError(f"kdim and vdim must be embed_dim to decode: got {got}")
    check_fits(cache, x.shape[0 if batch_first else 1], dims, dtype)
    if hidden is not None:
        check_hidden_tokens(x, hidden, batch_first)


def check_hidden_tokens(x, hidden, batch_first: bool) -> None:
    check_rank_and_float("x", x, _steps(batch_first))
    check_array("hidden", hidden, ("B", "T"))
    check_bool("hidden", hidden, "True hides")
    wanted = tuple(x.shape[:2] if batch_first else x.shape[1::-1])
    if tuple(hidden.shape) != wanted:
        raise ValueError(f"hidden must be (B, T) = {wanted}: got {tuple(hidden.shape)}")


def check_movable(name: str, mask) -> None:
    """Accept only masks that know positions: hidden tokens are left out, and rows move up."""
    rule = f"{name} must go by positions where tokens are hidden"
    if is_array(mask):
        raise ValueError(f"{rule}: got {kind(mask)}")
    for leaf in mask.leaves() if mask is not None else ():
        if any("T" in axes for axes in leaf.axes):
            raise ValueError(f"{rule}: got {leaf.name}")


# Layers


def check_layer(dim_feedforward, activation, layer_norm_eps) -> None:
    check_count("dim_feedforward", dim_feedforward, 1)
    if not isinstance(activation, str) or activation not in ("relu", "gelu"):
        raise ValueError(f"activation must be 'relu' or 'gelu': got {activation!r}")
    check_number("layer_norm_eps", layer_norm_eps)
    if not 0 <= layer_norm_eps < float("inf"):
        raise ValueError(f"layer_norm_eps must be at least 0 and finite: got {layer_norm_eps}")


def check_stack_decode(x, cache, hidden, layers: int, memories: int, batch_first: bool) -> None:
    """Refuse what a later layer would refuse after the first has written."""
    if len(cache.layers) != layers:
        raise ValueError(f"cache must have {layers} layers: got {len(cache.layers)}")
    if len(cache.memory) != memories:
        raise ValueError(f"cache must have {memories} memories: got {len(cache.memory)}")
    check_rank_and_float("x", x, _steps(batch_first))
    if hidden is not None:
        check_hidden_tokens(x, hidden, batch_first)
    check_room(cache, x.shape[1 if batch_first else 0] if hidden is None else (~hidden).sum(1))


# Tokens


def check_seq2seq(src_vocab, tgt_vocab, padding_idx, positions, options: dict) -> None:
    check_counts(src_vocab=src_vocab, tgt_vocab=tgt_vocab)
    check_integer("padding_idx", padding_idx)
    if not 0 <= padding_idx < min(src_vocab, tgt_vocab):
        rule = f"padding_idx must be in both vocabularies, 0..{min(src_vocab, tgt_vocab) - 1}"
        raise ValueError(f"{rule}: got {padding_idx}")
    if not isinstance(positions, str) or positions not in ("sinusoidal", "none"):
        raise ValueError(f"positions must be 'sinusoidal' or 'none': got {positions!r}")
    if not options.get("batch_first", True):
        raise ValueError("tokens are (B, T), so batch_first must be True: got False")


def check_token_array(name: str, tokens, axes: tuple[str, ...], vocab: int | None = None) -> None:
    check_array(name, tokens, axes)
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers: got {dtype_name(tokens)}")
    if vocab is not None and is_concrete(tokens) and tokens.size:
        low, high = int(np.asarray(tokens).min()), int(np.asarray(tokens).max())
        if low < 0 or high >= vocab:
            rule = f"{name} must lie in its vocabulary, 0..{vocab - 1}"
            raise ValueError(f"{rule}: got {low if low < 0 else high}")


def check_token_batch(tgt, cache) -> None:
    if tgt.shape[0] != len(cache.lengths):
        got = f"{tgt.shape[0]} and {len(cache.lengths)}"
        raise ValueError(f"tgt and cache must share a batch size: got {got}")


def check_token_pair(src, tgt, src_vocab: int, tgt_vocab: int) -> None:
    check_token_array("src", src, ("B", "S"), src_vocab)
    check_token_array("tgt", tgt, ("B", "T"), tgt_vocab)
    if src.shape[0] != tgt.shape[0]:
        got = f"{src.shape[0]} and {tgt.shape[0]}"
        raise ValueError(f"src and tgt must share a batch size: got {got}")


def check_greedy(model, src, prompt, eos_idx, max_new_tokens, capacity) -> None:
    check_token_pair(src, prompt, model.src_vocab, model.tgt_vocab)
    check_integer("eos_idx", eos_idx)
    check_count("max_new_tokens", max_new_tokens, 1)
    if is_concrete(prompt) or not prompt.shape[1]:
        tokens = np.asarray(prompt) if prompt.shape[1] else np.zeros(prompt.shape)
        counts = (tokens != model.padding_idx).sum(1)
        if (counts == 0).any():
            sample = int((counts == 0).argmax())
            raise ValueError(f"every prompt must have a token: got none in sample {sample}")
    needed = prompt.shape[1] + max_new_tokens - 1
    if capacity is not None and capacity < needed:
        raise ValueError(
            f"capacity must hold every token: got {needed} tokens for {capacity} slots"
        )


# Weights


def check_layout(layout, attentions: dict) -> None:
    if not isinstance(layout, str) or layout not in ("rosetta", "torch", "nnx"):
        raise ValueError(f"layout must be 'rosetta', 'torch' or 'nnx': got {layout!r}")
    if layout == "nnx" and list(attentions) != [""]:
        raise ValueError("layout 'nnx' is that of one MultiHeadAttention: got another model")
    grouped = [attn for attn in attentions.values() if attn.num_kv_heads != attn.num_heads]
    if layout == "torch" and grouped:
        got = f"{grouped[0].num_kv_heads} for {grouped[0].num_heads}"
        raise ValueError(f"layout 'torch' has as many key heads as query heads: got {got}")


def check_mapping(weights) -> None:
    if not hasattr(weights, "items"):
        raise TypeError(f"weights must be a mapping or a path: got {kind(weights)}")


def check_weights(given: dict, own: dict) -> None:
    """Hold the names, shapes and dtypes that were given against the model's own."""
    extra = [name for name in given if name.split(".")[-1] in ("bias_k", "bias_v")]
    if extra:
        got = ", ".join(extra)
        raise ValueError(f"bias_k and bias_v have no counterpart here: got {got}")
    wrong = [f"no {name}" for name in own if name not in given]
    wrong += [f"{name}, which is unexpected" for name in given if name not in own]
    for name in own:
        if name in given and tuple(given[name].shape) != tuple(own[name].shape):
            wrong.append(f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}")
        elif name in given and dtype_name(given[name]) != dtype_name(own[name]):
            wrong.append(f"{name} {dtype_name(given[name])} for {dtype_name(own[name])}")
    if wrong:
        raise ValueError(f"weights must be those of the model: got {'; '.join(wrong)}")


def check_configuration(path, settings, names: list[str], arrays: dict) -> None:
    """Refuse sizes beyond what the file holds: what it asks for would be built first."""
    if not isinstance(settings, dict) or set(settings) != set(names):
        raise not_ours(path, "its settings are not those of its class")
    for name in {"bias", "batch_first", "norm_first", "norm"} & set(names):
        if not isinstance(settings[name], bool):
            raise not_ours(path, f"{name} = {settings[name]!r}, neither true nor false")
    for name, array in arrays.items():
        if dtype_name(array) not in FLOATS:
            raise not_ours(path, f"{name} of {dtype_name(array)}")
    sizes = {name: value for name, value in settings.items() if type(value) is int}
    width = sizes.get("d_model", sizes.get("embed_dim", 1))
    held = sum(array.size for array in arrays.values())
    for name, value in sizes.items():  # nearly every matrix has the model's width on one side
        other = width // max(sizes.get("num_heads", 1), 1) if name in ("kdim", "vdim") else width
        if value < 0 or value * other > held:
            raise not_ours(path, f"{name} = {value}, beyond its arrays")


def check_held(dtype) -> None:
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"jax_enable_x64 must be on for {dtype.name}: got off")


def not_ours(path, reason: str) -> ValueError:
    return ValueError(f"path must be a safetensors file that fits: got {path} ({reason})")


def no_safetensors(error: ImportError) -> ImportError:
    rule = "safetensors must be installed to read or write files, pip install safetensors"
    return ImportError(f"{rule}: got {error}")
