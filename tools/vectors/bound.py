"""How far the loop oracle may lie from exact arithmetic: its roundings, counted to first order.

One rounding errs by u = 2**-53 of its result. Inputs have eight binary digits, so the products of
two are exact; a sum (`math.fsum`) is rounded once; exp and tanh err by 2 u (one ulp). For a row in
which A bounds the sums of |scale * q * k|, the |bias| and so the logits:

    score    the sum 1, scale 3 (root, quotient, product), softcap 4 more          8 u A
    logit    plus the bias                                                         9 u A
    exponent two logits and their difference                                      20 u A
    weight   two exponentials, their total, a quotient; relatively         (40 A + 6) u = W
    output   a product and a sum, V the largest value                       (W + 2 u) V

A sink is one more logit of each row; a log-sum-exp errs by its logits and a logarithm, 3 W at most.

In multi-head attention q, k and v are rounded sums themselves: 3 more in a score (so 26 u A in an
exponent, W = (52 A + 6) u), 1 more in an output, and the last map adds 2, times the largest sum of
a row of its matrix. A norm of heads adds 7 to an entry of q and k (squares, their sum, mean, root,
quotient, product), a rotation the 4 of its angle and 6. A row that sees one key has weight 1
exactly, whatever its A.

These are worst cases. On the frozen vectors the oracle uses a tenth of them at most, and lies
within 3 ulp of each tensor's largest number (217 in ATT-7.constant, whose logits are in the
hundreds).

Backwards, with P the largest sum of |grad * value|, by the same count: a logit's gradient errs by
its weight times P (3 W + 8 u), its score's by |scale| P (3 W + 58 u), and gradients add up the rows
or cells that share an entry.
"""

import numpy as np

from conformance.oracle import reference_heads
from conformance.vectors.vector import Vector

from . import oracle

UNIT = 2.0**-53


def bounds(vector: Vector) -> dict[str, np.ndarray | float]:
    """Return the largest error of each tensor of the oracle's answer; masks have none."""
    if vector.call not in ("attention", "parts", "multihead", "rotary"):
        return {}
    wide = vector.widened().settled()
    if vector.call == "rotary":
        return _turned(wide)
    if vector.call == "multihead":
        return _multihead(wide)
    query, key, value = oracle.call_of(wide)
    group = query.shape[1] // key.shape[1]
    weights = _weights(wide, query, key.repeat(group, 1), 40)
    top = np.abs(value).max(initial=0.0)
    found: dict = {"weights": weights, "output": (weights + 2 * UNIT) * top}
    if vector.call == "parts":
        found["lse"] = 3 * weights[..., 0] + 6 * UNIT * np.log(max(weights.size, 2))
    if "grad" in wide.inputs:
        found |= _gradients(wide, float(weights.max()), group)
    return found


def _weights(vector: Vector, query, key, count: float) -> np.ndarray:
    """Return what each row's weights err by at most, (B, H, T, 1)."""
    allowed = oracle.allowed_with_bias(vector)
    size = np.einsum("bhtd,bhsd->bhts", np.abs(query), np.abs(key)) * _scale(vector, query)
    bias = np.broadcast_to(np.abs(oracle.options(vector).get("bias", 0.0)), allowed.shape)
    largest = np.where(allowed, np.maximum(size, bias), 0).max(-1, keepdims=True, initial=0.0)
    several = allowed.sum(-1, keepdims=True) > 1
    if "sinks" in vector.inputs | vector.parameters:  # one more logit
        sinks = (vector.inputs | vector.parameters)["sinks"]
        sinks = np.where(np.isfinite(sinks), np.abs(sinks), 0)[:, None, None]
        largest, several = np.maximum(largest, sinks), several | allowed.any(-1, keepdims=True)
    return (count * np.where(several, largest, 0) + 6) * UNIT


def _scale(vector: Vector, query: np.ndarray) -> float:
    scale = vector.settings.get("scale") if vector.call == "multihead" else vector.scale
    return query.shape[3] ** -0.5 if scale is None else abs(scale)


def _multihead(vector: Vector) -> dict[str, np.ndarray | float]:
    p, settings = vector.parameters, vector.settings
    _, heads, kv_heads, *inputs = oracle.call_of(vector)
    split, counts = [], (heads, kv_heads, kv_heads)
    for x, name, count in zip(inputs, ("q_proj", "k_proj", "v_proj"), counts, strict=True):
        y = x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)
        split.append(y.reshape(*y.shape[:2], count, -1).swapaxes(1, 2))
    query, key, value = split
    query, key, more = _processed(vector, query, key)
    weights = _weights(vector, query, key.repeat(heads // kv_heads, 1), 52 + more)
    rows = np.abs(p["out_proj.weight"]).sum(1).max()
    output = (weights.max() + 5 * UNIT) * np.abs(value).max() * rows
    output += 2 * UNIT * np.abs(p.get("out_proj.bias", np.zeros(1))).max()
    return {
        "weights": weights,
        "mean_weights": weights.mean(1) + settings["num_heads"] * UNIT,
        "output": float(output),
    }


def _processed(vector: Vector, query, key) -> tuple[np.ndarray, np.ndarray, float]:
    """Return no less than the heads' largest entries, and how many roundings more a weight has."""
    spec, turns = vector.settings.get("process_heads"), 0.0
    if spec is None:
        return query, key, 0.0
    for own in (spec, spec.get("then", {})):
        if own.get("class") == "rotary":
            turns = _turns(own, query.shape[3], vector.sizes["T"])
    places = np.arange(vector.sizes["T"])[None]
    found = []
    for role, x in (("q", query), ("k", key)):
        y = reference_heads.process(vector.parameters, spec, role, x, places)
        both = np.sqrt((y**2).max(-1, keepdims=True) * 2) if turns else np.abs(y)
        found.append(np.broadcast_to(both, y.shape))
    return found[0], found[1], 8 * (7 + turns)


def _turned(vector: Vector) -> dict[str, np.ndarray | float]:
    """A turned number is a sum of two products, each with the roundings of its angle."""
    places = vector.inputs["positions"]
    errors = _turns(vector.settings, vector.sizes["D"], int(np.abs(places).max()))
    return {
        f"turned_{name}": 2 * errors * UNIT * float(np.abs(vector.inputs[name]).max())
        for name in ("query", "key")
    }


def _turns(spec: dict, width: int, place: int) -> float:
    """Return a turned number's roundings: four in its angle, and three in each product."""
    fastest = max(abs(step) for _, _, step in reference_heads.pairs(spec, width))
    return 4 * fastest * place + 6


def _gradients(vector: Vector, weight: float, group: int) -> dict[str, float]:
    query, key, value = oracle.call_of(vector)
    grad, T = vector.inputs["grad"], query.shape[2]
    pull = float(np.abs(grad).sum(-1).max() * np.abs(value).max())
    pull += float(np.abs(vector.inputs.get("grad_lse", np.zeros(1))).max())
    slope = _scale(vector, query) * pull * (3 * weight + 62 * UNIT)
    rows = group * T
    found = {
        "grad_query": slope * np.abs(key).max(),
        "grad_key": slope * np.abs(query).max() * rows,
        "grad_value": (weight + 2 * UNIT) * np.abs(grad).max() * rows,
    }
    if "bias" in vector.inputs:
        cells = np.prod(oracle.allowed_with_bias(vector).shape) / vector.inputs["bias"].size
        found["grad_bias"] = pull * (3 * weight + 9 * UNIT) * cells
    if "sinks" in vector.inputs:
        found["grad_sinks"] = pull * (3 * weight + 9 * UNIT) * query.shape[0] * T
    return {name: float(limit) for name, limit in found.items()}
