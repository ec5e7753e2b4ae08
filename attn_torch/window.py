"""A cache that keeps a window of the last keys and values, in memory that does not grow."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import checks
from .arrays import is_concrete
from .cache import KVCache
from .masks import Mask, window_at
from .numerics import cast_like

NOWHERE = 2**30  # before and behind every position


@dataclass(eq=False)
class WindowCache(KVCache):
    """The last `capacity` tokens of each sample: the token at position p is in slot p % capacity.

    `attn.new_cache(batch_size, window=before)` makes one of `before + 1` slots, and `decode` then
    gives what one pass with `attn_mask=sliding_window(before)` gives, for as long as one likes.
    `lengths` count every token that was ever stored. It takes no other mask, and is for `decode`
    only. `truncate` raises ValueError once slots may have been written again.

    >>> cache = WindowCache.empty(1, num_kv_heads=1, capacity=3, head_dim=2)
    >>> cache = cache.append(*torch.ones(2, 1, 1, 5, 2))
    >>> cache.lengths, cache.capacity
    (tensor([5]), 3)
    """

    rolling: ClassVar[bool] = True

    def _append(self, key: Tensor, value: Tensor, counts: Tensor | None) -> "WindowCache":
        """Append to a cache that is checked; a chunk leaves the slots of this one as they are."""
        checks.check_append(self, key, value, counts)
        key, value = cast_like(key, self.key), cast_like(value, self.value)
        steps, first = key.shape[2], self.lengths
        counts = torch.full_like(first, steps) if counts is None else counts.to(first)
        lengths = self._overflow_where((counts < 0) | (counts > steps), first + counts)
        if steps == 1 and is_concrete(first):
            (sample,) = counts.nonzero(as_tuple=True)
            place = (first[sample] % self.capacity).to(key.device)
            sample = sample.to(key.device)
            self.key[sample, :, place] = key[sample, :, 0]
            self.value[sample, :, place] = value[sample, :, 0]
            self.consumed = True
            return type(self)(self.key, self.value, lengths)
        step = self._positions(lengths) - first[:, None]  # below 0 where a slot stays
        pairs = ((self.key, key), (self.value, value))
        key, value = (_refresh(slots, new, step.to(new.device)) for slots, new in pairs)
        self.consumed = True
        return type(self)(key, value, lengths)

    def _positions(self, lengths: Tensor) -> Tensor:
        """Return the position in each slot, (B, C), once so many tokens are stored."""
        last = lengths[:, None] - 1
        slot = torch.arange(self.capacity, device=lengths.device)
        positions = last - (last - slot) % self.capacity
        return torch.where(positions < 0, -NOWHERE, positions)

    def beside(
        self, key: Tensor, value: Tensor, counts: Tensor | None
    ) -> tuple[Tensor, Tensor, Mask]:
        """Return all slots and new keys behind them, their values, and the mask of T queries."""
        step = torch.arange(key.shape[2], device=self.lengths.device)
        rows = self.lengths[:, None] + step
        new = rows if counts is None else torch.where(step < counts[:, None], rows, NOWHERE)
        columns = torch.cat((self._positions(self.lengths), new), 1)
        pairs = ((self.key, key), (self.value, value))
        key, value = (torch.cat(pair, 2) for pair in pairs)
        return key, value, window_at(self.capacity - 1, rows, columns)

    def slots(self) -> KVCache:
        """Return the same slots as a plain cache's, for a query that is allowed all of them."""
        return KVCache(self.key, self.value, self.lengths.clamp(max=self.capacity))

    def _overflow_where(self, wrong: Tensor, lengths: Tensor) -> Tensor:
        """Count far below 0 where a traced call has got it wrong."""
        return lengths if is_concrete(wrong) else lengths.masked_fill(wrong, -NOWHERE)


def _refresh(slots: Tensor, new: Tensor, step: Tensor) -> Tensor:
    """Return slots (B, H_kv, C, D) in which `new` (B, H_kv, T, D) stands at each step from 0 on."""
    if not new.shape[2]:
        return slots
    step = step[:, None, :, None]
    taken = new.take_along_dim(step.clamp(0, new.shape[2] - 1), 2)
    return torch.where(step < 0, slots, taken)
