"""Sixteen bits: sums that stall, products that overflow, fully masked rows."""

import ml_dtypes
import numpy as np

from ..numbers import MIDDLE_EMPTY, USUAL, inputs, square
from ..question import OwnMask, Question, policies, reading
from .empty import filled

THEME = "In 16 bits"
SEEN = square(MIDDLE_EMPTY)


def running_sum(numbers: np.ndarray) -> float:
    """Return a sum that is rounded to the numbers' own dtype at every step."""
    total = numbers.dtype.type(0)
    for number in numbers:
        total = numbers.dtype.type(total + number)
    return float(total)


def equal_weights(name: str, title: str, dtype) -> Question:
    dtype = np.dtype(dtype)
    query = np.zeros((1, 2, 1, 2), dtype)  # two features: NumPy sums a single one in float32
    key, value = np.zeros((1, 2, 4096, 2), dtype), np.ones((1, 2, 4096, 2), dtype)

    def answers():
        """Return the answer, and what it is if the weights, or the exponentials, are summed so."""
        weights = np.full(4096, 1 / 4096).astype(dtype)
        denominator = running_sum(np.ones(4096, dtype))
        stalled = [running_sum(weights), 4096 / denominator]
        shaped = [np.full(query.shape, x) for x in (1.0, *stalled)]
        return list(zip(("right", "sums stall", "sums stall"), shaped, strict=True))

    return Question(
        name=name,
        theme=THEME,
        title=title,
        clause="HALF-2",
        sentence="One query of 0, 4096 keys of 0, 4096 values of 1, all with D = 2: the mean of "
        "1 is 1.",
        inputs=(query, key, value),
        given={},
        contract="right",
        answers=answers,
        needs=(dtype.name,),
        numbers="All scores are equal; there is no mask.",
    )


def large_products() -> Question:
    query = np.broadcast_to(np.array([256, 0], "float16"), (1, 2, 3, 2)).copy()
    key = np.array([[350, 0], [350, 0], [0, 0]], "float16")
    key = np.broadcast_to(key, (1, 2, 3, 2)).copy()
    value = np.broadcast_to(np.array([[1, 1], [10, 10], [100, 100]], "float16"), (1, 2, 3, 2))
    given = (query, key, value.copy())
    return Question(
        name="half-overflow",
        theme=THEME,
        title="Does a product of 89600 overflow in float16?",
        clause="HALF-3",
        sentence="float16 ends at 65504. The product is 89600, the scaled score 63357, so that "
        "only a product held in float16 overflows.",
        inputs=given,
        given={},
        contract="right",
        answers=lambda: [
            ("right", reading(given)),
            ("NaN", np.full(query.shape, np.nan)),
        ],
        needs=("float16",),
        numbers="D = 2: every query is (256, 0), the keys (350, 0), (350, 0), (0, 0), the values "
        "1, 10, 100 in both features.",
    )


def empty_row() -> Question:
    given = inputs(dtype="float16")
    return Question(
        name="half-empty",
        theme=THEME,
        title="What is a fully masked row, in float16?",
        clause="EMPTY-7",
        sentence="The second of three queries is hidden from every key, by a mask that points "
        "the library's way.",
        inputs=given,
        given={"mask": OwnMask(SEEN)},
        contract="zero",
        answers=lambda: policies(given, SEEN),
        needs=("float16",),
        numbers=f"{USUAL}, in float16.",
    )


def minus_1e9() -> Question:
    return filled(
        "half-1e9", "What is a row emptied by -1e9 in float16?", "EMPTY-8", -1e9, "zero",
        dtype="float16", theme=THEME, needs=("float16",),
        sentence="-1e9 lies beyond float16: it is stored as -inf, and hides. ",
        numbers=f"{USUAL}, in float16.",
    )  # fmt: skip


QUESTIONS = [
    equal_weights("half-sums", "Do 4096 equal weights in float16 sum to 1?", np.float16),
    equal_weights("bfloat-sums", "Do 4096 equal weights in bfloat16 sum to 1?", ml_dtypes.bfloat16),
    large_products(), empty_row(), minus_1e9(),
]  # fmt: skip
