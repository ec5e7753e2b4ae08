"""The oracle: attention by plain loops in float64, written from the formula and nothing else.

Sums are exact (`math.fsum`). It knows no framework, no backend and no shortcut, and is itself held
against rational arithmetic and finite differences in `tests/test_reference.py`.
"""

import math
from itertools import product

import numpy as np

from ..mask_spec import Spec
from . import reference_heads


def is_allowed(spec: Spec, batch: int, head: int, row: int, column: int, offset: int) -> bool:
    """Whether the query in `row`, at position row + offset, may see the key in `column`."""
    a, position = spec.arguments, row + offset
    match spec.kind:
        case "and":
            return all(is_allowed(part, batch, head, row, column, offset) for part in spec.parts)
        case "or":
            return any(is_allowed(part, batch, head, row, column, offset) for part in spec.parts)
        case "not":
            return not is_allowed(spec.parts[0], batch, head, row, column, offset)
        case "causal":
            return column <= position
        case "sliding_window":
            return -a["before"] <= column - position <= a["after"]
        case "chunked":
            return position // a["size"] == column // a["size"]
        case "prefix":
            return column < _of(a["lengths"], batch) or column <= position
        case "padding" if "lengths" in a:
            return column < _of(a["lengths"], batch)
        case "padding":
            return not _of(a["hidden"], batch)[column]
        case "segments" if "key_ids" in a:
            return _of(a["query_ids"], batch)[row] == _of(a["key_ids"], batch)[column]
        case "segments":
            ids = _of(a["query_ids"], batch)
            return 0 <= position < len(ids) and ids[position] == ids[column]
        case "packed":
            document = _document(_of(a["lengths"], batch), position)
            return document is not None and document == _document(_of(a["lengths"], batch), column)
        case "allow":
            return _of(_of(a["array"], batch), head)[row][column]
        case "hide":
            return not _of(_of(a["array"], batch), head)[row][column]
        case "predicate":
            return bool(a["function"](batch, head, position, column))
        case "part":
            place = int(a["rows"][row]), int(a["columns"][column])
            offset = int(_of(np.ravel(a["query_offset"]), batch))
            return is_allowed(spec.parts[0], batch, head, *place, offset)
    raise ValueError(f"a mask of the contract: got {spec.kind}")


def _document(lengths, position: int) -> int | None:
    """Return the number of the document that a position is in, where they lie end to end."""
    start = 0
    for number, length in enumerate(map(int, lengths)):
        if start <= position < start + length:
            return number
        start += length
    return None


def _of(table, index: int):
    return table[index if len(table) > 1 else 0]


def allowed(spec: Spec | None, sizes: tuple[int, int, int, int], query_offset=None) -> np.ndarray:
    """Return bool (B, H, T, S): True where the key is allowed."""
    offsets = np.broadcast_to(0 if query_offset is None else query_offset, sizes[:1])
    allowed = np.ones(sizes, bool)
    if spec is not None:
        for b, h, t, s in product(*map(range, sizes)):
            allowed[b, h, t, s] = is_allowed(spec, b, h, t, s, int(offsets[b]))
    return allowed


LOWEST = -np.finfo(float).max.item()  # a sink of -inf: hidden keys alone are below it


def softmax(logits: list[float], empty_rows: str, sink: float | None = None) -> list[float]:
    """Softmax of one row, where -inf is hidden and a row of nothing else goes by the policy.

    In float64 no allowed logit of a case is -inf, so -inf can stand for hidden. A sink is one more
    logit, and its weight comes last.
    """
    if sink is not None:
        logits = [*logits, max(sink, LOWEST)]
    top = max(logits, default=-math.inf)
    if top == -math.inf:
        row = {"zero": 0.0, "nan": math.nan, "uniform": 1 / len(logits) if logits else math.nan}
        return [row[empty_rows]] * len(logits)
    exps = [math.exp(logit - top) for logit in logits]
    total = math.fsum(exps)
    return [e / total for e in exps]


def attention(
    query, key, value, *, allowed, bias=None, scale=None, softcap=None, sinks=None,
    empty_rows="zero",
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return scores, masked_scores, weights of the keys and output, all float64."""
    query, key, value = (np.asarray(x).astype(np.float64) for x in (query, key, value))
    (B, H, T, D), (S, D_v) = query.shape, value.shape[2:]
    group = H // key.shape[1]
    scale = 1 / math.sqrt(D) if scale is None else scale
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias).astype(float), (B, H, T, S))
    sinks = [None] * H if sinks is None else np.asarray(sinks).astype(float).tolist()
    scores, masked, weights = (np.zeros((B, H, T, S)) for _ in range(3))
    output = np.zeros((B, H, T, D_v))
    for b, h, t in product(range(B), range(H), range(T)):
        for s in range(S):
            score = scale * math.fsum(
                float(query[b, h, t, d] * key[b, h // group, s, d]) for d in range(D)
            )
            if softcap is not None:
                score = softcap * math.tanh(score / softcap)
            scores[b, h, t, s] = score
            masked[b, h, t, s] = score + bias[b, h, t, s] if allowed[b, h, t, s] else -math.inf
        weights[b, h, t] = softmax(masked[b, h, t].tolist(), empty_rows, sinks[h])[:S]
        for d in range(D_v):
            output[b, h, t, d] = math.fsum(
                float(weights[b, h, t, s] * value[b, h // group, s, d]) for s in range(S)
            )
        if not S and empty_rows != "zero" and sinks[h] is None:
            output[b, h, t] = math.nan
    return {"scores": scores, "masked_scores": masked, "weights": weights, "output": output}


def log_sum_exp(masked_scores) -> np.ndarray:
    """Return the logarithm of each row's sum of exp(score), -inf for a fully masked row."""
    found = np.full(masked_scores.shape[:3], -math.inf)
    for at in np.ndindex(found.shape):
        top = max(masked_scores[at].tolist(), default=-math.inf)
        if top > -math.inf:
            found[at] = top + math.log(math.fsum(math.exp(x - top) for x in masked_scores[at]))
    return found


def gradients(
    query, key, value, grad, *, allowed, bias=None, scale=None, softcap=None, sinks=None,
    empty_rows="zero", grad_lse=None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return d sum(grad * output) by query, key, value and, where given, bias and sinks.

    With `grad_lse`, (B, H, T), of sum(grad * output) + sum(grad_lse * log-sum-exp) without a sink.
    """
    options = {"bias": bias, "scale": scale, "softcap": softcap, "empty_rows": empty_rows}
    steps = attention(query, key, value, allowed=allowed, sinks=sinks, **options)
    query, key, value, grad = (np.asarray(x).astype(np.float64) for x in (query, key, value, grad))
    (B, H, T, D), (S, D_v) = query.shape, value.shape[2:]
    group = H // key.shape[1]
    scale = 1 / math.sqrt(D) if scale is None else scale
    d_logits, d_scores = np.zeros((B, H, T, S)), np.zeros((B, H, T, S))
    d_sinks: list[list[float]] = [[] for _ in range(H)]
    for b, h, t in product(range(B), range(H), range(T)):
        weights = steps["weights"][b, h, t]
        if np.isneginf(steps["masked_scores"][b, h, t]).all():
            continue  # the weights of a fully masked row are constants
        d_weights = [
            math.fsum(float(grad[b, h, t, d] * value[b, h // group, s, d]) for d in range(D_v))
            for s in range(S)
        ]
        mean = math.fsum(float(weights[s] * d_weights[s]) for s in range(S))
        mean -= 0.0 if grad_lse is None else float(grad_lse[b, h, t])
        if sinks is not None:  # its value is 0, so that its weight has no gradient of its own
            row = softmax(steps["masked_scores"][b, h, t].tolist(), empty_rows, float(sinks[h]))
            d_sinks[h].append(row[S] * (0 - mean))
        for s in range(S):
            d_logits[b, h, t, s] = weights[s] * (d_weights[s] - mean)
            slope = 1.0
            if softcap is not None:
                slope = 1 - (steps["scores"][b, h, t, s] / softcap) ** 2
            d_scores[b, h, t, s] = d_logits[b, h, t, s] * slope * scale
    d_query, d_key, d_value = np.zeros(query.shape), np.zeros(key.shape), np.zeros(value.shape)
    for b, h, t, d in product(range(B), range(H), range(T), range(D)):
        terms = (float(d_scores[b, h, t, s] * key[b, h // group, s, d]) for s in range(S))
        d_query[b, h, t, d] = math.fsum(terms)
    for b, g, s in product(range(B), range(key.shape[1]), range(S)):
        rows = list(product(range(g * group, (g + 1) * group), range(T)))
        for d in range(D):
            terms = (float(d_scores[b, h, t, s] * query[b, h, t, d]) for h, t in rows)
            d_key[b, g, s, d] = math.fsum(terms)
        for d in range(D_v):
            terms = (float(steps["weights"][b, h, t, s] * grad[b, h, t, d]) for h, t in rows)
            d_value[b, g, s, d] = math.fsum(terms)
    found = {"query": d_query, "key": d_key, "value": d_value}
    if bias is not None:
        found["bias"] = _sum_to(d_logits, np.shape(bias))
    if sinks is not None:
        found["sinks"] = np.array([math.fsum(terms) for terms in d_sinks])
    return found


def _sum_to(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum over the axes along which an array of `shape` was broadcast."""
    padded = (1,) * (array.ndim - len(shape)) + tuple(shape)
    total = np.zeros(padded)
    for index in np.ndindex(*padded):
        spread = tuple(slice(None) if n == 1 else i for i, n in zip(index, padded, strict=True))
        total[index] = math.fsum(array[spread].ravel())
    return total.reshape(shape)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x W^T + b for x (B, T, in) and weight (out, in), summed exactly."""
    y, matrix = np.zeros((*x.shape[:2], len(weight))), weight.tolist()
    for b, t in product(range(x.shape[0]), range(x.shape[1])):
        row = x[b, t].tolist()
        for o, into in enumerate(matrix):
            terms = [a * w for a, w in zip(row, into, strict=True)]
            y[b, t, o] = math.fsum([*terms, 0.0 if bias is None else float(bias[o])])
    return y


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, T, H * D) to (B, H, T, D), entry by entry."""
    B, T, features = x.shape
    D = features // heads
    split = np.zeros((B, heads, T, D))
    for b, h, t, d in product(range(B), range(heads), range(T), range(D)):
        split[b, h, t, d] = x[b, t, h * D + d]
    return split


def join_heads(x: np.ndarray) -> np.ndarray:
    """(B, H, T, D) to (B, T, H * D), entry by entry."""
    B, H, T, D = x.shape
    joined = np.zeros((B, T, H * D))
    for b, h, t, d in product(range(B), range(H), range(T), range(D)):
        joined[b, t, h * D + d] = x[b, h, t, d]
    return joined


def multihead(
    parameters: dict[str, np.ndarray], heads: int, kv_heads: int, query, key, value,
    process=None, query_places=None, key_places=None, **options,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the output (B, T, E) and the weights (B, H, T, S) of multi-head attention."""
    p = {name: np.asarray(array).astype(np.float64) for name, array in parameters.items()}
    query, key, value = (np.asarray(x).astype(np.float64) for x in (query, key, value))
    projected = [
        split_heads(linear(x, p[f"{name}.weight"], p.get(f"{name}.bias")), count)
        for name, x, count in (
            ("q_proj", query, heads),
            ("k_proj", key, kv_heads),
            ("v_proj", value, kv_heads),
        )
    ]
    projected[0] = reference_heads.process(p, process, "q", projected[0], query_places)
    projected[1] = reference_heads.process(p, process, "k", projected[1], key_places)
    options |= {"sinks": p["sinks"]} if "sinks" in p else {}
    steps = attention(*projected, **options)
    joined = join_heads(steps["output"])
    output = linear(joined, p["out_proj.weight"], p.get("out_proj.bias"))
    return {"output": output, "weights": steps["weights"]}


def multihead_gradients(
    parameters: dict[str, np.ndarray], heads: int, kv_heads: int, query, key, value, grad,
    process=None, query_places=None, key_places=None, **options,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return d sum(grad * output) by every parameter and by query, key and value."""
    p = {name: np.asarray(array).astype(np.float64) for name, array in parameters.items()}
    inputs = {"q_proj": query, "k_proj": key, "v_proj": value}
    inputs = {name: np.asarray(x).astype(np.float64) for name, x in inputs.items()}
    grad = np.asarray(grad).astype(np.float64)
    counts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    split = {
        name: split_heads(linear(x, p[f"{name}.weight"], p.get(f"{name}.bias")), counts[name])
        for name, x in inputs.items()
    }
    raw_q, raw_k, v = split.values()
    q = reference_heads.process(p, process, "q", raw_q, query_places)
    k = reference_heads.process(p, process, "k", raw_k, key_places)
    options |= {"sinks": p["sinks"]} if "sinks" in p else {}
    joined = join_heads(attention(q, k, v, **options)["output"])
    found = _linear_gradients("out_proj", joined, p, grad)
    by_head = gradients(q, k, v, split_heads(found.pop("x"), heads), **options)
    found |= {"sinks": by_head["sinks"]} if "sinks" in by_head else {}
    rows = (("q", "query", raw_q, query_places), ("k", "key", raw_k, key_places))
    for role, name, raw, places in rows:
        by_head[name], weights = reference_heads.process_gradients(
            p, process, role, raw, places, by_head[name]
        )
        found |= weights
    for name, role in zip(inputs, ("query", "key", "value"), strict=True):
        found |= _linear_gradients(name, inputs[name], p, join_heads(by_head[role]))
        found[role] = found.pop("x")
    return found


def _linear_gradients(name, x, p, grad) -> dict[str, np.ndarray]:
    rows = list(product(range(x.shape[0]), range(x.shape[1])))
    weight = np.zeros(p[f"{name}.weight"].shape)
    for o, i in product(*map(range, weight.shape)):
        weight[o, i] = math.fsum(float(grad[b, t, o] * x[b, t, i]) for b, t in rows)
    found = {f"{name}.weight": weight, "x": linear(grad, p[f"{name}.weight"].T, None)}
    if f"{name}.bias" in p:
        sums = [math.fsum(float(grad[b, t, o]) for b, t in rows) for o in range(len(weight))]
        found[f"{name}.bias"] = np.array(sums)
    return found
