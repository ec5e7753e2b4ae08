"""A decoding and, beside it, what each of its samples was told and what came back.

It keeps no cache: one pass over a sample's tokens says what every output should have been.
"""

from typing import Any

import numpy as np

from ..oracle.tolerance import check_dtype, compare, finfo, same
from ..oracle.tolerance import dtype as numpy_dtype
from .decoding import SOURCE_HIDDEN, Stream, check_lengths

MASK_NAMES = {"attention": "attn_mask", "encoder": "mask", "encoder_layer": "src_mask"}


class Told:
    """`masks` are those of every feed: mask, memory_mask; `rows` say which sources samples have."""

    def __init__(
        self, stream: Stream, decoding, rows, masks: dict[str, Any] | None = None, dtype="float32"
    ):
        self.stream, self.decoding, self.masks = stream, decoding, masks or {}
        self.rows, self.dtype = list(rows), numpy_dtype(dtype)
        self.told = [stream.tokens(dtype)[0, :0] for _ in self.rows]
        self.heard: list[list[np.ndarray]] = [[] for _ in self.rows]

    @property
    def counts(self) -> list[int]:
        return [len(own) for own in self.told]

    def _moved_to(self, decoding, index, lengths) -> "Told":
        """Return what a decoding holds that goes on from the first tokens of these samples."""
        rows = [self.rows[i] for i in index]
        moved = Told(self.stream, decoding, rows, self.masks, self.dtype.name)
        moved.told = [self.told[i][:n] for i, n in zip(index, lengths, strict=True)]
        moved.heard = [self.heard[i][:n] for i, n in zip(index, lengths, strict=True)]
        return moved

    def reorder(self, index) -> "Told":
        decoding, counts = self.decoding.reorder(np.array(index)), self.counts
        moved = self._moved_to(decoding, index, [counts[i] for i in index])
        moved.check_lengths("reordering")
        return moved

    def truncate(self, lengths: int | list[int]) -> "Told":
        self.check("outputs before they are forgotten")
        given, every = lengths, range(len(self.rows))
        decoding = self.decoding.truncate(given if isinstance(given, int) else np.array(given))
        moved = self._moved_to(decoding, every, np.broadcast_to(lengths, len(every)))
        moved.check_lengths("truncating")
        return moved

    def goes_on_in(self, decoding) -> "Told":
        """Return what a decoding holds that has the same tokens, as a copy has."""
        return self._moved_to(decoding, range(len(self.rows)), self.counts)

    def copy(self) -> "Told":
        return self.goes_on_in(self.decoding.copy())

    def feed(self, x: np.ndarray, what: str, hidden: np.ndarray | None = None) -> None:
        """Feed tokens of x (B, T, ...), as many as `hidden` has, and keep what comes back."""
        hidden = np.zeros(x.shape[:2], bool) if hidden is None else hidden
        hidden = hidden[: len(self.rows)]
        x, stream = x[: len(self.rows), : hidden.shape[1]], self.stream
        if stream.kind == "seq2seq":
            got = stream.feed(self.decoding, np.where(hidden, 0, x))
        else:
            huge = self.dtype.type(min(1e30, float(finfo(self.dtype).max) / 4))
            given = np.where(hidden[..., None], huge, x)
            got = self._turned(
                stream.feed(self.decoding, self._turned(given), **self._options(hidden))
            )
        check_dtype(got, self.dtype, f"output of {what}")
        same(got[hidden], np.zeros_like(got[hidden]), f"hidden tokens of {what}")
        for b, padded in enumerate(hidden):
            self.told[b] = np.concatenate([self.told[b], x[b, ~padded]])
            self.heard[b] += list(got[b, ~padded])
        self.check_lengths(what)

    def _options(self, hidden: np.ndarray) -> dict:
        found: dict[str, Any] = dict(self.masks)
        if "mask" in found:
            found[MASK_NAMES.get(self.stream.kind, "tgt_mask")] = found.pop("mask")
        found |= {"hidden": hidden} if hidden.any() else {}
        return found | {name: SOURCE_HIDDEN[self.rows] for name in self.stream.every_feed}

    def _turned(self, x: np.ndarray) -> np.ndarray:
        """Return (B, T, E) as the layout has it, or back."""
        return x if self.stream.config.get("batch_first", True) else x.swapaxes(0, 1)

    def check_lengths(self, what: str) -> None:
        check_lengths(self.decoding, self.counts, f"after {what}")

    def check(self, what: str) -> None:
        """Check every output against one pass over its sample's tokens, in batches of a length."""
        for length in sorted({*self.counts} - {0}):
            samples = [b for b, count in enumerate(self.counts) if count == length]
            x = np.stack([self.told[b] for b in samples])
            got = np.stack([np.stack(self.heard[b]) for b in samples])
            rows = np.array(self.rows)[samples]
            exact, naive = self.stream.one_pass(x, rows=rows, **self.masks)
            compare(got, exact, naive, f"{what}, samples {samples}")
