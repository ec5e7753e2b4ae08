"""The second derivation: exact arithmetic, which shares neither code nor form with the oracle.

Products and sums are `Fraction`s; exponentials and roots are `Decimal`s of 60 digits. Each answer
is rounded once, to the nearest float64. What a query does not see is never looked at.
"""

from decimal import Context, Decimal, localcontext
from fractions import Fraction
from itertools import product

import numpy as np

from conformance.vectors.vector import Vector

from . import sets

DIGITS = 60
NOTHING = -800  # e^-800 stands beside a 1 here, and is below float64's smallest number
SWALLOWS = 2**90  # a bias this large plus any score is, rounded to any float, the bias
PLACES = 300  # binary places of what goes into a further sum

Answers = dict[str, np.ndarray]
Number = Fraction | float  # a float is one that is no number


def rational(array: np.ndarray) -> np.ndarray:
    """Return exactly the numbers given, as Fractions; NaN and infinities as they are."""
    turn = np.frompyfunc(lambda x: Fraction(x) if np.isfinite(x) else float(x), 1, 1)
    return turn(np.asarray(array, float)).astype(object).reshape(np.shape(array))


def rounded(array: np.ndarray) -> np.ndarray:
    """Return the nearest float64s."""
    return np.array([float(x) for x in array.ravel()]).reshape(array.shape)


def shortened(x: Number) -> Number:
    """Round to a multiple of 2**-300, so that sums of quotients stay short."""
    return x if isinstance(x, float) else Fraction(round(x * 2**PLACES), 2**PLACES)


def exp(x: Fraction) -> Fraction:
    if x < NOTHING:
        return Fraction(0)
    with localcontext(Context(prec=DIGITS)):
        return Fraction((Decimal(x.numerator) / Decimal(x.denominator)).exp())


def root(number: int) -> Fraction:
    with localcontext(Context(prec=DIGITS)):
        return Fraction(Decimal(number).sqrt())


class ExactRow:
    """One query over the keys it sees: exponentials by key, their total, the scores' slopes."""

    def __init__(self, query, keys: dict, biases: dict, scale: Fraction, softcap: Fraction | None):
        self.slopes: dict[int, Fraction] = {}
        logits: dict[int, Number] = {}
        for s, key in keys.items():
            score = scale * sum(x * y for x, y in zip(query, key, strict=True))
            self.slopes[s] = scale
            if softcap is not None:
                twice = exp(2 * score / softcap)
                score = softcap * (twice - 1) / (twice + 1)  # tanh
                self.slopes[s] *= 4 * twice / (twice + 1) ** 2  # 1 / cosh^2
            logits[s] = biases[s] if abs(biases[s]) >= SWALLOWS else score + biases[s]
        known = {s: logit for s, logit in logits.items() if isinstance(logit, Fraction)}
        top = max(known.values(), default=Fraction(0))
        self.exps: dict[int, Number] = {s: exp(logit - top) for s, logit in known.items()}
        if len(known) < len(logits):
            self.exps = dict.fromkeys(logits, np.nan)
        self.total = sum(self.exps.values())

    @classmethod
    def empty(cls, policy: str, size: int) -> "ExactRow":
        """Return a fully masked row: no key, or every key alike, or none that is a number."""
        row = cls((), {}, {}, Fraction(1), None)
        if policy == "uniform" and size:
            row.exps, row.total = dict.fromkeys(range(size), Fraction(1)), Fraction(size)
        elif policy != "zero":
            row.exps, row.total = dict.fromkeys(range(size), np.nan), np.nan
        return row

    @property
    def weights(self) -> dict[int, Number]:
        return {s: e / self.total for s, e in self.exps.items()}

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the weighted mean of values (S, D_v)."""
        if not isinstance(self.total, Fraction):
            return np.full(values.shape[1], np.nan if self.total else Fraction(0), object)
        return sum(e * values[s] for s, e in self.exps.items()) / self.total

    def pulls(self, by_weight: dict[int, Number]) -> dict[int, Number]:
        """Return the slopes by each logit: the softmax's, as a sum over pairs of keys."""
        weights = self.weights
        return {
            s: shortened(weights[s] * sum(weights[j] * (own - by_weight[j]) for j in weights))
            for s, own in by_weight.items()
        }


def rows(query, key, bias, allowed, scale, softcap, empty_rows: str) -> dict[tuple, ExactRow]:
    """Return every row of the softmax by (sample, head, query)."""
    found, group = {}, allowed.shape[1] // max(key.shape[1], 1)
    scale = 1 / root(query.shape[3]) if scale is None else Fraction(scale)
    softcap = None if softcap is None else Fraction(softcap)
    bias = rational(np.broadcast_to(0.0 if bias is None else bias, allowed.shape))
    for b, h, t in product(*map(range, allowed.shape[:3])):
        sees = [s for s in np.flatnonzero(allowed[b, h, t]).tolist() if bias[b, h, t, s] != -np.inf]
        keys, biases = ({s: x[s] for s in sees} for x in (key[b, h // group], bias[b, h, t]))
        row = ExactRow(query[b, h, t], keys, biases, scale, softcap)
        found[b, h, t] = row if sees else ExactRow.empty(empty_rows, allowed.shape[3])
    return found


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


def backward(found, query, key, value, grad, bias) -> dict[str, np.ndarray]:
    """Return the gradients of sum(grad * output), as Fractions."""
    by = {"query": query, "key": key, "value": value}
    by = {name: np.full(x.shape, Fraction(0), object) for name, x in by.items()}
    by_bias = None if bias is None else np.full(np.shape(bias), Fraction(0), object)
    group = query.shape[1] // key.shape[1]
    for (b, h, t), row in found.items():
        g, own = h // group, grad[b, h, t]
        for s, weight in row.weights.items():
            by["value"][b, g, s] += shortened(weight) * own
        if not row.slopes:
            continue  # a fully masked row's weights are constants
        pulls = row.pulls({s: sum(own * value[b, g, s]) for s in row.exps})
        for s, pull in pulls.items():
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
    return _attention(vector.widened())


def _attention(vector: Vector) -> Answers:
    allowed, bias = sets.allowed_cells(vector), vector.inputs.get("bias")
    query, key, value = (rational(vector.inputs[name]) for name in ("query", "key", "value"))
    found = rows(query, key, bias, allowed, vector.scale, vector.softcap, vector.empty_rows)
    answers = forward(found, value, allowed.shape)
    if "grad" in vector.inputs:
        grad = rational(vector.inputs["grad"])
        by_name = backward(found, query, key, value, grad, bias)
        answers |= {f"grad_{name}": array for name, array in by_name.items()}
    return {name: rounded(array) for name, array in answers.items()}


def _multihead(vector: Vector) -> Answers:
    settings, allowed = vector.settings, sets.allowed_cells(vector)
    heads, width = settings["num_heads"], settings["embed_dim"] // settings["num_heads"]
    parameters = {name: rational(x) for name, x in vector.parameters.items()}
    split = []
    for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        x = rational(vector.inputs[name])
        x = x if settings["batch_first"] else x.swapaxes(0, 1)
        split.append(_heads(_linear(x, parameters, projection), width))
    query, key, value = split
    found = rows(query, key, sets.added(vector), allowed, None, None, vector.empty_rows)
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
