"""The calls that are measured: shapes, masks, and how many operations their allowed cells cost."""

import numpy as np

LONG = (1, 8, 4096, 64)  # B, H, T, D
WIDE = (8, 8, 512, 64)
HALF = 2048  # of LONG's keys are padding in "causal & padding to half"
WINDOW = 256


def arrays(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Return normal float32 arrays: query, key, value and so on."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(count)]


def lengths(batch: int, length: int) -> list[int]:
    """Return ragged lengths: one is all of T, and about half of all tokens is padding."""
    rng = np.random.default_rng(0)
    drawn = np.ceil((np.arange(batch) + rng.random(batch)) * length / batch).astype(int)
    drawn[-1] = length
    return rng.permutation(drawn).tolist()


def documents(length: int, count: int = 8) -> np.ndarray:
    """Return the ids (1, T) of `count` packed documents of about one length."""
    return (np.arange(length) * count // length)[None]


def allowed(kind: str, length: int) -> np.ndarray:
    """Return bool (T, S): what a mask of this kind allows, for dense masks and counting."""
    row, column = np.arange(length)[:, None], np.arange(length)
    ids = documents(length)[0]
    return {
        "none": np.ones((length, length), bool),
        "causal": column <= row,
        "window": (column <= row) & (row - column <= WINDOW),
        "packed": (column <= row) & (ids[:, None] == ids),
        "half": (column <= row) & (column < HALF),
    }[kind]


def mask(module, kind: str, length: int, batch: int = 1):
    """Return the same as a `Mask` of a backend."""
    if kind == "none":
        return None
    if kind == "window":
        return module.sliding_window(WINDOW)
    parts = {
        "causal": lambda: module.causal(),
        "packed": lambda: module.causal() & module.segments(documents(length).tolist()),
        "half": lambda: module.causal() & module.padding([HALF] * batch),
    }
    return parts[kind]()


def operations(kind: str, shape: tuple[int, ...], backward: bool = False) -> float:
    """Return the multiplications and additions of the allowed cells: twice that again backward."""
    batch, heads, length, dim = shape
    forward = 4.0 * batch * heads * int(allowed(kind, length).sum()) * dim
    return 3 * forward if backward else forward
