"""What document A prints that does not depend on random numbers: tokens and masks."""

import numpy as np

SOURCE = np.array(
    [
        [75, 79, 46, 44, 68, 0, 0, 0, 0, 0],
        [84, 7, 75, 57, 0, 0, 0, 0, 0, 0],
        [65, 30, 41, 0, 0, 0, 0, 0, 0, 0],
        [88, 78, 0, 0, 0, 0, 0, 0, 0, 0],
        [98, 58, 34, 0, 0, 0, 0, 0, 0, 0],
    ]
)
SOURCE_LENGTHS = (5, 4, 3, 2, 3)

# One character a cell, as the document prints them: T and F, 0 and - for -inf.
KEY_PADDING = """
F F F F F T T T T T
F F F F T T T T T T
F F F T T T T T T T
F F T T T T T T T T
F F F T T T T T T T
"""
LOOK_AHEAD = """
0 - - - - - - - - -
0 0 - - - - - - - -
0 0 0 - - - - - - -
0 0 0 0 - - - - - -
0 0 0 0 0 - - - - -
0 0 0 0 0 0 - - - -
0 0 0 0 0 0 0 - - -
0 0 0 0 0 0 0 0 - -
0 0 0 0 0 0 0 0 0 -
0 0 0 0 0 0 0 0 0 0
"""
MEMORY_LOOK_AHEAD = LOOK_AHEAD + "0 0 0 0 0 0 0 0 0 0\n" * 10
CELLS = {"T": True, "F": False, "0": 0.0, "-": -np.inf}


def table(text: str) -> np.ndarray:
    """Read a printed table.

    >>> table("0 -")
    array([[  0., -inf]])
    """
    return np.array([[CELLS[cell] for cell in line.split()] for line in text.split("\n") if line])


def embedded(tokens: np.ndarray, features: int, vocabulary: int = 100) -> np.ndarray:
    """Embed tokens as the document does: normal rows, and a zero row for the padding token 0."""
    rows = np.random.default_rng(75).normal(size=(vocabulary, features)).astype(np.float32)
    rows[0] = 0
    return rows[tokens]
