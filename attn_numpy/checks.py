"""Every message that a wrong call gets: the rule, then what was given.

Checks of lengths, ids and offsets also return them, as arrays of integers. All three
backends have this file byte for byte; what differs is in `arrays.py`.
"""

import math
import numbers
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from . import arrays
from .arrays import Array, dtype_name, is_array, is_concrete

FLOATS = ("float16", "bfloat16", "float32", "float64")
WIDE = FLOATS[2:]  # in which sums do not stall
FARTHEST = 2**30  # positions must fit 32 bits
LARGEST = 2.0**127  # a power of 2 that float32 holds
EMPTY_ROWS = ("zero", "nan", "uniform")
UNKNOWN = ("scale", "softcap", "sinks", "process_heads")  # to most other libraries
ALL = frozenset(("groups", "head_dim", "widths", "qkv_bias", *UNKNOWN))
# What an attention in a layout can have that not each has.
LAYOUTS: dict[str, Collection[str]] = {
    "rosetta": ALL,
    "torch": ("widths",),
    "nnx": ("groups", "head_dim", "widths"),
    "linen": ("head_dim", "widths"),
    "keras": ("groups", "head_dim", "widths"),
    "equinox": ("head_dim", "widths", "qkv_bias", "process_heads"),
    "timm": ("qkv_bias",),
    "bert": (),
    "gpt2": (),
    "llama": ALL,
    "qwen3": ALL,
    "gemma": ALL,
    "gpt_oss": ALL,
}
JOINED = ("torch", "timm", "gpt2")  # those that keep three projections in one matrix
SAME_NAMES = {"linen": "nnx"} | dict.fromkeys(("llama", "qwen3", "gemma", "gpt_oss"), "llama")
CALL = ("B", "H", "T", "S")
LATER = {"head_dim", "qkv_bias", "scale", "softcap", "sinks", "process_heads"}  # not in older files


def kind(value: Any) -> str:
    """Name what was given: an array by dtype, a foreign one by class, a box by both."""
    if is_array(value):
        return f"{dtype_name(value)} array"
    name, inside = type(value).__name__, arrays.inside(value)
    if hasattr(value, "__dlpack__"):
        name = f"{type(value).__module__.partition('.')[0]}.{name}"
    return f"{name} ({inside} is its array)" if inside else name


def as_integers(name: str, value: Any, axes: str) -> Array:
    """Return an array of integers with the given axes, made from an array or a list."""
    parts = value if isinstance(value, list | tuple) else (value,)
    for part in (part for part in parts if type(part) is not int):
        if isinstance(part, np.ma.MaskedArray) or arrays.inside(part):
            raise TypeError(f"{name} must be integers: got {kind(part)}")
    array = value if is_array(value) else np.asarray(value)
    if not _are_integers(array) and 0 not in array.shape:
        got = kind(value) if dtype_name(array) == "object" else dtype_name(array)
        raise TypeError(f"{name} must be integers: got {got}")
    if array.ndim != len(axes):
        raise ValueError(f"{name} must be {_call(axes)}: got {tuple(array.shape)}")
    signed = arrays.signed_copy(array)
    may_wrap = dtype_name(array) in ("uint32", "uint64")  # a wider signed one holds the others
    if may_wrap and _has_known_values(signed):
        lowest, _ = arrays.lowest_highest(signed)
        if lowest < 0:
            got = lowest + 2 ** (8 * array.dtype.itemsize)
            raise ValueError(f"{name} must fit {dtype_name(signed)}: got {got}")
    return signed


def _are_integers(array: Array | np.ndarray) -> bool:
    return "int" in dtype_name(array)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _has_known_values(array: Array) -> bool:
    return is_concrete(array) and 0 not in array.shape


def check_array(name: str, array: Any, axes: tuple[str, ...]) -> None:
    if not is_array(array):
        raise TypeError(f"{name} must be an array: got {kind(array)}")
    if array.ndim != len(axes):
        raise ValueError(f"{name} must be ({', '.join(axes)}): got {tuple(array.shape)}")


def float_name(value: Any) -> str:
    """Return the name of a value's dtype if attention knows it, and "" if there is none such."""
    name = dtype_name(value) if hasattr(value, "dtype") else ""
    return name if name in FLOATS else ""


def check_rank_and_dtype(name: str, array: Any, axes: tuple[str, ...]) -> None:
    check_array(name, array, axes)
    check_float(name, array)


def check_float(name: str, array: Array) -> None:
    if dtype_name(array) not in FLOATS:
        rule = f"{name} must be {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
        raise TypeError(f"{rule}: got {dtype_name(array)}")


def check_bool(name: str, array: Array, meaning: str) -> None:
    if dtype_name(array) != "bool":
        raise TypeError(f"{name} must be bool, {meaning}: got {dtype_name(array)}")


def check_number(name: str, value: Any) -> None:
    if type(value) is float:  # asked first: the rest takes a microsecond
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number: got {kind(value)}")


def check_integer(name: str, value: Any) -> None:
    if not _is_integer(value):
        raise TypeError(f"{name} must be an integer: got {kind(value)}")


def check_count(name: str, value: Any, least: int) -> None:
    check_integer(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}: got {value}")


def check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function of batch, head, query, key: got {kind(value)}")


def check_one_of(first: str, one: Any, second: str, other: Any) -> None:
    if (one is None) == (other is None):
        got = "neither" if one is None else "both"
        raise ValueError(f"give either {first} or {second}: got {got}")


# Masks


def no_truth_value() -> TypeError:
    return TypeError("a mask has no truth value, combine masks with & | ~: got bool(mask)")


def no_array() -> TypeError:
    return TypeError("a mask is not an array, write mask.allowed(T, S): got a mask as an array")


def check_is_mask(rule: str, value: Any, mask_class: type) -> None:
    if not isinstance(value, mask_class):
        raise TypeError(f"{rule}, write allow(array) or hide(array): got {kind(value)}")


def check_tokens(tokens: Any, padding_idx: Any) -> None:
    check_integer("padding_idx", padding_idx)
    check_token_array("tokens", tokens, ("B", "S"))


def check_lengths(lengths: Any, axes: str = "B") -> Array:
    lengths = as_integers("lengths", lengths, axes)
    if _has_known_values(lengths):
        lowest, _ = arrays.lowest_highest(lengths)
        if lowest < 0:
            raise ValueError(f"lengths must be at least 0: got {lowest}")
    return lengths


def check_ids(name: str, ids: Any) -> Array:
    ids = as_integers(name, ids, "BS")
    if is_concrete(ids) and not arrays.is_representable(ids):  # two ids could become one
        lowest, highest = arrays.lowest_highest(ids)
        raise ValueError(f"{name} must fit int32: got {lowest}..{highest}")
    return ids


def check_hidden(hidden: Any) -> Array:
    check_array("hidden", hidden, ("B", "S"))
    check_bool("hidden", hidden, "True hides")
    return hidden


def check_cells(name: str, array: Any) -> Array:
    if is_array(array) and array.ndim == 2:
        rule = f"{name} must be (B, H, T, S), write array[None, None] for (T, S)"
        raise ValueError(f"{rule}: got {tuple(array.shape)}")
    check_array(name, array, CALL)
    check_bool(name, array, "True is allowed" if name == "allow" else "True is hidden")
    return array


def check_verdict(allowed: Any, sizes: tuple[int, int, int, int]) -> Array:
    if not is_array(allowed) or dtype_name(allowed) != "bool":
        raise TypeError(f"predicate must return a bool array: got {kind(allowed)}")
    pairs = zip(allowed.shape, sizes, strict=False)
    if allowed.ndim != 4 or not all(got in (1, size) for got, size in pairs):
        rule = f"predicate must return {_call(CALL)} = {tuple(sizes)}, or 1 for a dim"
        raise ValueError(f"{rule}: got {tuple(allowed.shape)}")
    return allowed


def check_mask(mask: Any, sizes: tuple[int, int, int, int]) -> None:
    """Check every table of a mask against the call it is used in."""
    for leaf, name, axes, table in () if mask is None else mask.tables():
        call = dict(zip(CALL, sizes, strict=True))  # a part's tables have other axes too
        wanted = tuple([call.get(*pair) for pair in zip(axes, table.shape, strict=True)])
        pairs = () if table.shape == wanted else zip(axes, table.shape, wanted, strict=True)
        if not all([got == size or (got == 1 and axis in "BH") for axis, got, size in pairs]):
            rule = f"{leaf.name}'s {name} must fit {_call(axes)} = {wanted}"
            raise ValueError(f"{rule}: got {tuple(table.shape)}")
        if leaf.name == "packed" and _has_known_values(table):
            longest = arrays.to_numpy(table).sum(1, dtype=np.int64).max()
            if longest > sizes[3]:
                rule = f"lengths of a sample must sum to at most S = {sizes[3]}"
                raise ValueError(f"{rule}: got {longest}")
        elif name == "lengths" and leaf.name != "part" and _has_known_values(table):
            _, longest = arrays.lowest_highest(table)
            if longest > sizes[3]:
                raise ValueError(f"lengths must be at most S = {sizes[3]}: got {longest}")


def check_cell(mask: Any, cell: tuple[int, int, int, int]) -> None:
    for letter, index in zip(("batch", "head", "query", "key"), cell, strict=True):
        check_count(letter, index, 0)
    for leaf, name, axes, table in mask.tables():
        inside = dict(zip(CALL, cell, strict=True))
        sizes = zip(axes, table.shape, strict=True)
        pairs = [(axis, size, inside.get(axis, -1)) for axis, size in sizes]
        if not all(i < size or (size == 1 and axis in "BH") for axis, size, i in pairs):
            rule = f"a cell must lie inside {leaf.name}'s {name} {tuple(table.shape)}"
            raise ValueError(f"{rule}: got {cell}")


def check_part(mask: Any, rows: Any, columns: Any, query_offset: Any) -> tuple[Array, Array, Any]:
    """Return rows, columns and the offset of a part of a mask as positions."""
    offset = check_query_offset(query_offset, None, (count_samples(query_offset), 1, 1, 1))
    chosen = {"T": as_integers("rows", rows, "T"), "S": as_integers("columns", columns, "S")}
    for (letter, index), name in zip(chosen.items(), ("rows", "columns"), strict=True):
        if not _has_known_values(index):
            continue
        lowest, highest = arrays.lowest_highest(index)
        _check_range(name, lowest, highest, FARTHEST - 1)
        for leaf, of, axes, table in mask.tables():
            if letter in axes and highest >= (size := table.shape[axes.index(letter)]):
                rule = f"{name} must lie inside {leaf.name}'s {of}, 0..{size - 1}"
                raise ValueError(f"{rule}: got {highest}")
    rows, columns = (arrays.to_positions(index) for index in chosen.values())
    return rows, columns, offset


def _call(axes: Sequence[str]) -> str:
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def check_query_offset(
    query_offset: Any, mask: Any, sizes: tuple[int, int, int, int]
) -> int | Array:
    """Return the position of the first query: an int, or an int array with one a sample."""
    batch, _, queries, keys = sizes
    if query_offset is None:
        if mask is not None and mask.positional and queries != keys:
            raise ValueError(
                "query_offset is needed where T != S: 0 where queries and keys start together, "
                f"S - T = {keys - queries} where the queries are the last positions: "
                f"got None with T = {queries} and S = {keys}"
            )
        return 0
    if arrays.is_symbolic(query_offset):
        return arrays.to_positions(query_offset)
    if _is_integer(query_offset):
        _check_far(query_offset, query_offset)
        return int(query_offset)
    if not is_array(query_offset) or not _are_integers(query_offset):
        raise TypeError(f"query_offset must be an int or integers (B,): got {kind(query_offset)}")
    shape = tuple(query_offset.shape)
    if len(shape) > 1 or not all(size in (1, batch) for size in shape):
        raise ValueError(f"query_offset must be an int or (B,) = ({batch},): got {shape}")
    if _has_known_values(query_offset):
        _check_far(*arrays.lowest_highest(query_offset))
    return arrays.to_positions(query_offset)


def check_part_offset(query_offset: Any, mask: Any, mask_class: Any) -> None:
    """Refuse keys that do not say where they stand: that there are T of them says nothing."""
    if query_offset is None and isinstance(mask, mask_class) and mask.positional:
        raise ValueError(
            "query_offset is needed for some of the keys under a mask that goes by positions: "
            "where the first query stands, counted from the first of these keys: got None"
        )


def _check_far(lowest: int, highest: int) -> None:
    if lowest < -FARTHEST or highest > FARTHEST:
        got = lowest if lowest < -FARTHEST else highest
        raise ValueError(f"query_offset must lie in -2**30..2**30: got {int(got)}")


def count_samples(query_offset: Any) -> int:
    """Return for how many samples an offset speaks."""
    return query_offset.shape[0] if is_array(query_offset) and query_offset.ndim == 1 else 1


# Drawings


def check_drawn(weights: Any) -> None:
    if not is_array(weights) or "float" not in dtype_name(weights):
        raise TypeError(f"weights must be an array of floats: got {kind(weights)}")
    if weights.ndim not in (2, 4):
        rule = "weights must be (T, S) or (B, H, T, S)"
        if weights.ndim == 3:
            rule += ", write weights[None] for (H, T, S) and weights[:, None] for (B, T, S)"
        raise ValueError(f"{rule}: got {tuple(weights.shape)}")


def check_labels(name: str, labels: Sequence | None, letter: str, count: int) -> list[str]:
    """Return the labels as lines of text, in which no control character moves what follows."""
    if labels is None:
        return []
    if not hasattr(labels, "__len__"):
        raise TypeError(f"{name} must be a list of labels: got {kind(labels)}")
    if len(labels) != count:
        raise ValueError(f"{name} must be {letter} = {count} labels: got {len(labels)}")
    shown = ((c if c.isprintable() else repr(c)[1:-1] for c in str(label)) for label in labels)
    return ["".join(letters) for letters in shown]


# Attention


def check_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any,
    scale: Any,
    softcap: Any,
    sinks: Any,
    empty_rows: Any,
    dropout: Any,
) -> None:
    check_shapes(query, key, value)
    check_settings(dropout, empty_rows, scale, softcap)
    if bias is not None:
        check_bias("bias", bias, query, (*query.shape[:3], key.shape[2]))
    if sinks is not None:
        check_sinks(sinks, query)


def check_same_rank(query: Any, key: Any, value: Any) -> int:
    """Return the rank of what `attention_steps` is given."""
    for name, array in {"query": query, "key": key, "value": value}.items():
        if not is_array(array):
            raise TypeError(f"{name} must be an array: got {kind(array)}")
    rank = query.ndim
    if not rank == key.ndim == value.ndim:
        got = f"{rank}, {key.ndim} and {value.ndim}"
        raise ValueError(f"query, key and value must share a rank: got {got}")
    if rank not in (2, 3, 4):
        rule = "query must be (B, H, T, D), (B, T, D) or (T, D)"
        raise ValueError(f"{rule}: got {tuple(query.shape)}")
    return rank


def check_shapes(query: Any, key: Any, value: Any) -> None:
    check_rank_and_dtype("query", query, ("B", "H", "T", "D"))
    check_array("key", key, ("B", "H_kv", "S", "D"))
    check_array("value", value, ("B", "H_kv", "S", "D_v"))
    if not query.dtype == key.dtype == value.dtype:  # to ask for their names takes longer
        check_same_dtype(query, key, value)
    batch, heads, _, head_dim = query.shape
    key_batch, kv_heads, keys, key_dim = key.shape
    value_batch, value_heads, values, _ = value.shape
    check_same_batch(batch, key_batch, value_batch)
    if head_dim != key_dim:
        raise ValueError(f"query and key must share head_dim: got {head_dim} and {key_dim}")
    if not head_dim:
        raise ValueError("head_dim must be at least 1: got 0")
    check_same_length(keys, values)
    if kv_heads != value_heads:
        got = f"{kv_heads} and {value_heads}"
        raise ValueError(f"key and value must share their number of heads: got {got}")
    if not kv_heads or heads % kv_heads:
        rule = "query heads must be a multiple of key heads"
        raise ValueError(f"{rule}: got {heads} and {kv_heads}")


def check_projected(
    query: Array, key: Array, value: Array, sizes: tuple[int, int, int, int]
) -> None:
    """Check what projections returned: a layer in the place of one may return anything."""
    check_shapes(query, key, value)
    got = (*query.shape[:3], key.shape[2])
    if got != sizes:
        raise ValueError(f"projections must keep (B, H, T, S) = {tuple(sizes)}: got {got}")


def check_same_dtype(query: Array, key: Array, value: Array) -> None:
    names = []
    for name, array in {"query": query, "key": key, "value": value}.items():
        check_float(name, array)
        names.append(dtype_name(array))
    if len(set(names)) > 1 and not all(arrays.is_cast(a, "float32") for a in (query, key, value)):
        got = f"{names[0]}, {names[1]} and {names[2]}"
        raise TypeError(f"query, key and value must share a dtype: got {got}")


def check_same_batch(query: int, key: int, value: int) -> None:
    if not query == key == value:
        got = f"{query}, {key} and {value}"
        raise ValueError(f"query, key and value must share a batch size: got {got}")


def check_same_length(keys: int, values: int) -> None:
    if keys != values:
        raise ValueError(f"key and value must share a length: got {keys} and {values}")


def check_settings(dropout: Any, empty_rows: Any, scale: Any, softcap: Any) -> None:
    """Check what a call is told in numbers and words; a module's may be set after it was made."""
    if scale is not None:
        check_number("scale", scale)
    if softcap is not None:
        check_number("softcap", softcap)
        if not softcap > 0:
            raise ValueError(f"softcap must be above 0: got {softcap}")
        if softcap > LARGEST:  # 0 * inf; without a cap it is None
            raise ValueError(f"softcap must be finite in float32, or None: got {softcap}")
    check_empty_rows(empty_rows)
    check_dropout(dropout)


def check_unchanged(before: Sequence[int], now: Sequence[int]) -> None:
    """Check that the tables of a mask were not written to since the call."""
    if before != now:
        rule = "masks and query_offset must stay as they were until gradients are taken, clone them"
        raise RuntimeError(f"{rule}: got one that was written to")


def check_empty_rows(empty_rows: Any) -> None:
    if not isinstance(empty_rows, str) or empty_rows not in EMPTY_ROWS:
        raise ValueError(f"empty_rows must be 'zero', 'nan' or 'uniform': got {empty_rows!r}")


def check_dropout(dropout: Any) -> None:
    check_number("dropout", dropout)
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie in 0..1: got {dropout}")


def check_bias(name: str, bias: Any, query: Array, sizes: tuple[int, int, int, int]) -> None:
    check_float_beside(name, bias, query)
    if bias.ndim not in (2, 4):
        raise ValueError(f"{name} must be (T, S) or (B, H, T, S): got {tuple(bias.shape)}")
    wanted = tuple(sizes[-bias.ndim :])
    loose = bias.ndim == 4
    pairs = zip(bias.shape, wanted, strict=True)
    if not all(got == size or (loose and got == 1) for got, size in pairs):
        rule = f"{name} must fit {_call(CALL[-bias.ndim :])} = {wanted}"
        raise ValueError(f"{rule}: got {tuple(bias.shape)}")


def check_sinks(sinks: Any, query: Array) -> None:
    check_float_beside("sinks", sinks, query)
    check_sink_of_each(sinks, query.shape[1])


def check_sink_of_each(sinks: Any, heads: int) -> None:
    if not is_array(sinks):
        raise TypeError(f"sinks must be an array: got {kind(sinks)}")
    if tuple(sinks.shape) != (heads,):
        raise ValueError(f"sinks must be (H,) = ({heads},): got {tuple(sinks.shape)}")


def check_float_beside(name: str, array: Any, query: Array) -> None:
    """Check an array that is float32 or has the query's dtype."""
    if not is_array(array):
        raise TypeError(f"{name} must be an array: got {kind(array)}")
    dtypes = sorted({"float32", dtype_name(query)})
    if dtype_name(array) not in dtypes and not arrays.is_cast(array, dtype_name(query)):
        raise TypeError(f"{name} must be {' or '.join(dtypes)}: got {dtype_name(array)}")


# Partial results


def check_partial(partial: Any, partial_class: type[Any]) -> None:
    if not isinstance(partial, partial_class):
        raise TypeError(f"a part must be a Partial, as attention_part gives: got {kind(partial)}")
    for name, array in zip(("sums", "maximum", "total"), partial, strict=True):
        if not is_array(array):
            raise TypeError(f"{name} must be an array: got {kind(array)}")
    shapes = [tuple(array.shape) for array in partial]
    if len(shapes[0]) != 4 or not shapes[0][:3] == shapes[1] == shapes[2]:
        rule = "a part must have sums (B, H, T, D_v), maximum (B, H, T) and total (B, H, T)"
        raise ValueError(f"{rule}: got {shapes[0]}, {shapes[1]} and {shapes[2]}")
    names = [dtype_name(array) for array in partial]
    if not names[0] == names[1] == names[2] or names[0] not in WIDE:
        got = f"{names[0]}, {names[1]} and {names[2]}"
        raise TypeError(f"a part must be float32 or float64 throughout: got {got}")


def check_partials(partials: Sequence, partial_class: type[Any]) -> None:
    if not partials:
        raise ValueError("merge needs at least one part: got none")
    for partial in partials:
        check_partial(partial, partial_class)
    shapes = [tuple(partial.sums.shape) for partial in partials]
    dtypes = [dtype_name(partial.sums) for partial in partials]
    if len(set(shapes)) > 1:
        raise ValueError(f"parts must share a shape: got {' and '.join(map(str, shapes))}")
    if len(set(dtypes)) > 1:
        raise TypeError(f"parts must share a dtype: got {' and '.join(dtypes)}")


def check_finish(
    partial: Any, partial_class: type[Any], dtype: Any, empty_rows: Any, sinks: Any
) -> None:
    check_partial(partial, partial_class)
    if dtype is not None and (name := arrays.name_of(dtype)) not in FLOATS:
        rule = f"dtype must be {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
        raise TypeError(f"{rule}: got {name or kind(dtype)}")
    if sinks is not None:
        check_rank_and_dtype("sinks", sinks, ("H",))
        check_sink_of_each(sinks, partial.sums.shape[1])
    check_empty_rows(empty_rows)
    if empty_rows == "uniform":
        rule = "empty_rows must be 'zero' or 'nan', a part does not know the mean of all values"
        raise ValueError(f"{rule}: got 'uniform'")


# Multi-head attention


def check_multihead(
    embed_dim: Any,
    num_heads: Any,
    num_kv_heads: Any,
    head_dim: Any,
    kdim: Any,
    vdim: Any,
) -> None:
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    sizes |= {} if head_dim is None else {"head_dim": head_dim}
    for name, size in (sizes | {"kdim": kdim, "vdim": vdim}).items():
        check_count(name, size, 1)
    if head_dim is None and embed_dim % num_heads:
        got = f"{embed_dim} and {num_heads}"
        raise ValueError(f"embed_dim must be a multiple of num_heads: got {got}")
    if num_heads % num_kv_heads:
        got = f"{num_heads} and {num_kv_heads}"
        raise ValueError(f"num_heads must be a multiple of num_kv_heads: got {got}")


def check_process_heads(process_heads: Any) -> None:
    if process_heads is not None and not callable(process_heads):
        rule = "process_heads must be a function of query, key and positions"
        raise TypeError(f"{rule}: got {kind(process_heads)}")


def check_same_tokens(same: bool, query_offset: Any) -> None:
    """Check that keys are the query's own tokens, which stand at 0..T - 1: else heads mismatch."""
    if not same:
        rule = "process_heads needs keys that are the query's own tokens, leave key out or decode"
        raise ValueError(f"{rule}: got others")
    if query_offset is not None and not (_is_integer(query_offset) and query_offset == 0):
        got = query_offset if _is_integer(query_offset) else kind(query_offset)
        raise ValueError(f"query_offset must be 0 where process_heads is given: got {got}")


def check_processed(processed: Any, query: Array, key: Array) -> None:
    """Check that `process_heads` returned heads of the same shapes."""
    pair = isinstance(processed, tuple | list) and len(processed) == 2
    if not pair or not all(is_array(array) for array in processed):
        got = ", ".join(map(kind, processed)) if pair else kind(processed)
        raise TypeError(f"process_heads must return a query and a key: got {got}")
    for name, array, before in zip(("query", "key"), processed, (query, key), strict=True):
        if array.shape != before.shape:
            rule = f"process_heads must keep the {name} {tuple(before.shape)}"
            raise ValueError(f"{rule}: got {tuple(array.shape)}")


def check_rotary(base: Any, dim: Any, scale: Any, frequencies: Any) -> None:
    for name, value in {"base": base, "scale": scale}.items():
        check_number(name, value)
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be above 0 and finite: got {value}")
    if dim is not None:
        check_count("dim", dim, 2)
        if dim % 2:
            raise ValueError(f"dim must be even: got {dim}")
    if frequencies is None:
        return
    if dim is not None or base != 10000.0:
        got = f"dim = {dim}" if dim is not None else f"base = {base}"
        raise ValueError(f"frequencies stand in for base and dim: got {got} beside them")
    if not isinstance(frequencies, list | tuple) or not frequencies:
        got = "none" if isinstance(frequencies, list | tuple) else kind(frequencies)
        raise TypeError(f"frequencies must be a list of numbers, one for two features: got {got}")
    for frequency in frequencies:
        check_number("a frequency", frequency)
        if not math.isfinite(frequency):
            raise ValueError(f"a frequency must be finite: got {frequency}")


def check_turned(dim: int | None, head_dim: int) -> int:
    """Return how many features of a head are turned, two by two."""
    if dim is None and head_dim % 2:
        raise ValueError(f"head_dim must be even where rotary has no dim: got {head_dim}")
    if dim is not None and dim > head_dim:
        raise ValueError(f"rotary's dim must be at most head_dim = {head_dim}: got {dim}")
    return head_dim if dim is None else dim


def check_norm(head_dim: Any, eps: Any, then: Any) -> None:
    check_count("head_dim", head_dim, 1)
    check_number("eps", eps)
    if not 1 / LARGEST <= eps <= LARGEST:  # a head of zeros would be NaN
        raise ValueError(f"eps must be above 0 and finite in float32: got {eps}")
    if then is not None and not callable(then):
        raise TypeError(f"then must be a function of query, key and positions: got {kind(then)}")


def check_normed(query: Array, head_dim: int) -> None:
    if query.shape[3] != head_dim:
        rule = f"QKNorm's head_dim must be that of the heads, {query.shape[3]}"
        raise ValueError(f"{rule}: got {head_dim}")


def check_inputs(
    query: Any, key: Any, value: Any, dims: dict[str, int], dtype: str, batch_first: bool
) -> None:
    """Check the inputs of a multi-head attention against its `dims` and its weights' dtype."""
    inputs = {"query": query, "key": key, "value": value}
    for (name, array), length in zip(inputs.items(), "TSS", strict=True):
        axes = ("B", length, "E") if batch_first else (length, "B", "E")
        check_features(name, array, axes, dims[name], dtype)
    samples, steps = (0, 1) if batch_first else (1, 0)
    check_same_batch(query.shape[samples], key.shape[samples], value.shape[samples])
    check_same_length(key.shape[steps], value.shape[steps])


def check_memory(key: Any, value: Any, dims: dict[str, int], dtype: str, batch_first: bool) -> None:
    """Check keys and values that are projected for later against the weights."""
    axes = ("B", "S", "E") if batch_first else ("S", "B", "E")
    check_features("key", key, axes, dims["key"], dtype)
    check_inputs(key, key, value, dims | {"query": dims["key"]}, dtype, batch_first)


def check_features(name: str, array: Any, axes: tuple[str, ...], features: int, dtype: str) -> None:
    check_rank_and_dtype(name, array, axes)
    if array.shape[2] != features:
        raise ValueError(f"{name} must have {features} features: got {array.shape[2]}")
    if dtype_name(array) != dtype:
        check_dtype(name, array, "weights", dtype)


def check_dtype(name: str, array: Array, owner: str, dtype: str) -> None:
    """Check that an array has its owner's dtype, or one that the framework makes that of now."""
    if dtype_name(array) != dtype and not arrays.is_cast(array, dtype):
        rule = f"{name} must have the dtype of the {owner}, {dtype}"
        raise TypeError(f"{rule}: got {dtype_name(array)}")


def check_heads(features: int, num_heads: int, head_dim: int) -> None:
    """Check the width of a projection, in whose place a user may have put another."""
    if features != num_heads * head_dim:
        rule = f"a projection must give {num_heads} heads of {head_dim} features"
        raise ValueError(f"{rule}: got {features} features")


def check_given(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Check the shape that a map gives, in whose place a user may have put another."""
    if array.shape != shape:
        raise ValueError(f"{name} must give {tuple(shape)}: got {tuple(array.shape)}")


def check_key_padding_mask(mask: Any, sizes: tuple[int, int, int, int]) -> None:
    check_array("key_padding_mask", mask, ("B", "S"))
    check_bool("key_padding_mask", mask, "True hides")
    wanted = (sizes[0], sizes[3])
    if tuple(mask.shape) != wanted:
        rule = f"key_padding_mask must be (B, S) = {wanted}"
        raise ValueError(f"{rule}: got {tuple(mask.shape)}")


def check_attn_mask(mask: Any, query: Array, sizes: tuple[int, int, int, int]) -> None:
    """Accept a bool or additive mask of rank 2 (T, S), 3 (B*H, T, S) or 4 (B, H, T, S)."""
    if not is_array(mask):
        raise TypeError(f"attn_mask must be a Mask or an array: got {kind(mask)}")
    dtypes = ["bool", *sorted({"float32", dtype_name(query)})]
    if dtype_name(mask) not in dtypes and not arrays.is_cast(mask, dtype_name(query)):
        rule = f"attn_mask must be {', '.join(dtypes[:-1])} or {dtypes[-1]}"
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


def check_counts(**sizes: Any) -> None:
    for name, size in sizes.items():
        check_count(name, size, 0 if name == "batch_size" else 1)


def check_live(cache: Any) -> None:
    if getattr(cache, "consumed", False):  # JAX's caches have no such attribute
        raise ValueError("a cache is used once, copy() branches: got one that was handed on")


def check_cache(cache: Any) -> None:
    """Check that a cache is not consumed, and that its arrays fit: anyone may make one."""
    check_live(cache)
    check_rank_and_dtype("cache.key", cache.key, ("B", "H_kv", "C", "D"))
    check_array("cache.value", cache.value, ("B", "H_kv", "C", "D"))
    check_dtype("cache.value", cache.value, "cache.key", dtype_name(cache.key))
    got, wanted = tuple(cache.value.shape), tuple(cache.key.shape)
    if got != wanted:
        raise ValueError(f"cache.value must be {wanted}, as cache.key: got {got}")
    check_written(cache.lengths, cache.key.shape[0])


def check_written(lengths: Any, batch: int) -> None:
    """Check how much of a cache is written; narrower integers could not count to its end."""
    if not is_array(lengths) or dtype_name(lengths) not in ("int32", "int64"):
        raise TypeError(f"cache.lengths must be int32 or int64 (B,): got {kind(lengths)}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(f"cache.lengths must be (B,) = ({batch},): got {tuple(lengths.shape)}")


def check_append(cache: Any, key: Any, value: Any, counts: Any) -> None:
    check_live(cache)
    if hasattr(cache, "consumed") and cache.key is cache.value:  # JAX writes to neither
        raise ValueError("a cache writes to its key and value, they must be two: got one array")
    batch, heads, _, head_dim = cache.key.shape
    for name, array in (("key", key), ("value", value)):
        check_rank_and_dtype(name, array, ("B", "H_kv", "T", "D"))
        got = tuple(array.shape)
        wanted = (batch, heads, key.shape[2], head_dim)
        if got != wanted:
            raise ValueError(f"{name} must be (B, H_kv, T, D) = {wanted}: got {got}")
        check_dtype(name, array, "cache", dtype_name(cache.key))
    if counts is not None:
        check_samples("counts", counts, batch, key.shape[2])
    check_room(cache, key.shape[2] if counts is None else counts)


def check_room(cache: Any, counts: int | Array) -> None:
    """Check what shall be written against the capacity."""
    lengths = cache.lengths
    if cache.rolling or not is_concrete(lengths) or (is_array(counts) and not is_concrete(counts)):
        return
    written = arrays.to_numpy(lengths).astype(np.int64)
    if written.size and (lowest := written.min()) < 0:
        raise ValueError(f"cache.lengths must be at least 0: got {lowest}")
    needed = written + (arrays.to_numpy(counts).astype(np.int64) if is_array(counts) else counts)
    if needed.size and needed.max() > cache.capacity:
        got = f"{int(needed.max())} tokens for {cache.capacity} slots"
        raise ValueError(f"capacity must hold every token: got {got}")


def check_samples(name: str, array: Any, batch: int, most: int) -> None:
    """Accept integers (B,) from 0 to `most`."""
    if not is_array(array) or not _are_integers(array):
        raise TypeError(f"{name} must be integers (B,): got {kind(array)}")
    if tuple(array.shape) != (batch,):
        raise ValueError(f"{name} must be (B,) = ({batch},): got {tuple(array.shape)}")
    if _has_known_values(array):
        _check_range(name, *arrays.lowest_highest(array), most)


def _check_range(name: str, lowest: int, highest: int, most: int) -> None:
    if lowest < 0 or highest > most:
        got = lowest if lowest < 0 else highest
        raise ValueError(f"{name} must lie in 0..{most}: got {got}")


def check_index(index: Any, batch: int) -> None:
    if not is_array(index) or not _are_integers(index):
        raise TypeError(f"index must be integers (B,): got {kind(index)}")
    check_samples("index", index, index.shape[0] if index.ndim == 1 else batch, batch - 1)


def check_truncate(cache: Any, lengths: Any) -> Array:
    """Return how many slots of each sample remain."""
    check_cache(cache)
    check_room(cache, 0)  # a compiled call may have gone beyond
    most = FARTHEST if cache.rolling else cache.capacity
    if _is_integer(lengths):
        check_count("lengths", lengths, 0)
        _check_range("lengths", 0, lengths, most)
        lengths = arrays.full_like(cache.lengths, int(lengths))
    check_samples("lengths", lengths, len(cache.lengths), most)
    if cache.rolling:
        _check_kept(cache, lengths)
    if is_concrete(lengths) and is_concrete(cache.lengths):
        wanted, written = arrays.to_numpy(lengths), arrays.to_numpy(cache.lengths)
        if (wanted > written).any():
            sample = int((wanted > written).argmax())
            got = f"{int(wanted[sample])} of {int(written[sample])}"
            raise ValueError(f"lengths must be at most what is written: got {got}")
    return arrays.copy_like(lengths, cache.lengths)


def _check_kept(cache: Any, lengths: Array) -> None:
    """Refuse to go back to where a window looks at slots that may have been written again."""
    if not (is_concrete(lengths) and is_concrete(cache.lengths)):
        raise ValueError("lengths must be known to truncate the cache of a window: got traced ones")
    kept, written = arrays.to_numpy(lengths), arrays.to_numpy(cache.lengths)
    lost = (kept > 0) & (kept < written) & (written >= cache.capacity)
    if lost.any():
        sample = int(lost.argmax())
        rule = f"lengths must be 0, or all, once the {cache.capacity} slots of a window are written"
        raise ValueError(f"{rule}: got {int(kept[sample])} of {int(written[sample])}")


def check_no_window(cache: Any, name: str) -> None:
    if cache.rolling:
        raise ValueError(f"{name} must be None where the cache has a window: got one beside it")


def check_cached(
    query: Any, cache: Any, value: Any, dims: dict[str, int], dtype: str, batch_first: bool
) -> None:
    """Check a query against the weights and the cache that it looks at."""
    check_cache(cache)
    check_room(cache, 0)  # a compiled call may have gone beyond
    if cache.rolling:
        raise ValueError("key must be a cache without a window, which is for decode: got one")
    if value is not None:
        raise TypeError(f"value must be None where key is a cache: got {kind(value)}")
    check_features("query", query, _steps(batch_first), dims["query"], dtype)
    check_fits(cache, query.shape[0 if batch_first else 1], dims, dtype)


def _steps(batch_first: bool) -> tuple[str, ...]:
    return ("B", "T", "E") if batch_first else ("T", "B", "E")


def check_fits(cache: Any, batch: int, dims: dict[str, int], dtype: str) -> None:
    got = tuple(cache.key.shape)
    wanted = (batch, dims["kv_heads"], cache.capacity, dims["head_dim"])
    if got != wanted:
        raise ValueError(f"cache must be (B, H_kv, C, D) = {wanted}: got {got}")
    check_dtype("cache", cache.key, "weights", dtype)


def check_is_cache(cache: Any, cache_class: type) -> None:
    if not isinstance(cache, cache_class):
        raise TypeError(f"cache must be a {cache_class.__name__}: got {kind(cache)}")


def check_decode(
    x: Any, cache: Any, hidden: Any, dims: dict[str, int], dtype: str, batch_first: bool
) -> None:
    """Check the tokens of a step, a chunk or a prompt against the weights and their cache."""
    check_cache(cache)
    check_features("x", x, _steps(batch_first), dims["query"], dtype)
    if not dims["query"] == dims["key"] == dims["value"]:
        got = f"{dims['key']} and {dims['value']} beside {dims['query']}"
        raise ValueError(f"kdim and vdim must be embed_dim to decode: got {got}")
    check_fits(cache, x.shape[0 if batch_first else 1], dims, dtype)
    if hidden is not None:
        check_hidden_tokens(x, hidden, batch_first)


def check_hidden_tokens(x: Any, hidden: Any, batch_first: bool) -> None:
    check_rank_and_dtype("x", x, _steps(batch_first))
    check_array("hidden", hidden, ("B", "T"))
    check_bool("hidden", hidden, "True hides")
    wanted = tuple(x.shape[:2] if batch_first else x.shape[1::-1])
    if tuple(hidden.shape) != wanted:
        raise ValueError(f"hidden must be (B, T) = {wanted}: got {tuple(hidden.shape)}")


def check_movable(name: str, mask: Any) -> None:
    """Accept only masks that know positions: hidden tokens are left out, and rows move up."""
    rule = f"{name} must go by positions where tokens are hidden"
    if is_array(mask):
        raise ValueError(f"{rule}: got {kind(mask)}")
    for leaf in mask.leaves() if mask is not None else ():
        if any("T" in axes for axes in leaf.axes):
            raise ValueError(f"{rule}: got {leaf.name}")


# Layers


def check_switches(**switches: Any) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False: got {kind(value)}")


def check_layer(dim_feedforward: Any, activation: Any, layer_norm_eps: Any) -> None:
    check_count("dim_feedforward", dim_feedforward, 1)
    if not isinstance(activation, str) or activation not in ("relu", "gelu"):
        raise ValueError(f"activation must be 'relu' or 'gelu': got {activation!r}")
    check_number("layer_norm_eps", layer_norm_eps)
    if not 0 <= layer_norm_eps < float("inf"):
        raise ValueError(f"layer_norm_eps must be at least 0 and finite: got {layer_norm_eps}")


def check_depth(cache: Any, layers: int, memories: int) -> None:
    if len(cache.layers) != layers:
        raise ValueError(f"cache must have {layers} layers: got {len(cache.layers)}")
    if len(cache.memory) != memories:
        raise ValueError(f"cache must have {memories} memories: got {len(cache.memory)}")


# Tokens


def check_seq2seq(
    src_vocab: Any, tgt_vocab: Any, padding_idx: Any, positions: Any, batch_first: bool
) -> None:
    check_counts(src_vocab=src_vocab, tgt_vocab=tgt_vocab)
    check_integer("padding_idx", padding_idx)
    if not 0 <= padding_idx < min(src_vocab, tgt_vocab):
        rule = f"padding_idx must be in both vocabularies, 0..{min(src_vocab, tgt_vocab) - 1}"
        raise ValueError(f"{rule}: got {padding_idx}")
    if not isinstance(positions, str) or positions not in ("sinusoidal", "none"):
        raise ValueError(f"positions must be 'sinusoidal' or 'none': got {positions!r}")
    if not batch_first:
        raise ValueError("tokens are (B, T), so batch_first must be True: got False")


def check_token_array(
    name: str, tokens: Any, axes: tuple[str, ...], vocab: int | None = None
) -> None:
    check_array(name, tokens, axes)
    if not _are_integers(tokens):
        raise TypeError(f"{name} must be integers: got {dtype_name(tokens)}")
    if vocab is not None and _has_known_values(tokens):
        lowest, highest = arrays.lowest_highest(tokens)
        if lowest < 0 or highest >= vocab:
            rule = f"{name} must lie in its vocabulary, 0..{vocab - 1}"
            raise ValueError(f"{rule}: got {lowest if lowest < 0 else highest}")


def check_embedding(tokens: int, vocab: int) -> None:
    """Check an embedding, in whose place a user may have put a smaller one."""
    if tokens < vocab:
        raise ValueError(f"an embedding must hold {vocab} tokens: got {tokens}")


def check_token_batch(tgt: Array, cache: Any) -> None:
    check_cache(cache.layers[0])
    if tgt.shape[0] != len(cache.lengths):
        got = f"{tgt.shape[0]} and {len(cache.lengths)}"
        raise ValueError(f"tgt and cache must share a batch size: got {got}")


def check_all_kept(cache: Any) -> None:
    """Refuse a window where the one pass has none."""
    if any(part.rolling for part in cache.layers):
        raise ValueError("cache must have no window here, Transformer.decode takes one: got one")


def check_token_pair(src: Any, tgt: Any, src_vocab: int, tgt_vocab: int) -> None:
    check_token_array("src", src, ("B", "S"), src_vocab)
    check_token_array("tgt", tgt, ("B", "T"), tgt_vocab)
    if src.shape[0] != tgt.shape[0]:
        got = f"{src.shape[0]} and {tgt.shape[0]}"
        raise ValueError(f"src and tgt must share a batch size: got {got}")


def check_greedy(
    model: Any, src: Any, prompt: Any, eos_idx: Any, max_new_tokens: Any, capacity: Any
) -> None:
    check_token_pair(src, prompt, model.src_vocab, model.tgt_vocab)
    check_integer("eos_idx", eos_idx)
    check_count("max_new_tokens", max_new_tokens, 1)
    if is_concrete(prompt) or not prompt.shape[1]:
        tokens = arrays.to_numpy(prompt) if prompt.shape[1] else np.empty(prompt.shape)
        without = (tokens == model.padding_idx).all(1)
        if without.any():
            sample = int(without.argmax())
            raise ValueError(f"every prompt must have a token: got none in sample {sample}")
    needed = prompt.shape[1] + int(max_new_tokens) - 1
    if capacity is not None and capacity < needed:
        raise ValueError(
            f"capacity must hold every token: got {needed} tokens for {capacity} slots"
        )


# Weights


def check_layout(layout: Any, attentions: Mapping[str, Any]) -> None:
    if not isinstance(layout, str) or layout not in LAYOUTS:
        *names, last = map(repr, LAYOUTS)
        raise ValueError(f"layout must be {', '.join(names)} or {last}: got {layout!r}")
    if layout not in ("rosetta", "torch") and list(attentions) != [""]:
        raise ValueError(f"layout {layout!r} is that of one MultiHeadAttention: got another model")
    has = LAYOUTS[layout]
    for attn in attentions.values():
        if attn.num_kv_heads != attn.num_heads and "groups" not in has:
            got = f"{attn.num_kv_heads} for {attn.num_heads}"
            raise ValueError(f"layout {layout!r} has as many key heads as query heads: got {got}")
        if attn.num_heads * attn.head_dim != attn.embed_dim and "head_dim" not in has:
            got = f"{attn.num_heads} heads of {attn.head_dim} for {attn.embed_dim}"
            raise ValueError(f"layout {layout!r} has heads that make up embed_dim: got {got}")
        if {attn.kdim, attn.vdim} != {attn.embed_dim} and "widths" not in has:
            got = f"{attn.kdim} and {attn.vdim} for {attn.embed_dim}"
            raise ValueError(f"layout {layout!r} has keys and values of embed_dim: got {got}")
        unknown = [name for name in UNKNOWN if name not in has]
        others = [name for name in unknown if getattr(attn, name) is not None]
        if others:  # weights alone would compute something else there
            raise ValueError(f"layout {layout!r} has no {' and no '.join(others)}: got one")
        turns = attn.process_heads
        if SAME_NAMES.get(layout) == "llama" and getattr(turns, "then", turns) is None:
            rule = (
                f"layout {layout!r} turns heads by position and needs process_heads; if the model "
                "turns none, rename o_proj to out_proj and use layout 'rosetta'"
            )
            got = "an attention without process_heads" if turns is None else "a QKNorm without then"
            raise ValueError(f"{rule}: got {got}")


def check_has_values(abstract: Sequence[str]) -> None:
    if abstract:
        rule = "model must have values to be exported, import_weights puts them in"
        raise ValueError(f"{rule}: got none for {', '.join(abstract)}")


def check_not_computed(names: Sequence[str]) -> None:
    if names:
        rule = (
            "weights must be parameters: call prune.remove, remove_weight_norm or "
            "parametrize.remove_parametrizations first, or merge what is added"
        )
        raise ValueError(f"{rule}: got a computed {', '.join(names)}")


def check_whole(parts: Sequence[str]) -> None:
    if parts:
        rule = "weights must lie in memory, gather what is sharded and make dense what is sparse"
        raise ValueError(f"{rule}: got {', '.join(parts)}")


def check_apart(shared: Sequence[str]) -> None:
    if shared:
        rule = "parameters that are not tied must not share memory, clone them"
        raise ValueError(f"{rule}: got {', '.join(shared)}")


def check_projections(weights: Mapping[str, Array], layout: str, prefix: str, attn: Any) -> None:
    """Check that an attention's projections have weights, and just those that a layout can have."""
    projections = [f"{prefix}{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    for name in projections:
        if not any(weight.startswith(f"{name}.") for weight in weights):
            raise ValueError(f"{name} must have parameters, one quantized has none: got none")
    has = LAYOUTS[layout]
    bias = attn.qkv_bias if "qkv_bias" in has else attn.bias
    names = {f"{name}.weight" for name in projections}
    names |= {f"{name}.bias" for name in projections[:3] if bias}
    names |= {f"{projections[3]}.bias"} if attn.bias else set()
    held = {name for name in weights if name.startswith(prefix)}
    if has is not ALL and held != names:
        got = ", ".join(sorted(held ^ names))
        raise ValueError(f"layout {layout!r} has a weight and a bias a projection: got {got}")
    if layout in JOINED and len({dtype_name(weights[name]) for name in names}) > 1:
        got = ", ".join(f"{name} {dtype_name(weights[name])}" for name in sorted(names))
        raise ValueError(f"layout {layout!r} has one dtype for all projections: got {got}")


def check_prefix(prefix: Any) -> None:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string: got {kind(prefix)}")


def check_names(names: Sequence[str], prefix: str) -> None:
    """Check that no name is there twice, and that some begin with a prefix."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"weights must have names of their own: got {_some(twice)} twice")
    if prefix and not any(name.startswith(prefix) for name in names):
        dots = [(name, dot) for name in names for dot, letter in enumerate(name) if letter == "."]
        near = get_close_matches(prefix, sorted({name[: dot + 1] for name, dot in dots}))
        rule = "prefix must begin some of the names"
        rule += f", try {' or '.join(map(repr, near))}" if near else ""
        raise ValueError(f"{rule}: got {prefix!r} for {_some(names)}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4])}{more}" if names else "none"


def recognised(looks: Sequence[tuple[str, str]], names: Sequence[str], begin: str) -> str:
    """Return the one layout that names tell of: those that are `looks`, below which prefix.

    All stand below `begin`, which was asked for.
    """
    layouts = {layout for layout, prefix in looks if not prefix}
    if len(layouts) != 1:
        told = [f"{layout!r} under prefix {begin + prefix!r}" for layout, prefix in looks]
        rule = "layout 'auto' needs the names of one layout, name it or give its prefix"
        raise ValueError(f"{rule}: got {_some(told or names)}")
    norms = [name for name in names if "_norm." in name]
    if norms and layouts == {"llama"}:
        rule = "layout 'auto' cannot tell 'qwen3' from 'gemma', whose norms add 1, name one"
        raise ValueError(f"{rule}: got {_some(norms)}")
    return layouts.pop()


def check_mapping(weights: Any) -> None:
    if not hasattr(weights, "items"):
        raise TypeError(f"weights must be a mapping or a path: got {kind(weights)}")


def check_weights(
    weights: Mapping[str, Any],
    wanted: Mapping[str, Any],
    layout: str,
    looks: Sequence[tuple[str, str]],
    begin: str,
) -> None:
    """Check names, shapes and dtypes against those that the model has in a layout.

    `looks` are the layouts that the names tell of, and below which prefix: a message names one.
    All stand below `begin`, which was asked for.
    """
    extra = [name for name in weights if name.split(".")[-1] in ("bias_k", "bias_v")]
    if extra:
        got = ", ".join(extra)
        raise ValueError(f"bias_k and bias_v have no counterpart here: got {got}")
    wrong = [f"no {name}" for name in wanted if name not in weights]
    wrong += [f"{name}, which is unexpected" for name in weights if name not in wanted]
    wrong += _wrong_arrays(weights, wanted)
    if wrong:
        rule = f"weights must be those of the model{_other_layout(layout, looks, begin)}"
        raise ValueError(f"{rule}: got {'; '.join(wrong)}")


def _other_layout(layout: str, looks: Sequence[tuple[str, str]], begin: str) -> str:
    """Return which other layout, or which prefix, weights look like, if they do."""
    if not looks or (SAME_NAMES.get(layout, layout), "") in looks:
        return ""
    other, prefix = looks[0]
    under = f" under prefix {begin + prefix!r}" if prefix else ""
    return f", these look like layout {other!r}{under}"


def _wrong_arrays(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for name in wanted:
        if name not in weights:
            continue
        got, model = weights[name], wanted[name]
        if isinstance(got, str):  # why it cannot be read
            yield f"{name}, {got}"
        elif tuple(got.shape) != tuple(model.shape):
            yield f"{name} {tuple(got.shape)} for {tuple(model.shape)}"
        elif dtype_name(got) != dtype_name(model):
            yield f"{name} {dtype_name(got)} for {dtype_name(model)}"


def unreadable(error: Exception) -> str:
    return f"which cannot be read ({str(error).strip().splitlines()[0] if str(error) else error!r})"


def beyond(dtype: str) -> str:
    return f"which is beyond {dtype}"


def check_ties(pairs: Sequence[tuple[str, str]]) -> None:
    if pairs:
        got = "; ".join(" and ".join(pair) for pair in pairs)
        raise ValueError(f"weights of tied parameters must be equal: got others for {got}")


def wrong_configuration(
    settings: Any,
    names: Sequence[str],
    parts: Mapping[str, Sequence[str]],
    weights: Mapping[str, Array],
) -> str | None:
    """Say why a file may not have these settings: what it asks for would be built first."""
    if not isinstance(settings, dict) or not set(names) - LATER <= set(settings) <= set(names):
        return "its settings are not those of its class"
    for name in {"bias", "qkv_bias", "sinks", "batch_first", "norm_first", "norm"} & set(settings):
        if not isinstance(settings[name], bool):
            return f"{name} = {settings[name]!r}, neither true nor false"
    for name, array in weights.items():
        if dtype_name(array) not in FLOATS:
            return f"{name} of {dtype_name(array)}"
    held = sum(math.prod(array.shape) for array in weights.values())
    sizes = {name: value for name, value in settings.items() if type(value) is int}
    for name, value in sizes.items():  # every matrix of a model has its width on one side
        if value < 0 or value * sizes.get("d_model", 1) > held:
            return f"{name} = {value}, beyond its arrays"
    if "embed_dim" in sizes and (reason := _wrong_projections(sizes, held)):
        return reason
    return _wrong_part(settings.get("process_heads"), parts, held)


def _wrong_projections(sizes: Mapping[str, int], held: int) -> str | None:
    width, heads = sizes["embed_dim"], max(sizes.get("num_heads", 1), 1)
    head_dim = sizes.get("head_dim", width // heads)
    kv_heads = sizes.get("num_kv_heads", heads)
    for name, count in {"embed_dim": heads, "kdim": kv_heads, "vdim": kv_heads}.items():
        if sizes.get(name, width) * count * head_dim > held:
            return f"{name} = {sizes.get(name, width)} for {count} heads, beyond its arrays"
    return None


def _wrong_part(
    settings: Any, parts: Mapping[str, Sequence[str]], held: int, inside: bool = False
) -> str | None:
    """Say why a file may not have such a part; one part may hold another, and no more."""
    if settings is None:
        return None
    name = settings.get("class") if isinstance(settings, dict) else None
    if not isinstance(name, str) or set(settings) != {"class", *parts.get(name, ())}:
        return "a part whose settings are not those of its class"
    if name not in parts or (inside and "then" in settings):
        return f"a part {name}, which it cannot have"
    if type(settings.get("head_dim", 1)) is not int or settings.get("head_dim", 1) > held:
        return f"head_dim = {settings['head_dim']!r} of {name}, beyond its arrays"
    return _wrong_part(settings.get("then"), parts, held, inside=True)


def check_model_class(model: Any, classes: Sequence[type]) -> None:
    if type(model) not in classes:
        names = " or ".join(model_class.__name__ for model_class in classes)
        rule = f"model must be a {names}, a subclass or a wrapper must be saved in parts"
        raise ValueError(f"{rule}: got {type(model).__name__}")


def check_kept(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check what a model is made of against what `load` would build of its settings."""
    wrong: dict[str, str] = {}
    for name in [*got, *(name for name in wanted if name not in got)]:
        parents = [name[:dot] for dot, letter in enumerate(name) if letter == "."]
        if got.get(name) == wanted.get(name) or any(parent in wrong for parent in parents):
            continue
        wrong[name] = f"{name} {got.get(name, 'missing')} for {wanted.get(name, 'nothing')}"
    if wrong:
        raise not_kept("; ".join(wrong.values()))


def not_kept(reason: str) -> ValueError:
    rule = "model must be what load builds of its settings, keep others by export_weights"
    return ValueError(f"{rule}: got {reason}")


def check_tied(tied: Any, shapes: Mapping[str, tuple]) -> None:
    """Check that a file's ties are pairs of its arrays, of one shape."""
    if not isinstance(tied, dict):
        raise TypeError(f"tied parameters must be a mapping of names: got {kind(tied)}")
    for name, other in tied.items():
        if name not in shapes or not isinstance(other, str) or other not in shapes:
            raise ValueError(f"tied parameters must be among the arrays: got {name} and {other}")
        if shapes[name] != shapes[other]:
            raise ValueError(f"tied parameters must share a shape: got {name} and {other}")


def check_tie(name: str, other: str, places: Mapping[str, tuple[Any, str]]) -> None:
    """Check that two parameters lie alike: in JAX kernels are (in, out), embeddings are not."""
    if (places[name][1] == "kernel") != (places[other][1] == "kernel"):
        raise ValueError(f"tied parameters must lie alike in this backend: got {name} and {other}")


def not_ours(path: str | Path, reason: str) -> ValueError:
    return ValueError(f"path must be a safetensors file that fits: got {path} ({reason})")


def check_target(source: str | Path, target: str | Path) -> None:
    path = Path(target)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"target must be a file, in a folder that is there: got {target}")
    if path.exists() and path.samefile(source):
        raise ValueError(f"target must be another file than source: got {target}")


def check_own_file(layout: str, prefix: str) -> None:
    if layout not in ("auto", "rosetta") or prefix:
        got = f"prefix {prefix!r}" if prefix else f"layout {layout!r}"
        raise ValueError(
            f"layout and prefix must be left out for a file that save wrote: got {got}"
        )


def check_tells_all(layout: str) -> None:
    if SAME_NAMES.get(layout) == "llama":
        rule = (
            f"a file in layout {layout!r} must say how heads are turned, build the attention with "
            "process_heads, then import_weights and save"
        )
        raise ValueError(f"{rule}: got weights alone")


def not_in_layout(layout: str, names: Sequence[str]) -> ValueError:
    rule = f"weights must be those of an attention in layout {layout!r}"
    return ValueError(f"{rule}: got {_some(names)}")


def number_of_heads(asked: int | None, shaped: int | None, shapes: Mapping[str, tuple]) -> int:
    """Return how many heads an attention has: of its arrays, or else as asked."""
    heads = asked if shaped is None else shaped
    if heads is None:
        raise ValueError("heads must be told where the arrays do not tell, --heads: got none")
    if asked not in (None, heads):
        raise ValueError(f"heads must be those of the arrays: got {asked} for {shaped}")
    rows = {name: shape[0] for name, shape in shapes.items()}
    head_dim = rows["q"] // max(heads, 1)
    if head_dim < 1 or head_dim * heads != rows["q"] or any(n % head_dim for n in rows.values()):
        raise ValueError(f"heads must divide the rows of each projection: got {heads} for {rows}")
    return heads


def check_same_outputs(one: np.ndarray, other: np.ndarray) -> None:
    if not np.isfinite(one).all():
        raise ValueError("outputs must be finite to be compared: got NaN or inf")
    if not np.array_equal(one, other):
        off = abs(one.astype(np.float64) - other).max()
        raise ValueError(f"both files must give the same output: got {off:.3g} between them")


def no_safetensors(error: ImportError) -> ImportError:
    rule = "safetensors must be installed to read or write files, pip install safetensors"
    return ImportError(f"{rule}: got {error}")
