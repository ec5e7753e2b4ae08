"""Named calls of attention: few shapes (each costs a compilation), prime sizes, ragged lengths.

Inputs are normal random numbers from the case's seed, cast to the dtype first; the oracle then
sees what the subject sees. What a case expects is computed once and shared by all subjects.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from ..mask_spec import (
    Spec,
    allow,
    causal,
    hide,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from ..oracle import expected, reference
from ..oracle.tolerance import dtype
from .arrays import coins, normal


class Shape(NamedTuple):
    """The sizes of one call: query (B, H, T, D), key (B, H_kv, S, D), value (B, H_kv, S, D_v)."""

    B: int
    H: int
    H_kv: int
    T: int
    S: int
    D: int
    D_v: int

    @property
    def call(self) -> tuple[int, int, int, int]:
        return self.B, self.H, self.T, self.S


MAIN = Shape(B=3, H=2, H_kv=2, T=5, S=7, D=11, D_v=13)
SQUARE = Shape(B=3, H=2, H_kv=2, T=7, S=7, D=11, D_v=13)
GROUPED = Shape(B=3, H=4, H_kv=2, T=5, S=7, D=11, D_v=13)
TALL = Shape(B=3, H=2, H_kv=2, T=7, S=5, D=11, D_v=13)
TRAP = Shape(B=3, H=3, H_kv=3, T=3, S=3, D=5, D_v=2)  # every mix-up of axes fits

LENGTHS = [7, 0, 4]  # of MAIN's and SQUARE's samples: one whole, one empty, one ragged


def bias_of(kind: str, shape: Shape, dtype_name: str) -> np.ndarray:
    """Return a bias: "rank2" (T, S), or the dims that are full, such as "HS" of (1, H, 1, S).

    "rank4" is "BHTS", and "heads" is "HS". "hiding" is "BHTS" with -inf, whole rows of it too.
    """
    if kind == "hiding":
        hidden = coins(6, *shape.call, true=0.3) | coins(7, *shape.call[:3], 1, true=0.2)
        return np.where(hidden, -np.inf, bias_of("rank4", shape, dtype_name)).astype(
            dtype(dtype_name)
        )
    kind = {"rank4": "BHTS", "heads": "HS"}.get(kind, kind)
    full = (size if axis in kind else 1 for axis, size in zip("BHTS", shape.call, strict=True))
    sizes = shape.call[2:] if kind == "rank2" else tuple(full)
    return normal(5, *sizes, dtype_name=dtype_name)


def sinks_of(kind: str, heads: int, dtype_name: str) -> np.ndarray:
    """Return a logit a head: "normal", or "none_in_head_0", which is -inf there."""
    sinks = normal(8, heads, dtype_name=dtype_name)
    if kind == "none_in_head_0":
        sinks[0] = -np.inf
    return sinks


@dataclass(frozen=True, eq=False)
class Case:
    """One call, without its numbers; `inputs` and `options` make them."""

    name: str
    shape: Shape = MAIN
    mask: Spec | None = None
    query_offset: object = None
    bias: str | None = None
    scale: float | None = None
    softcap: float | None = None
    empty_rows: str = "zero"
    seed: int = 0
    sinks: str | None = None

    def inputs(self, dtype_name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        B, H, H_kv, T, S, D, D_v = self.shape
        rng = np.random.default_rng(self.seed)
        shapes = ((B, H, T, D), (B, H_kv, S, D), (B, H_kv, S, D_v))
        query, key, value = (rng.normal(size=s).astype(dtype(dtype_name)) for s in shapes)
        return query, key, value

    def grad(self, dtype_name: str) -> np.ndarray:
        """Return a random gradient of the output."""
        B, H, _, T, _, _, D_v = self.shape
        return normal(self.seed + 1000, B, H, T, D_v, dtype_name=dtype_name)

    def numbers(self, dtype_name: str) -> dict:
        """Return the options that oracle and subject take alike."""
        bias = None if self.bias is None else bias_of(self.bias, self.shape, dtype_name)
        options = {"bias": bias, "scale": self.scale, "softcap": self.softcap}
        if self.sinks is not None:
            options["sinks"] = sinks_of(self.sinks, self.shape.H, dtype_name)
        options = {name: value for name, value in options.items() if value is not None}
        return options | {"empty_rows": self.empty_rows}

    def options(self, dtype_name: str) -> dict:
        """Return the options of the subject's call."""
        options = self.numbers(dtype_name)
        if self.mask is not None:
            options["mask"] = self.mask
        if self.query_offset is not None:
            options["query_offset"] = self.query_offset
        return options

    @cache  # noqa: B019 - cases are constants
    def allowed(self) -> np.ndarray:
        return reference.allowed(self.mask, self.shape.call, self.query_offset)

    def expected(self, dtype_name: str) -> tuple[dict, dict]:
        """Return the oracle's steps and the naive formula's."""
        inputs, options = self.inputs(dtype_name), self.numbers(dtype_name)
        return expected.attention(*inputs, allowed=self.allowed(), **options)

    def expected_gradients(self, dtype_name: str) -> tuple[dict, dict]:
        """Return the oracle's gradients and the naive formula's."""
        inputs, options = self.inputs(dtype_name), self.numbers(dtype_name)
        grad = self.grad(dtype_name)
        return expected.gradients(*inputs, grad, allowed=self.allowed(), **options)


def _checker(batch, head, query, key):
    return (2 * query + key + head + batch) % 3 != 0


MASKS = {
    "causal": (causal(), 2),
    "causal_top_left": (causal(), 0),
    "causal_per_sample": (causal(), np.array([2, 0, 5])),
    "window": (sliding_window(2, 1), 1),
    "prefix": (prefix([3, 0, 7]), 1),
    "padding": (padding(LENGTHS), None),
    "padding_hidden": (padding(hidden=coins(1, 3, 7)), None),
    "segments": (segments([[4, 4, 4, 9, 9, 9, 9], [1, 2, 2, 2, 3, 3, 3], [5] * 7]), 2),
    "segments_pair": (segments([[1, 1, 2, 2, 3]] * 3, [[3, 3, 2, 2, 2, 1, 8]] * 3), None),
    "allow": (allow(coins(2, 3, 2, 5, 7, true=0.4)), None),
    "hide": (hide(coins(3, 1, 2, 5, 7, true=0.4)), None),
    "predicate": (predicate(_checker), 1),
    "causal_and_padding": (causal() & padding(LENGTHS), 2),
    "window_or_prefix": (sliding_window(1) | prefix([2, 0, 5]), 2),
    "not_window": (~sliding_window(1, 1) & padding([6, 7, 3]), 2),
}

MASKED = [Case(name, mask=mask, query_offset=offset) for name, (mask, offset) in MASKS.items()]
PLAIN = Case("plain")
BY_NAME = {case.name: case for case in (PLAIN, *MASKED)}


def names(cases) -> list[str]:
    """Return the cases' names, as ids of a parametrised test."""
    return [case.name for case in cases]


FAR = {  # from zero: what all keys share moves no weight, and what all values share all outputs
    "key": (0, 1e3, 0),
    "value": (0, 0, 1e3),
    "query": (1e3, 0, 0),
    "all": (30, 30, 1e3),
}


def move(case: Case, far: str) -> list[np.ndarray]:
    """Return a case's query, key and value in float32, moved from zero."""
    inputs = case.inputs("float32")
    return [x + np.float32(more) for x, more in zip(inputs, FAR[far], strict=True)]
