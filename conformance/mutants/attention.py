"""Mistakes in the formula: scale, softmax, heads, bias, softcap, dropout, and in its paths."""

import numpy as np

from ..oracle.naive import upcast
from .arithmetic import attended, over_heads, recomputes, softmax
from .mutant import breaks


@breaks("steps", "ATT-1", "DOC-B5")
def scale_missing(right, *inputs, scale=None, **options):
    """Scores are not divided by the root of D."""
    return right(*inputs, scale=1.0 if scale is None else scale, **options)


@breaks("steps", "ATT-1", "ATT-13", "DOC-B5")
def scale_by_d(right, *inputs, scale=None, **options):
    """Scores are divided by D instead of its root."""
    return right(*inputs, scale=1 / inputs[0].shape[3] if scale is None else scale, **options)


@breaks("steps", "ATT-1", "DOC-B5")
def scale_of_values(right, *inputs, scale=None, **options):
    """The scale is made of the values' width instead of the keys'."""
    scale = inputs[2].shape[3] ** -0.5 if scale is None else scale
    return right(*inputs, scale=scale, **options)


@breaks("steps", "ATT-1")
def scale_of_zero_ignored(right, *inputs, scale=None, **options):
    """A scale of 0 is taken for none (`scale or 1 / sqrt(D)`)."""
    return right(*inputs, scale=scale or None, **options)


@breaks("steps", "ATT-1", "ATT-2", "DOC-B5")
@recomputes
def softmax_over_queries(right, *inputs, **options):
    """The softmax runs over the queries: columns sum to 1 instead of rows."""
    steps = right(*inputs, **options)
    return attended(steps, inputs, weights=softmax(steps["masked_scores"], axis=2))


@breaks("steps", "ATT-7")
@recomputes
def no_maximum_subtracted(right, *inputs, **options):
    """Exponents are taken of the scores as they are, which overflow, and not less their maximum."""
    steps = right(*inputs, **options)
    exp = np.exp(steps["masked_scores"])
    return attended(steps, inputs, weights=exp / exp.sum(-1, keepdims=True))


@breaks("steps", "ATT-7")
def overflow_is_empty(right, *inputs, **options):
    """A row whose allowed scores overflow to -inf is taken for a fully masked row."""
    steps = right(*inputs, **options)
    if options.get("empty_rows", "zero") != "zero":
        return steps
    nothing = np.isneginf(steps["masked_scores"]).all(-1, keepdims=True)
    output = np.where(nothing, 0, steps["output"]).astype(steps["output"].dtype)
    return steps | {"output": output}


@breaks("steps", "ATT-5", "ATT-9")
def heads_tiled(right, query, key, value, **options):
    """Key heads are tiled over the query heads instead of repeated: neighbours do not share."""
    group = max(query.shape[1] // key.shape[1], 1)
    if query.shape[1] % key.shape[1]:
        return right(query, key, value, **options)
    return right(query, *(np.tile(x, (1, group, 1, 1)) for x in (key, value)), **options)


@breaks("steps", "ATT-5")
def heads_divided_down(right, query, key, value, **options):
    """Head counts that do not divide are taken: the last query heads go without."""
    heads = query.shape[1] // key.shape[1] * key.shape[1]
    steps = right(query[:, :heads], key, value, **options)
    widths = [(0, 0), (0, query.shape[1] - heads), (0, 0), (0, 0)]
    return {name: np.pad(x, widths) for name, x in steps.items()}


@breaks("steps", "ATT-4", "DOC-A12")
def bias_forgotten(right, *inputs, bias=None, **options):
    """The bias is not added."""
    right(*inputs, bias=bias, **options)
    return right(*inputs, **options)


@breaks("steps", "ATT-4")
def bias_instead_of_mask(right, *inputs, mask=None, bias=None, **options):
    """Where a bias is given the mask is forgotten."""
    right(*inputs, mask=mask, bias=bias, **options)
    return right(*inputs, mask=mask if bias is None else None, bias=bias, **options)


@breaks("steps", "ATT-6", "ATT-13")
def softcap_after_bias(right, *inputs, softcap=None, bias=None, mask=None, **options):
    """The softcap is applied to the sum of score and bias."""
    if softcap is None or bias is None:
        return right(*inputs, softcap=softcap, bias=bias, mask=mask, **options)
    plain = right(*inputs, bias=bias, **options)
    capped = softcap * np.tanh(plain["masked_scores"] / softcap)
    return right(*inputs, bias=capped - plain["scores"], mask=mask, **options)


@breaks("steps", "ATT-6", "ATT-13")
@recomputes
def softcap_after_mask(right, *inputs, softcap=None, **options):
    """The softcap is applied after the mask, so that -inf becomes a finite score."""
    steps = right(*inputs, softcap=softcap, **options)
    if softcap is None:
        return steps
    plain = right(*inputs, **options)
    return attended(steps, inputs, masked=softcap * np.tanh(plain["masked_scores"] / softcap))


@breaks("steps", "ATT-8", "EMPTY-5")
def samples_mixed(right, *inputs, **options):
    """A millionth of the batch's mean is added to every sample, as by a norm over the batch."""
    steps = right(*inputs, **options)
    output = upcast(steps["output"])
    if not len(output):
        return steps
    mixed = output + np.float32(1e-6) * np.nan_to_num(output).mean(0, keepdims=True)
    return steps | {"output": mixed.astype(steps["output"].dtype)}


@breaks("steps", "ATT-8", "CAUSE-4", "DOC-B9", "DOC-B12")
def future_leaks(right, *inputs, **options):
    """A millionth of the last token's value is added to every output."""
    steps = right(*inputs, **options)
    value = np.nan_to_num(over_heads(inputs[2], inputs[0])[:, :, -1:], posinf=0, neginf=0)
    leak = np.float32(1e-6) * value if value.shape[2] else np.float32(0)
    return steps | {"output": (steps["output"] + leak).astype(steps["output"].dtype)}


@breaks("steps", "ATT-8", "CLEAN-4")
def values_clipped(right, query, key, value, **options):
    """Values beyond 4 are clipped, so that twice the values is not twice the output."""
    four = value.dtype.type(4)
    return right(query, key, np.where(value > four, four, value), **options)


@breaks("attention", "ATT-9")
def fast_path_apart(right, *inputs, **options):
    """The fast path is off by a hundred-thousandth: asking for the steps changes the output."""
    output = right(*inputs, **options)
    return output * output.dtype.type(1.00001)


@breaks("blocked", "ATT-9")
def last_tile_skipped(right, query, key, value, *, tile, **options):
    """The walk over the tiles leaves out the last one, where it is not a whole one."""
    kept = key.shape[2] - key.shape[2] % tile[1] or key.shape[2]
    if options.get("mask") or options.get("bias") is not None:
        return right(query, key, value, tile=tile, **options)
    return right(query, key[:, :, :kept], value[:, :, :kept], tile=tile, **options)


@breaks("module.attention", "ATT-10", base="torch")
def input_written_to(right, query, key, *others, **options):
    """NaN is cleaned out of the caller's own keys."""
    output = right(query, key, *others, **options)
    if not key.requires_grad and key.is_contiguous():
        key.nan_to_num_()
    return output


@breaks("steps", "ATT-10")
def strides_ignored(right, *inputs, **options):
    """Numbers are read in the order in which they lie in memory, whatever the strides say."""
    return right(*(x.ravel(order="K").reshape(x.shape) for x in inputs), **options)


@breaks("compiled", "ATT-11", base="torch")
def compiled_without_mask(right, *inputs, mask=None, query_offset=None, **options):
    """The compiled form has forgotten the mask."""
    return right(*inputs, **options)


@breaks("gradients", "ATT-11", base="torch")
def compiled_gradients_without_mask(right, *inputs, through="attention", **options):
    """The compiled form has forgotten the mask on its way back."""
    if through == "compiled":
        options.pop("mask", None)
    return right(*inputs, through=through, **options)


# Dropout


@breaks("steps", "ATT-12")
def dropout_unscaled(right, *inputs, dropout=0.0, **options):
    """Kept weights are not divided by what is left."""
    steps = right(*inputs, dropout=dropout, **options)
    return steps | {"output": steps["output"] * steps["output"].dtype.type(1 - dropout)}


@breaks("steps", "ATT-12")
def dropout_of_one_is_nan(right, *inputs, dropout=0.0, **options):
    """A dropout of 1 divides 0 by 0."""
    steps = right(*inputs, dropout=dropout, **options)
    return steps | {"output": steps["output"] / steps["output"].dtype.type(dropout < 1)}


@breaks("steps", "ATT-12")
def seed_ignored(right, *inputs, **options):
    """Every seed drops the same."""
    return right(*inputs, **options | ({"seed": 1} if "seed" in options else {}))


@breaks("steps", "ATT-12")
def one_pattern(right, *inputs, dropout=0.0, seed=None, **options):
    """All samples and heads drop the same weights."""
    steps = right(*inputs, dropout=dropout, seed=seed, **options)
    if not 0 < dropout < 1:
        return steps
    kept = np.random.default_rng(seed).random(steps["weights"].shape[2:]) >= dropout
    weights = steps["weights"]
    dropped = attended(steps, inputs, weights=kept * weights / weights.dtype.type(1 - dropout))
    return steps | {"output": dropped["output"]}


# Steps that are not what their name says


@breaks("steps", "ATT-13")
def scores_masked(right, *inputs, **options):
    """The scores that are returned are the masked ones."""
    steps = right(*inputs, **options)
    return steps | {"scores": steps["masked_scores"]}


@breaks("steps", "ATT-13")
def weights_after_dropout(right, query, key, value, **options):
    """The weights that are returned are those that dropout has left."""
    steps = right(query, key, value, **options)
    if not options.get("dropout"):
        return steps
    eye = np.broadcast_to(np.eye(key.shape[2], dtype=query.dtype), (*key.shape[:3], key.shape[2]))
    return steps | {"weights": right(query, key, eye, **options)["output"]}


@breaks("steps", "ATT-14")
def steps_with_a_head(right, *inputs, **options):
    """Inputs without heads are given one, and the steps keep it."""
    return right(*(x if x.ndim == 4 else np.expand_dims(x, -3) for x in inputs), **options)


@breaks("attention", "ATT-10")
def query_scaled_in_place(right, query, *inputs, **options):
    """The scale is multiplied into the caller's own query."""
    output = right(query, *inputs, **options)
    if query.flags.writeable:
        query *= query.dtype.type(query.shape[3] ** -0.5)
    return output


@breaks("steps", "ATT-15")
def sinks_ignored(right, *inputs, sinks=None, **options):
    """The sinks are taken and not used: weights sum to 1."""
    return right(*inputs, **options)


@breaks("steps", "ATT-15")
def sinks_scaled(right, *inputs, sinks=None, scale=None, **options):
    """The sinks are scaled as scores are."""
    if sinks is not None:
        root = inputs[0].shape[-1] ** -0.5 if scale is None else scale
        sinks = sinks * sinks.dtype.type(root)
    return right(*inputs, sinks=sinks, scale=scale, **options)


@breaks("steps", "ATT-15")
def sinks_of_other_heads(right, *inputs, sinks=None, **options):
    """Each head takes the sink of the head before it."""
    if sinks is not None:
        sinks = np.roll(sinks, 1)
    return right(*inputs, sinks=sinks, **options)


@breaks("steps", "ATT-15")
def sinks_leave_rows_to_the_policy(right, *inputs, sinks=None, empty_rows="zero", **options):
    """A fully masked row goes by `empty_rows` although there is a sink."""
    steps = right(*inputs, sinks=sinks, empty_rows=empty_rows, **options)
    if sinks is None or empty_rows == "zero":
        return steps
    plain = right(*inputs, empty_rows=empty_rows, **options)
    empty = np.isneginf(plain["masked_scores"]).all(-1, keepdims=True)
    return steps | {n: np.where(empty, plain[n], steps[n]) for n in ("weights", "output")}


@breaks("steps", "ATT-15")
def sink_of_minus_infinity_nan(right, *inputs, sinks=None, **options):
    """A fully masked row whose sink is -inf is 0/0."""
    steps = right(*inputs, sinks=sinks, **options)
    if sinks is None:
        return steps
    empty = np.isneginf(steps["masked_scores"]).all(-1, keepdims=True)
    lost = empty & np.isneginf(sinks)[:, None, None]
    return steps | {"output": np.where(lost, np.nan, steps["output"]).astype(inputs[0].dtype)}
