"""What a call should give: the oracle's answer, and the naive formula's for the budget.

One order of evaluation may happen to round well, and a budget made from it would be luck. So the
naive formula runs in sixteen (queries, keys and samples or features there or back, factors folded
or not), and every tensor keeps the answer that lies furthest from the oracle's.
"""

from collections.abc import Callable
from itertools import product

import numpy as np

from . import naive, reference, second
from .memo import remembered
from .tolerance import eps

# Which axis of which array runs along the queries, the keys, and a third sum.
ATTENTION = {
    "queries": {"query": 2, "grad": 2, "allowed": 2, "bias": -2, "scores": 2, "masked_scores": 2,
                "weights": 2, "output": 2, "grad_lse": 2},
    "keys": {"key": 2, "value": 2, "allowed": 3, "bias": -1, "scores": 3, "masked_scores": 3,
             "weights": 3},
    "features": {"query": 3, "key": 3},
}  # fmt: skip
MULTIHEAD = {
    "queries": {"query": 1, "grad": 1, "allowed": 2, "bias": -2, "weights": 2, "output": 1,
                "query_places": -1},
    "keys": {"key": 1, "value": 1, "allowed": 3, "bias": -1, "weights": 3, "key_places": -1},
    "samples": {"query": 0, "key": 0, "value": 0, "grad": 0, "allowed": 0, "bias": -4, "weights": 0,
                "output": 0, "query_places": 0, "key_places": 0},
}  # fmt: skip

DIRECTIONS = {"query": "d_query", "key": "d_key", "value": "d_value", "bias": "d_bias",
              "sinks": "d_sinks"}  # fmt: skip
SECOND = {
    along: axes | {DIRECTIONS[name]: axes[name] for name in DIRECTIONS.keys() & axes.keys()}
    for along, axes in ATTENTION.items()
}
SECOND["queries"]["tangent"] = 2


def attention(query, key, value, **options) -> tuple[dict, dict]:
    """Return the steps of attention, exact and naive."""
    return _expect("attention", ATTENTION, query=query, key=key, value=value, **options)


def gradients(query, key, value, grad, **options) -> tuple[dict, dict]:
    """Return the gradients of sum(grad * output), exact and naive."""
    inputs = {"query": query, "key": key, "value": value, "grad": grad}
    return _expect("gradients", ATTENTION, **inputs, **options)


def cancelled(
    query, key, value, grad, *, allowed, grad_lse=None, bias=None, **options
) -> dict[str, float]:
    """Return one rounding, in float32 or float64, of what cancels in the gradients of parts.

    A score's gradient is weight x (grad . value - mean). In one call both are rounded alike; a part
    gets them as two gradients, of its sums and its total, which miss each other by a rounding.
    """
    precision = np.finfo(np.float64 if query.dtype == np.float64 else np.float32)
    q, k, v, g = (np.abs(x.astype(np.float64)) for x in (query, key, value, grad))
    wide = {"bias": None if bias is None else bias.astype(np.float64)} | options
    weights = naive.attention(*map(_as_double, (query, key, value)), allowed=allowed, **wide)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat(groups, 1), v.repeat(groups, 1)
    terms = np.einsum("bhtd,bhsd->bhts", g, v)
    terms = terms if grad_lse is None else terms + np.abs(grad_lse.astype(np.float64))[..., None]
    terms = weights["weights"] * terms * precision.eps
    scale = options.get("scale")
    scale = q.shape[3] ** -0.5 if scale is None else abs(scale)
    sums = {
        "query": np.einsum("bhts,bhsd->bhtd", terms, k) * scale,
        "key": np.einsum("bhts,bhtd->bhsd", terms, q) * scale * groups,
        "value": np.zeros(1),
    }
    if bias is not None:
        shape = (1,) * (4 - bias.ndim) + bias.shape
        along = tuple(i for i in range(4) if shape[i] == 1)
        sums["bias"] = terms.sum(along)
    return {name: float(array.max(initial=0.0)) for name, array in sums.items()}


def rounded_shares(query, key, value, grad, rows, **options) -> dict[str, float]:
    """Return what it costs that shares of a gradient are rounded before they are added up.

    `rows` are the queries of each share, which is rounded to the dtype of the keys: by half a
    spacing of its own size at most, however small the sum is.
    """
    call = {"query": query, "key": key, "value": value} | options
    call = {name: _as_double(x) for name, x in call.items()}
    shares = []
    for own in rows:
        some = np.zeros_like(call["query"], shape=grad.shape)
        some[:, :, own] = grad[:, :, own]
        shares.append(naive.gradients(**call, grad=some))
    sizes = {name: np.sum([np.abs(x[name]) for x in shares], 0) for name in ("key", "value")}
    return {name: eps(query.dtype) / 2 * float(size.max()) for name, size in sizes.items()}


def dropped(query, key, value, grad, **options) -> tuple[dict, dict]:
    """Return output and gradients of weights that dropout has multiplied by `dropped`.

    Exact is the textbook formula in float64.
    """
    call = {"query": query, "key": key, "value": value} | options
    axes = {along: dict(own) for along, own in ATTENTION.items()}
    for along, axis in (("queries", 2), ("keys", 3)):
        axes[along]["dropped"] = axis
    found: tuple[dict, dict] = ({}, {})
    for name, more in (("attention", {}), ("gradients", {"grad": grad})):
        given = call | more
        wide = {n: _as_double(x) for n, x in given.items()}
        exact = getattr(naive, name)(**wide)
        for answer, own in zip(found, (exact, furthest(name, axes, exact, given)), strict=True):
            answer |= own
    return found


def _as_double(x):
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype != bool else x


def seconds(query, key, value, grad, directions: dict, **options) -> tuple[dict, dict]:
    """Return the derivatives along a direction of output and gradients, exact and naive."""
    along = {DIRECTIONS[name]: array for name, array in directions.items()}
    inputs = {"query": query, "key": key, "value": value, "grad": grad}
    return _expect("second", SECOND, **inputs, **along, **options)


def multihead(parameters, heads, kv_heads, query, key, value, **options) -> tuple[dict, dict]:
    """Return output and weights of multi-head attention, exact and naive."""
    fixed = {"parameters": parameters, "heads": heads, "kv_heads": kv_heads}
    inputs = {"query": query, "key": key, "value": value}
    return _expect("multihead", MULTIHEAD, **fixed, **inputs, **options)


def multihead_gradients(
    parameters, heads, kv_heads, query, key, value, grad, **options
) -> tuple[dict, dict]:
    """Return the gradients by parameter and input of multi-head attention, exact and naive.

    A key of None is the query: there is one gradient, by the query.
    """
    alone, key, value = key is None, *((query, query) if key is None else (key, value))
    fixed = {"parameters": parameters, "heads": heads, "kv_heads": kv_heads}
    inputs = {"query": query, "key": key, "value": value, "grad": grad}
    answers = _expect("multihead_gradients", MULTIHEAD, **fixed, **inputs, **options)
    for answer in answers if alone else ():
        answer["query"] = answer["query"] + answer.pop("key") + answer.pop("value")
    return answers


@remembered
def _expect(name: str, axes: dict, **call) -> tuple[dict, dict]:
    call["allowed"] = np.asarray(call["allowed"], bool)
    exactly, naively = (second.exact, second.second)
    if name != "second":
        exactly, naively = getattr(reference, name), getattr(naive, name)
    exact = exactly(**call)
    return exact, _worst(naively, axes, exact, call)


def furthest(name: str, axes: dict, exact: dict, call: dict) -> dict:
    """Return the naive formula's answer in the order that lies furthest from an exact one."""
    return _worst(getattr(naive, name), axes, exact, call)


def _worst(naively: Callable, axes: dict, exact: dict, call: dict) -> dict:
    candidates = []
    for folded, *there_or_back in product((False, True), repeat=4):
        turned = [along for along, back in zip(axes.values(), there_or_back, strict=True) if back]
        found = naively(**_flip(call, turned), folded=folded)
        candidates.append(_flip(found, turned))
    return {name: _furthest([c[name] for c in candidates], exact[name]) for name in exact}


def _flip(arrays: dict, turned: list[dict]) -> dict:
    arrays = dict(arrays)
    for axes in turned:
        for name in axes.keys() & arrays.keys():
            array, axis = arrays[name], axes[name]
            if array is not None and array.ndim >= -axis:  # a (T, S) bias knows no samples
                arrays[name] = np.flip(array, axis)
    return arrays


def _furthest(candidates: list[np.ndarray], exact: np.ndarray) -> np.ndarray:
    def error(candidate: np.ndarray) -> float:
        wide = candidate.astype(np.float64)
        finite = np.isfinite(wide) & np.isfinite(exact)
        return abs(wide[finite] - exact[finite]).max(initial=0.0)

    return max(candidates, key=error)
