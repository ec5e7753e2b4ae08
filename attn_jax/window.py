"""A cache that keeps a window of the last keys and values, in memory that does not grow."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import checks
from .arrays import is_concrete
from .cache import KVCache
from .masks import Mask, window_at

NOWHERE = 2**30  # before and behind every position


@partial(jax.tree_util.register_dataclass, data_fields=["key", "value", "lengths"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class WindowCache(KVCache):
    """The last `capacity` tokens of each sample: the token at position p is in slot p % capacity.

    `attn.new_cache(batch_size, window=before)` makes one of `before + 1` slots, and `decode` then
    gives what one pass with `attn_mask=sliding_window(before)` gives, for as long as one likes.
    `lengths` count every token that was ever stored. It takes no other mask, and is for `decode`
    only. `truncate` raises ValueError once slots may have been written again.

    >>> cache = WindowCache.empty(1, num_kv_heads=1, capacity=3, head_dim=2)
    >>> cache = cache.append(*jnp.ones((2, 1, 1, 5, 2)))
    >>> cache.lengths, cache.capacity
    (Array([5], dtype=int32), 3)
    """

    rolling: ClassVar[bool] = True

    def _append(self, key: Array, value: Array, counts: Array | None) -> "WindowCache":
        """Append to a cache that is checked."""
        checks.check_append(self, key, value, counts)
        steps, first = key.shape[2], self.lengths
        taken = np.full(key.shape[0], steps, np.int32) if counts is None else counts
        lengths = self._overflow_where((taken < 0) | (taken > steps), first + taken)
        step = self._positions(lengths) - first[:, None]  # below 0 where a slot stays
        pairs = ((self.key, key), (self.value, value))
        key, value = (_refresh(slots, new, step) for slots, new in pairs)
        return type(self)(key, value, lengths)

    def _positions(self, lengths: Array | np.ndarray) -> Array:
        """Return the position in each slot, (B, C), once so many tokens are stored."""
        last = lengths[:, None] - 1
        positions = last - (last - jnp.arange(self.capacity)) % self.capacity
        return jnp.where(positions < 0, -NOWHERE, positions)

    def beside(self, key: Array, value: Array, counts: Array | None) -> tuple[Array, Array, Mask]:
        """Return all slots and new keys behind them, their values, and the mask of T queries."""
        step = jnp.arange(key.shape[2])
        rows = self.lengths[:, None] + step
        new = rows if counts is None else jnp.where(step < counts[:, None], rows, NOWHERE)
        columns = jnp.concatenate((self._positions(self.lengths), new), 1)
        pairs = ((self.key, key), (self.value, value))
        key, value = (jnp.concatenate(pair, 2) for pair in pairs)
        return key, value, window_at(self.capacity - 1, rows, columns)

    def slots(self) -> KVCache:
        """Return the same slots as a plain cache's, for a query that is allowed all of them."""
        return KVCache(self.key, self.value, self.lengths.clip(max=self.capacity))

    def _overflow_where(
        self, wrong: Array | np.ndarray, lengths: Array | np.ndarray
    ) -> Array | np.ndarray:
        """Count far below 0 where a traced call has got it wrong."""
        lengths = lengths.astype(jnp.int32)
        return lengths if is_concrete(wrong) else jnp.where(wrong, -NOWHERE, lengths)


def _refresh(slots: Array, new: Array, step: Array) -> Array:
    """Return slots (B, H_kv, C, D) in which `new` (B, H_kv, T, D) stands at each step from 0 on."""
    if not new.shape[2]:
        return slots
    step = step[:, None, :, None]
    taken = jnp.take_along_axis(new, step.clip(0, new.shape[2] - 1), 2)
    return jnp.where(step < 0, slots, taken)
