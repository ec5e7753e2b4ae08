"""Mistakes with fully masked rows, and with what hidden positions may hold."""

import numpy as np

from .arithmetic import attended, nan_where, over_heads, recomputes, softmax, with_allowed
from .mutant import breaks

# Rows that may see nothing


@breaks("steps", "EMPTY-1", "EMPTY-2", "EMPTY-4", "DOC-A12")
def empty_row_mean(right, *inputs, **options):
    """A fully masked row is the mean of all values, whatever was asked for."""
    return right(*inputs, **options | {"empty_rows": "uniform"})


@breaks("steps", "EMPTY-2", "EMPTY-3", "EMPTY-4", "DOC-A12")
def empty_row_zero(right, *inputs, **options):
    """A fully masked row is 0, whatever was asked for."""
    return right(*inputs, **options | {"empty_rows": "zero"})


@breaks("steps", "EMPTY-1", "EMPTY-3", "EMPTY-4", "EMPTY-7")
def empty_row_nan(right, *inputs, **options):
    """A fully masked row is NaN, whatever was asked for."""
    return right(*inputs, **options | {"empty_rows": "nan"})


@breaks("steps", "EMPTY-1", "EMPTY-2", "EMPTY-3", "EMPTY-4")
def empty_row_unmasked(right, *inputs, mask=None, query_offset=None, **options):
    """A row from which the mask hides everything sees everything."""

    def change(allowed):
        return allowed | ~allowed.any(-1, keepdims=True)

    return with_allowed(right, inputs, mask, query_offset, options, change)


@breaks("steps", "EMPTY-1")
def empty_query_shows(right, *inputs, **options):
    """NaN in the query of a fully masked row reaches its output, which should be 0."""
    steps = right(*inputs, **options)
    return steps | {"output": steps["output"] + 0 * inputs[0].sum(-1, keepdims=True)}


@breaks("steps", "EMPTY-2", "DOC-A12")
def nan_spreads(right, *inputs, **options):
    """One fully masked row makes its whole sample NaN."""
    steps = right(*inputs, **options)
    rows = np.isneginf(steps["masked_scores"]).all(-1, keepdims=True)
    if options.get("empty_rows") != "nan":
        return steps
    sample = rows.any((1, 2), keepdims=True)
    return steps | {"output": nan_where(sample, steps["output"])}


@breaks("steps", "EMPTY-3")
def uniform_over_one_less(right, *inputs, **options):
    """The mean of a fully masked row is divided by S - 1."""
    steps = right(*inputs, **options)
    keys = inputs[1].shape[2]
    if options.get("empty_rows") != "uniform" or keys < 2:
        return steps
    rows = np.isneginf(steps["masked_scores"]).all(-1, keepdims=True)
    factor = np.where(rows, keys / (keys - 1), 1)
    changed = {name: steps[name] * factor for name in ("weights", "output")}
    return steps | {name: x.astype(steps[name].dtype) for name, x in changed.items()}


@breaks("steps", "ATT-3", "EMPTY-4")
def no_key_is_nan(right, *inputs, **options):
    """Attention over no key at all is NaN, whatever was asked for."""
    if inputs[1].shape[2]:
        return right(*inputs, **options)
    steps = right(*inputs, **options)
    return steps | {"output": np.full_like(steps["output"], np.nan)}


@breaks("steps", "ATT-3", "EMPTY-4", raises=True)
def no_key_crashes(right, *inputs, **options):
    """Attention over no key at all raises: there is no maximum of no score."""
    if not inputs[1].shape[2]:
        raise ValueError("zero-size array to reduction operation maximum which has no identity")
    return right(*inputs, **options)


@breaks("steps", "ATT-3")
def no_query_gives_a_row(right, *inputs, **options):
    """Where there is no query, one row of zeros comes out."""
    steps = right(*inputs, **options)
    rows = [(0, 0), (0, 0), (0, int(not inputs[0].shape[2])), (0, 0)]
    return {name: np.pad(x, rows) for name, x in steps.items()}


@breaks("steps", "EMPTY-4", "DOC-B7")
def bias_clipped(right, *inputs, bias=None, **options):
    """-inf in a bias is clipped to a finite number, and a row of it counts as allowed."""
    if bias is not None:
        bias = np.maximum(bias, -1e4).astype(bias.dtype)
    return right(*inputs, bias=bias, **options)


@breaks("steps", "EMPTY-8", "DOC-B7")
def fill_hides(right, *inputs, bias=None, **options):
    """A bias of -1e9 or less is taken for a mask."""
    if bias is not None:
        bias = np.where(bias <= -1e9, -np.inf, bias).astype(bias.dtype)
    return right(*inputs, bias=bias, **options)


@breaks("steps", "EMPTY-9", "DOC-A12")
def column_is_nan(right, *inputs, **options):
    """A column that nobody may see gives NaN to everyone."""
    steps = right(*inputs, **options)
    hidden = np.isneginf(steps["masked_scores"])
    column = (hidden.all(2) & ~hidden.all((2, 3))[..., None]).any(-1)
    return steps | {"output": nan_where(column[..., None, None], steps["output"])}


# What hidden positions may hold


@breaks("steps", "CLEAN-1")
@recomputes
def padded_key_nan(right, *inputs, softcap=None, **options):
    """A mask of -inf is added to scores that are NaN, which stay NaN."""
    steps = right(*inputs, softcap=softcap, **options)
    query, key, _ = inputs
    if np.isfinite(key).all() or softcap is not None:
        return steps
    scores = query @ over_heads(key, query).swapaxes(2, 3)
    masked = steps["masked_scores"] + 0 * scores
    empty = np.isneginf(steps["masked_scores"]).all(-1, keepdims=True)
    return attended(steps, inputs, weights=np.where(empty, 0, softmax(masked)))


@breaks("steps", "CLEAN-2")
@recomputes
def padded_value_nan(right, *inputs, **options):
    """A hidden value is multiplied by a weight of 0, and 0 times NaN is NaN."""
    steps = right(*inputs, **options)
    if np.isfinite(inputs[2]).all():
        return steps
    output = steps["weights"] @ over_heads(inputs[2], inputs[0])
    return steps | {"output": output.astype(steps["output"].dtype)}


@breaks("steps", "CLEAN-4")
def visible_nan_forgiven(right, *inputs, **options):
    """NaN in an allowed place is taken for 0, and nobody learns of it."""
    return right(*(np.where(np.isnan(x), 0, x).astype(x.dtype) for x in inputs), **options)


@breaks("steps", "CLEAN-4")
def bias_nan_forgiven(right, *inputs, bias=None, **options):
    """NaN in a bias is taken for 0."""
    if bias is not None:
        bias = np.where(np.isnan(bias), 0, bias).astype(bias.dtype)
    return right(*inputs, bias=bias, **options)


@breaks("steps", "CLEAN-4")
def bias_nan_for_everyone(right, *inputs, bias=None, **options):
    """One NaN in a bias reaches every row, of those too that do not see it."""
    steps = right(*inputs, bias=bias, **options)
    if bias is None or not np.isnan(bias).any():
        return steps
    return steps | {"output": np.full_like(steps["output"], np.nan)}
