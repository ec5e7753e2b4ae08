"""What today's models ask: windows, chunks, log-sum-exps of parts, rotary embeddings."""

import numpy as np

from conformance.oracle import naive_heads

from ..numbers import MIDDLE_EMPTY, USUAL, inputs, square
from ..question import OwnMask, Question, reading

THEME = "Windows, chunks, parts, rotary embeddings"
FOUR = f"{USUAL}, with a fourth key of ln 8 and its value 1000."


def window() -> Question:
    given, places = inputs(T=4, S=4), np.arange(4)
    back = places[:, None] - places
    return Question(
        name="window",
        theme=THEME,
        title="How far does a window of 2 reach?",
        clause="MASK-7",
        sentence="A window of 2, as the library's own argument or mask has it; nothing else.",
        inputs=given,
        given={"window": 2},
        contract="n back",
        answers=lambda: [
            ("n back", reading(given, (back >= 0) & (back <= 2))),
            ("n keys", reading(given, (back >= 0) & (back < 2))),
            ("n on either side", reading(given, abs(back) <= 2)),
        ],
        needs=("window",),
        numbers=FOUR,
    )


def chunk() -> Question:
    given, places = inputs(T=4, S=4), np.arange(4)
    seen = np.arange(4) > 0

    def answer(first: int) -> np.ndarray:
        chunks = (places - first) // 2
        allowed = (chunks[:, None] == chunks) & np.tri(4, dtype=bool) & seen
        return reading(given, allowed)[:, :, 1:]

    return Question(
        name="chunk",
        theme=THEME,
        title="Where do chunks start in a padded sample?",
        clause="MASK-13",
        sentence="Causal chunks of 2, and one token of padding on the left; the first query, of "
        "which that token is, is left out.",
        inputs=given,
        given={"chunk": 2, "mask": OwnMask(square([seen] * 4))},
        contract="from position 0",
        answers=lambda: [("from position 0", answer(0)), ("from the first token", answer(1))],
        needs=("chunk",),
        numbers=FOUR,
        measure=lambda output: np.asarray(output)[:, :, -3:],
    )


def lse() -> Question:
    given, allowed = inputs(), square(MIDDLE_EMPTY)
    with np.errstate(divide="ignore"):
        right = np.log((np.exp(given[1][..., 0].astype(float))[:, :, None] * allowed).sum(-1))
    finite = np.where(np.isinf(right), -0.7 * float(np.finfo(np.float32).max), right)
    return Question(
        name="lse",
        theme=THEME,
        title="What is the log-sum-exp of a fully masked row?",
        clause="ATT-16",
        sentence="The second query may see no key, and the log-sum-exp of each row is asked for, "
        "as whoever puts parts together does.",
        inputs=given,
        given={"mask": OwnMask(allowed)},
        contract="-inf",
        answers=lambda: [("-inf", right), ("finite", finite), ("base 2", right / np.log(2))],
        how="lse",
        needs=("lse",),
    )


def rotary() -> Question:
    query = np.array([1, 10, 100, 1000], "float32").reshape(1, 1, 1, 4)
    place = np.array([[1]])

    def answer(place: np.ndarray, **own) -> np.ndarray:
        return naive_heads.rotate({"class": "rotary", "base": 4.0} | own, query, place)

    return Question(
        name="rotary",
        theme=THEME,
        title="Which features does a rotary embedding turn together?",
        clause="MHA-10",
        sentence="One head of four features, at position 1, by the library's own rotary "
        "embedding: a pair of features is turned by 1 radian, the other by 1/2.",
        inputs=(query, query, place),
        given={"base": 4.0},
        contract="halves",
        answers=lambda: [
            ("halves", answer(place)),
            ("interleaved", answer(place, interleaved=True)),
            ("halves, backwards", answer(-place)),
        ],
        how="rotary",
        needs=("rotary",),
        numbers="The features are 1, 10, 100, 1000, and the base is 4.",
    )


QUESTIONS = [window(), chunk(), lse(), rotary()]
