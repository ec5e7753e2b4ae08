"""Keys and values that were projected before, so that a step of decoding projects only its own."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from . import checks
from .arrays import is_concrete
from .numerics import cast_like


@dataclass(eq=False)
class KVCache:
    """What an attention has projected so far: the first `lengths[b]` slots of sample b are written.

    What stands in the other slots is hidden. `append` and `truncate` write in place and
    consume the cache that they are called on: using it again raises ValueError. `copy` branches.
    `lengths` are on the CPU wherever the keys are, so that a look at them waits for no device.

    >>> cache = KVCache.empty(2, num_kv_heads=1, capacity=5, head_dim=4)
    >>> cache = cache.append(*torch.ones(2, 2, 1, 3, 4), counts=torch.tensor([3, 1]))
    >>> cache.lengths, cache.capacity
    (tensor([3, 1]), 5)
    """

    key: Float[Tensor, "B H_kv C D"]
    value: Float[Tensor, "B H_kv C D"]
    lengths: Integer[Tensor, "B"]
    consumed: bool = field(default=False, init=False)
    projected: bool = field(default=False, init=False)  # in one go, so that every slot is written

    rolling: ClassVar[bool] = False

    @classmethod
    def empty(
        cls,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "KVCache":
        """Return a cache of `capacity` slots a sample, none of them written."""
        sizes = {"batch_size": batch_size, "num_kv_heads": num_kv_heads, "capacity": capacity}
        checks.check_counts(**sizes, head_dim=head_dim)
        slots = (batch_size, num_kv_heads, capacity, head_dim)
        key, value = (torch.zeros(slots, dtype=dtype, device=device) for _ in range(2))
        place = key.device if key.is_meta else "cpu"
        return cls(key, value, torch.zeros(batch_size, dtype=torch.int64, device=place))

    @property
    def capacity(self) -> int:
        """How many slots a sample has."""
        return self.key.shape[2]

    def is_full(self) -> bool:
        """Whether every slot is surely written."""
        if self.projected or not is_concrete(self.lengths):
            return self.projected
        return bool((self.lengths == self.capacity).all())

    @torch.no_grad()
    def append(
        self,
        key: Float[Tensor, "B H_kv T D"],
        value: Float[Tensor, "B H_kv T D"],
        counts: Integer[Tensor, "B"] | None = None,
    ) -> "KVCache":
        """Write T keys and values behind those that are there, or the first `counts[b]` of them.

        Under torch.compile, where lengths are not known, a sample that has no room for them gives
        NaN from then on. Raises ValueError where they do not fit, nothing written.
        """
        checks.check_cache(self)
        return self._append(key, value, counts)

    def _append(self, key: Tensor, value: Tensor, counts: Tensor | None) -> "KVCache":
        """Append to a cache that is checked."""
        checks.check_append(self, key, value, counts)
        key, value = cast_like(key, self.key), cast_like(value, self.value)
        if not is_concrete(self.lengths):
            return self._write_traced(key, value, counts)
        first, steps = uniform(self.lengths), key.shape[2]
        if counts is None and first is not None:
            self.key[:, :, first : first + steps] = key
            self.value[:, :, first : first + steps] = value
            return self._moved_to(self.lengths + steps)
        lengths = self.lengths
        counts = torch.full_like(lengths, steps) if counts is None else counts.to(lengths)
        wanted = torch.arange(steps, device=lengths.device) < counts[:, None]
        sample, step = wanted.nonzero(as_tuple=True)
        place = (lengths[sample] + step).to(key.device)
        sample, step = sample.to(key.device), step.to(key.device)
        self.key[sample, :, place] = key[sample, :, step]
        self.value[sample, :, place] = value[sample, :, step]
        return self._moved_to(lengths + counts)

    def _write_traced(self, key: Tensor, value: Tensor, counts: Tensor | None) -> "KVCache":
        """Append where lengths cannot be looked at: nothing beyond the capacity, none refused."""
        steps, first = key.shape[2], self.lengths
        taken = torch.full_like(first, steps) if counts is None else counts.to(first)
        fit = torch.minimum(taken, self.capacity - first).clamp(0, steps)
        # Steps that are left out write the last that fits once more, or what stands there.
        step = torch.arange(steps, device=first.device).minimum((fit - 1).clamp(min=0)[:, None])
        place = (first[:, None] + step).clamp(0, self.capacity - 1).to(key.device)
        sample, step = torch.arange(len(first), device=key.device)[:, None], step.to(key.device)
        some = (fit > 0).to(key.device)[:, None, None, None]
        for slots, new in ((self.key, key), (self.value, value)):
            slots[sample, :, place] = new[sample, :, step].where(some, slots[sample, :, place])
        wrong = (first < 0) | (taken < 0) | (taken > steps)
        return self._moved_to(self._overflow_where(wrong, first + taken))

    def copy(self) -> "KVCache":
        """Return a cache of its own with the same content."""
        checks.check_cache(self)
        return type(self)(self.key.clone(), self.value.clone(), self.lengths.clone())

    __copy__ = copy  # else both would write to the same slots

    def reorder(self, index: Integer[Tensor, "B"]) -> "KVCache":
        """Return a cache of its own in which sample i goes on from sample `index[i]`."""
        checks.check_cache(self)
        checks.check_index(index, len(self.lengths))
        there = index.to(self.key.device, torch.int64)
        index = index.to(self.lengths)
        lengths = self.lengths[index]
        if not is_concrete(index):
            lengths = self._overflow_where((index < 0) | (index >= len(self.lengths)), lengths)
        return type(self)(self.key[there], self.value[there], lengths)

    def truncate(self, lengths: int | Integer[Tensor, "B"]) -> "KVCache":
        """Forget what stands behind the first `lengths` slots, one for all samples or one each."""
        kept = checks.check_truncate(self, lengths)
        if not is_concrete(self.lengths):
            wrong = (kept < 0) | (kept > self.lengths) | (self.lengths > self.capacity)
            kept = self._overflow_where(wrong, kept)
        return self._moved_to(kept)

    def _overflow_where(self, wrong: Tensor, lengths: Tensor) -> Tensor:
        """Count a sample beyond the capacity where a traced call has got it wrong."""
        return lengths.masked_fill(wrong, self.capacity + 1)

    def _moved_to(self, lengths: Tensor) -> "KVCache":
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
    memory_key_padding_mask: Bool[Tensor, "B S"] | None = None

    @property
    def lengths(self) -> Integer[Tensor, "B"]:
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

    def reorder(self, index: Integer[Tensor, "B"]) -> "StackCache":
        """Return a cache of its own in which sample i goes on from sample `index[i]`."""
        layers, memory = (tuple(c.reorder(index) for c in s) for s in (self.layers, self.memory))
        hidden = self.memory_key_padding_mask
        if hidden is not None:
            hidden = hidden[index.to(hidden.device, torch.int64)]
        return StackCache(layers, memory, hidden)

    def truncate(self, lengths: int | Integer[Tensor, "B"]) -> "StackCache":
        """Forget what stands behind the first `lengths` positions."""
        for cache in self.layers:  # all of them, before the first is changed
            checks.check_truncate(cache, lengths)
        return self.with_layers(cache.truncate(lengths) for cache in self.layers)

    def with_layers(self, layers: Iterable[KVCache]) -> "StackCache":
        """Return the same, memory included, with the layers' caches replaced."""
        return StackCache(tuple(layers), self.memory, self.memory_key_padding_mask)


def uniform(lengths: Tensor) -> int | None:
    """Return the length that all samples have, None where they differ."""
    values = set(lengths.tolist())
    return values.pop() if len(values) == 1 else None


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


def pack(x: Tensor, hidden: Tensor | None, batch_first: bool) -> Tensor:
    """Put 0 for the tokens that are hidden, and move them behind the others."""
    if hidden is None:
        return x
    order = hidden.argsort(dim=1, stable=True)
    return _take_tokens(zero_hidden(x, hidden, batch_first), order, batch_first)


def unpack(x: Tensor, hidden: Tensor | None, batch_first: bool) -> Tensor:
    """Move tokens back to where they stood before `pack`; those that are hidden are 0."""
    if hidden is None:
        return x
    place = ((~hidden).cumsum(1) - 1).clamp(min=0)
    return zero_hidden(_take_tokens(x, place, batch_first), hidden, batch_first)


def zero_hidden(x: Tensor, hidden: Tensor, batch_first: bool) -> Tensor:
    """Put 0 for the tokens that are hidden."""
    hidden = hidden if batch_first else hidden.T
    return x.masked_fill(hidden[..., None].to(x.device), 0)


def _take_tokens(x: Tensor, place: Tensor, batch_first: bool) -> Tensor:
    """Take the tokens of each sample in the order of their places."""
    if place.shape[1] == 1:
        return x  # one token has but one order
    place = place if batch_first else place.T
    return x.take_along_dim(place[..., None].to(x.device), 1 if batch_first else 0)
