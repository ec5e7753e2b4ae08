"""What a walk over the tiles of one attention looks up: which tiles, and what lies under them."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import checks
from .arrays import is_concrete
from .masks import Mask
from .numerics import upcast
from .tiles import Cells, Corner, Tiles, cut

HUGE = 1e37  # a bound on scores, below what float32 holds


class Tile(NamedTuple):
    """How much is taken at once: neighbouring heads of a sample, their queries, their keys."""

    heads: int
    rows: int
    columns: int


def opened(mask: Mask, tile: Tile) -> Mask:
    """Make tables of the traced arrays that a predicate closes over.

    A custom gradient, unlike jax.jit, takes them as arguments only.
    """
    if mask.parts:
        return replace(mask, parts=tuple(opened(part, tile) for part in mask.parts))
    if mask.name != "predicate":
        return mask
    one = (1, *tile[1:])
    at = Corner(0, (0, 0, 0, 0), one)

    def verdict(*indices):
        return jnp.broadcast_to(
            checks.check_verdict(mask.settings[0](*indices), (1, *one)), (1, *one)
        )

    closed = jax.make_jaxpr(verdict)(at.batch, at.head, at.query, at.key)
    if all(is_concrete(table) for table in closed.consts):
        return mask

    def rule(at, *tables):
        def seen(batch, head, query, key):
            every = ((batch, head[:, i : i + 1], query, key) for i in range(head.shape[1]))
            parts = [jax.core.eval_jaxpr(closed.jaxpr, tables, *one)[0] for one in every]
            return jnp.concatenate(parts, 1)

        return at.call(seen)

    return replace(mask, rule=rule, settings=(), arrays=tuple(closed.consts))


class Walk:
    """One pass over the tiles: the call's arrays, and where each of them is cut."""

    def __init__(self, tile, query, key, value, mask, bias, scale, softcap, query_offset):
        self.query, self.key, self.value, self.mask, self.bias = query, key, value, mask, bias
        self.softcap, self.dtype = softcap, upcast(query).dtype
        # A barrier: XLA would work out constant verdicts while compiling, the longer the larger T.
        self.query_offset = lax.optimization_barrier(jnp.asarray(query_offset))
        self.scale = jnp.asarray(scale, self.dtype)
        self.sizes = (*query.shape[:3], key.shape[2])
        self.group = query.shape[1] // key.shape[1]
        self.heads, self.rows, self.columns = tile
        self.kv_heads = max(1, self.heads // self.group)
        self.shape = (1, *tile)
        lowest = jnp.finfo(self.dtype).min  # an overflow's mark; a number that low is raised
        self.lowest = lowest, np.nextafter(lowest, lowest.dtype.type(0))
        # Tiles start at any multiple of `grain`, half their width: they follow a window closely.
        self.grain = self.columns // (1 if self.columns % 2 else 2)
        self.blocks, self.grains = -(-self.sizes[2] // self.rows), -(-self.sizes[3] // self.grain)
        self.count = self.sizes[0] * (self.sizes[1] // self.heads) * self.blocks
        self.nonfinite_keys, self.nonfinite_queries, self.tame = self._look()
        self.every, self.some = self._verdict()
        first, last = self.some.argmax(-1), self.grains - self.some[..., ::-1].argmax(-1)
        self.first, self.last = first, jnp.where(self.some.any(-1), last, first)

    def _verdict(self):
        """Ask about every grain; one that must be looked at for any reason is not all seen."""
        every = some = jnp.ones((1, 1, 1, 1), bool)
        if self.mask is not None:
            cells = Cells(self.sizes, self.query_offset, xp=jnp)
            every, some = self.mask.evaluate(Tiles(cells, self.rows, self.grain))
        over = (jnp.arange(self.blocks) + 1)[:, None] * self.rows > self.sizes[2]
        over |= (jnp.arange(self.grains) + 1) * self.grain > self.sizes[3]
        every = every & ~over & self.tame[:, :, None] & (self.bias is None)
        some = jnp.broadcast_to(some, (*some.shape[:3], self.grains))
        return self._together(every).all(2), self._together(some).any(2)

    def _together(self, verdict):
        """Split the axis of heads, if there is one, into those that are taken together."""
        heads = self.heads if verdict.shape[1] > 1 else 1
        return verdict.reshape(verdict.shape[0], -1, heads, *verdict.shape[2:])

    def _look(self):
        """Return which keys, which queries are not finite, and which grains' scores surely are."""
        query, key, value = (_norm(x) for x in (self.query, self.key, self.value))
        bound = query * key * jnp.abs(self.scale)  # Cauchy-Schwarz
        fine = (bound < HUGE) & (value < HUGE)
        return lax.cond(fine, self._find_nothing, self._look_closely)

    def _find_nothing(self):
        keys, queries = jnp.zeros(self.key.shape[:3], bool), jnp.zeros(self.query.shape[:3], bool)
        return keys, queries, jnp.ones((*self.sizes[:2], self.grains), bool)

    def _look_closely(self):
        keys, queries, values = (
            jnp.isfinite(x).all(-1) for x in (self.key, self.query, self.value)
        )
        nonfinite = ~(keys & values)
        query = jnp.where(jnp.isfinite(self.query), jnp.abs(upcast(self.query) * self.scale), 0)
        key = jnp.where(nonfinite, jnp.inf, jnp.abs(upcast(self.key)).max(-1))
        missing = self.grains * self.grain - self.sizes[3]
        key = jnp.pad(key, ((0, 0), (0, 0), (0, missing)), mode="edge")
        key = key.reshape(*key.shape[:2], self.grains, self.grain).max(-1)
        bound = query.max((2, 3))[..., None] * jnp.repeat(key, self.group, 1) * query.shape[3]
        return nonfinite, ~queries, bound < HUGE

    def block(self, work):
        """Count blocks of queries from the last: it may reach back, and the next one overwrites."""
        unit, block = work // self.blocks, self.blocks - 1 - work % self.blocks
        units = self.sizes[1] // self.heads
        return unit // units, unit % units * self.heads, block

    def span(self, block):
        """Return the first grain that a block of queries may see, and how many tiles to take."""
        where = (block[0], block[1] // self.heads, block[2])
        first, last = (cut(of, where, (1, 1, 1))[0, 0, 0] for of in (self.first, self.last))
        return first, -((first - last) * self.grain // self.columns)

    def kind(self, at):
        """Say what to do with a tile: 0 to skip it, 1 to mask it, 2 to take it as it is."""
        where, width = (at[0], at[1] // self.heads, *at[2:]), self.columns // self.grain
        every, some = (cut(of, where, (1, 1, 1, width)) for of in (self.every, self.some))
        every = every.all() & (at[3] + width <= self.grains)  # else it is moved back
        return jnp.where(every, 2, some.any()).astype(jnp.int32)

    def corner(self, at, of_keys=False):
        """Return where a tile starts: the last one in a row or column is moved back to fit."""
        batch, head, block, column = at
        row = jnp.minimum(block * self.rows, self.sizes[2] - self.rows)
        column = jnp.minimum(column * self.grain, self.sizes[3] - self.columns)
        return (batch, head // self.group, column, 0) if of_keys else (batch, head, row, column)

    def read(self, array, block):
        """Cut a block of queries' rows out of (B, H, T, ...), grouped by their key heads."""
        corner = (*self.corner((*block, 0))[:3], 0)[: array.ndim]
        part = cut(array, corner, (1, self.heads, self.rows, *array.shape[3:]))
        return self.grouped(part)

    def grouped(self, part):
        """Turn (1, heads, rows, ...) into (kv_heads, all rows that share one, ...)."""
        return part.reshape(self.kv_heads, -1, *part.shape[3:])

    def ungrouped(self, part):
        """Turn (kv_heads, all rows that share one, ...) into (1, heads, rows, ...)."""
        return part.reshape(1, self.heads, self.rows, *part.shape[2:])

    def write(self, array, block, part):
        """Put a block of queries' rows into (B, H, T, ...)."""
        corner = (*self.corner((*block, 0))[:3], 0)[: array.ndim]
        return lax.dynamic_update_slice(array, self.ungrouped(part).astype(array.dtype), corner)

    def queries(self, block):
        """Return a block's queries, scaled, with 0 for what is not finite."""
        query = upcast(self.read(self.query, block))
        return jnp.where(jnp.isfinite(query), query, 0) * self.scale

    def keys(self, at, masked):
        """Return a tile's keys and values; where they may not be finite, 0 stands for that."""
        corner, shape = self.corner(at, of_keys=True), (1, self.kv_heads, self.columns)
        parts = [upcast(cut(x, corner, (*shape, x.shape[3]))[0]) for x in (self.key, self.value)]
        return [jnp.where(jnp.isfinite(x), x, 0) for x in parts] if masked else parts

    def scores(self, at, query, key, masked):
        """Return a tile's scores, and softcap's slope there.

        -inf stands where a key is hidden, inf where it is seen and not finite: the maximum of a
        row would not show NaN, but it shows inf. A score that is seen and overflowed to -inf is
        the lowest number: a row that has nothing else is not an empty one.
        """
        scores, slope = query @ key.swapaxes(1, 2), None
        if masked:  # tanh would spread NaN
            where = self.corner(at, of_keys=True)[:3]
            nonfinite = cut(self.nonfinite_keys, where, (1, self.kv_heads, self.columns))[
                0, :, None
            ]
            nonfinite = nonfinite | jnp.isnan(scores)
            scores = jnp.where(nonfinite, 0, scores)
        if self.softcap is not None:
            softcap = jnp.asarray(self.softcap, self.dtype)
            share = jnp.tanh(scores / softcap)
            scores, slope = softcap * share, 1 - share * share
        if not masked:
            return scores, slope
        seen = self._seen(at)
        if self.bias is not None:
            bias = upcast(cut(self.bias, self.corner(at), self.shape))
            bias = self.grouped(jnp.broadcast_to(bias, self.shape))
            scores, seen = scores + bias, seen & (bias != -jnp.inf)
            nonfinite = nonfinite | jnp.isnan(scores)
        lowest, above = self.lowest
        scores = jnp.where(scores == -jnp.inf, lowest, jnp.maximum(scores, above))
        scores = jnp.where(seen, jnp.where(nonfinite, jnp.inf, scores), -jnp.inf)
        return lax.optimization_barrier(scores), slope  # else XLA does all this again for every use

    def _seen(self, at):
        """Return what of a tile the mask leaves visible, without what an earlier one has."""
        here = Corner(self.query_offset, self.corner(at), self.shape[1:])
        row, column = self.corner(at)[2:]
        seen = row + jnp.arange(self.rows)[:, None] >= at[2] * self.rows
        seen = seen & (column + jnp.arange(self.columns) >= at[3] * self.grain)
        if self.mask is not None:
            seen = seen & self.mask.evaluate(here)
        return self.grouped(jnp.broadcast_to(seen, self.shape))


def _norm(array):
    """Return a finite number only if all of them are."""
    squares = jnp.einsum("bhsd,bhsd->bh", array, array, preferred_element_type=upcast(array).dtype)
    return jnp.sqrt(squares.sum())
