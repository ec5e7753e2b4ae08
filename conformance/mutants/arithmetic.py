"""What mistakes in attention compute with, so that nothing but the mistake is wrong.

Where a mistake makes the weights or the output again, a fully masked row stays as it was,
and a weight of 0 hides what it stands for, whatever that is.
"""

from collections.abc import Callable
from functools import wraps

import numpy as np

from ..mask_spec import Spec, allow
from ..oracle import reference
from ..oracle.naive import upcast


def allowed_by(mask: Spec | None, inputs, query_offset=None) -> np.ndarray:
    """Return what a mask shows of query and key, which come first: bool (B, H, T, S)."""
    query, key = inputs[:2]
    return reference.allowed(mask, (*query.shape[:3], key.shape[2]), query_offset)


def with_allowed(right, inputs, mask, query_offset, options, change: Callable) -> dict:
    """Attend with other cells allowed; a call that the right one refuses stays refused."""
    right(*inputs, mask=mask, query_offset=query_offset, **options)
    allowed = allowed_by(mask, inputs, query_offset)
    return right(*inputs, mask=allow(change(allowed)), **options)


def recomputes(mistake: Callable) -> Callable:
    """Leave calls with dropout alone: what is dropped cannot be told from outside."""

    @wraps(mistake)
    def unless_dropped(right, *inputs, **options):
        if options.get("dropout"):
            return right(*inputs, **options)
        return mistake(right, *inputs, **options)

    return unless_dropped


def over_heads(array, query) -> np.ndarray:
    """Repeat key/value heads for the query heads that read them, no narrower than float32."""
    return upcast(array).repeat(query.shape[1] // array.shape[1], axis=1)


def softmax(logits, axis: int = -1) -> np.ndarray:
    """Softmax where -inf is hidden; a row of nothing else is 0."""
    top = logits.max(axis, keepdims=True, initial=-np.inf)
    exp = np.exp(logits - np.where(np.isneginf(top), 0, top))
    total = exp.sum(axis, keepdims=True)
    return exp / np.where(total == 0, 1, total)


def attended(steps: dict, inputs, *, masked=None, weights=None) -> dict:
    """Return the steps with other masked scores, or other weights, and the output that follows."""
    query, _, value = inputs
    masked = steps["masked_scores"] if masked is None else masked
    weights = softmax(masked) if weights is None else weights
    rows = np.isneginf(steps["masked_scores"]).all(-1, keepdims=True)
    weights = np.where(rows, steps["weights"], weights).astype(masked.dtype)
    terms = weights[..., None] * over_heads(value, query)[:, :, None]
    output = np.where(weights[..., None] == 0, 0, terms).sum(3)
    output = np.where(rows, steps["output"], output.astype(query.dtype))
    return steps | {"masked_scores": masked, "weights": weights, "output": output}


def nan_where(condition, array) -> np.ndarray:
    """Return an array of the same dtype with NaN where a condition holds."""
    return np.where(condition, array.dtype.type(np.nan), array).astype(array.dtype)
