"""The numbers of the questions: every set of keys that may be seen gives another answer.

Scores are logarithms, so that the weights are 1 : 2 : 4 before they are divided by their sum, and
the values are powers of ten. Keys 0 and 1 give (1 x 1 + 2 x 10) / 3 = 7.
"""

import numpy as np

WEIGHTS, VALUES = (1, 2, 4, 8), (1, 10, 100, 1000)
USUAL = "[The usual numbers](#the-usual-numbers)"
NUMBERS = (
    "Where a question says no more of its numbers, every query is 1, the keys are ln 1, ln 2, "
    "ln 4 and the values 1, 10, 100; D = 1, two heads hold the same, in float32. So the scores are "
    "the keys, and the weights are as 1 : 2 : 4 over what may be seen. Every set of keys has its "
    "own answer:"
)
ROWS = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], bool)  # 1, 7 and 80.2; by columns as good
MIDDLE_EMPTY = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], bool)


def inputs(B: int = 1, T: int = 3, S: int = 3, dtype="float32") -> tuple[np.ndarray, ...]:
    """Return query, key and value of two equal heads."""
    query = np.ones((B, 2, T, 1))
    key = np.log(WEIGHTS[:S]).reshape(1, 1, S, 1) if S else np.ones((1, 1, 0, 1))
    value = np.reshape(np.array(VALUES[:S], float), (1, 1, S, 1))
    spread = (np.broadcast_to(x, (B, 2, S, 1)) for x in (key, value))
    return tuple(np.array(x, dtype, order="C") for x in (query, *spread))


def square(rows, B: int = 1) -> np.ndarray:
    """Return rows of queries by keys for every sample and head, (B, 2, T, S)."""
    rows = np.asarray(rows)
    return np.array(np.broadcast_to(rows, (B, 2, *rows.shape[-2:])), order="C")


def additive(allowed, fill: float, dtype="float32") -> np.ndarray:
    """Return 0 where something may be seen, and the fill elsewhere."""
    return np.where(allowed, 0.0, fill).astype(dtype)


def lower(T: int, S: int, offset: int = 0) -> np.ndarray:
    """Return what a causal mask lets queries see that start at `offset`."""
    return np.tri(T, S, offset, dtype=bool)
