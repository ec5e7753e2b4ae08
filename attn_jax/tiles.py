"""How a mask is asked: about single cells, or about whole tiles at once.

A rule of `masks.py` is written once, as arithmetic on what it finds at `at.query`, `at.key` and
in the mask's tables. `Cells` hands it one number a cell, and the rule answers yes or no for each.
`Tiles` hands it the smallest and the largest number inside each tile; the same comparisons then
say whether all cells of the tile are allowed, and whether any cell is.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import checks
from .arrays import Array, is_concrete


class Verdict(NamedTuple):
    """What a rule says of each tile: `all` cells surely allowed, `any` cell perhaps."""

    all: Array
    any: Array

    def __and__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.all & other.all, self.any & other.any)

    def __or__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.all | other.all, self.any | other.any)

    def __invert__(self) -> "Verdict":
        return Verdict(~self.any, ~self.all)


class Interval:
    """The smallest and the largest value inside each tile."""

    def __init__(self, low: Array, high: Array):
        self.low, self.high = low, high

    def __add__(self, step: int) -> "Interval":
        return Interval(self.low + step, self.high + step)

    def __sub__(self, step: int) -> "Interval":
        return self + -step

    def __floordiv__(self, size: int) -> "Interval":
        if self.low.dtype.kind == "f":  # what is traced may be anything
            return self
        return Interval(self.low // size, self.high // size)

    def __le__(self, other: "Interval | int") -> Verdict:
        low, high = _ends(other)
        return Verdict(self.high <= low, self.low <= high)

    def __lt__(self, other: "Interval | int") -> Verdict:
        low, high = _ends(other)
        return Verdict(self.high < low, self.low < high)

    def __ge__(self, other: "Interval | int") -> Verdict:
        low, high = _ends(other)
        return Verdict(self.low >= high, self.high >= low)

    def __gt__(self, other: "Interval | int") -> Verdict:
        low, high = _ends(other)
        return Verdict(self.low > high, self.high > low)

    def __eq__(self, other: "Interval | int") -> Verdict:  # type: ignore[override]
        return (self <= other) & (self >= other)


def _ends(value: Interval | int) -> tuple[Any, Any]:
    return (value.low, value.high) if isinstance(value, Interval) else (value, value)


class Cells:
    """Some rows and columns of a call of `sizes` (B, H, T, S), one value a cell.

    `query` and `key` are positions: queries start at `query_offset`, an int or one a sample. The
    methods look a mask's table up by the axes it has: (B,), (B, T), (B, S), (B, H, T, S).
    With `xp=np` nothing is compiled, and what is concrete stays concrete while a function is
    traced; with `xp=jnp` everything is traced, and no (T, S) array becomes a constant.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        query_offset: int | Array = 0,
        rows: slice | None = None,
        columns: slice | None = None,
        xp: ModuleType = np,
    ):
        batch, heads, queries, keys = sizes
        rows = slice(None) if rows is None else rows
        columns = slice(None) if columns is None else columns
        self.xp, self._rows, self._columns = xp, rows, columns
        self.batch = xp.arange(batch)[:, None, None, None]
        self.head = xp.arange(heads)[None, :, None, None]
        offsets = _to_concrete(query_offset, xp).reshape(-1, 1, 1, 1)
        self.query = offsets + xp.arange(queries)[None, None, rows, None]
        self.key = xp.arange(keys)[None, None, None, columns]

    def samples(self, table: Array) -> Array:
        return _to_concrete(table, self.xp)[:, None, None, None]

    def rows(self, table: Array) -> Array:
        return _to_concrete(table, self.xp)[:, None, self._rows, None]

    def columns(self, table: Array) -> Array:
        return _to_concrete(table, self.xp)[:, None, None, self._columns]

    def positions(self, table: Array) -> Array:
        """Look up by the query's position."""
        return self.look_up(table, self.query[:, 0, :, 0])[:, None, :, None]

    def look_up(self, table: Array, positions: Array) -> Array:
        """Look a sample's line up at (B, n) positions; outside of it, take what is at its edge."""
        positions = _to_concrete(positions, self.xp)
        if not table.shape[1]:
            return positions * 0
        inside = positions.clip(0, table.shape[1] - 1)
        xp = self.xp if is_concrete(inside) else jnp
        return _to_concrete(table, xp)[xp.arange(table.shape[0])[:, None], inside]

    def documents(self, lengths: Array) -> tuple[Array, Array]:
        """Return in which document of `lengths` (B, N), laid end to end, query and key stand."""
        query = count_ends(lengths, self.query[:, 0, :, 0], self.xp)
        key = count_ends(lengths, self.key[:, 0, 0], self.xp)
        return query[:, None, :, None], key[:, None, None]

    def part(self, rows: Array, columns: Array) -> "PartCells":
        """Return the same cells, told by where they stand in a larger call."""
        return PartCells(self, rows, columns)

    def cells(self, table: Array) -> Array:
        return _to_concrete(table, self.xp)[:, :, self._rows, self._columns]

    def call(self, function: Callable) -> Array:
        with jax.ensure_compile_time_eval() if self.xp is np else nullcontext():
            allowed = function(self.batch, self.head, self.query, self.key)
        sizes = (self.batch.shape[0], self.head.shape[1], self.query.shape[2], self.key.shape[3])
        return _to_concrete(checks.check_verdict(allowed, sizes), self.xp)


class Corner(Cells):
    """The cells of one tile of a sample, from a corner (batch, head, row, column), maybe traced.

    `shape` is the tile's (heads, rows, columns); all must lie inside the call.
    """

    def __init__(
        self,
        query_offset: int | Array,
        corner: Sequence[int | Array],
        shape: tuple[int, int, int],
    ):
        self.xp, self._corner, self._shape = jnp, corner, (1, *shape)
        batch, head, row, column = corner
        self.batch = jnp.reshape(batch, (1, 1, 1, 1))
        self.head = head + jnp.arange(shape[0])[None, :, None, None]
        offset = cut(jnp.asarray(query_offset).reshape(-1), (batch,), (1,)).reshape(1, 1, 1, 1)
        self.query = offset + row + jnp.arange(shape[1])[None, None, :, None]
        self.key = column + jnp.arange(shape[2])[None, None, None, :]

    def samples(self, table: Array) -> Array:
        return self._cut(table, "B")

    def rows(self, table: Array) -> Array:
        return self._cut(table, "BT")

    def columns(self, table: Array) -> Array:
        return self._cut(table, "BS")

    def positions(self, table: Array) -> Array:
        return super().positions(self._cut_sample(table))

    def documents(self, lengths: Array) -> tuple[Array, Array]:
        return super().documents(self._cut_sample(lengths))

    def cells(self, table: Array) -> Array:
        return self._cut(table, "BHTS")

    def _cut_sample(self, table: Array) -> Array:
        return cut(jnp.asarray(table), (self._corner[0], 0), (1, table.shape[1]))

    def _cut(self, table: Array, axes: str) -> Array:
        """Take what lies under the tile, with a dim of 1 for every axis that the table lacks."""
        where = ["BHTS".index(axis) for axis in axes]
        corner = [self._corner[axis] for axis in where]
        shape = [self._shape[axis] for axis in where]
        missing = [axis for axis in range(4) if axis not in where]
        return jnp.expand_dims(cut(jnp.asarray(table), corner, shape), missing)


def cut(array: Array, corner: Sequence[int | Array], shape: Sequence[int]) -> jax.Array:
    """Take a part of an array; where it has a dim of 1, that one, whatever the corner says."""
    sizes = [min(whole, part) for whole, part in zip(array.shape, shape, strict=True)]
    return lax.dynamic_slice(array, corner, sizes)


class PartCells(Cells):
    """Cells of a part of a mask: `rows` (B, T) and `columns` (B, S) are where they stand.

    It is asked by the rules that go by positions only; tables of rows and columns are cut before.
    """

    def __init__(self, cells: Cells, rows: Array, columns: Array):
        self.xp = cells.xp
        self._cells, self._places = cells, (rows, columns)
        self.query, self.key = cells.rows(rows), cells.columns(columns)

    def samples(self, table: Array) -> Array:
        return self._cells.samples(table)

    def columns(self, table: Array) -> Array:
        return self._cells.columns(self._cells.look_up(table, self._places[1]))

    def positions(self, table: Array) -> Array:
        return self._cells.rows(self._cells.look_up(table, self._places[0]))

    def call(self, function: Callable) -> Array:
        def placed(batch: Array, head: Array, *_: Array) -> Array:
            return function(batch, head, self.query, self.key)

        return self._cells.call(placed)


def count_ends(lengths: Array, positions: Array, xp: ModuleType = jnp) -> Array:
    """Count documents, of `lengths` (B, N) end to end, that are over at (B, n) positions."""
    lengths, positions = _to_concrete(lengths, xp), _to_concrete(positions, xp)
    if not (isinstance(lengths, np.ndarray) and isinstance(positions, np.ndarray)):
        over = positions[:, :, None] >= jnp.cumsum(jnp.asarray(lengths), 1, dtype=int)[:, None]
        return over.sum(2)  # XLA holds the sums only
    ends = lengths.cumsum(1)
    (samples,) = np.broadcast_shapes(ends.shape[:1], positions.shape[:1])
    both = (np.broadcast_to(x, (samples, x.shape[1])) for x in (ends, positions))
    counts = [np.searchsorted(a, v, side="right") for a, v in zip(*both, strict=True)]
    return np.array(counts, int).reshape(samples, positions.shape[1])


class Tiles:
    """The same cells in tiles of `height` rows by `width` columns, two values a tile."""

    def __init__(self, cells: Cells, height: int, width: int):
        self._cells, self._height, self._width = cells, height, width
        self.query = self._reduce(cells.query)
        self.key = self._reduce(cells.key)

    def samples(self, table: Array) -> Verdict | Interval:
        return self._reduce(self._cells.samples(table))

    def rows(self, table: Array) -> Verdict | Interval:
        return self._reduce(self._cells.rows(table))

    def columns(self, table: Array) -> Verdict | Interval:
        return self._reduce(self._cells.columns(table))

    def positions(self, table: Array) -> Verdict | Interval:
        return self._reduce(self._cells.positions(table))

    def documents(self, lengths: Array) -> tuple[Verdict | Interval, Verdict | Interval]:
        query, key = self._cells.documents(lengths)
        return self._reduce(query), self._reduce(key)

    def part(self, rows: Array, columns: Array) -> "Tiles":
        return Tiles(self._cells.part(rows, columns), self._height, self._width)

    def cells(self, table: Array) -> Verdict | Interval:
        return self._reduce(self._cells.cells(table))

    def call(self, function: Callable) -> Verdict:
        """Nothing is known of a free function until its cells are looked at."""
        if self._height == self._width == 1 and self._cells.xp is np:
            allowed = self._cells.call(function)
            if is_concrete(allowed):
                return Verdict(allowed, allowed)
        return Verdict(np.zeros((1, 1, 1, 1), bool), np.ones((1, 1, 1, 1), bool))

    def _reduce(self, values: Array) -> Verdict | Interval:
        if self._cells.xp is np and not is_concrete(values):
            return _unknown(values)
        low = high = values
        for axis, size in ((2, self._height), (3, self._width)):
            low = _blocks(low, axis, size).min(axis + 1)
            high = _blocks(high, axis, size).max(axis + 1)
        return Verdict(low, high) if values.dtype == bool else Interval(low, high)


def _blocks(values: Array, axis: int, size: int) -> Array:
    """Split an axis into blocks of `size`, the last one filled up with its own last value."""
    size = min(size, max(values.shape[axis], 1))
    count = -(-values.shape[axis] // size)
    missing = count * size - values.shape[axis]
    widths = [(0, missing if i == axis else 0) for i in range(4)]
    shape = (*values.shape[:axis], count, size, *values.shape[axis + 1 :])
    xp = np if isinstance(values, np.ndarray) else jnp
    padded = xp.pad(values, widths, mode="edge") if missing else values  # may lie on many devices
    return padded.reshape(shape)


def _to_concrete(table: Any, xp: ModuleType) -> Array:
    """Take a table in, and out of jax where its values are known and `xp` is numpy."""
    return np.asarray(table) if xp is np and is_concrete(table) else jnp.asarray(table)


def _unknown(values: Array) -> Verdict | Interval:
    """What is traced: not every cell surely, some cell perhaps; anything between the infinities."""
    cell = np.ones((1, 1, 1, 1))
    if values.dtype == bool:
        return Verdict(cell < 0, cell > 0)
    return Interval(-np.inf * cell, np.inf * cell)
