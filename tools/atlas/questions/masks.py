"""What a mask means: booleans, floats, integers, and axes that are not written out."""

import numpy as np

from ..numbers import ROWS, additive, inputs, square
from ..question import OwnMask, Question, reading

MASK = square(ROWS)
ARGUMENT = "The array goes to the mask argument."


def readings_of_numbers(inputs, mask):
    """Return what an array of numbers may be taken for."""
    return [
        ("added", reading(inputs, bias=np.asarray(mask, float))),
        ("cast", reading(inputs, mask != 0)),
        ("cast, hidden", reading(inputs, mask == 0)),
        ("unmasked", reading(inputs)),
    ]


def true() -> Question:
    given = inputs()
    return Question(
        name="true",
        theme="What a mask says",
        title="What does True say?",
        clause="MASK-9",
        sentence="A mask of booleans, one for each sample, head, query and key. " + ARGUMENT,
        inputs=given,
        given={"mask": MASK},
        contract="refused",
        answers=lambda: [
            ("attend", reading(given, MASK)),
            ("hide", reading(given, ~MASK)),
            ("added", reading(given, bias=MASK.astype(float))),
            ("unmasked", reading(given)),
        ],
    )


def of_numbers(name: str, title: str, sentence: str, mask: np.ndarray, blind=()) -> Question:
    """Return the question of a mask of numbers; `blind` are readings that it cannot tell apart."""
    given = inputs()
    return Question(
        name=name,
        theme="What a mask says",
        title=title,
        clause="MASK-9",
        sentence=f"{sentence} {ARGUMENT}",
        inputs=given,
        given={"mask": mask},
        contract="refused",
        answers=lambda: [a for a in readings_of_numbers(given, mask) if a[0] not in blind],
    )


def two_axes() -> Question:
    given = inputs(B=3)
    return Question(
        name="rank-2",
        theme="Which axis is which",
        title="What is a (B, S) mask where B = T?",
        clause="MASK-9",
        sentence="A key-padding mask of three samples, handed over without the axes between, for "
        "three queries. It points the library's way.",
        inputs=given,
        given={"mask": OwnMask(ROWS)},
        contract="refused",
        answers=lambda: [
            ("key padding", reading(given, ROWS[:, None, None, :])),
            ("queries by keys", reading(given, ROWS)),
            ("transposed", reading(given, ROWS.T)),
            ("unmasked", reading(given)),
        ],
    )


def two_axes_apart() -> Question:
    given, mask = inputs(B=2), ROWS[1:]
    return Question(
        name="rank-2-apart",
        theme="Which axis is which",
        title="What is a (B, S) mask where B and T differ?",
        clause="MASK-9",
        sentence="The same for two samples and three queries, so that no other reading fits.",
        inputs=given,
        given={"mask": OwnMask(mask)},
        contract="refused",
        answers=lambda: [
            ("key padding", reading(given, mask[:, None, None, :])),
            ("unmasked", reading(given)),
        ],
    )


def three_axes() -> Question:
    given, mask = inputs(B=2), np.stack([ROWS, ROWS[::-1]])
    return Question(
        name="rank-3",
        theme="Which axis is which",
        title="What is a (B, T, S) mask where B = H?",
        clause="MASK-9",
        sentence="A mask for each of two samples, handed over without the axis of the two heads. "
        "It points the library's way.",
        inputs=given,
        given={"mask": OwnMask(mask)},
        contract="refused",
        answers=lambda: [
            ("samples", reading(given, mask[:, None])),
            ("heads", reading(given, mask[None])),
            ("unmasked", reading(given)),
        ],
    )


QUESTIONS = [
    true(),
    of_numbers(
        "float-inf", "What is a float mask of 0 and -inf?",
        "The mask that is meant to be added to the scores: 0 where something may be seen, -inf "
        "where it is hidden.",
        additive(MASK, -np.inf),
        blind=["cast, hidden"],  # True for hidden, such a mask says the same as if it were added
    ),
    of_numbers(
        "float-10", "What is a float mask of 1 and 0?",
        "The mask that is meant to be multiplied, or to be read as true and false: 1 where "
        "something may be seen, 0 where it is hidden.",
        MASK.astype("float32"),
    ),
    of_numbers(
        "int-10", "What is a mask of integers, 1 and 0?",
        "The mask that a tokenizer returns, as int32: 1 where something may be seen, 0 where it is "
        "hidden.",
        MASK.astype("int32"),
    ),
    two_axes(), two_axes_apart(), three_axes(),
]  # fmt: skip
