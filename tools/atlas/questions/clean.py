"""NaN in places that nobody may see, and in one that somebody sees."""

from dataclasses import replace

import numpy as np

from ..numbers import additive, inputs, lower, square
from ..question import OwnMask, Question, reading

LAST_HIDDEN = square([[1, 1, 0]] * 3).astype(bool)


def spoilt(which: int) -> tuple[np.ndarray, ...]:
    """Return the inputs with NaN in the last key, or in the last value."""
    found = inputs()
    found[which][:, :, 2] = np.nan
    return found


def hidden(name: str, title: str, clause: str, which: int, sentence: str) -> Question:
    given = spoilt(which)
    right = reading(inputs(), LAST_HIDDEN)
    return Question(
        name=name,
        theme="NaN where nobody looks",
        title=title,
        clause=clause,
        sentence=sentence,
        inputs=given,
        given={"mask": OwnMask(LAST_HIDDEN)},
        contract="right",
        answers=lambda: [
            ("right", right),
            ("poisoned", np.full_like(right, np.nan)),
            ("unmasked", reading(inputs())),
        ],
    )


def seen_by_one(name: str, title: str, which: int, sentence: str) -> Question:
    given, allowed = spoilt(which), square(lower(3, 3))
    right = reading(inputs(), allowed)
    right[:, :, 2] = np.nan
    return Question(
        name=name,
        theme="NaN where nobody looks",
        title=title,
        clause="CLEAN-4",
        sentence=sentence,
        inputs=given,
        given={"mask": OwnMask(allowed)},
        contract="right",
        answers=lambda: [
            ("right", right),
            ("poisoned", np.full_like(right, np.nan)),
            ("unmasked", reading(inputs())),
        ],
    )


def hidden_by_bias() -> Question:
    """Return the question of NaN that a bias hides; masks are others' questions."""
    by_mask = hidden(
        "nan-key-bias", "Does NaN in a key hidden by a bias of -inf reach the output?", "CLEAN-1",
        1, "The third key is NaN, and hidden from every query by -inf in the bias, not by a mask.",
    )  # fmt: skip
    bias = additive(LAST_HIDDEN, -np.inf)
    return replace(by_mask, given={"bias": bias}, needs=("bias",))


QUESTIONS = [
    hidden(
        "nan-key", "Does NaN in a hidden key reach the output?", "CLEAN-1", 1,
        "The third key is NaN, and hidden from every query: padding that holds garbage.",
    ),
    hidden_by_bias(),
    hidden(
        "nan-value", "Does NaN in a hidden value reach the output?", "CLEAN-2", 2,
        "The third value is NaN, and hidden from every query. A weight of 0 times NaN is NaN.",
    ),
    seen_by_one(
        "nan-visible-key", "Who notices NaN in a key that one query sees?", 1,
        "A causal mask, and NaN in the last key: only the last query may see it.",
    ),
    seen_by_one(
        "nan-visible-value", "Who notices NaN in a value that one query sees?", 2,
        "A causal mask, and NaN in the last value: only the last query may see it.",
    ),
]  # fmt: skip
