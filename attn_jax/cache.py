"""Keys and values that were projected before, so that a step of decoding projects only its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer

from . import checks
from .arrays import is_concrete
from .devices import by_sample, take_samples, vary_alike
from .split import together_or_apart


@partial(jax.tree_util.register_dataclass, data_fields=["key", "value", "lengths"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class KVCache:
    """What an attention has projected so far: the first `lengths[b]` slots of sample b are written.

    What stands in the other slots is hidden. It is a pytree, and nothing is ever consumed: an
    old cache stays valid. Under jax.jit give it to `donate_argnums`, and `append` writes in place.
    There, where lengths are traced, nothing can be refused: a sample that goes beyond the capacity
    counts on, and whatever looks at it is NaN from then on.

    >>> cache = KVCache.empty(2, num_kv_heads=1, capacity=5, head_dim=4)
    >>> cache = cache.append(*jnp.ones((2, 2, 1, 3, 4)), counts=jnp.array([3, 1]))
    >>> cache.lengths, cache.capacity
    (Array([3, 1], dtype=int32), 5)
    """

    key: Float[Array, "B H_kv C D"]
    value: Float[Array, "B H_kv C D"]
    lengths: Integer[Array | np.ndarray, "B"]

    rolling: ClassVar[bool] = False

    @classmethod
    def empty(
        cls,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> "KVCache":
        """Return a cache of `capacity` slots a sample, none of them written."""
        sizes = {"batch_size": batch_size, "num_kv_heads": num_kv_heads, "capacity": capacity}
        checks.check_counts(**sizes, head_dim=head_dim)
        slots = (batch_size, num_kv_heads, capacity, head_dim)
        lengths = jnp.zeros(batch_size, jnp.int32)
        return cls(jnp.zeros(slots, dtype), jnp.zeros(slots, dtype), lengths)

    @property
    def capacity(self) -> int:
        """How many slots a sample has."""
        return self.key.shape[2]

    def is_full(self) -> bool:
        """Whether every slot is surely written."""
        known = is_concrete(self.lengths)
        return known and bool((np.asarray(self.lengths) == self.capacity).all())

    def append(
        self,
        key: Float[Array, "B H_kv T D"],
        value: Float[Array, "B H_kv T D"],
        counts: Integer[Array, "B"] | None = None,
    ) -> "KVCache":
        """Write T keys and values behind those that are there, or the first `counts[b]` of them.

        Under jax.jit, where lengths are not known, a sample that has no room for them gives
        NaN from then on. Raises ValueError where they do not fit, nothing written.
        """
        checks.check_cache(self)
        return self._append(key, value, counts)

    def _append(self, key: Array, value: Array, counts: Array | None) -> "KVCache":
        """Append to a cache that is checked."""
        checks.check_append(self, key, value, counts)
        steps, first = key.shape[2], self.lengths
        full = jnp.full if any(map(is_symbolic_dim, key.shape)) else np.full
        taken = full(key.shape[0], steps, np.int32) if counts is None else counts
        key = _write(self.key, key, first, taken)
        value = _write(self.value, value, first, taken)
        lengths = self._overflow_where((first < 0) | (taken < 0) | (taken > steps), first + taken)
        return type(self)(key, value, lengths)

    def copy(self) -> "KVCache":
        """Return a cache of its own with the same content."""
        checks.check_cache(self)
        return type(self)(jnp.copy(self.key), jnp.copy(self.value), self.lengths.copy())

    __copy__ = copy  # one may be donated

    def reorder(self, index: Integer[Array, "B"]) -> "KVCache":
        """Return a cache of its own in which sample i goes on from sample `index[i]`."""
        checks.check_cache(self)
        checks.check_index(index, len(self.lengths))
        wrong = (index < 0) | (index >= len(self.lengths))
        lengths = self._overflow_where(wrong, take_samples(self.lengths, index))
        return type(self)(take_samples(self.key, index), take_samples(self.value, index), lengths)

    def truncate(self, lengths: int | Integer[Array, "B"]) -> "KVCache":
        """Forget what stands behind the first `lengths` slots, one for all samples or one each."""
        kept = checks.check_truncate(self, lengths)
        wrong = (kept < 0) | (kept > self.lengths) | (self.lengths > self.capacity)
        return type(self)(self.key, self.value, self._overflow_where(wrong, kept))

    def _overflow_where(
        self, wrong: Array | np.ndarray, lengths: Array | np.ndarray
    ) -> Array | np.ndarray:
        """Count a sample beyond the capacity where a traced call has got it wrong."""
        lengths = lengths.astype(jnp.int32)
        if is_concrete(wrong):
            return lengths  # such a call has been refused
        return jnp.where(wrong, self.capacity + 1, lengths)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["layers", "memory", "memory_key_padding_mask"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class StackCache:
    """The caches of a stack: one a layer and, in a decoder, the memory's too, projected once.

    It is handed in and handed back like a `KVCache`.
    """

    layers: tuple[KVCache, ...]
    memory: tuple[KVCache, ...] = ()
    memory_key_padding_mask: Bool[Array, "B S"] | None = None

    @property
    def lengths(self) -> Integer[Array | np.ndarray, "B"]:
        """How many positions of each sample are written."""
        return self.layers[0].lengths

    @property
    def capacity(self) -> int:
        """How many positions a sample has."""
        return self.layers[0].capacity

    def copy(self) -> "StackCache":
        """Return a cache of its own with the same content."""
        layers, memory = (tuple(c.copy() for c in s) for s in (self.layers, self.memory))
        hidden = self.memory_key_padding_mask
        return StackCache(layers, memory, None if hidden is None else hidden.copy())

    __copy__ = copy

    def reorder(self, index: Integer[Array, "B"]) -> "StackCache":
        """Return a cache of its own in which sample i goes on from sample `index[i]`."""
        layers, memory = (tuple(c.reorder(index) for c in s) for s in (self.layers, self.memory))
        hidden = self.memory_key_padding_mask
        return StackCache(layers, memory, None if hidden is None else take_samples(hidden, index))

    def truncate(self, lengths: int | Integer[Array, "B"]) -> "StackCache":
        """Forget what stands behind the first `lengths` positions."""
        return self.with_layers(cache.truncate(lengths) for cache in self.layers)

    def with_layers(self, layers: Iterable[KVCache]) -> "StackCache":
        """Return the same, memory included, with the layers' caches replaced."""
        return StackCache(tuple(layers), self.memory, self.memory_key_padding_mask)


@jax.jit
@by_sample
def _write(
    slots: Array, new: Array, first: Array | np.ndarray, counts: Array | np.ndarray
) -> Array:
    """Put the first `counts` new tokens of each sample behind its `first`; none beyond the end."""
    step = jnp.arange(new.shape[2])[None]  # as strict ranks ask
    place = jnp.where(step < counts[:, None], first[:, None] + step, slots.shape[2])  # (B, T)
    return _put(*vary_alike((slots, new, place)))


@jax.custom_jvp
def _put(slots: Array, new: Array, place: Array) -> Array:
    """Put each token at its place, (B, T), and none beyond the end.

    On a CPU a step goes by slices: XLA widens all of a bfloat16 array to scatter into it, and of
    one token's scatter into one sample it makes two, each of a copy of all slots.
    """
    if new.shape[2] != 1 or 0 in slots.shape:
        return _scatter(slots, new, place)

    def together(*arrays: Array) -> list[Array]:
        return [lax.platform_dependent(*arrays, cpu=_put_in_turn, default=_scatter)]

    def apart(*arrays: Array) -> list[Array]:
        return [_scatter(*arrays)]

    return together_or_apart(together, apart, slots, new, place)[0]


@_put.defjvp
def _put_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return _put(*primals), jax.jvp(_scatter, primals, tangents)[1]


def _scatter(slots: Array, new: Array, place: Array) -> Array:
    def write(slots: Array, new: Array, place: Array) -> Array:
        return slots.at[:, place].set(new, mode="drop")

    return jax.vmap(write)(slots, new, place)


def _put_in_turn(slots: Array, new: Array, place: Array) -> Array:
    """Put one token a sample, sample by sample: in place, where the slots may be written to."""
    last = slots.shape[2] - 1
    here = jnp.take_along_axis(slots, place.clip(0, last)[:, None, :, None], 2)
    tokens = jnp.where(place[:, None, :, None] <= last, new, here)

    def put(sample: Array, slots: Array) -> Array:
        token = lax.dynamic_slice_in_dim(tokens, sample, 1)
        return lax.dynamic_update_slice(slots, token, (sample, 0, place[sample, 0], 0))

    count = lax.optimization_barrier(jnp.asarray(slots.shape[0]))  # a loop of one stays a loop
    return lax.fori_loop(0, count, put, slots)


def pack(x: Array, hidden: Array | None, batch_first: bool) -> Array:
    """Put 0 for the tokens that are hidden, and move them behind the others."""
    if hidden is None:
        return x
    order = jnp.argsort(hidden, 1)  # stable
    return _take_tokens(zero_hidden(x, hidden, batch_first), order, batch_first)


def unpack(x: Array, hidden: Array | None, batch_first: bool) -> Array:
    """Move tokens back to where they stood before `pack`; those that are hidden are 0."""
    if hidden is None:
        return x
    place = jnp.maximum(jnp.cumsum(~hidden, 1) - 1, 0)
    return zero_hidden(_take_tokens(x, place, batch_first), hidden, batch_first)


def zero_hidden(x: Array, hidden: Array, batch_first: bool) -> Array:
    """Put 0 for the tokens that are hidden."""
    hidden = hidden if batch_first else hidden.T
    return jnp.where(hidden[..., None], 0, x)


def _take_tokens(x: Array, place: Array, batch_first: bool) -> Array:
    """Take the tokens of each sample in the order of their places."""
    place = place if batch_first else place.T
    return jnp.take_along_axis(x, place[..., None], 1 if batch_first else 0)
