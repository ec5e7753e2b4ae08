"""What is refused on several devices, and in which words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import arrays
from .arrays import Array, is_concrete
from .checks import _is_integer, as_integers, check_count, check_is_mask, check_mask, kind


def check_shares(name: str, length: Any, world: Any) -> None:
    """Check that a size is a multiple of the devices, or chunks, that it is shared out to."""
    check_count(name, length, 0)
    check_count("world", world, 1)
    if length % world:
        rule = f"{name} must be a multiple of {world}, as shares are equal"
        raise ValueError(f"{rule}: got {length}")


def check_axes(layout: Any, sizes: Mapping[str, int]) -> None:
    """Check the axes of a mesh that samples, heads and rows are spread over, and their sizes."""
    names = getattr(layout.mesh, "axis_names", None)
    if names is None:
        rule = "mesh must have named axes, as jax.make_mesh makes it"
        raise TypeError(f"{rule}: got {kind(layout.mesh)}")
    for name in (used := (*layout.batch, *layout.heads, *layout.length)):
        if name not in names:
            raise ValueError(f"mesh must have the axis {name!r}: got {names}")
    if len(set(used)) < len(used):
        raise ValueError(f"batch, heads and length must be on axes of their own: got {used}")
    spread = {"B": layout.batch, "H": layout.heads, "T": layout.length, "S": layout.length}
    for letter, axes in spread.items():
        check_shares(letter, sizes[letter], layout.count(axes))


def check_no_rows(rows: Any) -> None:
    if rows is not None:
        raise ValueError(f"rows need length, the axis that they are spread over: got {kind(rows)}")


def check_same_rows(queries: int, keys: int) -> None:
    if queries != keys:
        rule = "rows are those of queries and of keys, and need T == S"
        raise ValueError(f"{rule}: got {queries} and {keys}")


def check_aligned(mask: Any, query: Any, key: Any) -> None:
    """Check that rows and keys, which are dealt out alike, are as many where positions count."""
    shapes: list[Any] = [getattr(array, "shape", ()) for array in (query, key)]
    if getattr(mask, "positional", False) and all(len(shape) == 4 for shape in shapes):
        queries, keys = (shape[2] for shape in shapes)
        if queries != keys:
            rule = "a mask of positions needs T == S where rows are sharded"
            raise ValueError(f"{rule}: got T = {queries} and S = {keys}")


def check_planned(mask: Any, mask_class: type, sizes: Any) -> None:
    check_is_mask("mask must be a Mask", mask, mask_class)
    if not isinstance(sizes, tuple) or len(sizes) != 4:
        raise ValueError(f"sizes must be (B, H, T, S): got {sizes}")
    check_mask(mask, sizes)
    check_same_rows(*sizes[2:])


def check_rows(rows: Any, length: int, world: int) -> Array:
    """Return rows (world, length / world), in which each position stands once."""
    rows = as_integers("rows", rows, "WT")
    if not is_concrete(rows):
        raise TypeError(f"rows must be known while a function is traced: got {kind(rows)}")
    if tuple(rows.shape) != (world, length // world):
        wanted = (world, length // world)
        raise ValueError(f"rows must be (devices, T / devices), {wanted}: got {tuple(rows.shape)}")
    _check_each_once(arrays.to_numpy(rows).reshape(-1))
    return rows


def _check_each_once(places: np.ndarray) -> None:
    lacking = np.setdiff1d(np.arange(len(places)), places)
    if len(lacking):
        rule = f"rows must have every position 0..{len(places) - 1} once"
        raise ValueError(f"{rule}: got no {lacking[0]}")


def check_rows_fit(rows: int, length: int) -> None:
    if rows != length:
        rule = f"rows of shard_sequences must be those of the {length} tokens"
        raise ValueError(f"{rule}: got rows of {rows}")


def check_exchange(exchange: Any, empty_rows: str) -> None:
    if exchange not in ("auto", "gathered", "exchanged", "ring"):
        rule = "exchange must be 'auto', 'gathered', 'exchanged' or 'ring'"
        raise ValueError(f"{rule}: got {exchange!r}")
    if exchange in ("exchanged", "ring") and empty_rows == "uniform":
        rule = f"empty_rows must be 'zero' or 'nan' in exchange {exchange!r}"
        raise ValueError(f"{rule}, in which no device knows the mean of all values: got 'uniform'")


def check_no_dropout(dropout: float) -> None:
    if dropout:
        raise ValueError(f"dropout must be 0 where a call is sharded: got {dropout}")


def check_in_shards(same: bool, need_weights: bool, query_offset: Any) -> None:
    """Check a module's call where each rank has some tokens of a sequence."""
    rule = "where sequences are sharded"
    if not same:
        raise ValueError(
            "keys must be the query's own tokens where shard_sequences has rows: got others"
        )
    if need_weights:
        raise ValueError(f"need_weights must be False {rule}: got True")
    if query_offset is not None and not (_is_integer(query_offset) and query_offset == 0):
        got = query_offset if _is_integer(query_offset) else kind(query_offset)
        raise ValueError(f"query_offset must be 0 {rule}: got {got}")


def check_no_memory(outside: bool, model: str) -> None:
    if not outside:
        rule = "a memory is not sharded here, put both texts into one sequence with prefix()"
        raise ValueError(f"{rule}: got a {model} inside shard_sequences")


def check_no_shards(outside: bool) -> None:
    if not outside:
        rule = "decoding knows no shards of sequences, leave shard_sequences first"
        raise RuntimeError(f"{rule}: got a call inside")


def check_engine(function: Any) -> None:
    """Check that nobody has put another attention, of the shards of sequences, in its place."""
    if "context_parallel" in (getattr(function, "__module__", None) or ""):
        rule = "attention to a shard of the keys is not that to all, use sharded_attention"
        raise RuntimeError(f"{rule}: got a call inside context_parallel")


def check_predicate(hidden: bool) -> None:
    """Check that a predicate is told the samples and heads of the whole call."""
    if hidden:
        rule = "a predicate must know which samples and heads a shard has, give attention DTensors"
        raise ValueError(f"{rule}: got a call inside local_map")


def check_all_distributed(distributed: Mapping[str, bool]) -> None:
    others = [name for name, is_so in distributed.items() if not is_so]
    if others:
        rule = "query, key and value must all be DTensors, or none of them"
        raise TypeError(f"{rule}: got an ordinary {' and '.join(others)}")


def check_shards(right: bool, layouts: Sequence[str]) -> None:
    if not right:
        rule = (
            "query, key and value must be sharded alike, by sample or by whole heads, and a "
            "sequence is for sharded_attention"
        )
        raise ValueError(f"{rule}: got {', '.join(layouts)}")


def check_no_gradient(name: str, wanted: bool) -> None:
    if wanted:
        rule = f"{name} must be a DTensor, too, where it asks for a gradient"
        raise ValueError(f"{rule}: got an ordinary array")


def check_whole_heads(num_heads: int, devices: int) -> None:
    if num_heads % devices:
        rule = "heads must be a multiple of the devices that share them"
        raise ValueError(f"{rule}: got {num_heads} heads for {devices} devices")


def check_shared_alike(query: int, key: int, num_heads: int, num_kv_heads: int) -> None:
    """Check that a device has the key heads of its query heads."""
    if query * num_kv_heads != key * num_heads and num_kv_heads != 1:
        rule = "a device must have the key heads of its query heads, shard all projections alike"
        got = f"{query} of {num_heads} query heads and {key} of {num_kv_heads} key heads"
        raise ValueError(f"{rule}: got {got}")


def check_each_head(heads: int, num_heads: int) -> None:
    """Check that weights which are averaged are those of all heads."""
    if heads != num_heads:
        rule = (
            "averaged weights need all heads on one device, write need_weights=False or "
            "average_weights=False"
        )
        raise ValueError(f"{rule}: got {heads} of {num_heads} heads")


def check_gathered(name: str, away: bool) -> None:
    if away:
        rule = (
            "weights must be gathered where forward is not called, call "
            "register_fsdp_forward_method(module, name) for the module given to fully_shard and "
            "each method"
        )
        raise RuntimeError(f"{rule}: got a sharded {name}")


def check_local(name: str, distributed: bool) -> None:
    if distributed:
        rule = f"{name} must be local, leave use_local_output as it is"
        raise TypeError(f"{rule}: got a DTensor")


def check_group(started: bool) -> None:
    if not started:
        rule = "ranks must know each other, call torch.distributed.init_process_group first"
        raise RuntimeError(f"{rule}: got no group")


def check_rank_rows(rows: Any, rank: int, world: int) -> list[Array]:
    """Return the rows of each rank, in which every position stands once."""
    if not isinstance(rows, list | tuple):
        raise TypeError(f"rows must be a list of integers (T,), one a rank: got {kind(rows)}")
    if rank < 0:
        raise ValueError(f"group must be one that this rank is in: got rank {rank}")
    if len(rows) != world:
        raise ValueError(f"rows must be given for {world} ranks: got {len(rows)}")
    known = [arrays.to_positions(as_integers("rows", x, "T")) for x in rows]
    _check_each_once(np.concatenate([arrays.to_numpy(x) for x in known]))
    return known


def check_agreed(alike: Sequence[bool]) -> None:
    """Check that ranks were given the same rows, and exchange keys in the same way."""
    if not all(alike):
        others = [rank for rank, same in enumerate(alike) if not same]
        raise ValueError(f"rows and exchange must be the same on all ranks: got others on {others}")


def check_rank_length(name: str, length: int, rows: int) -> None:
    if length != rows:
        raise ValueError(f"{name} must have this rank's {rows} rows: got {length}")


def check_plain_call(plain: bool) -> None:
    if not plain:
        rule = "sharded attention must know its arrays, leave out compilation and transforms"
        raise NotImplementedError(f"{rule}: got a call without values")


def check_once(again: bool) -> None:
    if again:
        rule = "a ring is differentiable once, use exchange='gathered'"
        raise NotImplementedError(f"{rule}: got create_graph=True")


def check_not_again(again: bool) -> None:
    if again:
        rule = "a module that is called again for its gradients needs shard_sequences then, too"
        raise RuntimeError(f"{rule}: got a call outside")
