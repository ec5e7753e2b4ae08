"""Attention on a CPU by calls of torch's fused kernel, where these are less work than blocks are.

Where all that a mask says of a sample is one range of keys, causally or not, the kernel gets only
these keys and needs no mask. Small calls of other masks give it a dense one, where no gradient is
asked for: a block's few operations would take longer than the whole. (With a mask the gradients of
that kernel err by up to 1.5 times what the contract allows.)
"""

import math
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .arrays import to_numpy
from .blocked import attention_blocked, empty_row_value
from .call import Call
from .fused import call_kernel, fused, has_exact_kernel, known_structure, products_fit
from .gradients import versions
from .masks import Mask, padding
from .numerics import surely_finite, upcast
from .tiles import Cells

# What a call of the kernel costs, and what a row does beside its keys, in cells of scores: found by
# timing parts and dense masks at 12 to 256 positions. And how many cells, of a call and one head,
# may take a dense mask: a cautious guess, for windows and documents were not timed.
CALL, ROW = 2**15, 128
DENSE, DENSE_HEAD = 2**21, 2**16


class SamplePart(NamedTuple):
    """From `row` on a sample's rows are allowed keys `start` to `stop`, maybe causally."""

    row: int
    start: int
    stop: int
    causal: bool


def attention_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, call: Call, bounded: bool
) -> Tensor:
    """Attend by one of four ways; takes what `attention_blocked` takes."""
    learned = query.requires_grad or key.requires_grad or value.requires_grad
    derived = learned and torch.is_grad_enabled()
    # A query that is not finite harms its own row only.
    finite = bounded or (surely_finite(key, value) and products_fit(query, key))
    way, parts = way_on_cpu(query, value, call, finite, derived)
    if way == "kernel":
        return fused(query, key, value, call.scale, call.mask is not None, bounded)
    if way == "blocks":
        return attention_blocked(query, key, value, call, bounded)
    if way == "parts":
        output = _attend_parts(query, key, value, call, parts, bounded)
    else:
        output = _attend_dense(query, key, value, call, bounded)
    return output if output.dtype == query.dtype else output.to(query.dtype)


def way_on_cpu(
    query: Tensor, value: Tensor, call: Call, finite: bool, derived: bool
) -> tuple[str, list[SamplePart]]:
    """Return "kernel", "parts", "dense" or "blocks", by how many cells of scores each computes.

    `finite` says that keys, values and products are, `derived` that gradients are asked for.
    """
    kernel = call.bias is None and call.softcap is None
    kernel = kernel and has_exact_kernel("cpu", query.dtype, query.shape[3], value.shape[3])
    if kernel and known_structure(call):
        return "kernel", []
    if not (kernel and finite and call.mask is not None):
        return "blocks", []
    return _keep(_fewer_cells, call, derived)


def _fewer_cells(call: Call, derived: bool) -> tuple[str, list[SamplePart]]:
    """Return "parts", "dense" or "blocks", the one of the fewest cells, and the parts."""
    batch, heads, queries, keys = call.sizes
    parts = parts_of(call)
    small = batch * heads * queries * keys <= DENSE and queries * keys <= DENSE_HEAD
    small = small and not derived
    if not parts or not small:
        return ("parts" if parts else "dense" if small else "blocks"), parts
    cells = sum((queries - part.row) * (part.stop - part.start + ROW) for part in parts)
    calls = sum(1 for _ in groupby(parts))
    fewer = calls * CALL + heads * cells <= CALL + batch * heads * queries * (keys + ROW)
    return ("parts" if fewer else "dense"), parts


def parts_of(call: Call) -> list[SamplePart]:
    """Return each sample's part; none where a mask says more, or hides everything."""
    batch, _, queries, keys = call.sizes
    ranges, causal = [(0, keys)] * batch, False
    for leaf in _conjunction(call.mask):
        if leaf.name == "causal" and queries > 1:
            causal = True
            continue
        allowed = _ranges(leaf, call)
        if not allowed:
            return []
        allowed = allowed if len(allowed) > 1 else allowed * batch
        both = zip(ranges, allowed, strict=True)
        ranges = [(max(a, start), min(b, stop)) for (a, b), (start, stop) in both]
    offset = call.query_offset if causal else 0
    if not isinstance(offset, int):
        return []
    parts = []
    for start, stop in ranges:
        if start >= stop:
            parts.append(SamplePart(queries, 0, 0, False))
        elif not causal or offset >= stop - 1:
            parts.append(SamplePart(0, start, stop, False))
        elif offset <= start:  # the kernel's diagonal starts at the first row and key
            parts.append(SamplePart(min(start - offset, queries), start, stop, True))
        else:
            return []
    return parts if any(part.row < queries for part in parts) else []


def narrow(key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor, Call]:
    """Leave out the keys hidden from a step's one query: most of a cache, under a window."""
    if call.mask is None or call.bias is not None or call.empty_rows == "uniform":
        return key, value, call
    batch, heads, queries, keys = call.sizes
    parts = parts_of(call)
    ends = [part[1:3] for part in parts if part.start < part.stop]
    start, stop = min((a for a, _ in ends), default=0), max((b for _, b in ends), default=keys)
    if 2 * (stop - start) > keys:
        return key, value, call
    mask = None
    if len(set(parts)) > 1:
        at = torch.arange(start, stop, device="cpu")
        first, last = torch.tensor([part[1:3] for part in parts], device="cpu").T[..., None]
        mask = padding(hidden=(at < first) | (at >= last))
    call = call._replace(sizes=(batch, heads, queries, stop - start), mask=mask)
    return key[:, :, start:stop], value[:, :, start:stop], call


def _conjunction(mask: Mask | None) -> Iterator[Mask]:
    """Yield the masks that all have to allow a key."""
    if mask is not None and mask.name == "&":
        for part in mask.parts:
            yield from _conjunction(part)
    elif mask is not None:
        yield mask


def _ranges(leaf: Mask, call: Call) -> list[tuple[int, int]]:
    """Return the keys that every row is allowed, by sample; nothing where they are no range."""
    queries, keys = call.sizes[2:]
    if leaf.name in ("causal", "sliding_window") and queries == 1:
        before, after = leaf.settings or (math.inf, 0)
        offset = call.query_offset
        places = [offset] if isinstance(offset, int) else offset.reshape(-1).tolist()
        return [(int(max(at - before, 0)), min(at + after + 1, keys)) for at in places]
    if leaf.name != "padding":
        return []
    (table,) = leaf.arrays
    if leaf.axes == ("B",):
        return [(0, length) for length in table.tolist()]
    allowed = ~to_numpy(table)
    starts, stops = allowed.argmax(1), keys - allowed[:, ::-1].argmax(1)
    counts = allowed.sum(1)
    if ((counts > 0) & (stops - starts != counts)).any():
        return []
    return list(zip(starts.tolist(), (starts + counts).tolist(), strict=True))


def _attend_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: Call,
    parts: list[SamplePart],
    bounded: bool,
) -> Tensor:
    """Call the kernel for each part, once for neighbours that are alike."""
    runs = [(part, len(list(run))) for part, run in groupby(parts)]
    sizes = [size for _, size in runs]
    empty = None
    if any(part.row for part in parts):
        empty = empty_row_value(call, upcast(value), None).split(sizes)
    outputs = []
    arrays = (array.split(sizes) for array in (query, key, value))  # one gradient, not one each
    for i, (q, k, v) in enumerate(zip(*arrays, strict=True)):
        (row, start, stop, causal), rows = runs[i][0], []
        if row and empty is not None:
            rows.append(empty[i].expand(-1, -1, row, -1))
        if row < call.sizes[2]:
            q, k, v = q[:, :, row:], k[:, :, start:stop], v[:, :, start:stop]
            rows.append(_mend(call_kernel(q, k, v, call.scale, causal), q, bounded))
        outputs.append(rows[0] if len(rows) == 1 else torch.cat(rows, 2))
    if len(outputs) > 1:
        # The kernel lays rows before heads: so nothing is turned round, here and in a module.
        return torch.cat([output.transpose(1, 2) for output in outputs]).transpose(1, 2)
    return outputs[0].clone() if outputs[0].requires_grad else outputs[0]  # it may be written to


def _attend_dense(query: Tensor, key: Tensor, value: Tensor, call: Call, bounded: bool) -> Tensor:
    """Call the kernel once, with a dense mask."""
    dtype = torch.float32 if query.itemsize == 2 else query.dtype
    dense, empty = _keep(_dense, call, dtype)
    output = _mend(call_kernel(query, key, value, call.scale, False, dense), query, bounded)
    if empty is None:
        return output
    return torch.where(empty, empty_row_value(call, upcast(value), None), output)


def _mend(output: Tensor, query: Tensor, bounded: bool) -> Tensor:
    """Make a row NaN if its query is not finite: the kernel may take such scores for hidden."""
    if bounded:
        return output
    return output.where(query.isfinite().all(-1, keepdim=True), torch.nan)


def _dense(call: Call, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return 0 where allowed and -inf elsewhere, and which rows are empty, None for no row.

    A fully masked row is allowed every key, else the kernel might answer NaN.
    """
    cells = Cells(call.sizes, call.query_offset, device="cpu")
    allowed = cast(Mask, call.mask).evaluate(cells)
    empty = ~allowed.any(-1, keepdim=True)
    dense = torch.where(allowed | empty, 0.0, -torch.inf).to(dtype)
    dense = dense.expand(*dense.shape[:2], *call.sizes[2:])
    return dense, empty if empty.any() else None


# The last answers about masks that have no table but copies that nobody else writes to.
_kept: WeakKeyDictionary[Mask, dict[Callable, tuple]] = WeakKeyDictionary()
_COPIES = {"causal", "sliding_window", "chunked", "prefix", "padding", "segments", "packed", "part"}


def _keep(compute: Callable, call: Call, more: Any) -> Any:
    """Return `compute(call, more)`, or its last answer about the mask, to the same question."""
    if not isinstance(call.query_offset, int):
        return compute(call, more)
    mask: Any = call.mask
    kept, question = _kept.get(mask), (call.sizes, call.query_offset, more, versions(call))
    if kept is None:
        if not all(map(_is_copied, mask.leaves())):
            return compute(call, more)
        kept = _kept[mask] = {}
    last = kept.get(compute)
    if last is None or last[0] != question:
        last = kept[compute] = question, compute(call, more)
    return last[1]  # whatever another thread keeps meanwhile


def _is_copied(leaf: Mask) -> bool:
    return leaf.name in _COPIES and all(array.dtype != torch.bool for array in leaf.arrays)
