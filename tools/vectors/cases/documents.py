"""What document A prints: its tokens, its masks, and the weights that do not depend on chance."""

import numpy as np

from conformance.documents.printed import KEY_PADDING, LOOK_AHEAD, SOURCE, table
from conformance.vectors.vector import Vector

from . import masks, multihead
from .make import PRINTED, close, exact, exempt, normal, ulp

SIZES = {"B": 5, "H": 2, "T": 10, "S": 10, "D": 8, "E": 16}
HIDDEN = table(KEY_PADDING).astype(bool)


def embedded() -> np.ndarray:
    """Embed the tokens: random rows, and a row of zeros for the padding token."""
    rows = normal(71, 100, 16)
    rows[0] = 0
    return rows[SOURCE]


def self_attention() -> Vector:
    """Sequence first, both masks; the biases are 0, so that padding's logits are equal."""
    x = embedded().swapaxes(0, 1)
    weights = multihead.parameters(16, 7)
    weights |= {name: np.zeros(16) for name in weights if name.endswith("bias")}
    rows = np.zeros((5, 10), bool)
    rows[0, 5:] = True
    return multihead.attend(
        "DOC-A5.self_attention", "sample 0's row 0 is [1, 0, ...] and its rows 5 to 9 are 0.2 over "
        "five columns", exact("mean_weights", np.arange(10) == np.zeros((5, 1))),
        ulp("mean_weights", 0.2, rows), *close("mean_weights", "output"), sizes=SIZES,
        given={"query": x, "key": x, "value": x}, parameters=weights, batch_first=False,
        masks={"key_padding_mask": HIDDEN, "attn_mask": table(LOOK_AHEAD)}, empty_rows="nan",
        exempt=exempt(PRINTED, "distinct_sizes"),
    )  # fmt: skip


CASES = [
    masks.tokens("DOC-A1.tokens", "the printed tokens give the printed mask", SOURCE.tolist(), 0),
    masks.look_ahead("DOC-A4.square", "the look-ahead mask 10 x 10 is as printed", 10, 10, PRINTED),
    masks.look_ahead("DOC-A4.memory", "the look-ahead mask 20 x 10 is as printed", 20, 10),
    self_attention(),
]
