"""Which blocks a call is computed in: what each block of queries is allowed, read off its tiles."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from .call import Call
from .tiles import Cells

# Scores held at once: on a CPU by each thread, as its caches hold, elsewhere enough to fill it.
CPU_SCORES, SCORES = 2**19, 2**26

Columns = slice | Tensor | None


class Block(NamedTuple):
    """Some samples and key/value heads, some rows, and the columns that these are allowed."""

    samples: slice
    heads: slice
    rows: slice
    columns: Columns  # a slice; an index array where there are gaps; None where all is hidden
    partial: Columns  # those of the columns that may be hidden from some row, or None
    place: slice  # where the partial ones are among the columns
    has_full: bool  # whether one of its tiles is full, so that no row is fully masked

    def queries(self, groups: int) -> tuple[slice, slice, slice]:
        """Return where its queries are, with `groups` query heads to a key/value head."""
        return self.samples, slice(self.heads.start * groups, self.heads.stop * groups), self.rows

    def keys(self) -> tuple[slice, slice, Columns]:
        """Return where its keys are."""
        return self.samples, self.heads, self.columns

    def cells(self) -> int:
        """Return how many scores it holds, for one query head to a key/value head."""
        shape = [part.stop - part.start for part in (self.samples, self.heads, self.rows)]
        return math.prod(shape) * _length(self.columns)


class BlockCells(Cells):
    """The partial cells of one block: of the samples and heads, too, only the block's."""

    def __init__(self, block: Block, groups: int, whole: Cells):
        columns = slice(0) if block.partial is None else block.partial
        self._rows, self._columns = block.rows, columns
        self._samples, self._heads, _ = block.queries(groups)
        self.batch, self.head = whole.batch[self._samples], whole.head[:, self._heads]
        self.query = self._cut(whole.query[:, :, self._rows])
        self.key = whole.key[..., columns]

    def _cut(self, table: Tensor) -> Tensor:
        return table[self._samples] if len(table) > 1 else table

    def samples(self, table: Tensor) -> Tensor:
        """Look up by sample."""
        return super().samples(self._cut(table))

    def rows(self, table: Tensor) -> Tensor:
        """Look up by sample and row."""
        return super().rows(self._cut(table))

    def columns(self, table: Tensor) -> Tensor:
        """Look up by sample and column."""
        return super().columns(self._cut(table))

    def positions(self, table: Tensor) -> Tensor:
        """Look up by the query's position."""
        return super().positions(self._cut(table))

    def documents(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return in which document query and key stand."""
        return super().documents(self._cut(lengths))

    def cells(self, table: Tensor) -> Tensor:
        """Look up cell by cell."""
        table = self._cut(table)
        return super().cells(table[:, self._heads] if table.shape[1] > 1 else table)


class KeyRange(NamedTuple):
    """The tiles that one sample's block of rows is allowed, which are partial, if one is full."""

    tiles: Sequence[int]
    first_partial: int
    last_partial: int
    has_full: bool


def plan(
    full: Tensor,
    needed: Tensor,
    tile: tuple[int, int],
    call: Call,
    kv_heads: int,
    device: torch.device,
) -> list[Block]:
    """Return the blocks of a call, from its full and its needed tiles, as they are on the CPU.

    Neighbouring samples with the same columns go together, up to the scores held at once.
    """
    key_ranges = _key_ranges(full.all(1), needed.any(1), call.bias is not None)
    blocks = []
    for i, line in enumerate(key_ranges):
        rows = slice(i * tile[0], min((i + 1) * tile[0], call.sizes[2]))
        by_sample = zip(
            line if len(line) > 1 else line * call.sizes[0], range(call.sizes[0]), strict=True
        )
        for key_range, group in groupby(by_sample, itemgetter(0)):
            samples = [sample for _, sample in group]
            columns, partial, place = _columns(key_range, tile[1], call.sizes[3], device)
            scores = (rows.stop - rows.start) * _length(columns) * call.sizes[1] // kv_heads
            for part in _parts(samples, kv_heads, scores, device):
                blocks.append(Block(*part, rows, columns, partial, place, key_range.has_full))
    return blocks


def split_heads(blocks: list[Block], heads: int, threads: int) -> list[list[Block]]:
    """Split blocks into lists for several threads, no two of which read the same keys.

    Each has some heads of all samples; where heads are fewer than threads, one head of one sample.
    """
    step, few = -(-heads // threads), heads < threads
    lists: dict[tuple[int, int], list[Block]] = defaultdict(list)
    for block in blocks:
        each = range(block.samples.start, block.samples.stop)
        for samples in [slice(b, b + 1) for b in each] if few else [block.samples]:
            for head in range(block.heads.start // step * step, block.heads.stop, step):
                part = slice(max(head, block.heads.start), min(head + step, block.heads.stop))
                at = samples.start if few else 0, head
                lists[at].append(block._replace(samples=samples, heads=part))
    return list(lists.values())


def _key_ranges(full: Tensor, needed: Tensor, biased: bool) -> list[list[KeyRange]]:
    """Return what is allowed, by block of rows, then by sample (one for all, or each)."""
    if biased:  # a bias may hide anything
        full = torch.zeros_like(full)
    facts = torch.stack((*_ends(needed), *_ends(needed & ~full), needed.sum(-1), full.any(-1)), -1)
    lines = []
    for i, line in enumerate(facts.transpose(0, 1).tolist()):
        key_ranges = []
        for sample, (first, last, first_partial, last_partial, count, has_full) in enumerate(line):
            tiles: Sequence[int] = range(first, last + 1)
            if count < len(tiles):
                tiles = needed[sample, i].nonzero().flatten().tolist()
            key_ranges.append(KeyRange(tiles, first_partial, last_partial, bool(has_full)))
        lines.append(key_ranges)
    return lines


def _ends(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last True along the last axis, 0 and -1 where there is none."""
    first = flags.int().argmax(-1)
    last = flags.shape[-1] - 1 - flags.flip(-1).int().argmax(-1)
    return first, torch.where(flags.any(-1), last, -1)


def _columns(
    key_range: KeyRange, width: int, keys: int, device: torch.device
) -> tuple[Columns, Columns, slice]:
    """Return the columns of a range, those of them that are partial, and where among them."""
    if not len(key_range.tiles):
        return None, None, slice(0)
    start, stop = key_range.tiles[0] * width, min((key_range.tiles[-1] + 1) * width, keys)
    columns, indices = slice(start, stop), None
    if not isinstance(key_range.tiles, range):  # there are gaps
        indices = (torch.tensor(key_range.tiles)[:, None] * width + torch.arange(width)).flatten()
        indices = indices[indices < keys].to(device)
    if key_range.last_partial < key_range.first_partial:
        return columns if indices is None else indices, None, slice(0)
    ends = (
        key_range.tiles.index(key_range.first_partial),
        key_range.tiles.index(key_range.last_partial) + 1,
    )
    place = slice(
        ends[0] * width, min(ends[1] * width, _length(columns if indices is None else indices))
    )
    if indices is None:
        return columns, slice(start + place.start, start + place.stop), place
    return indices, indices[place], place


def _length(columns: Columns) -> int:
    if columns is None:
        return 1
    return columns.stop - columns.start if isinstance(columns, slice) else len(columns)


def _parts(
    samples: list[int], kv_heads: int, scores: int, device: torch.device
) -> Iterator[tuple[slice, slice]]:
    """Cut samples by heads of `scores` each into what is held at once, at least one head."""
    held = max((CPU_SCORES if device.type == "cpu" else SCORES) // scores, 1)
    heads, step = min(held, kv_heads), max(held // kv_heads, 1)
    stop = samples[-1] + 1
    for sample in range(samples[0], stop, step):
        for head in range(0, kv_heads, heads):
            yield slice(sample, min(sample + step, stop)), slice(head, min(head + heads, kv_heads))
