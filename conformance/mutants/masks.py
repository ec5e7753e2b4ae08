"""Mistakes in what is allowed: masks that are read, placed or aligned wrongly."""

import numpy as np

from ..mask_spec import (
    Spec,
    allow,
    hide,
    packed,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from ..oracle.tolerance import finfo
from .arithmetic import allowed_by, attended, recomputes, softmax, with_allowed
from .mutant import breaks

# In front of attention, which is given a mask and makes of it what it does


@breaks("steps", "ATT-1", "ATT-2", "CAUSE-1", "DOC-B8")
def inverted(right, *inputs, mask=None, **options):
    """A mask is read the wrong way round: it shows what it should hide, and hides the rest."""
    return right(*inputs, mask=mask and ~mask, **options)


@breaks("steps", "ATT-2", "CAUSE-5", "DOC-B6", "DOC-B9", "DOC-B12")
def mask_forgotten(right, *inputs, mask=None, query_offset=None, **options):
    """Masks are ignored: every query sees every key."""
    right(*inputs, mask=mask, query_offset=query_offset, **options)
    return right(*inputs, **options)


@breaks("steps", "ATT-1", "CAUSE-1", "CAUSE-4")
def transposed(right, *inputs, mask=None, query_offset=None, **options):
    """Queries and keys change places in a square mask: a token sees those after it."""

    def change(allowed):
        return allowed.swapaxes(2, 3) if allowed.shape[2] == allowed.shape[3] else allowed

    return with_allowed(right, inputs, mask, query_offset, options, change)


@breaks("steps", "ATT-1", "CAUSE-5", "CLEAN-2")
def first_sample_mask(right, *inputs, mask=None, query_offset=None, **options):
    """The mask of the first sample is applied to all samples."""

    def change(allowed):
        return np.broadcast_to(allowed[:1], allowed.shape)

    return with_allowed(right, inputs, mask, query_offset, options, change)


@breaks("steps", "ATT-1")
def first_head_mask(right, *inputs, mask=None, query_offset=None, **options):
    """The mask of the first head is applied to all heads."""

    def change(allowed):
        return np.broadcast_to(allowed[:, :1], allowed.shape)

    return with_allowed(right, inputs, mask, query_offset, options, change)


@breaks("steps", "ATT-1", "CAUSE-5", "CLEAN-1", "CLEAN-2")
def padding_on_queries(right, query, key, value, *, mask=None, **options):
    """Padding hides rows instead of columns: what padded queries see, not the padded keys."""
    length, keys = query.shape[2], key.shape[2]

    def rows(spec):
        hidden = ~reference_padding(spec, keys)[:, :length]
        hidden = np.pad(hidden, ((0, 0), (0, length - hidden.shape[1])))
        return allow(np.broadcast_to(~hidden[:, None, :, None], (len(hidden), 1, length, keys)))

    return right(query, key, value, mask=mask and leaves(mask, "padding", rows), **options)


def reference_padding(spec: Spec, keys: int) -> np.ndarray:
    """Return which keys of each sample are none of padding, bool (B, S)."""
    if "hidden" in spec.arguments:
        return ~spec.arguments["hidden"]
    return np.arange(keys) < spec.arguments["lengths"][:, None]


def leaves(spec: Spec, kind: str, change) -> Spec:
    """Change every part of one kind in a mask."""
    if spec.kind == kind:
        return change(spec)
    parts = tuple(leaves(part, kind, change) for part in spec.parts)
    return Spec(spec.kind, spec.arguments, parts)


@breaks("steps", "ATT-1", "ATT-2", "DOC-A3")
@recomputes
def mask_after_softmax(right, *inputs, mask=None, query_offset=None, **options):
    """Hidden weights are put to 0 after the softmax, so that a row no longer sums to 1."""
    right(*inputs, mask=mask, query_offset=query_offset, **options)
    steps = right(*inputs, **options)
    allowed = allowed_by(mask, inputs, query_offset)
    return attended(steps, inputs, weights=np.where(allowed, steps["weights"], 0))


@breaks("steps", "ATT-1", "ATT-2", "ATT-13", "DOC-A3")
@recomputes
def score_times_mask(right, *inputs, mask=None, query_offset=None, bias=None, **options):
    """Scores are multiplied by the mask: a hidden score becomes 0, which still gets a weight."""
    steps = right(*inputs, mask=mask, query_offset=query_offset, bias=bias, **options)
    scores = np.where(allowed_by(mask, inputs, query_offset), steps["scores"], 0)
    masked = scores if bias is None else scores + bias.astype(scores.dtype)
    return attended(steps, inputs, masked=masked, weights=softmax(masked))


@breaks("steps", "DOC-B7", "ATT-8", "HALF-2")
@recomputes
def zero_hides(right, *inputs, **options):
    """A score of exactly 0 is taken for a hidden one (`masked_fill(scores == 0, -inf)`)."""
    steps = right(*inputs, **options)
    masked = np.where(steps["masked_scores"] == 0, -np.inf, steps["masked_scores"])
    return attended(steps, inputs, masked=masked.astype(steps["scores"].dtype))


def filled(right, inputs, mask, query_offset, bias, options, number) -> dict:
    """Attend with a number added to the scores of what is hidden."""
    right(*inputs, mask=mask, query_offset=query_offset, bias=bias, **options)
    fill = np.where(allowed_by(mask, inputs, query_offset), 0, number)
    fill = (fill if bias is None else fill + bias.astype(fill.dtype)).astype(inputs[0].dtype)
    return right(*inputs, bias=fill if mask else bias, **options)


@breaks("steps", "EMPTY-1", "EMPTY-2", "CLEAN-5", "DOC-A3", "DOC-A12")
def fill_1e9(right, *inputs, mask=None, query_offset=None, bias=None, **options):
    """What is hidden gets -1e9 added to its score instead of being left out."""
    return filled(right, inputs, mask, query_offset, bias, options, -1e9)


@breaks("steps", "EMPTY-1", "EMPTY-2", "ATT-13", "DOC-A3", "DOC-A12")
def fill_lowest(right, *inputs, mask=None, query_offset=None, bias=None, **options):
    """What is hidden gets the lowest finite number of its dtype instead of -inf."""
    lowest = float(finfo(inputs[0].dtype).min)
    return filled(right, inputs, mask, query_offset, bias, options, lowest)


@breaks("steps", "ATT-1", "CAUSE-3")
def top_left(right, *inputs, query_offset=None, **options):
    """The offset is ignored: queries start where the keys start, whatever is asked for."""
    return right(*inputs, query_offset=None if query_offset is None else 0, **options)


@breaks("steps", "ATT-1", "CAUSE-3")
def first_sample_offset(right, *inputs, query_offset=None, **options):
    """Of offsets per sample the first one is used for all samples."""
    if query_offset is not None:
        query_offset = np.full_like(query_offset, np.ravel(query_offset)[0])
    return right(*inputs, query_offset=query_offset, **options)


@breaks("steps", "CAUSE-2")
def offset_guessed(right, *inputs, query_offset=None, **options):
    """Where an offset is needed and left out, 0 is taken without a word."""
    return right(*inputs, query_offset=0 if query_offset is None else query_offset, **options)


# In front of what builds a mask, and so in front of everything that takes one


@breaks("mask", "MASK-4", "MASK-10", "MASK-12", "ATT-1", "CAUSE-1", "CACHE-2")
def one_key_too_few(right, spec):
    """A causal mask hides the diagonal: a token does not see itself."""
    if spec is not None and spec.kind == "causal":
        return right(predicate(lambda batch, head, query, key: key < query))
    return right(spec)


@breaks("mask", "MASK-4", "MASK-10", "ATT-1", "CAUSE-1", "CAUSE-4", "DOC-B6", "DOC-B12")
def one_key_too_many(right, spec):
    """A causal mask is off by one: a token sees the one after it."""
    if spec is not None and spec.kind == "causal":
        return right(predicate(lambda batch, head, query, key: key <= query + 1))
    return right(spec)


def window(right, spec, change: int):
    if spec is not None and spec.kind == "sliding_window":
        before = max(spec.arguments["before"] + change, 0)
        return right(sliding_window(before, spec.arguments["after"]))
    return right(spec)


@breaks("mask", "MASK-4", "MASK-7", "ATT-1", "CACHE-2")
def window_short(right, spec):
    """A sliding window is one key short: it counts a query's own position as one of `before`."""
    return window(right, spec, -1)


@breaks("mask", "MASK-4", "MASK-7", "ATT-1", "CACHE-2")
def window_long(right, spec):
    """A sliding window is one key too long."""
    return window(right, spec, 1)


@breaks("mask", "MASK-8", "MASK-4", "ATT-1")
def segments_not_compared(right, spec):
    """Packed sequences see each other: everything counts as one segment."""
    if spec is not None and spec.kind == "segments":
        return right(segments(*(0 * ids for ids in spec.arguments.values())))
    return right(spec)


@breaks("mask", "MASK-13", "MASK-4", "ATT-1")
def chunks_from_one(right, spec):
    """Chunks are counted from position 1: a query sees `size` keys that are shifted by one."""
    if spec is None or spec.kind != "chunked":
        return right(spec)
    size = spec.arguments["size"]
    return right(
        predicate(lambda batch, head, query, key: (query - 1) // size == (key - 1) // size)
    )


@breaks("mask", "MASK-13")
def chunks_cut_towards_zero(right, spec):
    """Positions before the first are rounded towards 0, and see the first chunk."""
    if spec is None or spec.kind != "chunked":
        return right(spec)
    size = spec.arguments["size"]

    def chunk(positions):
        return np.sign(positions) * (abs(positions) // size)

    return right(predicate(lambda batch, head, query, key: chunk(query) == chunk(key)))


@breaks("mask", "MASK-13", "MASK-4", "ATT-1")
def one_document(right, spec):
    """Packed documents see each other: their lengths are only summed."""
    if spec is not None and spec.kind == "packed":
        return right(packed(spec.arguments["lengths"].sum(1, keepdims=True)))
    return right(spec)


@breaks("mask", "MASK-13")
def rest_is_a_document(right, spec):
    """What stands behind the last document is taken for one more."""
    if spec is None or spec.kind != "packed":
        return right(spec)
    ends = spec.arguments["lengths"].cumsum(1)

    def document(batch, positions):
        own = ends[np.minimum(batch, len(ends) - 1)]
        return (positions[..., None] >= own).sum(-1)

    def allowed(batch, head, query, key):
        return (query >= 0) & (document(batch, query) == document(batch, key))

    return right(predicate(allowed))


@breaks("mask", "MASK-14", "ATT-1")
def part_in_order(right, spec):
    """A part's rows are taken for neighbours that begin with its first one."""
    if spec is None or spec.kind != "part" or not len(spec.arguments["rows"]):
        return right(spec)
    rows = spec.arguments["rows"]
    near = np.minimum(rows[0] + np.arange(len(rows)), rows.max())
    return right(Spec("part", spec.arguments | {"rows": near}, spec.parts))


@breaks("mask", "MASK-14")
def part_columns_sorted(right, spec):
    """A part's columns are put in order, as those of a slice are."""
    if spec is None or spec.kind != "part":
        return right(spec)
    columns = np.sort(spec.arguments["columns"])
    return right(Spec("part", spec.arguments | {"columns": columns}, spec.parts))


@breaks("mask", "MASK-14")
def part_at_zero(right, spec):
    """A part forgets where the queries of the whole call start."""
    if spec is None or spec.kind != "part":
        return right(spec)
    return right(Spec("part", spec.arguments | {"query_offset": 0}, spec.parts))


@breaks("mask", "MASK-8", "MASK-4", "ATT-1")
def prefix_forgotten(right, spec):
    """The prefix is as causal as what follows it."""
    if spec is not None and spec.kind == "prefix":
        return right(prefix(0 * spec.arguments["lengths"]))
    return right(spec)


@breaks("mask", "MASK-4", "MASK-6", "CAUSE-5", "DOC-A2")
def last_token_hidden(right, spec):
    """The last token of each sample is taken for padding."""
    if spec is None or spec.kind != "padding":
        return right(spec)
    if "lengths" in spec.arguments:
        lengths = spec.arguments["lengths"]
        return right(padding(lengths - (lengths > 0)))
    hidden = spec.arguments["hidden"]
    return right(padding(hidden=hidden | np.roll(hidden, -1, axis=1)))


@breaks("mask", "MASK-4", "MASK-5", "DOC-B8")
def allow_hides(right, spec):
    """`allow` is read as other libraries read a mask: True hides."""
    if spec is not None and spec.kind == "allow":
        return right(hide(spec.arguments["array"]))
    return right(spec)


@breaks("mask", "MASK-4", "MASK-5", "ATT-1", "CAUSE-5")
def and_is_or(right, spec):
    """`a & b` shows what either shows, not what both do."""
    return right(Spec("or", parts=spec.parts) if spec is not None and spec.kind == "and" else spec)


@breaks("mask", "MASK-4", "MASK-5", "ATT-1")
def complement_forgotten(right, spec):
    """`~mask` is the mask itself."""
    return right(spec.parts[0] if spec is not None and spec.kind == "not" else spec)
