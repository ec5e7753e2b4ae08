"""Attention without the (T, S) matrix: one block of queries at a time, and the keys that it sees.

The mask is asked once about all tiles, rows by columns. A block of queries meets the tiles that it
may see some of, laid side by side; its scores are made, masked and turned into weights in place.
Several threads share the blocks out, each with BLAS held to itself.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from .masks import Mask
from .numerics import all_finite, scale_or_default, split_nonfinite, upcast
from .threads import blas_held, is_inside, work_together
from .tiles import Cells, Tiles, Verdict

# Queries by keys in a tile. Found on two cores at (1, 8, 4096, 64), float32, by the median CPU time
# of interleaved runs over 64 to 256 rows and 64 to 256 columns: best for a window of 256 keys and
# for eight packed documents; a causal mask alone gains up to 5 % from 192 or 256 rows.
ROWS, COLUMNS = 128, 128
# How many threads share a call; None is as many as BLAS would use. Never more than BLAS may use.
THREADS: int | None = None

# Scores held at once by a thread where heads are small enough to be taken together: 1 MiB.
CELLS = 2**18
# Scores that are worth a thread: about a millisecond of work, where a thread costs under 0.1.
THREAD_CELLS = 2**18


class _Call(NamedTuple):
    """What every block of one call reads, and the output that it writes its rows of."""

    query: np.ndarray
    key: np.ndarray  # (B, H_kv, D, S)
    value: np.ndarray
    nonfinite: (
        np.ndarray | None
    )  # (B, H_kv, S): keys that held NaN or inf, None where there are none
    mask: Any  # asked where the verdict is neither yes nor no; None never is
    bias: np.ndarray | None
    scale: float
    softcap: float | None
    empty_rows: str
    query_offset: int | np.ndarray
    sizes: tuple[int, int, int, int]
    tile: tuple[int, int]
    verdict: Verdict  # of every tile: (B, H, blocks of rows, blocks of columns)
    ragged: bool  # whether samples or heads differ in it
    widest: int  # the most keys that a block of rows sees
    output: np.ndarray


def attention_blocked(
    query: Float[np.ndarray, "B H T D"],
    key: Float[np.ndarray, "B H_kv S D"],
    value: Float[np.ndarray, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[np.ndarray, "T S"] | Float[np.ndarray, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    empty_rows: str = "zero",
    query_offset: int | Integer[np.ndarray, "..."] = 0,
    tile: tuple[int, int] = (ROWS, COLUMNS),
) -> Float[np.ndarray, "B H T D_v"]:
    """Attend without ever holding the (T, S) matrix: tile by tile, as the mask allows.

    Takes what `attention` has checked, none of B, H, T and S being 0, and gives the same answer.
    `tile` is queries by keys: a tile that nobody may see is skipped, one that is seen whole is
    not masked. Memory grows with T + S; `THREADS` says how many threads may be used.

    Source: "Self-attention Does Not Need O(n^2) Memory"; tiles: "FlashAttention", section 3.1.

    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.normal(size=(3, 1, 2, 5, 4))
    >>> from attn_numpy import attention_steps, causal
    >>> output = attention_blocked(query, key, value, mask=causal(), tile=(2, 2))
    >>> np.allclose(output, attention_steps(query, key, value, mask=causal()).output)
    True
    """
    sizes = (*query.shape[:3], key.shape[2])
    verdict = _ask_tiles(mask, sizes, query_offset, tile)
    counts = (*sizes[:2], -(-sizes[2] // tile[0]), -(-sizes[3] // tile[1]))
    seen = np.broadcast_to(verdict.any.any((0, 1)), counts[2:])
    key, value, nonfinite = _ready(key), _ready(value), None
    if not all_finite(key, value):
        key, value, nonfinite = split_nonfinite(key, value)
    key = key.swapaxes(-1, -2)
    if sizes[2] >= tile[0]:  # then BLAS would turn it round for every block
        key = np.ascontiguousarray(key)
    call = _Call(
        query,
        key,
        value,
        nonfinite,
        mask,
        bias if bias is None else bias.reshape((1,) * (4 - bias.ndim) + bias.shape),
        scale_or_default(scale, query.shape[3]),
        None if softcap is None else float(softcap),
        empty_rows,
        query_offset,
        sizes,
        tile,
        Verdict(*(np.broadcast_to(part, counts) for part in verdict)),
        verdict.any.shape[:2] != (1, 1),
        min(int(seen.sum(-1).max()) * tile[1], sizes[3]),
        np.empty((*sizes[:3], value.shape[3]), query.dtype),
    )
    _share_out(call, float(verdict.any.mean()) * math.prod(sizes))
    return call.output


def _ask_tiles(mask, sizes, query_offset, tile) -> Verdict:
    if mask is None or (sizes[2] <= tile[0] and sizes[3] <= tile[1]):  # a lone tile is looked at
        yes = np.ones((1, 1, 1, 1), bool)
        return Verdict(yes if mask is None else ~yes, yes)
    return mask.evaluate(Tiles(Cells(sizes, query_offset), *tile))


def _ready(array):
    """Return an array that BLAS can read where it stands: numbers side by side."""
    array = upcast(array)
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def _share_out(call: _Call, cells: float) -> None:
    """Do every block of a call of so many visible cells, on as many threads as that is worth."""
    parts, blocks = list(_parts(call)), call.verdict.any.shape[2]
    worth = int(cells / THREAD_CELLS)
    if worth < 2 or is_inside():
        return _work(call, [(block, parts) for block in range(blocks)])
    with blas_held(THREADS) as most:
        threads = min(worth, most)
        pieces = min(len(parts), -(-4 * threads // blocks))  # so that all end at about one time
        units = [(block, parts[i::pieces]) for block in range(blocks) for i in range(pieces)]
        work_together(partial(_work, call), units, threads)  # the last, longest ones first


def _parts(call: _Call):
    """Yield samples, heads and their key heads: as many at a time as make about CELLS scores."""
    batch, heads, queries, _ = call.sizes
    group = heads // call.key.shape[1]
    room = max(CELLS // max(min(queries, call.tile[0]) * call.widest, 1), 1)
    many = max(room // heads, 1)
    step = heads if room >= heads else max(room // group * group, 1)
    for b in range(0, batch, many):
        for h in range(0, heads, step):
            shared = slice(h // group, -(-min(h + step, heads) // group))
            yield slice(b, b + many), slice(h, h + step), shared


class _Plan(NamedTuple):
    """Which keys a block of rows meets, and where they stand when laid side by side."""

    runs: list[tuple[slice, slice]]  # of keys in tiles that are seen, each with its place
    mixed: list[tuple[int, slice]]  # tiles that are not seen whole, each with its place
    width: int


def _plan(call: _Call, block: int, part) -> _Plan:
    samples, heads, _ = part
    some = call.verdict.any[samples, heads, block].any((0, 1)).tolist()
    every = call.verdict.all[samples, heads, block].all((0, 1)).tolist()
    runs: list[tuple[slice, slice]] = []
    mixed, place = [], 0
    for tile in (tile for tile, seen in enumerate(some) if seen):
        start = tile * call.tile[1]
        stop = min(start + call.tile[1], call.sizes[3])
        at = slice(place, place + stop - start)
        if not every[tile]:
            mixed.append((tile, at))
        if runs and runs[-1][0].stop == start:
            run, whole = runs.pop()
            runs.append((slice(run.start, stop), slice(whole.start, at.stop)))
        else:
            runs.append((slice(start, stop), at))
        place = at.stop
    return _Plan(runs, mixed, place)


class _Hidden(dict):
    """What the mask hides of some rows, by tile: asked where it is needed, once for all heads."""

    def __init__(self, call: _Call, rows: slice):
        self._call, self._rows = call, rows

    def __missing__(self, tile: int):
        call, width = self._call, self._call.tile[1]
        columns = slice(tile * width, (tile + 1) * width)
        self[tile] = ~call.mask.evaluate(Cells(call.sizes, call.query_offset, self._rows, columns))
        return self[tile]


@np.errstate(over="ignore", invalid="ignore")  # inf and NaN are answers, not accidents
def _work(call: _Call, units: Iterable) -> None:
    """Write the output's blocks: for each of `units`, a block of rows and parts of the heads."""
    height, width = min(call.tile[0], call.sizes[2]), call.widest
    room = min(max(height * width, CELLS), height * width * math.prod(call.sizes[:2]))
    desk = np.empty(room, call.value.dtype)  # once a thread: fresh memory is slow
    for block, parts in units:
        rows = slice(block * call.tile[0], min((block + 1) * call.tile[0], call.sizes[2]))
        plan, hidden = None, _Hidden(call, rows)
        for part in parts:
            if plan is None or call.ragged:
                plan = _plan(call, block, part)
            _attend(call, rows, part, plan, hidden, desk)


def _attend(call: _Call, rows: slice, part, plan: _Plan, hidden: _Hidden, desk) -> None:
    """Write a block of the output: these rows, for these samples and heads."""
    samples, heads, shared = part
    query = upcast(call.query[samples, heads, rows]) * call.scale
    key, value = call.key[samples, shared], call.value[samples, shared]
    # The query heads of a key head stand one below the other, so that no key is repeated.
    tall = query.reshape(*key.shape[:2], -1, query.shape[3])
    shape = (*tall.shape[:3], plan.width)
    weights = desk[: math.prod(shape)].reshape(shape)
    for run, at in plan.runs:
        np.matmul(tall, key[..., run], out=weights[..., at])
        if call.nonfinite is not None:
            nonfinite = call.nonfinite[samples, shared, None, run]
            np.copyto(weights[..., at], np.nan, where=nonfinite)
    scores = weights.reshape(*query.shape[:3], plan.width)  # the same numbers, by heads
    _change(call, scores, rows, part, plan)
    for tile, at in plan.mixed:
        np.copyto(scores[..., at], -np.inf, where=_cut(hidden[tile], samples, heads))
    total, empty = _exponentiate(weights)
    output = np.empty((*tall.shape[:3], value.shape[3]), query.dtype)
    (run, at), *others = plan.runs or [(slice(0), slice(0))]  # the sum over no key is 0
    np.matmul(weights[..., at], value[:, :, run], out=output)
    for run, at in others:
        output += weights[..., at] @ value[:, :, run]
    output /= total
    if call.empty_rows != "zero" and empty.any():
        np.copyto(output, _fill(call, samples, shared), where=empty)
    call.output[samples, heads, rows] = output.reshape(*query.shape[:3], -1)


def _change(call: _Call, scores, rows: slice, part, plan: _Plan) -> None:
    """Cap the scores and add the bias; where it is -inf it hides."""
    samples, heads, _ = part
    if call.softcap is not None:
        scores /= call.softcap
        np.tanh(scores, out=scores)
        scores *= call.softcap
    for run, at in plan.runs if call.bias is not None else ():
        bias = _cut(call.bias, samples, heads, rows, run)
        scores[..., at] += upcast(bias)
        np.copyto(scores[..., at], -np.inf, where=bias == -np.inf)


def _cut(array, *where: slice):
    """Cut a part out of an array whose dims are 1 where nothing varies."""
    sizes = zip(array.shape, where, strict=False)
    return array[tuple(slice(None) if size == 1 else part for size, part in sizes)]


def _exponentiate(scores):
    """Turn scores into exp(score - largest) in place; return the sums, and which rows are empty."""
    largest = scores.max(-1, keepdims=True, initial=-np.inf)
    empty = largest == -np.inf
    scores -= np.where(empty, 0, largest)
    np.exp(scores, out=scores)
    total = scores @ np.ones((scores.shape[-1], 1), scores.dtype)  # faster than .sum(-1)
    return np.where(empty, 1, total), empty


def _fill(call: _Call, samples: slice, shared: slice):
    """Return what an empty row becomes: NaN, or the mean over all keys, hidden or not."""
    if call.empty_rows == "nan":
        return np.nan
    keys = call.sizes[3]
    mean = np.full((1, keys), 1 / keys, call.value.dtype) @ call.value[samples, shared]
    if call.nonfinite is not None:
        mean[call.nonfinite[samples, shared].any(-1)] = np.nan
    return mean
