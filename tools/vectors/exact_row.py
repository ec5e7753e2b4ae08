"""One row of the softmax in exact arithmetic: what a query makes of the keys that it sees."""

from fractions import Fraction
from itertools import product

import numpy as np

from .digits import Number, exp, log, rational, root, shortened

SWALLOWS = 2**90  # a bias this large plus any score is, rounded to any float, the bias


class ExactRow:
    """One query over the keys it sees: exponentials by key, their total, the scores' slopes.

    The total has a sink's exponential too; `sink` is its share.
    """

    sink: Number = Fraction(0)

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
        self.top = max(known.values(), default=Fraction(0))
        self.exps: dict[int, Number] = {s: exp(logit - self.top) for s, logit in known.items()}
        if len(known) < len(logits):
            self.exps = dict.fromkeys(logits, np.nan)
        self.total = sum(self.exps.values())

    def put_beside(self, sink: Number) -> None:
        """Add one more logit, which has no value; a fully masked row stays one of zeros."""
        if not self.exps or sink == -np.inf:
            return
        if not isinstance(sink, Fraction):
            self.exps, self.total = dict.fromkeys(self.exps, np.nan), np.nan
            return
        more = exp(self.top - sink)  # of the row's top, where the sink's exponential is 1
        self.exps = {s: e * more for s, e in self.exps.items()}
        self.total = self.total * more + 1
        self.sink = 1 / self.total

    @classmethod
    def merged(cls, pieces: list["ExactRow"]) -> "ExactRow":
        """Return the row of the keys of several pieces, each with its own largest logit."""
        found, some = cls((), {}, {}, Fraction(1), None), [row for row in pieces if row.exps]
        found.top = max((row.top for row in some), default=Fraction(0))
        for row in some:
            share = exp(row.top - found.top)
            found.exps |= {s: share * e for s, e in row.exps.items()}
            found.total += share * row.total
            found.slopes |= row.slopes
        return found

    @property
    def log_sum_exp(self) -> Number:
        return self.top + log(Fraction(self.total)) if self.exps else -np.inf

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
        weights, sink = self.weights, self.sink  # whose value is 0
        return {
            s: shortened(
                weights[s] * (sum(weights[j] * (own - by_weight[j]) for j in weights) + sink * own)
            )
            for s, own in by_weight.items()
        }

    def pull_of_sink(self, by_weight: dict[int, Number]) -> Number:
        """Return the slope by the sink: what every key's weight loses to it."""
        lost = sum(weight * by_weight[s] for s, weight in self.weights.items())
        return shortened(-self.sink * lost)


def rows(
    query, key, bias, allowed, scale, softcap, empty_rows: str, sinks=None
) -> dict[tuple, ExactRow]:
    """Return every row of the softmax by (sample, head, query)."""
    found, group = {}, allowed.shape[1] // max(key.shape[1], 1)
    sinks = [None] * allowed.shape[1] if sinks is None else rational(sinks)
    scale = 1 / root(query.shape[3]) if scale is None else Fraction(scale)
    softcap = None if softcap is None else Fraction(softcap)
    bias = rational(np.broadcast_to(0.0 if bias is None else bias, allowed.shape))
    for b, h, t in product(*map(range, allowed.shape[:3])):
        sees = [s for s in np.flatnonzero(allowed[b, h, t]).tolist() if bias[b, h, t, s] != -np.inf]
        keys, biases = ({s: x[s] for s in sees} for x in (key[b, h // group], bias[b, h, t]))
        row = ExactRow(query[b, h, t], keys, biases, scale, softcap)
        if sinks[h] is not None:
            row.put_beside(sinks[h])
        elif not sees:
            row = ExactRow.empty(empty_rows, allowed.shape[3])
        found[b, h, t] = row
    return found
