"""Calls of attention made of a row of `combinations.py`, each as far as the subject offers it."""

from dataclasses import dataclass

import numpy as np

from ..mask_spec import (
    Spec,
    allow,
    causal,
    chunked,
    hide,
    packed,
    padding,
    predicate,
    prefix,
    segments,
    sliding_window,
)
from ..oracle.tolerance import MERGED, check_dtype, compare
from ..subjects.protocol import STEPS, TILE, Subject, require
from .arrays import coins, normal
from .attention import Case, Shape, sinks_of
from .combinations import PLANS
from .compare import steps_of

HEADS = {"equal": (2, 2), "grouped": (4, 2), "one": (2, 1)}
SIZES = {  # T, S, D, D_v
    "wide": (5, 7, 11, 13),
    "tall": (7, 5, 11, 3),
    "square": (7, 7, 11, 13),
    "one_query": (1, 7, 11, 13),
    "one_key": (5, 1, 11, 13),
}
SCALES = {"none": None, "zero": 0.0, "large": 1.5, "negative": -0.3}
SOFTCAPS = {"none": None, "low": 0.7, "high": 30.0}
SINKS = {"none": None, "given": "normal", "one_less": "none_in_head_0"}
GARBAGE = {"none": 0.0, "nan": np.nan, "inf": np.inf}


def reduced(subject: Subject, plan: str, row: dict[str, str]) -> dict[str, str]:
    """Return the row with the plain value where the subject does not offer another."""
    plain, row = PLANS[plan].plain, dict(row)
    needed = {
        "bias": "bias", "scale": "scale", "softcap": "softcap", "empty_rows": "empty_rows",
        "heads": "grouped", "layout": "sequence_first", "weights": "weights", "sinks": "sinks",
        "head_dim": "head_dim", "process_heads": "process_heads",
    }  # fmt: skip
    for option, capability in needed.items():
        if option in row and capability not in subject.capabilities:
            row[option] = plain[option]
    if "layers" not in subject.capabilities and plan == "decoding":  # an adapter's own attention
        row |= {n: plain[n] for n in plain if n not in ("steps", "room", "bias", "layout")}
    if row.get("dtype", subject.dtypes[0]) not in subject.dtypes:
        row["dtype"] = subject.dtypes[0]
    return row


def _checker(batch, head, query, key):
    return (2 * query + key + head + batch) % 3 != 0


def mask_of(kind: str, shape: Shape) -> Spec | None:
    """Return a mask of a kind for three samples; lengths are ragged."""
    B, H, T, S = shape.call
    lengths, ids = [S, 0, (S + 1) // 2], np.arange(max(T, S)) // 2
    ids = np.stack([ids, ids[::-1], ids * 0])
    masks = {
        "causal": causal(),
        "window": sliding_window(2, 1),
        "chunked": chunked(3),
        "prefix": prefix([min(3, S), 0, S]),
        "padding": padding(lengths),
        "hidden": padding(hidden=coins(1, B, S)),
        "segments": segments(ids[:, :S]),
        "pair": segments(ids[:, :T], ids[:, :S] // 2 * 2),
        "packed": packed([[S // 2, 0, S - S // 2], [0, 0, 1], [S, 0, 0]]),
        "part": (causal() & padding([9, 1, 5])).part(np.arange(T)[::-1], np.arange(S) * 3 % 8, 1),
        "allow": allow(coins(2, B, H, T, S, true=0.4)),
        "hide": hide(coins(3, 1, H, T, S, true=0.4)),
        "predicate": predicate(_checker),
        "and": causal() & padding(lengths),
        "or": sliding_window(1) | prefix([min(2, S), 0, S - 1]),
        "not": ~sliding_window(1, 1),
    }
    return masks.get(kind)


def bias_of(kind: str, shape: Shape, dtype_name: str) -> np.ndarray:
    """Return a bias of one of the shapes that are broadcast; "hiding" has -inf in a third."""
    B, H, T, S = shape.call
    sizes = {"rank2": (T, S), "rank4": (B, H, T, S), "heads": (1, H, 1, S),
             "samples": (B, 1, 1, S), "hiding": (B, H, T, S)}[kind]  # fmt: skip
    bias = normal(5, *sizes, dtype_name=dtype_name)
    if kind == "hiding":
        bias[coins(6, *sizes, true=0.3)] = -np.inf
    return bias


@dataclass(frozen=True, eq=False)
class Combined(Case):
    """A call of a row: its last keys may be hidden from a whole sample, and hold garbage."""

    dtype: str = "float32"
    path: str = "plain"
    garbage: float = 0.0
    last: tuple[int, ...] = (0, 0, 0)  # how many keys of each sample hold garbage

    def numbers(self, dtype_name: str) -> dict:
        options: dict = {
            "scale": self.scale,
            "softcap": self.softcap,
            "empty_rows": self.empty_rows,
        }
        if self.bias is not None:
            options["bias"] = bias_of(self.bias, self.shape, dtype_name)
        if self.sinks is not None:
            options["sinks"] = sinks_of(self.sinks, self.shape.H, dtype_name)
        return {name: value for name, value in options.items() if value is not None}

    def call(self, gradients: bool = False) -> tuple[list[np.ndarray], dict]:
        """Return what the subject is given, garbage included."""
        inputs = list(self.inputs(self.dtype))
        for b, count in enumerate(self.last):
            if count:
                inputs[1][b, :, -count:] = inputs[2][b, :, -count:] = self.garbage
        return [*inputs, *([self.grad(self.dtype)] if gradients else [])], self.options(self.dtype)

    def check(self, subject: Subject) -> None:
        """Check every path to the output against the oracle."""
        require(subject, "attention")
        inputs, options = self.call()
        exact, naive = self.expected(self.dtype)
        got = {"output": subject.attention(*inputs, **options)}
        if "blocked" in self.path and "blocked" in subject.capabilities:
            got["blocked output"] = subject.blocked(*inputs, tile=TILE, **options)
        steps = subject.steps(*inputs, **options)
        names = [name for name in steps_of(subject) if name != "scores" or not any(self.last)]
        got |= {f"{name} of the steps": steps[name] for name in names}
        for what, array in got.items():
            name = next(n for n in STEPS[::-1] if n in what)
            if "output" in what:
                check_dtype(array, naive[name].dtype, what)
            compare(array, exact[name], naive[name], what)

    def check_gradients(self, subject: Subject) -> None:
        """Check the gradients on the row's path against the oracle."""
        require(subject, "gradients")
        inputs, options = self.call(gradients=True)
        through = self.path.removesuffix("gradients").rstrip("_") or "attention"
        through = through if through in subject.capabilities else "attention"
        got = subject.gradients(*inputs, through=through, **options)
        exact, naive = self.expected_gradients(self.dtype)
        roundings = MERGED if through == "blocked" else 2
        for name in exact:
            words = f"gradient of {name}"
            check_dtype(got[name], naive[name].dtype, words)
            compare(got[name], exact[name], naive[name], words, roundings)


def attention(row: dict[str, str]) -> Combined:
    """Return the call of a row."""
    shape = Shape(3, *HEADS[row["heads"]], *SIZES[row["sizes"]])
    mask, last, S = mask_of(row["mask"], shape), (0, 0, 0), shape.S
    offsets = {"zero": 0, "number": S - shape.T, "per_sample": np.array([2, 0, S - 2]),
               "negative": -1}  # fmt: skip
    if row["garbage"] != "none":
        last = (0, min(2, S), 1)
        hidden = padding(hidden=np.arange(S) >= S - np.array(last)[:, None])
        mask = hidden if mask is None else mask & hidden
    return Combined(
        row["mask"], shape, mask, offsets.get(row["offset"]),
        None if row["bias"] == "none" else row["bias"],
        SCALES[row["scale"]], SOFTCAPS[row["softcap"]], row["empty_rows"],
        sinks=SINKS[row["sinks"]], dtype=row["dtype"], path=row["path"],
        garbage=GARBAGE[row["garbage"]], last=last,
    )  # fmt: skip
