"""What a walk over the tiles of one attention looks up: which tiles, and what lies under them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from . import checks
from .masks import Mask
from .tiles import Cells, Corner, Tiles, cut

HUGE = 1e37  # a bound on scores, below what float32 holds


def opened(mask: Mask, tile: tuple[int, int]) -> Mask:
    """Make tables of the traced arrays that a predicate closes over.

    A custom gradient, unlike jax.jit, takes them as arguments only.
    """
    if mask.parts:
        return replace(mask, parts=tuple(opened(part, tile) for part in mask.parts))
    if mask.name != "predicate":
        return mask
    at = Corner(0, (0, 0, 0, 0), tile)

    def verdict(*indices):
        return checks.check_verdict(mask.settings[0](*indices), (1, 1, *tile))

    closed = jax.make_jaxpr(verdict)(at.batch, at.head, at.query, at.key)
    if all(checks.is_known(table) for table in closed.consts):
        return mask

    def rule(at, *tables):
        return at.call(lambda *indices: jax.core.eval_jaxpr(closed.jaxpr, tables, *indices)[0])

    return replace(mask, rule=rule, settings=(), tables=tuple(closed.consts))


class Walk:
    """One pass over the tiles: the call's arrays, and where each of them is cut."""

    def __init__(self, tile, query, key, value, mask, bias, scale, softcap, query_offset):
        self.query, self.key, self.value, self.mask, self.bias = query, key, value, mask, bias
        self.softcap, self.dtype = softcap, wide(query).dtype
        # A barrier: XLA would work out constant verdicts while compiling, the longer the larger T.
        self.query_offset = lax.optimization_barrier(jnp.asarray(query_offset))
        self.scale = jnp.asarray(scale, self.dtype)
        self.sizes = (*query.shape[:3], key.shape[2])
        self.group = query.shape[1] // key.shape[1]
        self.rows, self.columns = tile
        self.blocks, self.tiles = -(-self.sizes[2] // tile[0]), -(-self.sizes[3] // tile[1])
        self.count = self.sizes[0] * self.sizes[1] * self.blocks
        self.bad_keys, self.bad_queries, self.tame = self._look()
        every, some = self._verdict()
        self.kinds = jnp.where(every, 2, some).astype(jnp.int8)  # 0: skip, 1: mask, 2: all is seen
        first, last = some.argmax(-1), self.tiles - some[..., ::-1].argmax(-1)
        self.first, self.last = first, jnp.where(some.any(-1), last, first)

    def _verdict(self):
        """Ask about every tile; one that must be looked at for any reason is not all seen."""
        every = some = jnp.ones((1, 1, 1, 1), bool)
        if self.mask is not None:
            cells = Cells(self.sizes, self.query_offset, xp=jnp)
            every, some = self.mask.ask(Tiles(cells, self.rows, self.columns))
        over = (jnp.arange(self.blocks) + 1)[:, None] * self.rows > self.sizes[2]
        over |= (jnp.arange(self.tiles) + 1) * self.columns > self.sizes[3]
        every = every & ~over & self.tame[:, :, None] & (self.bias is None)
        return every, jnp.broadcast_to(some, (*some.shape[:3], self.tiles))

    def _look(self):
        """Return which keys, which queries are not finite, and which tiles' scores surely are."""
        query, key, value = (_norm(x) for x in (self.query, self.key, self.value))
        bound = query * key * jnp.abs(self.scale)  # Cauchy-Schwarz
        fine = (bound < HUGE) & (value < HUGE)
        return lax.cond(fine, self._find_nothing, self._look_closely)

    def _find_nothing(self):
        keys, queries = jnp.zeros(self.key.shape[:3], bool), jnp.zeros(self.query.shape[:3], bool)
        return keys, queries, jnp.ones((*self.sizes[:2], self.tiles), bool)

    def _look_closely(self):
        keys, queries, values = (
            jnp.isfinite(x).all(-1) for x in (self.key, self.query, self.value)
        )
        bad = ~(keys & values)
        query = jnp.where(jnp.isfinite(self.query), jnp.abs(wide(self.query) * self.scale), 0)
        key = jnp.where(bad, jnp.inf, jnp.abs(wide(self.key)).max(-1))
        missing = self.tiles * self.columns - self.sizes[3]
        key = jnp.pad(key, ((0, 0), (0, 0), (0, missing)), mode="edge")
        key = key.reshape(*key.shape[:2], self.tiles, self.columns).max(-1)
        bound = query.max((2, 3))[..., None] * jnp.repeat(key, self.group, 1) * query.shape[3]
        return bad, ~queries, bound < HUGE

    def block(self, work):
        """Count blocks of queries from the last: it may reach back, and the next one overwrites."""
        head, block = work // self.blocks, self.blocks - 1 - work % self.blocks
        return head // self.sizes[1], head % self.sizes[1], block

    def span(self, block):
        """Return the first tile that a block of queries may see, and the end."""
        first, last = (cut(of, block, (1, 1, 1))[0, 0, 0] for of in (self.first, self.last))
        return first, last

    def kind(self, at):
        """Say what to do with a tile: 0 to skip it, 1 to mask it, 2 to take it as it is."""
        return cut(self.kinds, at, (1, 1, 1, 1))[0, 0, 0, 0].astype(jnp.int32)

    def corner(self, at, of_keys=False):
        """Return where a tile starts: the last one in a row or column is moved back to fit."""
        batch, head, block, column = at
        row = jnp.minimum(block * self.rows, self.sizes[2] - self.rows)
        column = jnp.minimum(column * self.columns, self.sizes[3] - self.columns)
        return (batch, head // self.group, column, 0) if of_keys else (batch, head, row, column)

    def read(self, array, block):
        """Cut a block of queries' rows out of (B, H, T, ...)."""
        corner = (*self.corner((*block, 0))[:3], 0)[: array.ndim]
        return cut(array, corner, (1, 1, self.rows, *array.shape[3:]))[0, 0]

    def write(self, array, block, part):
        """Put a block of queries' rows into (B, H, T, ...)."""
        corner = (*self.corner((*block, 0))[:3], 0)[: array.ndim]
        return lax.dynamic_update_slice(array, part[None, None].astype(array.dtype), corner)

    def queries(self, block):
        """Return a block's queries, scaled, with 0 for what is not finite."""
        query = wide(self.read(self.query, block))
        return jnp.where(jnp.isfinite(query), query, 0) * self.scale

    def keys(self, at, masked):
        """Return a tile's keys and values; where they may not be finite, 0 stands for that."""
        corner = self.corner(at, of_keys=True)
        parts = [cut(x, corner, (1, 1, self.columns, x.shape[3])) for x in (self.key, self.value)]
        parts = [wide(part[0, 0]) for part in parts]
        return [jnp.where(jnp.isfinite(x), x, 0) for x in parts] if masked else parts

    def scores(self, at, query, key, masked):
        """Return a tile's scores, and softcap's slope there.

        -inf stands where a key is hidden, inf where it is seen and not finite: the maximum of a
        row would not show NaN, but it shows inf.
        """
        scores, slope = query @ key.T, None
        if masked:  # tanh would spread NaN
            bad = cut(self.bad_keys, self.corner(at, of_keys=True)[:3], (1, 1, self.columns))[0]
            bad = bad | jnp.isnan(scores)
            scores = jnp.where(bad, 0, scores)
        if self.softcap is not None:
            softcap = jnp.asarray(self.softcap, self.dtype)
            share = jnp.tanh(scores / softcap)
            scores, slope = softcap * share, 1 - share * share
        if not masked:
            return scores, slope
        seen = self._seen(at)
        if self.bias is not None:
            bias = wide(cut(self.bias, self.corner(at), (1, 1, self.rows, self.columns))[0, 0])
            scores, seen = scores + bias, seen & (bias != -jnp.inf)
            bad = bad | jnp.isnan(scores)
        return jnp.where(seen, jnp.where(bad, jnp.inf, scores), -jnp.inf), slope

    def _seen(self, at):
        """Return what of a tile the mask leaves visible, without what an earlier one has."""
        shape = (self.rows, self.columns)
        here = Corner(self.query_offset, self.corner(at), shape)
        seen = jnp.ones(shape, bool) if self.mask is None else self.mask.ask(here)[0, 0]
        row, column = self.corner(at)[2:]
        seen = seen & (row + jnp.arange(self.rows)[:, None] >= at[2] * self.rows)
        return seen & (column + jnp.arange(self.columns) >= at[3] * self.columns)


def _norm(array):
    """Return a finite number only if all of them are."""
    squares = jnp.einsum("bhsd,bhsd->bh", array, array, preferred_element_type=wide(array).dtype)
    return jnp.sqrt(squares.sum())


def wide(array):
    """Return float64 as it is and everything else in float32: 16-bit sums stall."""
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)
