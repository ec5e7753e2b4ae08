"""The causal flag, where queries and keys differ in number; masks, flags and biases together."""

import numpy as np

from ..numbers import inputs, lower, square
from ..question import OwnMask, Question, policies, reading

ALIGNED = "Causal, where queries and keys differ in number"
TOGETHER = "Two at once"


def square_flag() -> Question:
    given = inputs()
    return Question(
        name="causal",
        theme=ALIGNED,
        title="Does the causal flag alone hide the future?",
        clause="CAUSE-1",
        sentence="Three queries, three keys, the library's causal flag and no mask.",
        inputs=given,
        given={"causal": True},
        contract="right",
        answers=lambda: [
            ("right", reading(given, lower(3, 3))),
            ("unmasked", reading(given)),
            ("one-more", reading(given, lower(3, 3, 1))),
            ("transposed", reading(given, lower(3, 3).T)),
        ],
        needs=("causal",),
    )


def oblong(name: str, title: str, T: int, S: int, sentence: str) -> Question:
    given = inputs(T=T, S=S)
    last = lower(T, S, S - T)

    def answers():
        found = [("top-left", reading(given, lower(T, S)))]
        if not last.any(-1).all():
            found += policies(given, last, "bottom-right, ")
        else:
            found.append(("bottom-right", reading(given, last)))
        whole = [] if last.all() else [("unmasked", reading(given))]
        return found + whole

    return Question(
        name=name,
        theme=ALIGNED,
        title=title,
        clause="CAUSE-2",
        sentence=sentence,
        inputs=given,
        given={"causal": True},
        contract="refused",
        answers=answers,
        needs=("causal",),
    )


def with_mask(name: str, title: str, allowed: np.ndarray, sentence: str) -> Question:
    given, future = inputs(), lower(3, 3)
    return Question(
        name=name,
        theme=TOGETHER,
        title=title,
        clause="MASK-5",
        sentence=sentence,
        inputs=given,
        given={"mask": OwnMask(allowed), "causal": True},
        contract="both",
        answers=lambda: [
            ("both", reading(given, allowed & future)),
            ("only the mask", reading(given, allowed)),
            ("only the flag", reading(given, future)),
            ("key 0 only", reading(given, allowed & lower(1, 3))),
            ("neither", reading(given)),
        ],
        needs=("causal",),
    )


def with_bias() -> Question:
    given = inputs()
    allowed = square([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).astype(bool)
    bias = square(np.log([[1, 1, 3]] * 3)).astype("float32")
    return Question(
        name="mask-and-bias",
        theme=TOGETHER,
        title="Do a mask and a bias work together?",
        clause="ATT-4",
        sentence="The bias adds ln 3 to the third key's score, so that the weights are as "
        "1 : 2 : 12; the mask hides another key from each query.",
        inputs=given,
        given={"mask": OwnMask(allowed), "bias": bias},
        contract="both",
        answers=lambda: [
            ("both", reading(given, allowed, bias=bias)),
            ("only the mask", reading(given, allowed)),
            ("only the bias", reading(given, bias=bias)),
            ("neither", reading(given)),
        ],
        needs=("bias",),
    )


QUESTIONS = [
    square_flag(),
    oblong(
        "causal-more-keys", "Causal, two queries, three keys: where does it start?", 2, 3,
        "A causal flag and no mask. Top-left lets query 0 see key 0; bottom-right takes the "
        "queries for the last two of three positions, as a chunk against a cache.",
    ),
    oblong(
        "causal-one-query", "Causal, one query, three keys: does a step see its past?", 1, 3,
        "A causal flag and no mask: a step of decoding with the flag left on.",
    ),
    oblong(
        "causal-more-queries", "Causal, three queries, two keys: what does the first see?", 3, 2,
        "A causal flag and no mask. Bottom-right starts before the first key, and leaves query 0 "
        "with nothing to see.",
    ),
    with_mask(
        "mask-and-causal", "Do a mask and the causal flag work together?",
        square([[1, 1, 1], [0, 1, 1], [1, 0, 1]]).astype(bool),
        "A mask of every sample, head, query and key that points the library's way, and the flag.",
    ),
    with_mask(
        "padding-and-causal", "Do a (B, 1, 1, S) mask and the causal flag work together?",
        np.array([1, 0, 1], bool).reshape(1, 1, 1, 3),
        "The mask hides the second key from everyone, with axes of one where nothing varies.",
    ),
    with_bias(),
]  # fmt: skip
