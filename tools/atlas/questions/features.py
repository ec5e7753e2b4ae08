"""Grouped heads, the softcap, dropout, and arrays of nothing."""

import numpy as np

from ..numbers import USUAL, inputs, square
from ..question import Question, reading

EMPTY = "Arrays of nothing"


def grouped() -> Question:
    _, key, value = inputs()
    query = np.ones((1, 4, 1, 1), "float32")
    value[:, 1] *= 2
    given = (query, key, value)
    tiled = (query, *(np.tile(x, (1, 2, 1, 1)) for x in given[1:]))
    return Question(
        name="grouped",
        theme="Heads, softcap, dropout",
        title="Which key head does a query head read?",
        clause="ATT-5",
        sentence="One query in four heads, keys and values in two; the second one's values are "
        "doubled.",
        inputs=given,
        given={},
        contract="right",
        answers=lambda: [("right", reading(given)), ("tiled", reading(tiled))],
        needs=("grouped",),
        numbers=f"{USUAL} in every head, but for the doubled values.",
    )


def softcap() -> Question:
    given = inputs()
    bias = square([[2, 0, 0]] * 3).astype("float32")
    scores = np.tanh(given[1].swapaxes(2, 3).astype(float) + bias)  # every query is 1
    zeros = (np.zeros_like(given[0]), *given[1:])
    return Question(
        name="softcap",
        theme="Heads, softcap, dropout",
        title="Is the softcap applied before the bias or after?",
        clause="ATT-6",
        sentence="A softcap of 1, and 2 added to the first key's score.",
        inputs=given,
        given={"softcap": 1.0, "additive": bias},
        contract="right",
        answers=lambda: [
            ("right", reading(given, softcap=1.0, bias=bias)),
            ("softcap-last", reading(zeros, bias=scores)),
            ("no-softcap", reading(given, bias=bias)),
            ("no-bias", reading(given, softcap=1.0)),
        ],
        needs=("softcap",),
    )


def shares(weights: np.ndarray) -> np.ndarray:
    """Return how often 1/7, 2/7 and 4/7 the weights are, each number once."""
    return np.unique(np.round(np.asarray(weights, float) * [7, 7 / 2, 7 / 4], 3)) + 0.0


def dropout() -> Question:
    return Question(
        name="dropout",
        theme="Heads, softcap, dropout",
        title="Are the weights taken before dropout or after?",
        clause="ATT-13",
        sentence="Dropout of 0.5 in training, with the weights asked for. They are shown as "
        "multiples of what they are without dropout.",
        inputs=inputs(),
        given={"dropout": 0.5, "seed": 1},
        contract="before",
        answers=lambda: [
            ("before", np.array([1.0])),
            ("after", np.array([0.0, 2.0])),
            ("after, unscaled", np.array([0.0, 1.0])),
        ],
        how="weights",
        needs=("weights", "dropout"),
        measure=shares,
    )


def nothing(name: str, title: str, B: int, T: int, S: int, sentence: str) -> Question:
    given = inputs(B, T, S)
    shape = given[0].shape
    full = [("zero", np.zeros(shape)), ("nan", np.full(shape, np.nan))]
    return Question(
        name=name,
        theme=EMPTY,
        title=title,
        clause="ATT-3",
        sentence=sentence,
        inputs=given,
        given={},
        contract="zero" if np.prod(shape) else "empty",
        answers=lambda: full if np.prod(shape) else [("empty", np.zeros(shape))],
    )


QUESTIONS = [
    grouped(), softcap(), dropout(),
    nothing("no-keys", "What do no keys give?", 2, 3, 0, "S = 0: every query's row is empty."),
    nothing("no-queries", "What do no queries give?", 2, 0, 3, "T = 0: an empty result is right."),
    nothing("no-samples", "What do no samples give?", 0, 3, 3, "B = 0: an empty result is right."),
]  # fmt: skip
