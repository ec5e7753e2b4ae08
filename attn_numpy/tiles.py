"""How a mask is asked: about single cells, or about whole tiles at once.

A rule of `masks.py` is written once, as arithmetic on what it finds at `at.query`, `at.key` and
in the mask's tables. `Cells` hands it one number a cell, and the rule answers yes or no for each.
`Tiles` hands it the smallest and the largest number inside each tile; the same comparisons then
say whether all cells of the tile are allowed, and whether any cell is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .arrays import is_array


class Verdict(NamedTuple):
    """What a rule says of each tile: `all` cells surely allowed, `any` cell perhaps."""

    all: np.ndarray
    any: np.ndarray

    def __and__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.all & other.all, self.any & other.any)

    def __or__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.all | other.all, self.any | other.any)

    def __invert__(self) -> "Verdict":
        return Verdict(~self.any, ~self.all)


class Interval:
    """The smallest and the largest value inside each tile."""

    def __init__(self, low: np.ndarray, high: np.ndarray):
        self.low, self.high = low, high

    def __add__(self, step: int) -> "Interval":
        return Interval(self.low + step, self.high + step)

    def __sub__(self, step: int) -> "Interval":
        return self + -step

    def __floordiv__(self, size: int) -> "Interval":
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
    """

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        query_offset: int | np.ndarray = 0,
        rows: slice | None = None,
        columns: slice | None = None,
    ):
        _, _, queries, keys = sizes
        rows = slice(None) if rows is None else rows
        columns = slice(None) if columns is None else columns
        self._rows, self._columns = rows, columns
        self._sizes = sizes
        if is_array(query_offset):
            query_offset = query_offset.reshape(-1, 1, 1, 1)
        self.query = query_offset + np.arange(queries)[None, None, rows, None]
        self.key = np.arange(keys)[None, None, None, columns]

    def samples(self, table: np.ndarray) -> np.ndarray:
        return table[:, None, None, None]

    def rows(self, table: np.ndarray) -> np.ndarray:
        return table[:, None, self._rows, None]

    def columns(self, table: np.ndarray) -> np.ndarray:
        return table[:, None, None, self._columns]

    def positions(self, table: np.ndarray) -> np.ndarray:
        """Look up by the query's position."""
        return self.look_up(table, self.query[:, 0, :, 0])[:, None, :, None]

    def look_up(self, table: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Look a sample's line up at (B, n) positions; outside of it, take what is at its edge."""
        if not table.shape[1]:
            return np.zeros_like(positions)
        inside = np.clip(positions, 0, table.shape[1] - 1)
        return table[np.arange(len(table))[:, None], inside]

    def documents(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return in which document of `lengths` (B, N), laid end to end, query and key stand."""
        query = count_ends(lengths, self.query[:, 0, :, 0])
        key = count_ends(lengths, self.key[:, 0, 0])
        return query[:, None, :, None], key[:, None, None]

    def part(self, rows: np.ndarray, columns: np.ndarray) -> "PartCells":
        """Return the same cells, told by where they stand in a larger call."""
        return PartCells(self, rows, columns)

    def cells(self, table: np.ndarray) -> np.ndarray:
        return table[:, :, self._rows, self._columns]

    def call(self, function: Callable) -> np.ndarray:
        batch, head = (np.arange(size) for size in self._sizes[:2])
        indices = (batch[:, None, None, None], head[None, :, None, None], self.query, self.key)
        sizes = (*self._sizes[:2], self.query.shape[2], self.key.shape[3])
        return checks.check_verdict(function(*indices), sizes)


class PartCells(Cells):
    """Cells of a part of a mask: `rows` (B, T) and `columns` (B, S) are where they stand.

    It is asked by the rules that go by positions only; tables of rows and columns are cut before.
    """

    def __init__(self, cells: Cells, rows: np.ndarray, columns: np.ndarray):
        self._cells, self._places = cells, (rows, columns)
        self.query, self.key = cells.rows(rows), cells.columns(columns)

    def samples(self, table: np.ndarray) -> np.ndarray:
        return self._cells.samples(table)

    def columns(self, table: np.ndarray) -> np.ndarray:
        return self._cells.columns(self._cells.look_up(table, self._places[1]))

    def positions(self, table: np.ndarray) -> np.ndarray:
        return self._cells.rows(self._cells.look_up(table, self._places[0]))

    def call(self, function: Callable) -> np.ndarray:
        def placed(batch: np.ndarray, head: np.ndarray, *_: np.ndarray) -> np.ndarray:
            return function(batch, head, self.query, self.key)

        return self._cells.call(placed)


def count_ends(lengths: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Count documents, of `lengths` (B, N) end to end, that are over at (B, n) positions."""
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

    def samples(self, table: np.ndarray) -> Verdict | Interval:
        return self._reduce(self._cells.samples(table))

    def rows(self, table: np.ndarray) -> Verdict | Interval:
        return self._reduce(self._cells.rows(table))

    def columns(self, table: np.ndarray) -> Verdict | Interval:
        return self._reduce(self._cells.columns(table))

    def positions(self, table: np.ndarray) -> Verdict | Interval:
        return self._reduce(self._cells.positions(table))

    def documents(self, lengths: np.ndarray) -> tuple[Verdict | Interval, Verdict | Interval]:
        query, key = self._cells.documents(lengths)
        return self._reduce(query), self._reduce(key)

    def part(self, rows: np.ndarray, columns: np.ndarray) -> "Tiles":
        return Tiles(self._cells.part(rows, columns), self._height, self._width)

    def cells(self, table: np.ndarray) -> Verdict | Interval:
        return self._reduce(self._cells.cells(table))

    def call(self, function: Callable) -> Verdict:
        """Nothing is known of a free function until its cells are looked at."""
        return Verdict(np.zeros((1, 1, 1, 1), bool), np.ones((1, 1, 1, 1), bool))

    def _reduce(self, values: np.ndarray) -> Verdict | Interval:
        low = high = values
        for axis, size in ((2, self._height), (3, self._width)):
            low = _blocks(low, axis, size).min(axis + 1)
            high = _blocks(high, axis, size).max(axis + 1)
        return Verdict(low, high) if values.dtype == bool else Interval(low, high)


def _blocks(values: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Split an axis into blocks of `size`, the last one filled up with its own last value."""
    length = values.shape[axis]
    size = max(min(size, length), 1)
    count = -(-length // size)
    if count * size > length:
        values = values.take(np.minimum(np.arange(count * size), length - 1), axis)
    return values.reshape(*values.shape[:axis], count, size, *values.shape[axis + 1 :])
