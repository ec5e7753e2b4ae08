"""Calls of true sizes: prime, ragged and unequal, each with many blocks of every implementation's.

The oracle's loops would take minutes, so the textbook formula in float64 answers; where a mask
allows is written out beside it, and `tests/test_small_blocks.py` asks the oracle about some cells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..mask_spec import allow, causal, padding, segments, sliding_window
from ..oracle import naive
from ..subjects.protocol import Subject
from .attention import Case, Shape

DOCUMENTS = np.repeat([[7, 2**31 - 1, 7, -(2**31), 5], [2**31 - 1, -1, -(2**31), 0, 7]],
                      [127, 201, 1, 83, 201], axis=1)  # fmt: skip
LENGTHS = np.array([389, 0, 211])
CACHED = np.array([2049, 0, 1021])
STARTS = np.array([1500, 1901])


@dataclass(frozen=True, eq=False)
class Long(Case):
    """A case whose allowed cells are given by a rule on arrays: of samples, positions and keys."""

    rule: Callable | None = None

    @cache  # noqa: B019 - cases are constants
    def allowed(self) -> np.ndarray:
        B, _, T, S = self.shape.call
        if self.rule is None:
            return np.ones(self.shape.call, bool)
        offset = 0 if self.query_offset is None else self.query_offset
        starts = np.broadcast_to(np.asarray(offset), B)
        samples, keys = np.arange(B)[:, None, None, None], np.arange(S)[None, None, None]
        positions = starts[:, None, None, None] + np.arange(T)[None, None, :, None]
        return np.array(np.broadcast_to(self.rule(samples, positions, keys), self.shape.call))

    def options_for(self, subject: Subject, dtype_name: str) -> dict:
        """Return the options of the call; who builds no masks gets an array."""
        options = self.options(dtype_name)
        plainly = {"causal"} <= subject.capabilities and self.name == "causal"
        if self.mask is None or "masks" in subject.capabilities or plainly:
            return options
        options.pop("query_offset", None)
        return options | {"mask": allow(self.allowed())}

    @cache  # noqa: B019
    def answers(self, function: str, dtype_name: str) -> tuple[dict, dict]:
        """Return what the formula gives in float64, and in the dtype, where that is further off."""
        inputs: tuple = self.inputs(dtype_name)
        inputs += (self.grad(dtype_name),) if function == "gradients" else ()
        numbers = self.numbers(dtype_name) | {"allowed": self.allowed()}
        wide = {n: x.astype(float) if n in ("bias", "sinks") else x for n, x in numbers.items()}
        call = getattr(naive, function)
        exact = call(*(x.astype(np.float64) for x in inputs), **wide)
        orders = [call(*inputs, **numbers, folded=folded) for folded in (False, True)]

        def error(name: str, answer: dict) -> float:
            with np.errstate(invalid="ignore"):  # -inf is in both
                return float(np.nanmax(abs(answer[name].astype(np.float64) - exact[name])))

        furthest = {}
        for name in exact:
            errors = [error(name, order) for order in orders]
            furthest[name] = orders[errors.index(max(errors))][name]
        return exact, furthest


TRUE_SIZES = [
    Long("causal", Shape(2, 3, 3, 331, 331, 16, 16), causal(), seed=1,
         rule=lambda b, t, s: s <= t),
    Long("window", Shape(2, 2, 1, 131, 2039, 8, 8), sliding_window(1031, 7), STARTS, seed=2,
         rule=lambda b, t, s: (t - 1031 <= s) & (s <= t + 7)),
    Long("one_query", Shape(3, 4, 2, 1, 2049, 8, 8), padding(CACHED), bias="HS", seed=3,
         rule=lambda b, t, s: s < CACHED[b]),
    Long("documents", Shape(2, 2, 2, 613, 613, 8, 8), causal() & segments(DOCUMENTS), seed=4,
         rule=lambda b, t, s: (s <= t) & (DOCUMENTS[b, t] == DOCUMENTS[b, s])),
    Long("lengths", Shape(3, 4, 2, 127, 389, 8, 8), padding(LENGTHS), seed=5,
         rule=lambda b, t, s: s < LENGTHS[b]),
    Long("biased", Shape(2, 3, 1, 193, 449, 5, 11), causal(), 256, "rank2", 0.7, 3.0, seed=6,
         rule=lambda b, t, s: s <= t),
    Long("sinks", Shape(3, 4, 2, 307, 389, 8, 8), padding(LENGTHS), seed=7, sinks="normal",
         rule=lambda b, t, s: s < LENGTHS[b]),
]  # fmt: skip
