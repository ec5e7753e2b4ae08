"""Decoding made of a row of `combinations.py`: a prompt, something done to the cache, and steps.

What it should give is told by each sample's list of tokens and one pass over it, without a cache.
"""

from dataclasses import dataclass

import numpy as np

from ..mask_spec import sliding_window
from ..subjects.protocol import Subject, require
from .combined_models import OWN_SCALE, process_of
from .decoding import ATTENTIONS, CHANGES, B, Stream
from .told import Told

TOKENS = 11
PROMPTS = {  # which tokens are padding
    "whole": np.zeros((B, 4), bool),
    "one_token": np.zeros((B, 1), bool),
    "left": np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool),
    "right": np.array([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]], bool),
    "between": np.array([[0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0]], bool),
}
STEPS = {
    "ones": [np.zeros((B, 1), bool)] * 3,
    "chunk": [np.zeros((B, 2), bool), np.zeros((B, 1), bool)],
    "hidden_chunk": [np.array([[0, 1], [1, 0], [0, 0]], bool), np.zeros((B, 1), bool)],
}
SCORES: dict[str, dict] = {
    "usual": {},
    "scaled": {"scale": OWN_SCALE},
    "capped": {"softcap": 0.8},
    "sinks": {"sinks": True},
}
ORDERS = {"reorder": [2, 0, 1], "repeat": [1, 1, 2]}
WINDOW, MEMORY_WINDOW = sliding_window(2), sliding_window(1, 2)


@dataclass(frozen=True, eq=False)
class WindowStream(Stream):
    """A stream whose cache is a window: its feeds have no mask, and one pass has the window's."""

    def one_pass(self, x: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
        return super().one_pass(x, mask=WINDOW, **options)


@dataclass(frozen=True, eq=False)
class DecodingRow:
    """One decoding of eleven tokens at most."""

    row: dict[str, str]

    @property
    def stream(self) -> Stream:
        row, changes = self.row, dict(CHANGES[self.row["kind"]])
        if row["kind"] not in ("attention", "grouped"):
            changes |= {"norm_first": row["norm_first"] == "yes"}
        changes |= {"num_encoder_layers": 1} if row["kind"] in ("transformer", "seq2seq") else {}
        changes |= {"bias": False} if row["bias"] == "no" else {}
        changes |= SCORES[row["scores"]]
        changes |= {"batch_first": False} if self.first else {}
        if row["process_heads"] != "none":
            plain = ATTENTIONS[row["kind"]].config
            head_dim = plain["embed_dim"] // plain["num_heads"]
            changes |= {"process_heads": process_of(row["process_heads"], head_dim)}
        return (WindowStream if row["cache"] == "window" else Stream)(row["kind"], changes)

    @property
    def first(self) -> bool:
        return self.row["layout"] == "sequence_first"

    def check(self, subject: Subject) -> None:
        """Feed the prompt, do what the row says, go on; check every output and the lengths."""
        require(subject, "cache")
        stream, row = self.stream, self.row
        x, prompt = stream.tokens(row["dtype"], TOKENS), PROMPTS[row["prompt"]]
        sources = {n: x for n, x in stream.given(row["dtype"]).items() if n in ("src", "memory")}
        given = {n: self.turned(source) for n, source in sources.items()}
        given |= {"window": WINDOW.arguments["before"]} if row["cache"] == "window" else {}
        capacity = prompt.shape[1] + (3 if row["room"] == "exact" else 7)
        decoding = stream.start(subject, capacity, row["dtype"], **given)
        told = Told(stream, decoding, range(B), self.masks, row["dtype"])
        told.feed(x, "the prompt", prompt)
        told = self.moved(told, x)
        for i, hidden in enumerate(STEPS[row["steps"]]):
            told.feed(x[:, 4 + 2 * i :], f"step {i}", hidden)
        told.check("outputs of all tokens")

    def moved(self, told: Told, x: np.ndarray) -> Told:
        """Do to the cache what the row says."""
        then = self.row["then"]
        if then in ORDERS:
            return told.reorder(ORDERS[then])
        if then == "truncate":
            return told.truncate(max(min(told.counts) - 1, 0))
        if then == "truncate_each":
            return told.truncate([max(n, 0) for n in np.subtract(told.counts, [1, 0, 2])])
        if then == "copy":
            branch = told.copy()
            branch.feed(x[::-1, 7:], "a copy", np.zeros((B, 2), bool))
            branch.check("outputs of a copy that went another way")
        elif then == "poison":
            return told.goes_on_in(told.decoding.poison(np.nan))
        return told

    def turned(self, x: np.ndarray) -> np.ndarray:
        """Return (B, T, E) as the layout has it."""
        return x.swapaxes(0, 1) if self.first and x.ndim == 3 else x

    @property
    def masks(self) -> dict:
        """Return the masks of every feed."""
        found: dict = {"mask": WINDOW} if self.row["mask"] == "window" else {}
        return found | ({"memory_mask": MEMORY_WINDOW} if self.row["memory_mask"] != "none" else {})
