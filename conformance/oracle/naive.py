"""The textbook formula in the precision under test: what the budget takes as excusable rounding.

Vectorised NumPy with nothing done for accuracy but the up-cast of 16-bit inputs to float32. It is
not an oracle: only its distance from the oracle is used. `folded=True` is the same formula
associated the other way round: the scale folded into the keys, the sum into the exponent, products
multiplied out. An implementation may do either, so the budget covers both.
"""

import math

import numpy as np

from . import naive_heads


def upcast(array) -> np.ndarray:
    """Return float64 and wider as they are, anything narrower in float32."""
    array = np.asarray(array)
    return array if array.dtype in (np.float64, np.longdouble) else array.astype(np.float32)


def attention(
    query,
    key,
    value,
    *,
    allowed,
    bias=None,
    scale=None,
    softcap=None,
    sinks=None,
    empty_rows="zero",
    folded=False,
    dropped=1.0,
) -> dict[str, np.ndarray]:
    """Return scores, masked_scores, weights and output; the output rounded to the input's dtype.

    `dropped` is what dropout multiplies the weights by, 0 or 1 / (1 - p), once they are returned.
    """
    dtype = np.asarray(query).dtype
    query, key, value = upcast(query), upcast(key), upcast(value)
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat(group, axis=1), value.repeat(group, axis=1)
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    with np.errstate(all="ignore"):
        if folded:
            scores = np.einsum("bhtd,bhsd->bhts", query, key * scale)
        else:
            scores = np.einsum("bhtd,bhsd->bhts", query, key) * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores * (1 / softcap) if folded else scores / softcap)
        masked = np.where(allowed, scores if bias is None else scores + upcast(bias), -np.inf)
        top = masked.max(-1, keepdims=True, initial=-np.inf)
        if sinks is not None:
            sinks = upcast(sinks)[:, None, None]
            top, empty_rows = np.maximum(top, sinks), "zero"
        base = np.where(np.isneginf(top), 0, top)
        shifted = masked - base
        total = np.exp(shifted).sum(-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks - base)
        weights = np.exp(shifted - np.log(total)) if folded else np.exp(shifted) / total
    fill = {"zero": 0.0, "nan": np.nan, "uniform": 1 / max(key.shape[2], 1)}[empty_rows]
    weights = np.where(np.isneginf(top), fill, weights).astype(query.dtype)
    dropped = np.asarray(dropped, weights.dtype)
    output = np.einsum("bhts,bhsd->bhtd", weights * dropped, value).astype(dtype)
    return {"scores": scores, "masked_scores": masked, "weights": weights, "output": output}


def log_sum_exp(masked_scores) -> np.ndarray:
    """Return the logarithm of each row's sum of exp(score), -inf for a fully masked row."""
    top = masked_scores.max(-1, keepdims=True, initial=-np.inf)
    exp = np.exp(masked_scores - np.where(np.isneginf(top), 0, top))
    with np.errstate(divide="ignore"):
        return (top + np.log(exp.sum(-1, keepdims=True)))[..., 0]


def gradients(
    query, key, value, grad, *, allowed, bias=None, scale=None, softcap=None, sinks=None,
    empty_rows="zero", folded=False, dropped=1.0, grad_lse=None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the gradients of sum(grad * output), each rounded to its input's dtype.

    `dropped` is what dropout multiplies the weights by, `grad_lse` the log-sum-exp's gradient.
    """
    options = {"bias": bias, "scale": scale, "softcap": softcap, "empty_rows": empty_rows}
    options["sinks"] = sinks
    options |= {"folded": folded, "dropped": dropped}
    steps = attention(query, key, value, allowed=allowed, **options)
    q, k, v, g = upcast(query), upcast(key), upcast(value), upcast(grad)
    group = q.shape[1] // k.shape[1]
    k_all, v_all = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    dropped = np.asarray(dropped, steps["weights"].dtype)
    d_weights = np.einsum("bhtd,bhsd->bhts", g, v_all) * dropped
    mean = (steps["weights"] * d_weights).sum(-1, keepdims=True)
    if folded:  # sum of weight x (grad . value) = grad . output: FlashAttention-2, section 3.1
        forward = attention(q, k, v, allowed=allowed, **options | {"folded": False})
        mean = (g * forward["output"]).sum(-1, keepdims=True)
    less = mean if grad_lse is None else mean - upcast(grad_lse)[..., None]
    d_logits = _logit_gradients(steps, d_weights, less, folded)
    slope = _slope(steps["scores"], softcap, folded)
    d_scores = d_logits * slope if folded else d_logits * slope * scale
    last = scale if folded else 1.0
    found = {
        "query": np.einsum("bhts,bhsd->bhtd", d_scores, k_all * last),
        "key": _sum_groups(np.einsum("bhts,bhtd->bhsd", d_scores, q * last), group),
        "value": _sum_groups(np.einsum("bhts,bhtd->bhsd", steps["weights"] * dropped, g), group),
    }
    found = {name: array.astype(np.asarray(query).dtype) for name, array in found.items()}
    if bias is not None:
        shape = (1,) * (4 - np.ndim(bias)) + np.shape(bias)
        axes = tuple(i for i in range(4) if shape[i] == 1 and d_logits.shape[i] != 1)
        found["bias"] = d_logits.sum(axes, keepdims=True).reshape(np.shape(bias))
        found["bias"] = found["bias"].astype(np.asarray(bias).dtype)
    if sinks is not None:
        shares = _sink_weights(steps["masked_scores"], sinks)
        found["sinks"] = -(shares * mean[..., 0]).sum((0, 2))
        found["sinks"] = found["sinks"].astype(np.asarray(sinks).dtype)
    return found


def _logit_gradients(steps: dict, d_weights, mean, folded: bool):
    weights = steps["weights"]
    found = weights * d_weights - weights * mean if folded else weights * (d_weights - mean)
    empty = np.isneginf(steps["masked_scores"]).all(-1, keepdims=True)
    return np.where(empty, 0, found)


def _sink_weights(masked, sinks):
    """Return what is left of each row for its sink, (B, H, T)."""
    sinks = upcast(sinks)[:, None]
    top = np.maximum(masked.max(-1, initial=-np.inf), sinks)
    top = np.where(np.isneginf(top), 0, top)
    total = np.exp(masked - top[..., None]).sum(-1)
    return np.exp(sinks - top) / np.maximum(total + np.exp(sinks - top), 1)


def _slope(scores, softcap, folded: bool):
    if softcap is None:
        return scores.dtype.type(1)
    share = scores / softcap
    return (1 - share) * (1 + share) if folded else 1 - share**2


def _sum_groups(array, group: int):
    """(B, H, S, D) -> (B, H_kv, S, D)."""
    batch, heads, length, features = array.shape
    return array.reshape(batch, heads // group, group, length, features).sum(2)


def linear(x, parameters: dict, name: str) -> np.ndarray:
    """x W^T + b, rounded to the dtype of x."""
    y = upcast(x) @ upcast(parameters[f"{name}.weight"]).T
    bias = parameters.get(f"{name}.bias")
    return (y if bias is None else y + upcast(bias)).astype(np.asarray(x).dtype)


def split_heads(x, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def join_heads(x) -> np.ndarray:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _processed(parameters, process, split, query_places, key_places, options) -> list:
    """Return query and key as they attend."""
    rows = zip("qk", split[:2], (query_places, key_places), strict=True)
    folded = options.get("folded", False)
    return [naive_heads.process(parameters, process, *row, folded) for row in rows]


def multihead(
    parameters: dict, heads: int, kv_heads: int, query, key, value,
    process=None, query_places=None, key_places=None, **options,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the output (B, T, E) and the weights (B, H, T, S)."""
    inputs = {"q_proj": (query, heads), "k_proj": (key, kv_heads), "v_proj": (value, kv_heads)}
    split = [split_heads(linear(x, parameters, n), count) for n, (x, count) in inputs.items()]
    if process is not None:
        split[0], split[1] = _processed(
            parameters, process, split, query_places, key_places, options
        )
    options |= {"sinks": parameters["sinks"]} if "sinks" in parameters else {}
    steps = attention(*split, **options)
    output = linear(join_heads(steps["output"]), parameters, "out_proj")
    return {"output": output, "weights": steps["weights"]}


def multihead_gradients(
    parameters: dict, heads: int, kv_heads: int, query, key, value, grad,
    process=None, query_places=None, key_places=None, **options,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the gradients of sum(grad * output) by every parameter and input."""
    inputs = {"q_proj": query, "k_proj": key, "v_proj": value}
    counts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    split = [split_heads(linear(x, parameters, n), counts[n]) for n, x in inputs.items()]
    raw = split[:2]
    if process is not None:
        split[0], split[1] = _processed(
            parameters, process, split, query_places, key_places, options
        )
    options |= {"sinks": parameters["sinks"]} if "sinks" in parameters else {}
    joined = join_heads(attention(*split, **options)["output"])
    found = _linear_gradients("out_proj", joined, parameters, grad)
    q, k, v = split
    by_head = gradients(q, k, v, split_heads(found.pop("x"), heads), **options)
    found |= {"sinks": by_head["sinks"]} if "sinks" in by_head else {}
    if process is not None:
        rows = zip(("query", "key"), "qk", raw, (query_places, key_places), strict=True)
        for name, role, x, places in rows:
            call = (
                parameters,
                process,
                role,
                x,
                places,
                by_head[name],
                options.get("folded", False),
            )
            by_head[name], weights = naive_heads.process_gradients(*call)
            found |= weights
    for name, role in zip(inputs, ("query", "key", "value"), strict=True):
        found |= _linear_gradients(name, inputs[name], parameters, join_heads(by_head[role]))
        found[role] = found.pop("x")
    return found


def _linear_gradients(name: str, x, parameters: dict, grad) -> dict[str, np.ndarray]:
    weight = parameters[f"{name}.weight"]
    found = {
        f"{name}.weight": np.einsum("bto,bti->oi", upcast(grad), upcast(x)).astype(weight.dtype),
        "x": (upcast(grad) @ upcast(weight)).astype(np.asarray(x).dtype),
    }
    if f"{name}.bias" in parameters:
        found[f"{name}.bias"] = upcast(grad).sum((0, 1)).astype(weight.dtype)
    return found
