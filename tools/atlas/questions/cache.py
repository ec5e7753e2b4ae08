"""Decoding with a cache: a prompt of several tokens, and a token too many."""

import numpy as np

from ..numbers import VALUES, WEIGHTS
from ..question import Question, reading

THEME = "Decoding with a cache"
CAPACITY = 3
NUMBERS = (
    "E = 2, two heads of D = 1. A token is (ln of its weight, its value); the projections make "
    "every query 1, a key of the first number and a value of the second, in both heads. The tokens "
    "weigh 1, 2, 4, 8 and are worth 1, 10, 100, 1000."
)


def parameters() -> dict[str, np.ndarray]:
    """Return projections that make 1, the first and the second feature, and the identity."""
    found = {"q_proj": np.zeros((2, 2)), "k_proj": np.array([[1, 0], [1, 0]])}
    found |= {"v_proj": np.array([[0, 1], [0, 1]]), "out_proj": np.eye(2)}
    biases = {f"{name}.bias": np.full(2, float(name == "q_proj")) for name in found}
    named = {f"{name}.weight": matrix for name, matrix in found.items()} | biases
    return {name: array.astype("float32") for name, array in named.items()}


def tokens(count: int) -> np.ndarray:
    """Return tokens (1, count, 2)."""
    return np.stack([np.log(WEIGHTS[:count]), VALUES[:count]], -1)[None].astype("float32")


def after(count: int, *allowed: list[int]) -> np.ndarray:
    """Return the outputs (1, T, 2) of queries that see these of `count` tokens."""
    key, value = (x[:, None, :, None] for x in np.moveaxis(tokens(count), 2, 0))
    rows = np.array([[s in row for s in range(count)] for row in allowed])
    return reading((np.ones((1, 1, len(allowed), 1)), key, value), rows)[:, 0].repeat(2, -1)


def prompt() -> Question:
    return Question(
        name="prompt",
        theme=THEME,
        title="Does the cache take a prompt of three tokens at once?",
        clause="CACHE-2",
        sentence="A cache with room for three tokens, and three tokens in one call. The outputs "
        "are those of a causal pass.",
        inputs=(tokens(3),),
        given={"parameters": parameters(), "capacity": CAPACITY, "cuts": [3]},
        contract="right",
        answers=lambda: [
            ("right", after(3, [0], [0, 1], [0, 1, 2])),
            ("unmasked", after(3, *[[0, 1, 2]] * 3)),
        ],
        how="decode",
        needs=("cache",),
        numbers=NUMBERS,
    )


def overflow() -> Question:
    return Question(
        name="overflow",
        theme=THEME,
        title="What does a cache do when it is full?",
        clause="CACHE-4",
        sentence="A cache with room for three tokens, and four tokens one by one. The answer is "
        "the fourth token's output.",
        inputs=(tokens(4),),
        given={"parameters": parameters(), "capacity": CAPACITY, "cuts": [1, 2, 3, 4]},
        contract="refused",
        answers=lambda: [
            ("last slot", after(4, [0, 1, 3])),
            ("first slot", after(4, [1, 2, 3])),
            ("dropped", after(4, [0, 1, 2])),
            ("grown", after(4, [0, 1, 2, 3])),
            ("NaN", np.full((1, 1, 2), np.nan)),
        ],
        how="decode",
        needs=("cache",),
        numbers=NUMBERS,
    )


QUESTIONS = [prompt(), overflow()]
