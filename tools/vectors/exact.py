"""The second derivation: exact arithmetic, which shares neither code nor form with the oracle.

Products and sums are `Fraction`s; exponentials and roots are `Decimal`s of 60 digits. Each answer
is rounded once, to the nearest float64. What a query does not see is never looked at.
"""

from fractions import Fraction

import numpy as np

from conformance.vectors.vector import Vector

from . import exact_heads, sets
from .digits import rational, rounded, shortened
from .exact_row import ExactRow, rows

Answers = dict[str, np.ndarray]


def forward(found: dict[tuple, ExactRow], value: np.ndarray, sizes: tuple) -> dict[str, np.ndarray]:
    """Return weights and output, as Fractions."""
    group = sizes[1] // max(value.shape[1], 1)
    weights = np.full(sizes, Fraction(0), object)
    output = np.full((*sizes[:3], value.shape[3]), Fraction(0), object)
    for (b, h, t), row in found.items():
        for s, weight in row.weights.items():
            weights[b, h, t, s] = weight
        output[b, h, t] = row.mean(value[b, h // group])
    return {"weights": weights, "output": output}


def backward(found, query, key, value, grad, bias, sinks=None, grad_lse=None) -> dict:
    """Return the gradients of sum(grad * output), as Fractions; and of grad_lse * log-sum-exp."""
    by = {"query": query, "key": key, "value": value}
    by |= {} if sinks is None else {"sinks": sinks}
    by = {name: np.full(x.shape, Fraction(0), object) for name, x in by.items()}
    by_bias = None if bias is None else np.full(np.shape(bias), Fraction(0), object)
    group = query.shape[1] // key.shape[1]
    for (b, h, t), row in found.items():
        g, own = h // group, grad[b, h, t]
        for s, weight in row.weights.items():
            by["value"][b, g, s] += shortened(weight) * own
        if not row.slopes:
            continue  # a fully masked row's weights are constants
        by_weight = {s: sum(own * value[b, g, s]) for s in row.exps}
        pulls = row.pulls(by_weight)
        if sinks is not None:
            by["sinks"][h] += row.pull_of_sink(by_weight)
        for s, pull in pulls.items():
            if grad_lse is not None:
                pull += shortened(row.weights[s]) * grad_lse[b, h, t]
            by["query"][b, h, t] += pull * shortened(row.slopes[s]) * key[b, g, s]
            by["key"][b, g, s] += pull * shortened(row.slopes[s]) * query[b, h, t]
            if by_bias is not None:
                at = zip(by_bias.shape, (b, h, t, s)[4 - by_bias.ndim :], strict=True)
                by_bias[tuple(min(i, size - 1) for size, i in at)] += pull
    return by if by_bias is None else by | {"bias": by_bias}


def derive(vector: Vector) -> Answers:
    """Return every tensor of the answer that can be had, float64 or bool."""
    match vector.call:
        case "sequence_mask" | "look_ahead_mask":
            return {"mask": sets.built(vector)}
        case "allowed":
            allowed = sets.allowed_cells(vector)
            additive = np.array([[-np.inf, 0.0][int(cell)] for cell in allowed.ravel()])
            hidden = np.logical_not(allowed)
            return {
                "allowed": allowed,
                "hidden": hidden,
                "additive": additive.reshape(allowed.shape),
            }
        case "multihead":
            return _multihead(vector.widened())
        case "parts":
            return _parts(vector.widened())
        case "rotary":
            return exact_heads.turned(vector)
    return _attention(vector.widened())


def _attention(vector: Vector) -> Answers:
    allowed, bias = sets.allowed_cells(vector), vector.inputs.get("bias")
    query, key, value = (rational(vector.inputs[name]) for name in ("query", "key", "value"))
    own, sinks = (vector.scale, vector.softcap, vector.empty_rows), vector.inputs.get("sinks")
    found = rows(query, key, bias, allowed, *own, sinks)
    answers = forward(found, value, allowed.shape)
    if "grad" in vector.inputs:
        grad = rational(vector.inputs["grad"])
        by_name = backward(found, query, key, value, grad, bias, sinks)
        answers |= {f"grad_{name}": array for name, array in by_name.items()}
    return {name: rounded(array) for name, array in answers.items()}


def _parts(vector: Vector) -> Answers:
    """Every piece of the keys for itself, then merged."""
    allowed, bias = sets.allowed_cells(vector), vector.inputs.get("bias")
    query, key, value = (rational(vector.inputs[name]) for name in ("query", "key", "value"))
    pieces = []
    for columns in vector.settings["pieces"]:
        own = np.zeros_like(allowed)
        own[..., columns] = allowed[..., columns]
        pieces.append(rows(query, key, bias, own, vector.scale, vector.softcap, "zero"))
    found = {at: ExactRow.merged([piece[at] for piece in pieces]) for at in pieces[0]}
    lse = np.array([row.log_sum_exp for row in found.values()], object)
    answers = {"lse": lse.reshape(allowed.shape[:3])}
    if "sinks" in vector.inputs:
        sinks = rational(vector.inputs["sinks"])
        for (_, h, _), row in found.items():
            row.put_beside(sinks[h])
    answers |= forward(found, value, allowed.shape)
    if "grad" in vector.inputs:
        grad, grad_lse = (rational(vector.inputs[name]) for name in ("grad", "grad_lse"))
        by_name = backward(found, query, key, value, grad, None, None, grad_lse)
        answers |= {f"grad_{name}": array for name, array in by_name.items()}
    return {name: rounded(array) for name, array in answers.items()}


def _multihead(vector: Vector) -> Answers:
    settings, allowed = vector.settings, sets.allowed_cells(vector)
    heads = settings["num_heads"]
    width = settings.get("head_dim", settings["embed_dim"] // heads)
    parameters = {name: rational(x) for name, x in vector.parameters.items()}
    split = []
    for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        x = rational(vector.inputs[name])
        x = x if settings["batch_first"] else x.swapaxes(0, 1)
        split.append(_heads(_linear(x, parameters, projection), width))
    query, key, value = split
    if "process_heads" in settings:
        places, spec = np.arange(query.shape[2])[None], settings["process_heads"]
        query = exact_heads.process(query, "q", spec, parameters, places)
        key = exact_heads.process(key, "k", spec, parameters, places)
    own = (settings.get("scale"), settings.get("softcap"), vector.empty_rows)
    sinks = vector.parameters.get("sinks")
    found = rows(query, key, sets.added(vector), allowed, *own, sinks)
    answers = forward(found, value, allowed.shape)
    short = np.frompyfunc(shortened, 1, 1)(answers["output"])
    joined = np.concatenate([short[:, h] for h in range(heads)], -1)
    output = _linear(joined, parameters, "out_proj")
    answers["output"] = output if settings["batch_first"] else output.swapaxes(0, 1)
    answers["mean_weights"] = sum(answers["weights"][:, h] for h in range(heads)) / heads
    return {name: rounded(array) for name, array in answers.items()}


def _linear(x: np.ndarray, parameters: dict, name: str) -> np.ndarray:
    y = x.dot(parameters[f"{name}.weight"].T)
    return y + parameters.get(f"{name}.bias", Fraction(0))


def _heads(x: np.ndarray, width: int) -> np.ndarray:
    """(B, T, H * D) to (B, H, T, D)."""
    return np.stack([x[:, :, i : i + width] for i in range(0, x.shape[2], width)], 1)
