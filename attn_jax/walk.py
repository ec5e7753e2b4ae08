"""What the loop over the tiles of one attention looks up: which tiles, and what lies under them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array

from . import checks
from .call import Call
from .devices import anywhere, evaluate, wrap
from .masks import Mask
from .numerics import HUGE, is_bounded, upcast
from .split import Lanes
from .tiles import Cells, Corner, Tiles, cut


class Tile(NamedTuple):
    """How much is taken at once: neighbouring heads of a sample, their queries, their keys."""

    heads: int
    rows: int
    columns: int


Block = tuple[Array, Array, Array]  # a sample, its first head, a block of its queries


@dataclass(frozen=True)
class Traced:
    """The rule of a traced predicate: equal where the program is, so that it compiles nothing anew.

    `kept` are the arrays that programs within the program hold; those count by identity.
    """

    jaxpr: Any = field(compare=False)
    kept: tuple = field(compare=False)
    text: str
    names: tuple[int, ...]

    def __call__(self, at: Cells | Tiles, *tables: Array) -> Any:
        """Run the program on what `at` asks about, with the arrays that it closed over."""

        def allowed(*indices: Array) -> Array:
            pairs = zip(indices, self.jaxpr.invars, strict=True)
            fitting = [x.astype(variable.aval.dtype) for x, variable in pairs]
            return evaluate(self.jaxpr, tables, *fitting)[0]

        for axis, size in enumerate(self.jaxpr.outvars[0].aval.shape):
            if not is_symbolic_dim(size) and size == 1:
                allowed = _map_axis(allowed, axis)
        return at.call(allowed)


def _map_axis(function: Callable, axis: int) -> Callable:
    """Make a function of index arrays with a dim of 1 on an axis one of any size there."""

    def mapped(*indices: Array) -> Array:
        axes = tuple(None if x.shape[axis] == 1 else axis for x in indices)
        if not any(x is not None for x in axes):
            return function(*indices)

        def one(*parts: Array) -> Array:
            pairs = zip(parts, axes, strict=True)
            return function(*(x if i is None else jnp.expand_dims(x, i) for x, i in pairs))

        return jax.vmap(one, axes, axis)(*indices).squeeze(axis + 1)

    return mapped


def closure_convert(call: Call, sizes: Callable = lambda: (1, 1, 1, 1)) -> Call:
    """Trace the call's predicates now, on index arrays of the sizes that are asked for.

    What a predicate closes over may have changed since the last call: numbers become part of its
    program, and arrays, traced ones too, become tables of the mask. One that was traced for a
    single cell can be asked about any.
    """
    if call.mask is None or all(leaf.name != "predicate" for leaf in call.mask.leaves()):
        return call
    batch, heads, rows, columns = shape = sizes()
    samples = min(checks.count_samples(call.query_offset), batch)
    dtype = jax.dtypes.canonicalize_dtype(int)
    shapes = ((batch, 1, 1, 1), (1, heads, 1, 1), (samples, 1, rows, 1), (1, 1, 1, columns))
    indices = [jax.ShapeDtypeStruct(dims, dtype) for dims in shapes]

    def convert(mask: Mask) -> Mask:
        if mask.parts:
            return replace(mask, parts=tuple(map(convert, mask.parts)))
        if mask.name != "predicate" or not mask.settings:
            return mask

        def allowed(*indices: Array) -> Array:
            return jnp.broadcast_to(checks.check_verdict(mask.settings[0](*indices), shape), shape)

        with anywhere():
            closed = jax.make_jaxpr(allowed)(*indices)
        kept = tuple(_held(closed.jaxpr))
        rule = Traced(closed.jaxpr, kept, str(closed.jaxpr), tuple(map(id, kept)))
        axes = mask.axes and (*("." * jnp.ndim(array) for array in closed.consts), *mask.axes)
        arrays = (*closed.consts, *mask.arrays)
        wrapped = wrap(mask.rule, lambda _: rule)
        return replace(mask, rule=wrapped, settings=(), arrays=arrays, axes=axes)

    return call._replace(mask=convert(call.mask))


def _held(jaxpr: Any) -> Iterator[Any]:
    """Every array that the programs inside a program hold: its text does not show their values."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values())):
            yield from getattr(value, "consts", ())
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _held(inner)


class TileLoop:
    """One pass over the tiles: the call's arrays, and where each of them is cut."""

    def __init__(
        self, tile: Tile, lanes: Lanes, query: Array, key: Array, value: Array, call: Call
    ):
        # A barrier: XLA would work out constant verdicts while compiling, the longer the larger T.
        mask, offset = lax.optimization_barrier((call.mask, jnp.asarray(call.query_offset)))
        call = call._replace(mask=mask, query_offset=offset)
        self.lanes, self.query, self.key, self.value, self.call = lanes, query, key, value, call
        self.sizes, self.dtype, self.query_offset = call.sizes, upcast(query).dtype, offset
        self.scale = jnp.asarray(call.scale, self.dtype)
        self.group = query.shape[1] // key.shape[1]
        self.heads, self.rows, self.columns = tile
        self.kv_heads = max(1, self.heads // self.group)
        self.shape = (1, *tile)
        # The lowest number marks a score that overflowed; a real score that low is raised.
        lowest = jnp.finfo(self.dtype).min
        self.lowest = lowest, np.nextafter(lowest, lowest.dtype.type(0))
        # Tiles start at any multiple of `step`, half their width: they follow a window closely.
        self.step = self.columns // (1 if self.columns % 2 else 2)
        self.blocks, self.steps = -(-self.sizes[2] // self.rows), -(-self.sizes[3] // self.step)
        self.count = self.sizes[0] * (self.sizes[1] // self.heads) * self.blocks
        self.nonfinite_keys, self.nonfinite_queries, self.surely_finite = self._look()
        self.full, self.needed = self._evaluate_tiles()
        self.first = self.needed.argmax(-1)
        last = self.steps - self.needed[..., ::-1].argmax(-1)
        self.last = jnp.where(self.needed.any(-1), last, self.first)

    def _evaluate_tiles(self) -> tuple[Array, Array]:
        """Evaluate the mask for every step; a full one needs no masking for any reason."""
        full = needed = jnp.ones((1, 1, 1, 1), bool)
        if self.call.mask is not None:
            cells = Cells(self.sizes, self.query_offset, xp=jnp)
            full, needed = self.call.mask.evaluate(Tiles(cells, self.rows, self.step))
        over = (jnp.arange(self.blocks) + 1)[None, None, :, None] * self.rows > self.sizes[2]
        over = over | ((jnp.arange(self.steps) + 1)[None, None, None] * self.step > self.sizes[3])
        full = full & ~over & self.surely_finite[:, :, None] & (self.call.bias is None)
        needed = jnp.broadcast_to(needed, (*needed.shape[:3], self.steps))
        full, needed = self._together(full).all(2), self._together(needed).any(2)
        return self.lanes.everywhere(full), ~self.lanes.everywhere(~needed)

    def _together(self, verdict: Array) -> Array:
        """Split the axis of heads, if there is one, into those that are taken together."""
        heads = self.heads if verdict.shape[1] > 1 else 1
        return verdict.reshape(verdict.shape[0], -1, heads, *verdict.shape[2:])

    def _look(self) -> tuple[Array, Array, Array]:
        """Return which keys, which queries are not finite, and which steps' scores surely are."""
        bounded = is_bounded(self.query, self.key, self.value, self.scale)
        return lax.cond(self.lanes.everywhere(bounded), self._all_finite, self._look_closely)

    def _all_finite(self) -> tuple[Array, Array, Array]:
        keys, queries = (self.zeros(x.shape[:3], bool) for x in (self.key, self.query))
        return keys, queries, ~self.zeros((*self.sizes[:2], self.steps), bool)

    def _look_closely(self) -> tuple[Array, Array, Array]:
        arrays = (self.key, self.query, self.value)
        keys, queries, values = (jnp.isfinite(x).all(-1) for x in arrays)
        nonfinite = ~(keys & values)
        query = jnp.where(jnp.isfinite(self.query), jnp.abs(upcast(self.query) * self.scale), 0)
        key = jnp.where(nonfinite, jnp.inf, jnp.abs(upcast(self.key)).max(-1))
        missing = self.steps * self.step - self.sizes[3]
        key = jnp.pad(key, ((0, 0), (0, 0), (0, missing)), mode="edge")
        key = key.reshape(*key.shape[:2], self.steps, self.step).max(-1)
        bound = query.max((2, 3))[..., None] * jnp.repeat(key, self.group, 1) * query.shape[3]
        return nonfinite, ~queries, bound < HUGE

    def zeros(self, shape: Sequence[int], dtype: Any = None) -> Array:
        """Return zeros that vary over a mesh as the queries do, so that a loop may take them."""
        return jnp.zeros_like(self.query, dtype or self.dtype, shape=shape)

    def block(self, work: Array) -> Block:
        """Take blocks from the last one on: it is moved back to fit, and the next overwrites."""
        unit, block = work // self.blocks, self.blocks - 1 - work % self.blocks
        units = self.sizes[1] // self.heads
        return unit // units, unit % units * self.heads, block

    def key_range(self, block: Block) -> tuple[Array, Array]:
        """Return the first step that a block of queries needs, and how many tiles to take."""
        where = (block[0], block[1] // self.heads, block[2])
        first, last = (cut(of, where, (1, 1, 1))[0, 0, 0] for of in (self.first, self.last))
        return first, -((first - last) * self.step // self.columns)

    def over_keys(self, count: Array, step: Callable, state: Any) -> Any:
        """Take a block's tiles of keys in turn; where one holds them all, without a loop."""
        if self.columns == self.sizes[3]:
            return step(jnp.zeros_like(count), state)
        return lax.fori_loop(0, count, step, state)

    def kind(self, at: tuple) -> Array:
        """Say what to do with a tile: 0 to skip it, 1 to mask it, 2 to take it as it is."""
        where, width = (at[0], at[1] // self.heads, *at[2:]), self.columns // self.step
        full, needed = (cut(of, where, (1, 1, 1, width)) for of in (self.full, self.needed))
        full = full.all() & (at[3] + width <= self.steps)  # else it is moved back
        return jnp.where(full, 2, needed.any().astype(jnp.int32))

    def corner(self, at: tuple, of_keys: bool = False) -> tuple:
        """Return where a tile starts: the last one in a row or column is moved back to fit."""
        batch, head, block, column = at
        row = jnp.minimum(block * self.rows, self.sizes[2] - self.rows)
        column = jnp.minimum(column * self.step, self.sizes[3] - self.columns)
        return (batch, head // self.group, column, 0) if of_keys else (batch, head, row, column)

    def read(self, array: Array, block: Block) -> Array:
        """Cut a block of queries' rows out of (B, H, T, ...), grouped by their key heads."""
        corner = (*self.corner((*block, 0))[:3], 0)[: array.ndim]
        part = cut(array, corner, (1, self.heads, self.rows, *array.shape[3:]))
        return self.grouped(part)

    def grouped(self, part: Array) -> Array:
        """Turn (1, heads, rows, ...) into (kv_heads, all rows that share one, ...)."""
        return part.reshape(self.kv_heads, -1, *part.shape[3:])

    def ungrouped(self, part: Array) -> Array:
        """Turn (kv_heads, all rows that share one, ...) into (1, heads, rows, ...)."""
        return part.reshape(1, self.heads, self.rows, *part.shape[2:])

    def write(self, array: Array, block: Block, part: Array) -> Array:
        """Put a block of queries' rows into (B, H, T, ...)."""
        corner = (*self.corner((*block, 0))[:3], 0)[: array.ndim]
        return lax.dynamic_update_slice(array, self.ungrouped(part).astype(array.dtype), corner)

    def queries(self, block: Block) -> Array:
        """Return a block's queries, scaled, with 0 for what is not finite."""
        query = upcast(self.read(self.query, block))
        return jnp.where(jnp.isfinite(query), query, 0) * self.scale

    def sinks(self, block: Block) -> Array:
        """Return the sink of each of a block's rows."""
        sinks = upcast(cut(cast(Array, self.call.sinks), block[1:2], (self.heads,)))
        sinks = jnp.where(sinks == -jnp.inf, sinks, jnp.maximum(sinks, self.lowest[1]))
        return self.grouped(self.zeros(self.shape[:3]) + sinks[None, :, None])

    def keys(self, at: tuple, masked: bool) -> list[Array]:
        """Return a tile's keys and values; where they may not be finite, 0 stands for that."""
        corner, shape = self.corner(at, of_keys=True), (1, self.kv_heads, self.columns)
        parts = [upcast(cut(x, corner, (*shape, x.shape[3]))[0]) for x in (self.key, self.value)]
        return [jnp.where(jnp.isfinite(x), x, 0) for x in parts] if masked else parts

    def scores(
        self, at: tuple, query: Array, key: Array, masked: bool
    ) -> tuple[Array, Array | None]:
        """Return a tile's scores, and softcap's slope there.

        -inf stands where a key is hidden, inf where it is allowed and not finite: the maximum of a
        row would not show NaN, but it shows inf. A score that is allowed and overflowed to -inf is
        the lowest number: a row that has nothing else is not a fully masked one.
        """
        scores, slope = query @ key.swapaxes(1, 2), None
        if masked:  # tanh would spread NaN
            where, shape = self.corner(at, of_keys=True)[:3], (1, self.kv_heads, self.columns)
            nonfinite = cut(self.nonfinite_keys, where, shape)[0, :, None] | jnp.isnan(scores)
            scores = jnp.where(nonfinite, 0, scores)
        if self.call.softcap is not None:
            softcap = jnp.asarray(self.call.softcap, self.dtype)
            share = jnp.tanh(scores / softcap)
            scores, slope = softcap * share, 1 - share * share
        if not masked:
            return scores, slope
        allowed = self._allowed(at)
        if self.call.bias is not None:
            bias = upcast(cut(self.call.bias, self.corner(at), self.shape))
            bias = self.grouped(jnp.broadcast_to(bias, self.shape))
            scores, allowed = scores + bias, allowed & (bias != -jnp.inf)
            nonfinite = nonfinite | jnp.isnan(scores)
        lowest, above = self.lowest
        scores = jnp.where(scores == -jnp.inf, lowest, jnp.maximum(scores, above))
        scores = jnp.where(allowed, jnp.where(nonfinite, jnp.inf, scores), -jnp.inf)
        return lax.optimization_barrier(scores), slope  # else XLA does all this again for every use

    def _allowed(self, at: tuple) -> Array:
        """Return what the mask allows of a tile, without what an earlier tile did already."""
        row, column = self.corner(at)[2:]
        rows, columns = row + jnp.arange(self.rows), column + jnp.arange(self.columns)
        allowed = (rows >= at[2] * self.rows)[None, None, :, None]
        allowed = allowed & (columns >= at[3] * self.step)[None, None, None]
        if self.call.mask is not None:
            here = Corner(self.query_offset, self.corner(at), self.shape[1:])
            allowed = allowed & self.call.mask.evaluate(here)
        return self.grouped(jnp.broadcast_to(allowed, self.shape))
