"""Keys and values that were projected before, so that a step of decoding projects only its own."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Integer
from numpy.typing import DTypeLike

from . import checks


@dataclass(eq=False)
class KVCache:
    """What an attention has projected so far: the first `lengths[b]` slots of sample b are written.

    What stands in the other slots is hidden. `append` and `truncate` write in place and
    consume the cache that they are called on: using it again raises ValueError. `copy` branches.

    >>> cache = KVCache.empty(2, num_kv_heads=1, capacity=5, head_dim=4)
    >>> cache = cache.append(*np.ones((2, 2, 1, 3, 4), np.float32), counts=np.array([3, 1]))
    >>> cache.lengths, cache.capacity
    (array([3, 1]), 5)
    """

    key: Float[np.ndarray, "B H_kv C D"]
    value: Float[np.ndarray, "B H_kv C D"]
    lengths: Integer[np.ndarray, "B"]
    consumed: bool = field(default=False, init=False)

    rolling: ClassVar[bool] = False

    @classmethod
    def empty(
        cls,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: DTypeLike = np.float32,
    ) -> "KVCache":
        """Return a cache of `capacity` slots a sample, none of them written."""
        sizes = {"batch_size": batch_size, "num_kv_heads": num_kv_heads, "capacity": capacity}
        checks.check_counts(**sizes, head_dim=head_dim)
        slots = (batch_size, num_kv_heads, capacity, head_dim)
        return cls(np.zeros(slots, dtype), np.zeros(slots, dtype), np.zeros(batch_size, np.int64))

    @property
    def capacity(self) -> int:
        """How many slots a sample has."""
        return self.key.shape[2]

    def is_full(self) -> bool:
        """Whether every slot is surely written."""
        return bool((self.lengths == self.capacity).all())

    def append(
        self,
        key: Float[np.ndarray, "B H_kv T D"],
        value: Float[np.ndarray, "B H_kv T D"],
        counts: Integer[np.ndarray, "B"] | None = None,
    ) -> "KVCache":
        """Write T keys and values behind those that are there, or the first `counts[b]` of them.

        Raises ValueError where they do not fit, nothing written.
        """
        checks.check_cache(self)
        return self._append(key, value, counts)

    def _append(self, key: np.ndarray, value: np.ndarray, counts: np.ndarray | None) -> "KVCache":
        """Append to a cache that is checked."""
        checks.check_append(self, key, value, counts)
        counts = np.full(len(self.lengths), key.shape[2]) if counts is None else counts
        counts = counts.astype(np.int64)
        for b, (first, count) in enumerate(zip(self.lengths, counts, strict=True)):
            self.key[b, :, first : first + count] = key[b, :, :count]
            self.value[b, :, first : first + count] = value[b, :, :count]
        return self._moved_to(self.lengths + counts)

    def copy(self) -> "KVCache":
        """Return a cache of its own with the same content."""
        checks.check_cache(self)
        return type(self)(self.key.copy(), self.value.copy(), self.lengths.copy())

    __copy__ = copy  # else both would write to the same slots

    def reorder(self, index: Integer[np.ndarray, "B"]) -> "KVCache":
        """Return a cache of its own in which sample i goes on from sample `index[i]`."""
        checks.check_cache(self)
        checks.check_index(index, len(self.lengths))
        return type(self)(self.key[index], self.value[index], self.lengths[index])

    def truncate(self, lengths: int | Integer[np.ndarray, "B"]) -> "KVCache":
        """Forget what stands behind the first `lengths` slots, one for all samples or one each."""
        return self._moved_to(checks.check_truncate(self, lengths))

    def _moved_to(self, lengths: np.ndarray) -> "KVCache":
        """Return a cache with the same slots and these lengths; this one is consumed."""
        self.consumed = True
        return type(self)(self.key, self.value, lengths)


@dataclass(eq=False)
class StackCache:
    """The caches of a stack: one a layer and, in a decoder, the memory's too, projected once.

    It is handed in and handed back like a `KVCache`.
    """

    layers: tuple[KVCache, ...]
    memory: tuple[KVCache, ...] = ()
    memory_key_padding_mask: Bool[np.ndarray, "B S"] | None = None

    @property
    def lengths(self) -> Integer[np.ndarray, "B"]:
        """How many positions of each sample are written."""
        return self.layers[0].lengths

    @property
    def capacity(self) -> int:
        """How many positions a sample has."""
        return self.layers[0].capacity

    def copy(self) -> "StackCache":
        """Return a cache of its own with the same content."""
        layers, memory = (tuple(c.copy() for c in s) for s in (self.layers, self.memory))
        return StackCache(layers, memory, self.memory_key_padding_mask)

    __copy__ = copy

    def reorder(self, index: Integer[np.ndarray, "B"]) -> "StackCache":
        """Return a cache of its own in which sample i goes on from sample `index[i]`."""
        layers, memory = (tuple(c.reorder(index) for c in s) for s in (self.layers, self.memory))
        hidden = self.memory_key_padding_mask
        return StackCache(layers, memory, None if hidden is None else hidden[index])

    def truncate(self, lengths: int | Integer[np.ndarray, "B"]) -> "StackCache":
        """Forget what stands behind the first `lengths` positions."""
        for cache in self.layers:  # all of them, before the first is changed
            checks.check_truncate(cache, lengths)
        return self.with_layers(cache.truncate(lengths) for cache in self.layers)

    def with_layers(self, layers: Iterable[KVCache]) -> "StackCache":
        """Return the same, memory included, with the layers' caches replaced."""
        return StackCache(tuple(layers), self.memory, self.memory_key_padding_mask)


@contextmanager
def restored_on_error(*caches: KVCache) -> Iterator[None]:
    """Let caches be used again if what consumes them fails: it wrote behind `lengths` alone.

    In a ring that is the slot of the token before the window, which the next one takes.
    """
    live = [cache for cache in caches if not cache.consumed]
    try:
        yield
    except BaseException:
        for cache in live:
            cache.consumed = False
        raise


def pack(x: np.ndarray, hidden: np.ndarray | None, batch_first: bool) -> np.ndarray:
    """Put 0 for the tokens that are hidden, and move them behind the others."""
    if hidden is None:
        return x
    order = np.argsort(hidden, 1, kind="stable")
    return _take_tokens(zero_hidden(x, hidden, batch_first), order, batch_first)


def unpack(x: np.ndarray, hidden: np.ndarray | None, batch_first: bool) -> np.ndarray:
    """Move tokens back to where they stood before `pack`; those that are hidden are 0."""
    if hidden is None:
        return x
    place = np.maximum(np.cumsum(~hidden, 1) - 1, 0)
    return zero_hidden(_take_tokens(x, place, batch_first), hidden, batch_first)


def zero_hidden(x: np.ndarray, hidden: np.ndarray, batch_first: bool) -> np.ndarray:
    """Put 0 for the tokens that are hidden."""
    hidden = hidden if batch_first else hidden.T
    return np.where(hidden[..., None], x.dtype.type(0), x)


def _take_tokens(x: np.ndarray, place: np.ndarray, batch_first: bool) -> np.ndarray:
    """Take the tokens of each sample in the order of their places."""
    place = place if batch_first else place.T
    return np.take_along_axis(x, place[..., None], 1 if batch_first else 0)
