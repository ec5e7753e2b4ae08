"""Decoding made of a row of `combinations.py`: a prompt, something done to the cache, and steps.

What it should give is told by each sample's list of tokens and one pass over it, without a cache.
"""

from dataclasses import dataclass

import numpy as np

from ..mask_spec import sliding_window
from ..oracle.tolerance import check_dtype, compare, same
from ..subjects.protocol import Subject, require
from .decoding import CHANGES, SOURCE_HIDDEN, B, Stream, check_lengths

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
ORDERS = {"reorder": [2, 0, 1], "repeat": [1, 1, 2]}
WINDOW, MEMORY_WINDOW = sliding_window(2), sliding_window(1, 2)
MASK_NAMES = {"attention": "attn_mask", "encoder": "mask", "encoder_layer": "src_mask"}


@dataclass(frozen=True, eq=False)
class PlainStream(Stream):
    """A stream whose attention may have no bias; models leave it out themselves."""

    def parameters(self, dtype_name: str = "float32") -> dict[str, np.ndarray]:
        found = super().parameters(dtype_name)
        if self.kind != "attention" or self.config.get("bias", True):
            return found
        return {name: array for name, array in found.items() if not name.endswith("bias")}


@dataclass(frozen=True, eq=False)
class DecodingRow:
    """One decoding of eleven tokens at most, in float32."""

    row: dict[str, str]

    @property
    def stream(self) -> PlainStream:
        row, changes = self.row, dict(CHANGES[self.row["kind"]])
        if row["kind"] not in ("attention", "grouped"):
            changes |= {"norm_first": row["norm_first"] == "yes"}
        changes |= {"num_encoder_layers": 1} if row["kind"] in ("transformer", "seq2seq") else {}
        changes |= {"bias": False} if row["bias"] == "no" else {}
        changes |= {"batch_first": False} if self.first else {}
        return PlainStream(row["kind"], changes)

    @property
    def first(self) -> bool:
        return self.row["layout"] == "sequence_first"

    def check(self, subject: Subject) -> None:
        """Feed the prompt, do what the row says, go on; check every output and the lengths."""
        require(subject, "cache")
        stream, row = self.stream, self.row
        x = stream.tokens(length=TOKENS)
        given = {n: self.turned(v) for n, v in stream.given().items() if n in ("src", "memory")}
        capacity = PROMPTS[row["prompt"]].shape[1] + (3 if row["room"] == "exact" else 7)
        cache = RowCache(
            self, stream.start(subject, capacity, **given), np.arange(B), [[]] * B, [[]] * B
        )
        cache.feed(x, PROMPTS[row["prompt"]])
        cache = self.moved(cache, x)
        for i, hidden in enumerate(STEPS[row["steps"]]):
            cache.feed(x[:, 4 + 2 * i :], hidden)
        cache.check("outputs of all tokens")

    def moved(self, cache: "RowCache", x: np.ndarray) -> "RowCache":
        """Do to the cache what the row says."""
        then, decoding = self.row["then"], cache.decoding
        lengths = np.array([len(tokens) for tokens in cache.tokens])
        if then in ORDERS:
            index = ORDERS[then]
            return cache.moved_to(decoding.reorder(np.array(index)), index)
        if then.startswith("truncate"):
            cache.check("outputs before they are forgotten")
            left = np.maximum(lengths - [1, 0, 2], 0)
            if then == "truncate":
                left = np.full(B, max(lengths.min() - 1, 0))
            shorter = decoding.truncate(left if then == "truncate_each" else int(left[0]))
            return cache.moved_to(shorter, range(B), left)
        if then == "copy":
            branch = cache.moved_to(decoding.copy(), range(B))
            branch.feed(x[::-1, 7:], np.zeros((B, 2), bool))
            branch.check("outputs of a copy that went another way")
        elif then == "poison":
            return cache.moved_to(decoding.poison(np.nan), range(B))
        return cache

    def turned(self, x: np.ndarray) -> np.ndarray:
        """Return (B, T, E) as the layout has it, or back."""
        return x.swapaxes(0, 1) if self.first and x.ndim == 3 else x

    @property
    def options(self) -> dict:
        """Return the masks of every feed."""
        name = MASK_NAMES.get(self.stream.kind, "tgt_mask")
        found: dict = {name: WINDOW} if self.row["mask"] == "window" else {}
        return found | ({"memory_mask": MEMORY_WINDOW} if self.row["memory_mask"] != "none" else {})


class RowCache:
    """A decoding, and beside it each sample's tokens, their outputs, and the source it goes by."""

    def __init__(self, row: DecodingRow, decoding, sources: np.ndarray, tokens, outputs):
        self.row, self.decoding, self.sources = row, decoding, sources
        self.tokens, self.outputs = [list(own) for own in tokens], [list(own) for own in outputs]

    def moved_to(self, decoding, index, lengths=None) -> "RowCache":
        """Return what a decoding holds that goes on from these samples, or their first tokens."""
        cuts = [None] * len(index) if lengths is None else lengths
        tokens, outputs = (
            [kept[i][:n] for i, n in zip(index, cuts, strict=True)]
            for kept in (self.tokens, self.outputs)
        )
        return RowCache(self.row, decoding, self.sources[list(index)], tokens, outputs)

    def feed(self, x: np.ndarray, hidden: np.ndarray) -> None:
        """Feed the first tokens of x, keep their outputs, check the lengths."""
        row, stream = self.row, self.row.stream
        x = x[:, : hidden.shape[1]]
        options, given = row.options, row.turned(x)
        if stream.kind == "seq2seq":
            given = np.where(hidden, 0, x)
        elif hidden.any():
            given = row.turned(np.where(hidden[..., None], np.float32(1e30), x))
            options |= {"hidden": hidden}
        if "memory_key_padding_mask" in stream.every_feed:
            options |= {"memory_key_padding_mask": SOURCE_HIDDEN[self.sources]}
        got = row.turned(stream.feed(self.decoding, given, **options))
        check_dtype(got, np.dtype("float32"), "output")
        same(got[hidden], np.zeros_like(got[hidden]), "output of hidden tokens")
        for b, padded in enumerate(hidden):
            self.tokens[b] += list(x[b, ~padded])
            self.outputs[b] += list(got[b, ~padded])
        check_lengths(self.decoding, [len(own) for own in self.tokens], "after a feed")

    def check(self, what: str) -> None:
        """Check every output against one pass over its sample's tokens, in batches of a length."""
        row, lengths = self.row, [len(own) for own in self.tokens]
        masks: dict = {"mask": WINDOW} if row.row["mask"] == "window" else {}
        masks |= {"memory_mask": MEMORY_WINDOW} if row.row["memory_mask"] != "none" else {}
        for length in sorted({*lengths} - {0}):
            samples = [b for b, own in enumerate(lengths) if own == length]
            x, got = (
                np.stack([np.stack(kept[b]) for b in samples])
                for kept in (self.tokens, self.outputs)
            )
            exact, naive = row.stream.one_pass(x, rows=self.sources[samples], **masks)
            compare(got, exact, naive, f"{what}, samples {samples}")
