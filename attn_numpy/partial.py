"""Attention to some of the keys, and how such parts merge into attention to all of them.

For keys that are on several devices, come one after the other, or are shared by many queries.
A part is the softmax before its division. A log-sum-exp beside an output says as much on paper
alone: beside scores of -1e30 float32 holds nothing of the logarithm, and two such parts weigh
the same whatever they hold.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from . import checks
from .attention import allowed_cells, attend_steps
from .blocked import ScoreOverflow, attend_into
from .call import Call, check_call
from .masks import Mask
from .numerics import split_nonfinite, upcast, without_warnings


class Partial(NamedTuple):
    """What attention to some of the keys gives: float64, or float32 for all other inputs.

    `maximum` is a constant to every derivative: outputs do not depend on what is subtracted.
    """

    sums: Float[np.ndarray, "B H T D_v"]  # of exp(score - maximum) times value
    maximum: Float[np.ndarray, "B H T"]  # the largest allowed score of a row, -inf without any
    total: Float[np.ndarray, "B H T"]  # the sum of exp(score - maximum)

    @property
    def output(self) -> Float[np.ndarray, "B H T D_v"]:
        """What attention to these keys alone gives; a fully masked row is 0."""
        return finish(self)

    @property
    def lse(self) -> Float[np.ndarray, "B H T"]:
        """The logarithm of the sum of exp(score); -inf for a fully masked row."""
        return self.maximum + np.log(_divisor(self, 1.0))


def attention_part(
    query: Float[np.ndarray, "B H T D"],
    key: Float[np.ndarray, "B H_kv S D"],
    value: Float[np.ndarray, "B H_kv S D_v"],
    *,
    mask: Mask | None = None,
    bias: Float[np.ndarray, "T S"] | Float[np.ndarray, "#B #H #T #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    query_offset: int | Integer[np.ndarray, "..."] | None = None,
) -> Partial:
    """Attend to some of the keys: `merge` joins parts, and `finish` makes the output of them.

    Mask, bias and offset are those of these keys; key 0 is the first of them. A mask of the whole
    call becomes theirs by `mask.part(rows, columns)`; one that goes by positions alone may be
    given as it is, with a `query_offset`. Everything is as in `attention`, and raises what it
    raises, and ValueError for such a mask without one.

    Source: "FlashAttention", section 3.1, for the sums and how they join.

    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 1, 2, 5, 4))
    >>> from attn_numpy import attention, causal
    >>> first = attention_part(query, key[:, :, :3], value[:, :, :3], mask=causal(), query_offset=0)
    >>> last = attention_part(query, key[:, :, 3:], value[:, :, 3:], mask=causal(), query_offset=-3)
    >>> whole = attention(query, key, value, mask=causal())
    >>> bool(np.allclose(finish(merge(first, last)), whole, atol=1e-6))
    True
    """
    checks.check_part_offset(query_offset, mask, Mask)
    call = check_call(query, key, value, mask, bias, scale, softcap, query_offset=query_offset)
    return attend_part(query, key, value, call)


@without_warnings
def merge(*partials: Partial) -> Partial:
    """Join parts into the one that all their keys give, whatever their order.

    A part in which a row is fully masked changes nothing in that row. Raises ValueError for no
    part and for shapes that differ, TypeError for what is no part and for other dtypes.

    >>> part = Partial(np.ones((1, 1, 1, 2)), np.zeros((1, 1, 1)), np.ones((1, 1, 1)))
    >>> merge(part, part).total
    array([[[2.]]])
    """
    checks.check_partials(partials, Partial)
    maximum = np.stack([part.maximum for part in partials]).max(0)
    base = np.where(maximum == -np.inf, 0, maximum)  # -inf - -inf would be NaN
    shares = [np.exp(part.maximum - base) for part in partials]
    sums = [share[..., None] * part.sums for share, part in zip(shares, partials, strict=True)]
    totals = [share * part.total for share, part in zip(shares, partials, strict=True)]
    return Partial(_add(sums), maximum, _add(totals))


def _add(arrays: list[np.ndarray]) -> np.ndarray:
    return sum(arrays[1:], start=arrays[0])


@without_warnings
def finish(
    partial: Partial,
    dtype: Any = None,
    empty_rows: str = "zero",
    sinks: Float[np.ndarray, " H"] | None = None,
) -> Float[np.ndarray, "B H T D_v"]:
    """Divide the sums by their total: the output of attention to all the keys of a part.

    It is rounded once, to `dtype`, if there is one. A fully masked row is 0 or NaN: `empty_rows`
    "zero" or "nan". Raises ValueError for "uniform", as no part knows the mean of all values, and
    TypeError for a dtype that is no float.
    `sinks` are one more logit a head in the softmax, with no value: then such a row is 0.

    >>> part = Partial(np.ones((1, 1, 1, 2)), np.zeros((1, 1, 1)), np.full((1, 1, 1), 4.0))
    >>> finish(part)
    array([[[[0.25, 0.25]]]])
    """
    checks.check_finish(partial, Partial, dtype, empty_rows, sinks)
    if sinks is not None:
        partial, empty_rows = merge(partial, _sink(partial, sinks)), "zero"
    empty_row_divisor = np.nan if empty_rows == "nan" else 1.0
    output = partial.sums / _divisor(partial, empty_row_divisor)[..., None]
    return output if dtype is None else output.astype(dtype)


def _sink(partial: Partial, sinks: np.ndarray) -> Partial:
    """Return the part of one key a head, whose logit is the sink and whose value is 0."""
    sinks, shape = sinks.astype(partial.sums.dtype)[:, None], partial.total.shape
    nothing = sinks == -np.inf
    sinks = np.maximum(sinks, np.nextafter(np.finfo(sinks.dtype).min, sinks.dtype.type(0)))
    maximum = sinks
    total = np.exp(np.where(nothing, 0, sinks - maximum))
    maximum, total = np.where(nothing, -np.inf, maximum), np.where(nothing, 0, total)
    sums = np.zeros_like(partial.sums)
    return Partial(sums, np.broadcast_to(maximum, shape), np.broadcast_to(total, shape))


def _divisor(partial: Partial, empty_row_divisor: float) -> np.ndarray:
    """Return the totals, with NaN for rows whose every logit overflowed."""
    maximum, total = partial.maximum, partial.total
    total = np.where(maximum == np.finfo(maximum.dtype).min, np.nan, total)
    return np.where(maximum == -np.inf, empty_row_divisor, total)


def attend_part(query: np.ndarray, key: np.ndarray, value: np.ndarray, call: Call) -> Partial:
    """Return a checked call's part: by tiles, or by the textbook."""
    if 0 in (*call.sizes, value.shape[3]) or (call.bias is not None and _is_far(call.bias)):
        return _attend_textbook(query, key, value, call)
    dtype, sizes = upcast(value).dtype, call.sizes
    sums = np.empty((*sizes[:3], value.shape[3]), dtype)
    maximum, total = np.empty(sizes[:3], dtype), np.empty(sizes[:3], dtype)
    try:
        attend_into(sums, query, key, value, call, parts=(maximum, total))
    except ScoreOverflow:
        return _attend_textbook(query, key, value, call)
    return Partial(sums, maximum, total)


def _is_far(bias: np.ndarray) -> bool:
    """Whether a bias may push a score out of float32, as the lowest number does as a fill."""
    return float(np.where(bias == -np.inf, 0, bias).min()) < -1e38


@without_warnings
def _attend_textbook(query: np.ndarray, key: np.ndarray, value: np.ndarray, call: Call) -> Partial:
    """Return the part, by the formula.

    The lowest number marks a score that overflowed; a real score that low is raised.
    """
    scores = attend_steps(query, key, value, call).masked_scores
    allowed = allowed_cells(call)
    lowest = np.finfo(scores.dtype).min
    above = np.nextafter(lowest, scores.dtype.type(0))
    scores = np.where(scores == -np.inf, lowest, np.maximum(scores, above))
    scores = np.where(allowed, scores, -np.inf)
    maximum = scores.max(-1, initial=-np.inf)
    base = np.where(maximum == -np.inf, 0, maximum)  # -inf - -inf would be NaN
    weights = np.exp(scores - base[..., None])
    _, value, _ = split_nonfinite(key, upcast(value))
    value = np.repeat(value, call.sizes[1] // key.shape[1], axis=1)
    return Partial(weights @ value, maximum, weights.sum(-1))
