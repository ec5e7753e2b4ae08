"""The textbook formula differentiated twice: what Hessian-vector products and forward mode give.

With x the inputs, L(x) = sum(grad * output(x)) and v a direction, the answers are the derivatives
along v of the output ("tangent") and of L's gradients by query, key, value, bias and sinks. The
exact answer is this formula in float64, which `tests/test_reference_second.py` checks by
differences of the oracle's gradients; the naive one is it in the precision under test.
"""

import math

import numpy as np

from .naive import _sum_groups, upcast


def second(
    query, key, value, grad, d_query, d_key, d_value, *, allowed, bias=None, d_bias=None,
    scale=None, softcap=None, sinks=None, d_sinks=None, empty_rows="zero", folded=False,
    cast=upcast,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the tangent of the output and of every gradient along a direction."""
    q, k, v, g, dq, dk, dv = map(cast, (query, key, value, grad, d_query, d_key, d_value))
    group = q.shape[1] // k.shape[1]
    k, v, dk, dv = (x.repeat(group, axis=1) for x in (k, v, dk, dv))
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    with np.errstate(all="ignore"):
        scores = _product(q, k, scale, folded)
        d_scores = _product(dq, k, scale, folded) + _product(q, dk, scale, folded)
        slope, bend = scores.dtype.type(1), scores.dtype.type(0)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
            slope, bend = 1 - (scores / softcap) ** 2, -2 * scores / softcap**2
        d_capped = slope * d_scores
        logits = np.where(allowed, scores if bias is None else scores + cast(bias), -np.inf)
        d_logits = d_capped if d_bias is None else d_capped + cast(d_bias)
        if sinks is not None:  # a key whose value is 0
            logits = _with_sink(logits, np.maximum(cast(sinks), np.finfo(logits.dtype).min))
            d_logits = _with_sink(
                d_logits, cast(np.zeros_like(sinks) if d_sinks is None else d_sinks)
            )
        w, dw = _softmax(logits, d_logits, empty_rows)
    alive = ~np.isneginf(logits).all(-1, keepdims=True)
    sent, d_sent = (np.einsum("bhtd,bhsd->bhts", g, x) for x in (v, dv))  # dL / d weights
    if sinks is not None:
        sent, d_sent = (_with_sink(x, np.zeros(len(sinks), x.dtype)) for x in (sent, d_sent))
    mean = (w * sent).sum(-1, keepdims=True)
    d_mean = (dw * sent + w * d_sent).sum(-1, keepdims=True)
    of_logits = np.where(alive, w * (sent - mean), 0)
    d_of_logits = np.where(alive, dw * (sent - mean) + w * (d_sent - d_mean), 0)
    of_sinks = None if sinks is None else d_of_logits[..., -1].sum((0, 2))
    w, dw, of_logits, d_of_logits = (x[..., : v.shape[2]] for x in (w, dw, of_logits, d_of_logits))
    of_scores = of_logits * slope * scale
    d_of_scores = (d_of_logits * slope + of_logits * bend * d_capped) * scale
    found: dict = {
        "tangent": np.einsum("bhts,bhsd->bhtd", dw, v) + np.einsum("bhts,bhsd->bhtd", w, dv),
        "query": np.einsum("bhts,bhsd->bhtd", d_of_scores, k)
        + np.einsum("bhts,bhsd->bhtd", of_scores, dk),
        "key": _sum_groups(
            np.einsum("bhts,bhtd->bhsd", d_of_scores, q)
            + np.einsum("bhts,bhtd->bhsd", of_scores, dq),
            group,
        ),
        "value": _sum_groups(np.einsum("bhts,bhtd->bhsd", dw, g), group),
    }
    found["bias"] = None if bias is None else _sum_broadcast(d_of_logits, np.shape(bias))
    found["sinks"] = of_sinks
    dtype = np.asarray(query).dtype if cast is upcast else np.float64
    return {name: x.astype(dtype) for name, x in found.items() if x is not None}


def exact(**call) -> dict[str, np.ndarray]:
    """Return the same in float64."""
    return second(cast=lambda x: np.asarray(x).astype(np.float64), **call)


def _product(query, key, scale: float, folded: bool) -> np.ndarray:
    if folded:
        return np.einsum("bhtd,bhsd->bhts", query, key * scale)
    return np.einsum("bhtd,bhsd->bhts", query, key) * scale


def _with_sink(array, sinks) -> np.ndarray:
    """Add a column: (B, H, T, S) and (H,) -> (B, H, T, S + 1)."""
    column = np.broadcast_to(sinks[:, None, None], (*array.shape[:3], 1))
    return np.concatenate((array, column), -1)


def _softmax(logits, d_logits, empty_rows: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and their derivative; those of a fully masked row are constants."""
    top = logits.max(-1, keepdims=True, initial=-np.inf)
    empty = np.isneginf(top)
    exps = np.exp(logits - np.where(empty, 0, top))
    weights = exps / np.where(empty, 1, exps.sum(-1, keepdims=True))
    d_weights = weights * (d_logits - (weights * d_logits).sum(-1, keepdims=True))
    fill = {"zero": 0.0, "uniform": 1 / max(logits.shape[-1], 1)}[empty_rows]
    weights = np.where(empty, fill, weights).astype(logits.dtype)
    return weights, np.where(empty, 0, d_weights).astype(logits.dtype)


def _sum_broadcast(array, shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the axes along which a bias of this shape was broadcast."""
    padded = (1,) * (array.ndim - len(shape)) + tuple(shape)
    axes = tuple(i for i, size in enumerate(padded) if size == 1 and array.shape[i] != 1)
    return array.sum(axes, keepdims=True).reshape(shape)
