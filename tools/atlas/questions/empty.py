"""A fully masked row: what it becomes, by every way of emptying it, and backwards."""

from typing import Any

import numpy as np

from ..markdown import numbers
from ..numbers import MIDDLE_EMPTY, additive, inputs, square
from ..question import Answers, OwnMask, Question, gradients, policies, reading

THEME = "A fully masked row"
SEEN = square(MIDDLE_EMPTY)
BLOCK = 128  # of keys, in a kernel that takes whole blocks
SMALLEST = float(np.finfo("float32").min)
AS_BIAS = "The array goes to the bias where there is one beside the mask, else to the mask."


def forward(name: str, title: str, clause: str, sentence: str, **changes) -> Question:
    given = inputs()
    settings: dict[str, Any] = {
        "theme": THEME,
        "inputs": given,
        "given": {"mask": OwnMask(SEEN)},
        "contract": "zero",
        "answers": lambda: policies(given, SEEN),
    }
    about = {"name": name, "title": title, "clause": clause, "sentence": sentence}
    return Question(**settings | about | changes)


def own_mask() -> Question:
    given, empty = inputs(), ~SEEN.any(-1, keepdims=True)

    def answers() -> Answers:
        found = policies(given, SEEN)
        share = np.where(empty, given[1].shape[2] / BLOCK, 1)
        return [*found, ("block mean", dict(found)["mean"] * share)]

    return forward(
        "empty", "What is a fully masked row?", "EMPTY-1",
        "The second of three queries is hidden from every key, by a mask that points the library's "
        "way.",
        answers=answers,
    )  # fmt: skip


def filled(name: str, title: str, clause: str, fill: float, contract: str, **kind) -> Question:
    """Return the question of an additive mask that empties the row with a fill."""
    dtype = kind.pop("dtype", "float32")
    given = inputs(dtype=dtype)
    with np.errstate(over="ignore"):  # -1e9 becomes -inf in float16
        array = additive(SEEN, fill, dtype)

    def answers() -> Answers:
        return [*policies(given, SEEN), ("cast", reading(given, array != 0))]

    sentence = kind.pop("sentence", "") + "An additive mask empties the row. " + AS_BIAS
    return forward(
        name, title, clause, sentence, inputs=given, given={"additive": array}, contract=contract,
        answers=answers, **kind,
    )  # fmt: skip


def weights() -> Question:
    given = inputs()
    full = np.broadcast_to(SEEN, (1, 2, 3, 3))

    def of_weights(allowed, policy="zero"):
        """The weights are the output where the values are the unit vectors."""
        units = np.broadcast_to(np.eye(3, dtype="float32"), (1, 2, 3, 3))
        return reading((*given[:2], units), allowed, empty_rows=policy)

    return forward(
        "empty-weights", "What are a fully masked row's weights?", "EMPTY-1",
        "The second of three queries is hidden from every key, and the weights are asked for. The "
        "answers are the weights, row by row.",
        how="weights", needs=("weights",),
        answers=lambda: [
            ("zero", of_weights(full)),
            ("mean", of_weights(full, "uniform")),
            ("nan", of_weights(full, "nan")),
            ("unmasked-row", of_weights(full | ~full.any(-1, keepdims=True))),
        ],
    )  # fmt: skip


def asked_for() -> Question:
    given = inputs()
    found = policies(given, SEEN)

    def answers() -> Answers:
        changes = [
            (f"{one} to {other}", np.stack([a, b]))
            for one, a in found
            for other, b in found
            if one != other
        ]
        return [*(("unchanged", np.stack([a, a])) for _, a in found), *changes]

    return forward(
        "weights-change", "Does asking for the weights change the output?", "ATT-9",
        "The same call twice: without the weights, then with them. Only the outputs are compared.",
        how="both", needs=("weights",), contract="unchanged", answers=answers,
        gives={"unchanged": "the same twice"}
        | {
            f"{one} to {other}": f"{numbers(a[0, 0])}, then {numbers(b[0, 0])}"
            for one, a in found
            for other, b in found
        },
    )  # fmt: skip


def largest(gradients: np.ndarray) -> np.ndarray:
    """Return the largest gradient of query, key and value; NaN where one of its own is NaN."""
    return np.array([np.abs(part).max() for part in gradients])


def gradient(name: str, title: str, clause: str, sentence: str, rows: list[int]) -> Question:
    """Return the question of the gradients when the loss reads some rows of the output."""
    given, grad = inputs(), np.zeros((1, 2, 3, 1), "float32")
    grad[:, :, rows] = 1

    def answers() -> Answers:
        found = gradients(given, grad, SEEN)
        if (
            1 not in rows
        ):  # nothing reads the fully masked row, so that what it gives makes no difference
            found = [("right" if name == "zero" else name, a) for name, a in found]
            found = [(name, a) for name, a in found if name in ("right", "nan")]
        return [(name, largest(arrays)) for name, arrays in found]

    return forward(
        name, title, clause, sentence + " The answers are the largest |dQ|, |dK| and |dV|.",
        given={"mask": OwnMask(SEEN), "grad": grad}, answers=answers, how="gradients",
        needs=("gradients",), measure=largest, gives={"nan": "NaN in one or more"},
        contract="zero" if 1 in rows else "right",
    )  # fmt: skip


def gradient_of_a_fill() -> Question:
    given, grad = inputs(), np.zeros((1, 2, 3, 1), "float32")
    grad[:, :, 1] = 1

    def answers() -> Answers:
        """Read as True for what may be seen, the row sees everything."""
        found = [("cast" if n == "unmasked-row" else n, a) for n, a in gradients(given, grad, SEEN)]
        return [(name, largest(arrays)) for name, arrays in found]

    return forward(
        "gradient-1e9", "Which gradients come from a row emptied by -1e9?", "GRAD-1",
        "The forward pass gives the mean of the values, whatever the scores are. The loss reads "
        "that row alone. The answers are the largest |dQ|, |dK| and |dV|. " + AS_BIAS,
        given={"additive": additive(SEEN, -1e9), "grad": grad}, answers=answers, how="gradients",
        needs=("gradients",), measure=largest, gives={"nan": "NaN in one or more"},
        contract="finite fill",
    )  # fmt: skip


QUESTIONS = [
    own_mask(),
    weights(),
    asked_for(),
    filled("empty-inf", "What is a row emptied by -inf?", "EMPTY-4", -np.inf, "zero"),
    filled("empty-1e9", "What is a row emptied by -1e9?", "EMPTY-8", -1e9, "mean"),
    filled(
        "empty-min", "What is a row emptied by the smallest float32?", "EMPTY-8", SMALLEST, "mean"
    ),
    gradient(
        "gradient-empty", "Which gradients come from a fully masked row?", "EMPTY-6",
        "The loss reads the fully masked row's output, and nothing else.", [1],
    ),
    gradient(
        "gradient-others", "Does a fully masked row spoil the other rows' gradients?", "EMPTY-6",
        "The loss reads the other two rows; the empty one should not be felt.", [0, 2],
    ),
    gradient_of_a_fill(),
]  # fmt: skip
