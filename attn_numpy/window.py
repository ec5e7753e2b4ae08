"""A cache that keeps a window of the last keys and values, in memory that does not grow."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import checks
from .cache import KVCache
from .masks import Mask, window_at

NOWHERE = 2**30  # before and behind every position


@dataclass(eq=False)
class WindowCache(KVCache):
    """The last `capacity` tokens of each sample: the token at position p is in slot p % capacity.

    `attn.new_cache(batch_size, window=before)` makes one of `before + 1` slots, and `decode` then
    gives what one pass with `attn_mask=sliding_window(before)` gives, for as long as one likes.
    `lengths` count every token that was ever stored. It takes no other mask, and is for `decode`
    only. `truncate` raises ValueError once slots may have been written again.

    >>> cache = WindowCache.empty(1, num_kv_heads=1, capacity=3, head_dim=2)
    >>> cache = cache.append(*np.ones((2, 1, 1, 5, 2), np.float32))
    >>> cache.lengths, cache.capacity
    (array([5]), 3)
    """

    rolling: ClassVar[bool] = True

    def _append(
        self, key: np.ndarray, value: np.ndarray, counts: np.ndarray | None
    ) -> "WindowCache":
        """Append to a cache that is checked; a chunk leaves the slots of this one as they are."""
        checks.check_append(self, key, value, counts)
        steps = key.shape[2]
        counts = np.full(len(self.lengths), steps) if counts is None else counts
        lengths = self.lengths + counts.astype(np.int64)
        if steps == 1:
            (sample,) = np.nonzero(counts)
            place = self.lengths[sample] % self.capacity
            self.key[sample, :, place] = key[sample, :, 0]
            self.value[sample, :, place] = value[sample, :, 0]
            self.consumed = True
            return type(self)(self.key, self.value, lengths)
        step = self._positions(lengths) - self.lengths[:, None]  # below 0 where a slot stays
        pairs = ((self.key, key), (self.value, value))
        key, value = (_refresh(slots, new, step) for slots, new in pairs)
        self.consumed = True
        return type(self)(key, value, lengths)

    def _positions(self, lengths: np.ndarray) -> np.ndarray:
        """Return the position in each slot, (B, C), once so many tokens are stored."""
        last = lengths[:, None] - 1
        positions = last - (last - np.arange(self.capacity)) % self.capacity
        return np.where(positions < 0, -NOWHERE, positions)

    def beside(
        self, key: np.ndarray, value: np.ndarray, counts: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, Mask]:
        """Return all slots and new keys behind them, their values, and the mask of T queries."""
        step = np.arange(key.shape[2])
        rows = self.lengths[:, None] + step
        new = rows if counts is None else np.where(step < counts[:, None], rows, NOWHERE)
        columns = np.concatenate((self._positions(self.lengths), new), 1)
        pairs = ((self.key, key), (self.value, value))
        key, value = (np.concatenate(pair, 2) for pair in pairs)
        return key, value, window_at(self.capacity - 1, rows, columns)

    def slots(self) -> KVCache:
        """Return the same slots as a plain cache's, for a query that is allowed all of them."""
        return KVCache(self.key, self.value, np.minimum(self.lengths, self.capacity))


def _refresh(slots: np.ndarray, new: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return slots (B, H_kv, C, D) in which `new` (B, H_kv, T, D) stands at each step from 0 on."""
    if not new.shape[2]:
        return slots
    step = step[:, None, :, None]
    taken = np.take_along_axis(new, step.clip(0), 2)
    return np.where(step < 0, slots, taken).astype(slots.dtype)
