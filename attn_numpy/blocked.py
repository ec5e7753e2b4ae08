"""Attention without the (T, S) matrix: one block of queries at a time, and the keys it is allowed.

The mask is evaluated once for all tiles, rows by columns. A block of queries meets the tiles that
are not hidden from it, laid side by side; its scores are made, masked and turned into weights in
place. Several threads share the blocks out, each with BLAS held to one thread.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from .call import Call
from .masks import Mask
from .numerics import is_surely_finite, split_nonfinite, upcast, without_warnings
from .threads import blas_held, is_inside, work_together
from .tiles import Cells, Tiles, Verdict

# Queries by keys in a tile. Found on two cores at (1, 8, 4096, 64), float32, by the median CPU time
# of interleaved runs over 64 to 256 rows and 64 to 256 columns: best for a window of 256 keys and
# for eight packed documents; a causal mask alone gains up to 5 % from 192 or 256 rows.
ROWS, COLUMNS = 128, 128
# Where keys are few, a tile holds all of them, and what is hidden at its sides is cut off.
FEW_KEYS, FEW_ROWS = 512, 64
# Scores that are made in one block, since there is little to save.
LONE_CELLS = 2**17
# Scores that are hidden sooner by a copy than by a sum.
FEW_CELLS = 2**14
# Queries for which keys are turned round once, as BLAS would do it for every block.
TURNED = 32
# How many threads share a call; None is as many as BLAS would use. Never more than BLAS may use.
THREADS: int | None = None

# Scores held at once by a thread where heads are small enough to be taken together: 1 MiB.
CELLS = 2**18
# Scores that are worth a thread: about a millisecond of work, where a thread costs under 0.1.
THREAD_CELLS = 2**18

# What is said of all tiles at once.
YES, NO = np.ones((1, 1, 1, 1), bool), np.zeros((1, 1, 1, 1), bool)

_Share = tuple[slice, slice, slice]  # samples, heads, and the key heads that these share


class ScoreOverflow(Exception):
    """A score left its dtype: -inf may then be an allowed one, which only the textbook can tell."""


class _Work(NamedTuple):
    """What every block of one call reads, and the output that it writes its rows of."""

    query: np.ndarray
    key: np.ndarray  # (B, H_kv, D, S)
    value: np.ndarray
    bias: np.ndarray | None  # rank 4
    call: Call
    tile: tuple[int, int]
    lone: bool  # whether a tile holds all keys, and there is a mask
    verdict: Verdict  # of every tile: (B or 1, H or 1, blocks of rows, blocks of columns)
    widest: int  # the most keys that a block of rows meets
    output: np.ndarray
    parts: tuple[np.ndarray, np.ndarray] | None  # maximum and total, where these are asked for


def attention_blocked(
    query: Float[np.ndarray, "B H T D"],
    key: Float[np.ndarray, "B H_kv S D"],
    value: Float[np.ndarray, "B H_kv S D_v"],
    call: Call,
    tile: tuple[int, int] | None = None,
) -> Float[np.ndarray, "B H T D_v"]:
    """Attend without ever holding the (T, S) matrix: tile by tile, as the mask allows.

    Takes what `attention` has checked, no size of it being 0, and gives the same answer. `tile` is
    queries by keys: a tile that is hidden is skipped, one that is allowed whole is not masked.
    Left out, it is chosen by the sizes. Memory grows with T + S; `THREADS` says how many threads
    may be used. A score that leaves its dtype is for the textbook to judge: ScoreOverflow says so.

    Source: "Self-attention Does Not Need O(n^2) Memory"; tiles: "FlashAttention", section 3.1.

    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.normal(size=(3, 1, 2, 5, 4))
    >>> from attn_numpy import attention_steps, causal
    >>> from attn_numpy.call import check_call
    >>> call = check_call(query, key, value, causal())
    >>> output = attention_blocked(query, key, value, call, tile=(2, 2))
    >>> np.allclose(output, attention_steps(query, key, value, mask=causal()).output)
    True
    """
    output = np.empty((*call.sizes[:3], value.shape[3]), query.dtype)
    attend_into(output, query, key, value, call, tile)
    return output


def attend_into(
    output: np.ndarray,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    call: Call,
    tile: tuple[int, int] | None = None,
    parts: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Write the output, or what it is the quotient of: sums, and as `parts` maximum and total."""
    sizes = call.sizes
    tile = _choose_tile(sizes) if tile is None else tile
    verdict = _evaluate_tiles(call, tile)
    blocks = -(-sizes[2] // tile[0]), -(-sizes[3] // tile[1])
    widest = sizes[3]
    if verdict.any.size > 1:
        needed: Any = verdict.any.any((0, 1))
        widest = min(int(_widen(needed, *blocks).sum(-1).max()) * tile[1], widest)
    key, value = _ready(key).swapaxes(-1, -2), _ready(value)
    if sizes[2] * sizes[1] >= TURNED * key.shape[1]:  # else BLAS turns it round for every block
        key = np.ascontiguousarray(key)
    bias = call.bias
    work = _Work(
        query,
        key,
        value,
        bias if bias is None else bias.reshape((1,) * (4 - bias.ndim) + bias.shape),
        call,
        tile,
        call.mask is not None and sizes[3] <= tile[1],
        Verdict(*[_widen(part, *part.shape[:2], *blocks) for part in verdict]),
        widest,
        output,
        parts,
    )
    _share_out(work)


def _choose_tile(sizes: tuple[int, int, int, int]) -> tuple[int, int]:
    """Return queries by keys: all keys where they are few, and all queries of a small call."""
    _, _, queries, keys = sizes
    if math.prod(sizes) <= LONE_CELLS:
        return queries, keys
    if keys > FEW_KEYS:
        return ROWS, COLUMNS
    return -(-queries // -(-queries // FEW_ROWS)), keys  # blocks of about one height


def _evaluate_tiles(call: Call, tile: tuple[int, int]) -> Verdict:
    """Evaluate the mask for all tiles; those that hold all keys are partial."""
    if call.mask is None or call.sizes[3] <= tile[1]:
        return Verdict(YES if call.mask is None else NO, YES)
    return call.mask.evaluate(Tiles(Cells(call.sizes, call.query_offset), *tile))


def _ready(array: np.ndarray) -> np.ndarray:
    """Return an array that BLAS can read where it stands: numbers side by side."""
    array = upcast(array)
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def _share_out(work: _Work) -> None:
    """Do all blocks on as many threads as their allowed cells are worth."""
    parts, needed = list(_parts(work)), work.verdict.any
    blocks, cells = needed.shape[2], math.prod(work.call.sizes)
    if cells >= 2 * THREAD_CELLS:
        cells = cells * int(np.count_nonzero(needed)) // needed.size
    worth = cells // THREAD_CELLS
    if worth < 2 or is_inside():
        return _attend_blocks(work, [(block, parts) for block in range(blocks)])
    with blas_held(THREADS) as most:
        threads = min(worth, most)
        pieces = min(len(parts), -(-4 * threads // blocks))  # so that all end at about one time
        units = [(block, parts[i::pieces]) for block in range(blocks) for i in range(pieces)]
        work_together(partial(_attend_blocks, work), units, threads)  # the last, longest ones first


def _parts(work: _Work) -> Iterator[_Share]:
    """Yield samples, heads and their key heads: as many at a time as make about CELLS scores."""
    batch, heads, queries, _ = work.call.sizes
    group = heads // work.key.shape[1]
    room = max(CELLS // max(min(queries, work.tile[0]) * work.widest, 1), 1)
    many = max(room // heads, 1)
    step = heads if room >= heads else max(room // group * group, 1)
    for b in range(0, batch, many):
        for h in range(0, heads, step):
            shared = slice(h // group, -(-min(h + step, heads) // group))
            yield slice(b, b + many), slice(h, h + step), shared


class _Plan(NamedTuple):
    """Which keys a block of rows meets, and where they stand when laid side by side."""

    runs: list[tuple[slice, slice]]  # of keys in tiles that are not hidden, each with its place
    partial: list[tuple[int, slice]]  # tiles that are not allowed whole, each with its place
    width: int
    kept: slice = slice(None)  # of the keys of a partial tile


def _plan(work: _Work, block: int, part: _Share) -> _Plan:
    samples, heads, _ = part
    needed: Any = _cut(work.verdict.any, samples, heads)[:, :, block].any((0, 1)).tolist()
    full: Any = _cut(work.verdict.all, samples, heads)[:, :, block].all((0, 1)).tolist()
    runs: list[tuple[slice, slice]] = []
    partial_tiles, place = [], 0
    for tile in (tile for tile, met in enumerate(needed) if met):
        start = tile * work.tile[1]
        stop = min(start + work.tile[1], work.call.sizes[3])
        at = slice(place, place + stop - start)
        if not full[tile]:
            partial_tiles.append((tile, at))
        if runs and runs[-1][0].stop == start:
            run, whole = runs.pop()
            runs.append((slice(run.start, stop), slice(whole.start, at.stop)))
        else:
            runs.append((slice(start, stop), at))
        place = at.stop
    return _Plan(runs or [(slice(0), slice(0))], partial_tiles, place)  # the sum over no key is 0


def _plan_lone(hidden: np.ndarray) -> _Plan:
    """Plan for a tile that holds all keys: from the first to the last that a query is allowed."""
    (met,) = (~np.logical_and.reduce(hidden, (0, 1, 2))).nonzero()
    kept = slice(int(met[0]), int(met[-1]) + 1) if len(met) else slice(0, 0)
    at = slice(0, kept.stop - kept.start)
    return _Plan([(kept, at)], [(0, at)], at.stop, kept)


class _Hidden(dict):
    """What the mask hides of some rows, by tile: evaluated where needed, once for all heads."""

    def __init__(self, work: _Work, rows: slice):
        self._call, self._width, self._rows = work.call, work.tile[1], rows

    def __missing__(self, tile: int) -> np.ndarray:
        columns = slice(tile * self._width, (tile + 1) * self._width)
        cells = Cells(self._call.sizes, self._call.query_offset, self._rows, columns)
        hidden = ~cast(Mask, self._call.mask).evaluate(cells)  # without one, all tiles are full
        self[tile] = _widen(hidden, *hidden.shape[:3], cells.key.shape[3])
        return self[tile]


@without_warnings
def _attend_blocks(work: _Work, units: Iterable[tuple[int, list[_Share]]]) -> None:
    """Write the output's blocks: for each of `units`, a block of rows and parts of the heads."""
    sizes, height = work.call.sizes, work.tile[0]
    cells = min(height, sizes[2]) * work.widest
    room = min(max(cells, CELLS), cells * math.prod(sizes[:2]))
    workspace = np.empty(room, work.value.dtype)  # once a thread: fresh memory is slow
    for block, parts in units:
        rows = slice(block * height, min((block + 1) * height, sizes[2]))
        plan, hidden = None, _Hidden(work, rows)
        asked = hidden[0] if work.lone else work.verdict.any
        for part in parts:
            if plan is None or asked.shape[:2] != (1, 1):
                lone = work.lone
                plan = _plan_lone(_cut(asked, *part[:2])) if lone else _plan(work, block, part)
            _attend_block(work, rows, part, plan, hidden, workspace)


def _attend_block(
    work: _Work,
    rows: slice,
    part: _Share,
    plan: _Plan,
    hidden: _Hidden,
    workspace: np.ndarray,
    careful: bool = False,
) -> None:
    """Write a block of the output: these rows, for these samples and heads.

    Numbers are taken to be finite at first; where a score or a sum is not, the block is done again
    with care. So most calls need not look at their keys and values beforehand.
    """
    samples, heads, shared = part
    query = upcast(work.query[samples, heads, rows]) * work.call.scale
    key, value = work.key[samples, shared], work.value[samples, shared]
    # The query heads of a key head stand one below the other, so that no key is repeated.
    tall = query.reshape(*key.shape[:2], -1, query.shape[3])
    shape = (*tall.shape[:3], plan.width)
    weights = workspace[: math.prod(shape)].reshape(shape)
    met = [(key[..., run], value[:, :, run], at) for run, at in plan.runs]
    if careful:
        met = [_score_with_care(tall, *run, weights) for run in met]
    else:
        for keys, _, at in met:
            np.matmul(tall, keys, out=weights[..., at])
        if not is_surely_finite(weights):
            return _attend_block(work, rows, part, plan, hidden, workspace, careful=True)
    scores = weights.reshape(*query.shape[:3], plan.width)  # the same numbers, by heads
    _cap_and_bias(work, scores, rows, part, plan)
    for tile, at in plan.partial:
        cut = _cut(hidden[tile], samples, heads)[..., plan.kept]
        _hide(scores[..., at], cut, careful or work.bias is not None)
    sinks = work.call.sinks
    if sinks is not None:  # one for each row, as the rows stand
        sinks = upcast(sinks)[heads].repeat(query.shape[2]).reshape(1, *tall.shape[1:3], 1)
    largest, total = _exponentiate(weights, sinks)
    (_, values, at), *others = met
    output = weights[..., at] @ values
    for _, values, at in others:
        output += weights[..., at] @ values
    if not careful and not is_surely_finite(output):
        return _attend_block(work, rows, part, plan, hidden, workspace, careful=True)
    if work.parts is not None:
        return _write_parts(work, (samples, heads, rows), output, largest, total)
    if work.call.empty_rows != "zero" and not total.all():
        np.copyto(output, _empty_row_value(work, samples, shared), where=total == 0)
    place = work.output[samples, heads, rows]
    total = np.maximum(total, 1).reshape(*place.shape[:3], 1)  # for others it is at least 1
    np.divide(output.reshape(place.shape), total, out=place, casting="unsafe")


def _write_parts(
    work: _Work, at: _Share, sums: np.ndarray, largest: np.ndarray, total: np.ndarray
) -> None:
    """Write a block's sums, maximum and total; the maximum of a fully masked row is -inf."""
    place, (maximums, totals) = work.output[at], cast(tuple, work.parts)
    place[...] = sums.reshape(place.shape)
    totals[at] = total.reshape(place.shape[:3])
    maximums[at] = np.where(total == 0, -np.inf, largest).reshape(place.shape[:3])


def _score_with_care(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, at: slice, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, slice]:
    """Score keys that may not be finite: NaN for those; return them with 0 in such places."""
    finite, value, nonfinite = split_nonfinite(key.swapaxes(-1, -2), value)
    key = finite.swapaxes(-1, -2)
    scores = np.matmul(query, key, out=weights[..., at])
    if np.isinf(scores).any():
        raise ScoreOverflow
    np.copyto(scores, np.nan, where=nonfinite[:, :, None])
    return key, value, at


def _cap_and_bias(work: _Work, scores: np.ndarray, rows: slice, part: _Share, plan: _Plan) -> None:
    """Cap the scores and add the bias, in place; where it is -inf it hides."""
    samples, heads, _ = part
    if work.call.softcap is not None:
        scores /= work.call.softcap
        np.tanh(scores, out=scores)
        scores *= work.call.softcap
    if work.bias is None:
        return
    for run, at in plan.runs:
        bias = _cut(work.bias, samples, heads, rows, run)
        scores[..., at] += upcast(bias)
        np.copyto(scores[..., at], -np.inf, where=bias == -np.inf)


def _hide(scores: np.ndarray, hidden: np.ndarray, may_be_nan: bool) -> None:
    """Put -inf where the mask hides. Adding it is faster for many scores, but NaN would stay."""
    if may_be_nan or hidden.shape[1] == scores.shape[1] or scores.size <= FEW_CELLS:
        np.copyto(scores, -np.inf, where=hidden)
    else:
        number = scores.dtype.type
        scores += np.where(hidden, number(-np.inf), number(0))


def _widen(array: np.ndarray, *shape: int) -> np.ndarray:
    """Broadcast, quickly where there is nothing to do."""
    return array if array.shape == shape else np.broadcast_to(array, shape)


def _cut(array: np.ndarray, *where: slice) -> np.ndarray:
    """Cut a part out of an array whose dims are 1 where nothing varies."""
    sizes = array.shape[: len(where)]
    if max(sizes) == 1:
        return array
    pairs = zip(sizes, where, strict=True)
    return array[tuple([slice(None) if size == 1 else part for size, part in pairs])]


def _exponentiate(scores: np.ndarray, sinks: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Turn scores into exp(score - largest) in place.

    Returns the largest ones, and the sums: 0 for fully masked rows. A sink is among the numbers
    that the largest is sought in, and in the sum.
    """
    shape, width = (*scores.shape[:-1], 1), scores.shape[-1]
    if width:  # for short rows this takes two thirds of the time of .max(-1)
        largest = np.maximum.reduceat(scores.reshape(-1), np.arange(0, scores.size, width))
    else:
        largest = np.full(math.prod(shape), -np.inf, scores.dtype)
    largest = np.maximum(largest, np.finfo(scores.dtype).min)  # -inf - -inf would be NaN
    largest = largest.reshape(shape)
    if sinks is not None:
        largest = np.maximum(largest, sinks)
    scores -= largest
    np.exp(scores, out=scores)
    total = scores @ np.ones((width, 1), scores.dtype)  # faster than .sum(-1)
    return largest, total if sinks is None else total + np.exp(sinks - largest)


def _empty_row_value(work: _Work, samples: slice, shared: slice) -> np.ndarray | float:
    """Return what a fully masked row becomes: NaN, or the mean over all keys, hidden or not."""
    if work.call.empty_rows == "nan":
        return np.nan
    key, keys = work.key[samples, shared].swapaxes(-1, -2), work.call.sizes[3]
    _, value, nonfinite = split_nonfinite(key, work.value[samples, shared])
    mean = np.full((1, keys), 1 / keys, value.dtype) @ value
    mean[nonfinite.any(-1)] = np.nan
    return mean
