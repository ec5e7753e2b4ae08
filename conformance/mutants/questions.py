"""Mistakes in the documents' two builders, and in what a mask answers when it is asked."""

import numpy as np

from ..mask_spec import allow, hide, padding
from ..oracle import reference
from .masks import leaves
from .mutant import breaks

# The builders


@breaks("sequence_mask", "MASK-1", "DOC-A1", "DOC-A2")
def tokens_marked(right, tokens, padding_idx):
    """`sequence_mask` marks the tokens instead of the padding."""
    return ~right(tokens, padding_idx)


@breaks("sequence_mask", "MASK-1")
def padding_is_zero(right, tokens, padding_idx):
    """`sequence_mask` takes 0 for padding, whatever the padding's id."""
    return right(tokens, 0)


@breaks("look_ahead_mask", "MASK-2", "MASK-3", "DOC-A4")
def diagonal_hidden(right, tgt_len, src_len):
    """`look_ahead_mask` hides the diagonal: a token does not see itself."""
    return right(tgt_len + 1, src_len + 1)[:-1, 1:]


@breaks("look_ahead_mask", "MASK-2", "MASK-3", "DOC-A4")
def look_ahead_1e9(right, tgt_len, src_len):
    """`look_ahead_mask` holds -1e9 above the diagonal instead of -inf."""
    return np.maximum(right(tgt_len, src_len), -1e9)


@breaks("look_ahead_mask", "MASK-2", "DOC-A4")
def look_ahead_bottom_right(right, tgt_len, src_len):
    """`look_ahead_mask` is aligned at the last row and column instead of the first."""
    long = max(tgt_len, src_len)
    return right(long, long)[long - tgt_len :, long - src_len :]


# The questions


@breaks("ask", "MASK-4")
def hidden_is_allowed(right, question, *arguments, **options):
    """`hidden` answers what `allowed` answers."""
    return right("allowed" if question == "hidden" else question, *arguments, **options)


@breaks("ask", "MASK-4")
def additive_finite(right, question, *arguments, **options):
    """`additive` fills with the lowest finite number instead of -inf."""
    found = right(question, *arguments, **options)
    return np.maximum(found, np.finfo(found.dtype).min) if question == "additive" else found


@breaks("ask", "MASK-4")
def dims_spread(right, question, spec, T, S, *arguments, **options):
    """`allowed` repeats itself along the dims in which nothing varies."""
    found = right(question, spec, T, S, *arguments, **options)
    if question != "allowed":
        return found
    sizes = (options.get("batch") or found.shape[0], options.get("heads") or 2, T, S)
    return np.broadcast_to(found, sizes)


@breaks("ask", "MASK-6", "DOC-A2")
def padding_hides_queries(right, question, spec, *arguments, **options):
    """Padding is asked about queries, not keys: `allowed` hides the rows behind the length."""
    if question not in ("allowed", "hidden"):
        return right(question, spec, *arguments, **options)
    T, S = arguments

    def rows(part):
        sizes = (len(next(iter(part.arguments.values()))), 1, max(T, S), max(T, S))
        if "hidden" in part.arguments and T > S:
            part = padding(hidden=np.pad(part.arguments["hidden"], ((0, 0), (0, T - S))))
        return allow(reference.allowed(part, sizes).swapaxes(2, 3)[:, :, :T, :S])

    right(question, spec, *arguments, **options)
    return right(question, leaves(spec, "padding", rows), *arguments, **options)


@breaks("ask", "MASK-6")
def lengths_clipped(right, question, spec, T, S, *arguments, **options):
    """A length below 0 or above S is put right without a word."""

    def clipped(part):
        if "lengths" not in part.arguments or question == "explain":
            return part
        return padding(np.clip(part.arguments["lengths"], 0, S))

    return right(question, leaves(spec, "padding", clipped), T, S, *arguments, **options)


@breaks("ask", "MASK-10")
def never_sure(right, question, *arguments, **options):
    """`tile` says "partial" everywhere, so that nothing is ever skipped."""
    return "partial" if question == "tile" else right(question, *arguments, **options)


@breaks("ask", "MASK-10")
def too_sure(right, question, *arguments, **options):
    """`tile` says "all" of a tile in which something is hidden."""
    found = right(question, *arguments, **options)
    return "all" if question == "tile" and found == "partial" else found


@breaks("ask", "MASK-11")
def verdict_inverted(right, question, *arguments, **options):
    """`explain` says allowed where it should say hidden, and the other way round."""
    found = right(question, *arguments, **options)
    if question != "explain":
        return found
    return "hidden".join(part.replace("hidden", "allowed") for part in found.split("allowed"))


@breaks("ask", "MASK-11")
def one_verdict(right, question, *arguments, **options):
    """`explain` gives the first part's verdict and leaves out the others'."""
    found = right(question, *arguments, **options)
    return "\n".join(found.split("\n")[:2]) if question == "explain" else found


@breaks("ask", "MASK-4", "MASK-10", "MASK-12")
def offset_not_asked(right, question, *arguments, query_offset=None, **options):
    """A mask that is asked about an offset answers for an offset of 0."""
    offset = None if query_offset is None else 0
    return right(question, *arguments, query_offset=offset, **options)


@breaks("ask", "MASK-12")
def arrays_shifted(right, question, spec, *arguments, query_offset=None, **options):
    """An offset shifts arrays too, whose rows are the call's own."""

    def shifted(part):
        return hide(np.roll(part.arguments["array"], np.max(query_offset), axis=2))

    if query_offset is not None:
        spec = leaves(spec, "hide", shifted)
    return right(question, spec, *arguments, query_offset=query_offset, **options)


# What the module takes for a mask


@breaks("module.attention", "MASK-9", "ERR-1")
def bare_array_taken(right, *inputs, mask=None, **options):
    """A bare array is taken for a mask, whichever way it was meant."""
    bare = hasattr(mask, "dtype")
    return right(*inputs, mask=None if bare else mask, **options)


@breaks("module.allow", "MASK-9", "ERR-1")
def any_rank_taken(right, array):
    """`allow` takes an array of any rank and guesses its axes."""
    rank = getattr(array, "ndim", 4)
    return right(array[(None,) * (4 - rank)] if rank < 4 else array)


@breaks("module.hide", "MASK-9", "ERR-1")
def any_kind_taken(right, array):
    """`hide` takes numbers, and hides where they are not 0."""
    return right(array if isinstance(array, list) else array != 0)


@breaks("module.allow", "MASK-4")
def own_array_answered(right, array):
    """A mask answers with the very array that it was made of, to be written to by whoever asks."""
    mask = right(array)
    vars(mask)["allowed"] = lambda *sizes, **options: array
    return mask


@breaks("mask", "MASK-9")
def masks_are_true(right, spec):
    """A mask has a truth value, so that `a and b` is b without a word."""
    mask = right(spec)
    if mask is not None:
        truthful = type("Truthful", (type(mask),), {"__bool__": lambda self: True})
        object.__setattr__(mask, "__class__", truthful)
    return mask
