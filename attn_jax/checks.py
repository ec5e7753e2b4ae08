"""Every message that a wrong call gets: the rule, then what was given. Nothing is computed here."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

FLOATS = ("float16", "bfloat16", "float32", "float64")
FARTHEST = 2**30  # positions must fit 32 bits
EMPTY_ROWS = ("zero", "nan", "uniform")
CALL = ("B", "H", "T", "S")


def is_array(value) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def is_known(array) -> bool:
    """Whether the values can be looked at now.

    Not while a function is traced over them.
    """
    return not isinstance(array, jax.core.Tracer)


def dtype_name(array) -> str:
    return array.dtype.name


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
    check_array("tokens", tokens, ("B", "S"))
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers: got {dtype_name(tokens)}")


def check_lengths(lengths):
    lengths = as_integers("lengths", lengths, 1)
    if is_known(lengths) and (np.asarray(lengths) < 0).any():
        raise ValueError(f"lengths must be at least 0: got {np.asarray(lengths).min()}")
    return lengths


def check_ids(name: str, ids):
    ids = as_integers(name, ids, 2)
    held = jnp.iinfo(jax.dtypes.canonicalize_dtype(int))  # int32, unless x64 is enabled
    if is_known(ids) and ids.size:
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
        if name == "lengths" and is_known(table) and (np.asarray(table) > sizes[3]).any():
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
    if is_known(query_offset) and query_offset.size:
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
        check_rank_and_float(name, array, axes)
        if array.shape[2] != dims[name]:
            raise ValueError(f"{name} must have {dims[name]} features: got {array.shape[2]}")
        if dtype_name(array) != dtype:
            rule = f"{name} must have the dtype of the weights, {dtype}"
            raise TypeError(f"{rule}: got {dtype_name(array)}")
    samples, steps = (0, 1) if batch_first else (1, 0)
    check_same_batch(query.shape[samples], key.shape[samples], value.shape[samples])
    check_same_length(key.shape[steps], value.shape[steps])


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
