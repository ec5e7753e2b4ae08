"""Calls that small blocks cut in every place, and what may stand in keys that nobody is allowed."""

from itertools import count, cycle

import numpy as np

from ..mask_spec import (
    allow,
    causal,
    hide,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from .arrays import coins
from .attention import BY_NAME, GROUPED, LENGTHS, MAIN, MASKED, PLAIN, SQUARE, Case

HOLES = np.array([[0, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 1]], bool)
LEFT = np.arange(7) < np.array([0, 7, 3])[:, None]  # padding on the left: whole, empty, ragged
ONE_HOLE = np.array([[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 1]], bool)
APART = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0, 0]], bool)
APART = APART[:, None].repeat(5, 1)  # by head: in three, no two of which are cut alike
DOCUMENTS = np.array([[4, 4, 4, 9, 9, 4, 4], [1, 2, 2, 2, 3, 3, 3], [5] * 7])


def _odd(batch, head, query, key):
    return (query + key + head) % 2 == batch % 2


# A mask, where queries start, and how many there are
KINDS = {
    "none": (None, None, 5),
    "none_of_one_query": (None, None, 1),
    "causal_square": (causal(), 0, 7),
    "causal_first": (causal(), 0, 5),
    "causal_last": (causal(), 2, 5),
    "causal_before_the_keys": (causal(), -2, 5),
    "causal_per_sample": (causal(), np.array([2, 0, 5]), 5),
    "causal_of_one_query": (causal() & padding(LENGTHS), np.array([6, 2, 0]), 1),
    "causal_and_lengths": (causal() & padding(LENGTHS), 0, 7),
    "causal_and_left": (causal() & padding(hidden=LEFT), 0, 7),
    "causal_and_left_before": (causal() & padding(hidden=LEFT), -3, 5),
    "causal_across_lengths": (causal() & padding([7, 3, 4]), 2, 5),
    "causal_up_to_lengths": (causal() & padding([5, 6, 4]), 4, 5),
    "window": (sliding_window(2, 1), 1, 5),
    "window_of_one": (sliding_window(0), 2, 5),
    "prefix": (prefix([3, 0, 7]), 1, 5),
    "lengths": (padding(LENGTHS), None, 5),
    "lengths_at_edges": (padding([3, 6, 4]), None, 5),
    "lengths_beside_edges": (padding([2, 5, 1]), None, 5),
    "both_sides": (padding(hidden=LEFT) & padding([6, 5, 7]), None, 5),
    "both_sides_turned": (padding([6, 5, 7]) & padding(hidden=LEFT), None, 5),
    "lengths_alike": (padding([4, 4, 4]), None, 5),
    "lengths_of_nothing": (padding([0, 0, 0]), None, 5),
    "left": (padding(hidden=LEFT), None, 5),
    "holes": (padding(hidden=HOLES), None, 5),
    "one_hole": (padding(hidden=ONE_HOLE), None, 5),
    "segments": (segments(DOCUMENTS), 2, 5),
    "segments_before": (segments(DOCUMENTS), -3, 5),
    "segments_beyond": (segments(DOCUMENTS), np.array([3, 4, 5]), 5),
    "documents": (causal() & segments(DOCUMENTS), 0, 7),
    "segments_pair": (segments(DOCUMENTS[:, :5], DOCUMENTS[:, ::-1]), None, 5),
    "allow": (allow(coins(2, 3, 2, 5, 7, true=0.4)), None, 5),
    "heads_apart": (allow(APART[None]), None, 5),
    "heads_and_samples_apart": (hide(np.stack([APART, APART[::-1], APART])), None, 5),
    "hide_for_all_heads": (hide(coins(3, 3, 1, 5, 7, true=0.6)), None, 5),
    "hide_for_all_samples": (hide(coins(4, 1, 2, 5, 7, true=0.6)), None, 5),
    "predicate": (predicate(_odd), 1, 5),
    "or": (sliding_window(1) | prefix([2, 0, 5]), 2, 5),
    "and": (sliding_window(3) & hide(coins(5, 3, 1, 5, 7)) & padding(LENGTHS), 2, 5),
    "not": (~sliding_window(1, 1) & padding([6, 0, 3]), 2, 5),
    "not_lengths": (~padding(LENGTHS), None, 5),
}


HEADS = {"allow": 2, "hide_for_all_samples": 2, "heads_apart": 3, "heads_and_samples_apart": 3}


def _crossed() -> list[tuple[Case, str]]:
    """Return each kind twice, once without bias and softcap, beside all else in turn.

    Turns have lengths that share no divisor, so that everything meets everything sooner or later.
    """
    seeds, widths = count(), cycle([4, 4, 4, 5, 4, 4, 4, 3, 4, 4, 4])
    heads = cycle([(4, 2), (2, 1), (6, 3), (2, 2), (4, 1), (3, 3), (4, 2), (6, 2), (5, 5)])
    policies = cycle(["zero", "uniform", "nan", "zero", "uniform"])
    dtypes = cycle(["float32", "float32", "bfloat16", "float32", "float16", "float64", "float32"])
    scales = cycle([None, None, -0.7, None, None, 1.5, None, None, 0.0, None, None, None, None])
    biases = cycle(["heads", "rank4", None, "rank2", "BTS", "hiding", "BS", None])
    softcaps = cycle([*[None, 0.9] * 8, 0.9])
    found = []
    for name, (mask, offset, T) in KINDS.items():
        for mixed in (False, True):
            H, H_kv = next(heads)
            if name in HEADS:
                H, H_kv = HEADS[name], HEADS[name] if H_kv % 2 else 1
            shape = MAIN._replace(H=H, H_kv=H_kv, T=T, D=4, D_v=next(widths))
            own: dict = {"bias": next(biases), "softcap": next(softcaps)} if mixed else {}
            own |= {"scale": next(scales), "empty_rows": next(policies), "seed": next(seeds)}
            text = f"{name}_{'mixed' if mixed else 'bare'}"
            found.append((Case(text, shape, mask, offset, **own), next(dtypes)))
    return found


USUAL = [  # in shapes that the suite has anyway
    PLAIN,
    *MASKED,
    Case("bias_rank2", bias="rank2", mask=padding(LENGTHS)),
    Case("bias_heads", bias="heads", mask=causal(), query_offset=2),
    Case("softcap", softcap=0.9, bias="rank4", mask=causal(), query_offset=2),
    Case("grouped", GROUPED, causal() & padding(LENGTHS), query_offset=2),
    Case("one_kv_head", GROUPED._replace(H_kv=1), hide(coins(9, 3, 4, 5, 7, true=0.3))),
    Case("square", SQUARE, causal() & padding(LENGTHS)),
    Case("uniform", mask=padding(LENGTHS), empty_rows="uniform"),
    Case("nan", mask=padding(LENGTHS), empty_rows="nan"),
    Case("uniform_of_groups", GROUPED, padding(LENGTHS), empty_rows="uniform"),
]
CROSSED = _crossed()
CUT = [*((case, "float32") for case in USUAL), *CROSSED]
# Whose gradients are asked for in 16 bits, too
HALVES = [(BY_NAME["causal_and_padding"], "bfloat16"), (USUAL[19], "float16")]


def unseen(case: Case) -> np.ndarray:
    """Return which keys no query of theirs is allowed: (B, H_kv, S, 1)."""
    B, _, H_kv, T, S, _, _ = case.shape
    seen = np.asarray(case.allowed().reshape(B, H_kv, -1, T, S).any((2, 3)))
    return ~seen[..., None]


def dirtied(case: Case, dtype_name: str) -> list[np.ndarray] | None:
    """Return the inputs with what is no number in keys and values that nobody is allowed.

    None where there are none, or where rows without a key take the mean over all of them.
    """
    query, *others = case.inputs(dtype_name)
    hidden = unseen(case)
    if case.empty_rows == "uniform" or not hidden.any():
        return None
    rng = np.random.default_rng(case.seed)
    junk = rng.choice([np.nan, np.inf, -np.inf], hidden.shape)
    return [query, *(np.where(hidden, junk, x).astype(x.dtype) for x in others)]
