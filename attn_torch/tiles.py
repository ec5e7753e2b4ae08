"""How a mask is asked: about single cells, or about whole tiles at once.

A rule of `masks.py` is written once, as arithmetic on what it finds at `at.query`, `at.key` and
in the mask's tables. `Cells` hands it one number a cell, and the rule answers yes or no for each.
`Tiles` hands it the smallest and the largest number inside each tile; the same comparisons then
say whether all cells of the tile are allowed, and whether any cell is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .arrays import is_array


class Verdict(NamedTuple):
    """What a rule says of each tile: `all` cells surely allowed, `any` cell perhaps."""

    all: Tensor
    any: Tensor

    def __and__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.all & other.all, self.any & other.any)

    def __or__(self, other: "Verdict") -> "Verdict":
        return Verdict(self.all | other.all, self.any | other.any)

    def __invert__(self) -> "Verdict":
        return Verdict(~self.any, ~self.all)


class Interval:
    """The smallest and the largest value inside each tile."""

    def __init__(self, low: Tensor, high: Tensor):
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
    What they look up is moved to `device`, so a mask made on the CPU serves a GPU too.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        query_offset: int | Tensor = 0,
        rows: slice | Tensor | None = None,
        columns: slice | Tensor | None = None,
        device: torch.device | str | None = None,
    ):
        batch, heads, queries, keys = sizes
        rows = slice(None) if rows is None else rows
        columns = slice(None) if columns is None else columns
        self._rows, self._columns = rows, columns
        self.batch = torch.arange(batch, device=device)[:, None, None, None]
        self.head = torch.arange(heads, device=device)[None, :, None, None]
        self.key = torch.arange(keys, device=device)[None, None, None, columns]
        if is_array(query_offset):
            query_offset = query_offset.to(self.key.device).reshape(-1, 1, 1, 1)
        self.query = query_offset + torch.arange(queries, device=device)[None, None, rows, None]

    def samples(self, table: Tensor) -> Tensor:
        return table[:, None, None, None].to(self.key.device)

    def rows(self, table: Tensor) -> Tensor:
        return table[:, None, self._rows, None].to(self.key.device)

    def columns(self, table: Tensor) -> Tensor:
        return table[:, None, None, self._columns].to(self.key.device)

    def positions(self, table: Tensor) -> Tensor:
        """Look up by the query's position."""
        return self.look_up(table, self.query[:, 0, :, 0])[:, None, :, None]

    def look_up(self, table: Tensor, positions: Tensor) -> Tensor:
        """Look a sample's line up at (B, n) positions; outside of it, take what is at its edge."""
        positions = positions.to(self.key.device)
        if not table.shape[1]:
            return torch.zeros_like(positions)
        inside = positions.clamp(0, table.shape[1] - 1)
        sample = torch.arange(len(table), device=inside.device)[:, None]
        return table.to(inside.device)[sample, inside]

    def documents(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return in which document of `lengths` (B, N), laid end to end, query and key stand."""
        query = count_ends(lengths, self.query[:, 0, :, 0])
        key = count_ends(lengths, self.key[:, 0, 0])
        return query[:, None, :, None], key[:, None, None]

    def part(self, rows: Tensor, columns: Tensor) -> "PartCells":
        """Return the same cells, told by where they stand in a larger call."""
        return PartCells(self, rows, columns)

    def cells(self, table: Tensor) -> Tensor:
        return table[:, :, self._rows, self._columns].to(self.key.device)

    def call(self, function: Callable) -> Tensor:
        indices = (self.batch, self.head, self.query, self.key)
        sizes = (self.batch.shape[0], self.head.shape[1], self.query.shape[2], self.key.shape[3])
        return checks.check_verdict(function(*indices), sizes)


class PartCells(Cells):
    """Cells of a part of a mask: `rows` (B, T) and `columns` (B, S) are where they stand.

    It is asked by the rules that go by positions only; tables of rows and columns are cut before.
    """

    def __init__(self, cells: Cells, rows: Tensor, columns: Tensor):
        self._cells, self._places = cells, (rows, columns)
        self.query, self.key = cells.rows(rows), cells.columns(columns)

    def samples(self, table: Tensor) -> Tensor:
        return self._cells.samples(table)

    def columns(self, table: Tensor) -> Tensor:
        return self._cells.columns(self._cells.look_up(table, self._places[1]))

    def positions(self, table: Tensor) -> Tensor:
        return self._cells.rows(self._cells.look_up(table, self._places[0]))

    def call(self, function: Callable) -> Tensor:
        def placed(batch: Tensor, head: Tensor, *_: Tensor) -> Tensor:
            return function(batch, head, self.query, self.key)

        return self._cells.call(placed)


def count_ends(lengths: Tensor, positions: Tensor) -> Tensor:
    """Count documents, of `lengths` (B, N) end to end, that are over at (B, n) positions."""
    ends = lengths.to(positions.device, torch.int64).cumsum(1)
    samples = torch.broadcast_shapes(ends.shape[:1], positions.shape[:1])
    ends, positions = (x.expand(*samples, -1).contiguous() for x in (ends, positions))
    return torch.searchsorted(ends, positions, right=True)


class Tiles:
    """The same cells in tiles of `height` rows by `width` columns, two values a tile."""

    def __init__(self, cells: Cells, height: int, width: int):
        self._cells, self._height, self._width = cells, height, width
        self.query = self._reduce(cells.query)
        self.key = self._reduce(cells.key)

    def samples(self, table: Tensor) -> Verdict | Interval:
        return self._reduce(self._cells.samples(table))

    def rows(self, table: Tensor) -> Verdict | Interval:
        return self._reduce(self._cells.rows(table))

    def columns(self, table: Tensor) -> Verdict | Interval:
        return self._reduce(self._cells.columns(table))

    def positions(self, table: Tensor) -> Verdict | Interval:
        return self._reduce(self._cells.positions(table))

    def documents(self, lengths: Tensor) -> tuple[Verdict | Interval, Verdict | Interval]:
        query, key = self._cells.documents(lengths)
        return self._reduce(query), self._reduce(key)

    def part(self, rows: Tensor, columns: Tensor) -> "Tiles":
        return Tiles(self._cells.part(rows, columns), self._height, self._width)

    def cells(self, table: Tensor) -> Verdict | Interval:
        return self._reduce(self._cells.cells(table))

    def call(self, function: Callable) -> Verdict:
        """Nothing is known of a free function until its cells are looked at."""
        no = torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=self._cells.key.device)
        return Verdict(no, ~no)

    def _reduce(self, values: Tensor) -> Verdict | Interval:
        low = high = values
        for dim, size in ((2, self._height), (3, self._width)):
            low = _blocks(low, dim, size).amin(dim + 1)
            high = _blocks(high, dim, size).amax(dim + 1)
        return Verdict(low, high) if values.dtype == torch.bool else Interval(low, high)


def _blocks(values: Tensor, dim: int, size: int) -> Tensor:
    """Split an axis into blocks of `size`, the last one filled up with its own last value."""
    length = values.shape[dim]
    if length <= size:  # a graph whose lengths are not known needs no division then
        return values.unsqueeze(dim)
    count = -(-length // size)
    filled = torch.arange(count * size, device=values.device).clamp(max=length - 1)
    return values.index_select(dim, filled).unflatten(dim, (count, size))
