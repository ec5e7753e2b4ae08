"""Which keys a query is allowed to attend to: `Mask`, and two arrays in torch's convention.

One rule holds for every mask here: no boolean without a name. `sequence_mask` and
`look_ahead_mask` are arrays in torch's convention (True, or -inf, hides). Everything else is a
`Mask`, a value that says which (batch, head, query position, key position) is allowed.
"""

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from numpy.typing import DTypeLike

from . import checks
from .arrays import dtype_name, is_array, is_concrete, lowest_highest
from .draw import LONGEST, Drawing, draw_cells, html_of, mask_table, sizes_of
from .tiles import Cells, Tiles, Verdict, count_ends

Offset = int | Integer[np.ndarray, "..."] | None


def sequence_mask(tokens: Integer[np.ndarray, "B S"], padding_idx: int) -> Bool[np.ndarray, "B S"]:
    """Mark the padding of a batch of token rows: True hides, as `key_padding_mask` reads it.

    Source: "Transformer, Multi-head Attention Pytorch Guide Focusing on Masking", step 1.
    Raises TypeError unless tokens are integers, ValueError unless they are (B, S).

    >>> sequence_mask(np.array([[75, 79, 0], [84, 0, 0]]), padding_idx=0)
    array([[False, False,  True],
           [False,  True,  True]])
    """
    checks.check_tokens(tokens, padding_idx)
    return tokens == padding_idx


def look_ahead_mask(tgt_len: int, src_len: int) -> Float[np.ndarray, "T S"]:
    """Hide the future, additively: 0 on and below the diagonal and -inf above, float32.

    The diagonal starts top left whatever the shape: row 0 of (20, 10) allows one key, and rows 9
    to 19 allow all ten. Source: the same guide, step 1. Raises ValueError for a negative length.

    >>> look_ahead_mask(2, 3)
    array([[  0., -inf, -inf],
           [  0.,   0., -inf]], dtype=float32)
    """
    checks.check_count("tgt_len", tgt_len, 0)
    checks.check_count("src_len", src_len, 0)
    return np.where(np.tri(tgt_len, src_len, dtype=bool), np.float32(0), np.float32(-np.inf))


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """Which (batch, head, query position, key position) is allowed, without being an array.

    Made by `causal`, `sliding_window`, `chunked`, `prefix`, `padding`, `segments`, `packed`,
    `allow`, `hide` and `predicate`; combined with `&` (both), `|` (either) and `~` (not).

    >>> mask = causal() & padding([3, 2])
    >>> print(mask.draw(4, 4))
    ■ · · ·
    ■ ■ · ·
    ■ ■ ■ ·
    ■ ■ ■ ·
    """

    name: str
    rule: Any  # a function, with what `_means` gives it
    settings: tuple = ()
    arrays: tuple = ()
    axes: tuple[str, ...] = ()
    parts: "tuple[Mask, ...]" = ()
    positional: bool = False

    __array_ufunc__ = None  # so that `array & mask` comes here and is refused

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise checks.no_array()

    def __and__(self, other: "Mask") -> "Mask":
        return _combine("&", operator.and_, self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return _combine("|", operator.or_, self, other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> "Mask":
        return _combine("~", operator.invert, self)

    def __bool__(self) -> bool:
        raise checks.no_truth_value()

    def __repr__(self) -> str:
        if self.name == "~":
            return f"~{self.parts[0]!r}"
        if self.parts:
            return f"({f' {self.name} '.join(map(repr, self.parts))})"
        shown = [_show(value) for value in (*self.settings, *self.arrays)]
        texts = list(map("=".join, zip(self.rule.arguments, shown, strict=True)))
        if not isinstance(self.rule, PartRule):
            return f"{self.name}({', '.join(texts)})"
        return f"{self.rule.name}({', '.join(texts[:-2])}).part({', '.join(texts[-2:])})"

    def leaves(self) -> "list[Mask]":
        """Return every part that is not itself a combination, from left to right."""
        return [leaf for part in self.parts for leaf in part.leaves()] if self.parts else [self]

    def tables(self) -> "list[tuple[Mask, str, str, np.ndarray]]":
        """Return every array of every leaf: the leaf, the array's name, its axes, and itself."""
        tables = []
        for leaf in self.leaves() if self.parts or self.arrays else ():
            names = leaf.rule.arguments[len(leaf.settings) :]
            for name, axes, table in zip(names, leaf.axes, leaf.arrays, strict=True):
                tables.append((leaf, name, axes, table))
        return tables

    def _signed(self, negated: bool = False) -> "Iterator[Mask]":
        """Every leaf, complemented where an odd number of ~ stands over it."""
        if not self.parts:
            yield ~self if negated else self
        for part in self.parts:
            yield from part._signed(negated != (self.name == "~"))

    def evaluate(self, at: Cells | Tiles) -> Any:
        """Put the rule to cells (a bool each) or to tiles (a `Verdict` each)."""
        if self.parts:
            return self.rule(*(part.evaluate(at) for part in self.parts))
        return self.rule(at, *self.settings, *self.arrays)

    def allowed(
        self, T: int, S: int, *, query_offset: Offset = None, batch: int = 1, heads: int = 1
    ) -> Bool[np.ndarray, "B H T S"]:
        """Return True where a key is allowed, rank 4 with dims 1 where nothing varies.

        `batch` and `heads` are only needed where a predicate looks at them; tables know theirs.
        Raises ValueError where a table does not fit, or T != S and an offset is missing.

        >>> causal().allowed(1, 3, query_offset=2)
        array([[[[ True,  True,  True]]]])
        """
        return np.array(self.evaluate(Cells(*self._call(T, S, query_offset, batch, heads))))

    def hidden(
        self, T: int, S: int, *, query_offset: Offset = None, batch: int = 1, heads: int = 1
    ) -> Bool[np.ndarray, "B H T S"]:
        """Return True where a key is hidden: the complement of `allowed`."""
        return (~self).allowed(T, S, query_offset=query_offset, batch=batch, heads=heads)

    def additive(
        self,
        T: int,
        S: int,
        dtype: DTypeLike = np.float32,
        *,
        query_offset: Offset = None,
        batch: int = 1,
        heads: int = 1,
    ) -> Float[np.ndarray, "B H T S"]:
        """Return 0 where a key is allowed and -inf where hidden, to be added to the scores."""
        allowed = self.allowed(T, S, query_offset=query_offset, batch=batch, heads=heads)
        return np.where(allowed, 0.0, -np.inf).astype(dtype)

    def tile(
        self,
        T: int,
        S: int,
        rows: slice,
        columns: slice,
        query_offset: Offset = None,
        *,
        batch: int = 1,
        heads: int = 1,
    ) -> str:
        """Return "none", "all" or "partial": how much of a tile of queries by keys is allowed.

        >>> [causal().tile(8, 8, slice(4, 6), slice(s, s + 2)) for s in (0, 4, 6)]
        ['all', 'partial', 'none']
        """
        sizes, offset = self._call(T, S, query_offset, batch, heads)
        cells = Cells(sizes, offset, rows, columns)
        height, width = cells.query.shape[2], cells.key.shape[3]
        if not height * width:
            return "none"
        verdict = self.evaluate(Tiles(cells, height, width))
        if not (verdict.all.all() or not verdict.any.any()):
            allowed = self.evaluate(cells)
            verdict = Verdict(allowed, allowed)
        return "all" if verdict.all.all() else "partial" if verdict.any.any() else "none"

    def part(
        self,
        rows: Integer[np.ndarray, "T"] | Sequence[int],
        columns: Integer[np.ndarray, "S"] | Sequence[int],
        query_offset: Offset = 0,
    ) -> "Mask":
        """Return the mask of some queries and some keys of a call, in any order, even repeated.

        `rows` (T',) and `columns` (S',) count those of the whole call, whose first query stands at
        `query_offset`. `part(r, c).allowed(T', S')` is `allowed(T, S)[:, :, r][..., c]`: what a
        shard or a permuted layout asks. A part is moved by no other offset; its arrays are copies.
        Raises TypeError unless rows and columns are integers, ValueError unless they are inside.

        >>> print(causal().part([5, 0, 3], [0, 1, 4]).draw(3, 3))
        ■ ■ ■
        ■ · ·
        ■ ■ ·
        """
        rows, columns, starts = checks.check_part(self, rows, columns, query_offset)
        return self._part(rows, columns, np.reshape(starts, (-1, 1)) + rows)

    def _part(self, rows: np.ndarray, columns: np.ndarray, positions: np.ndarray) -> "Mask":
        if self.parts:
            parts = [part._part(rows, columns, positions) for part in self.parts]
            return replace(self, parts=tuple(parts), positional=False)
        if self.rule is _packed:
            return pair_documents(self.arrays[0], positions, columns[None])
        if not self.positional and self.rule is not _padding:
            tables = zip(self.arrays, self.axes, strict=True)
            arrays = tuple([_take(*table, rows, columns) for table in tables])
            return replace(self, arrays=arrays)
        name = self.name if self.name == "predicate" else "part"  # that anything may be asked of
        arrays = (*self.arrays, positions, columns[None])
        axes = (*(letters.replace("S", "s") for letters in self.axes), "BT", "BS")
        return Mask(name, PartRule(self.name, self.rule), self.settings, arrays, axes)

    def explain(
        self, batch: int, head: int, query: int, key: int, *, query_offset: Offset = 0
    ) -> str:
        """Say in words what each part makes of one cell, the conclusion first.

        `query` and `key` count rows and columns of the call. Raises ValueError outside a table.

        >>> print((causal() & padding([3, 2])).explain(batch=1, head=0, query=3, key=2))
        hidden: sample 1, head 0, query 3, key 2
          allowed by causal(): a query sees only its own position and those before it
          hidden by padding(lengths=[3, 2]): only keys before the sample's length are allowed
        """
        checks.check_cell(self, (batch, head, query, key))
        batch, head, query, key = map(int, (batch, head, query, key))
        samples = max(batch + 1, checks.count_samples(query_offset))
        sizes = self.sizes(samples, head + 1, query + 1, key + 1)
        query_offset = checks.check_query_offset(query_offset, self, sizes)
        place = (query, query + 1), (key, key + 1)
        return self._reasons(sizes, query_offset, batch, head, *place)[0][0]

    def _reasons(
        self,
        sizes: tuple[int, int, int, int],
        query_offset: int | np.ndarray,
        batch: int,
        head: int,
        rows: tuple[int, int],
        columns: tuple[int, int],
    ) -> list[list[str]]:
        """Explain every cell of some rows and columns, of one sample and head."""
        at = Cells(sizes, query_offset, slice(*rows), slice(*columns))

        def words(mask: Mask) -> list[list[str]]:
            shape = (*sizes[:2], rows[1] - rows[0], columns[1] - columns[0])
            allowed = np.broadcast_to(mask.evaluate(at), shape)[batch, head].tolist()
            return [["allowed" if cell else "hidden" for cell in row] for row in allowed]

        whole, parts = words(self), []
        for part in self._signed():
            (leaf,) = part.leaves()
            reading = "not: " if part.parts else ""
            parts.append((words(part), f"by {part!r}: {reading}{leaf.rule.sentence}"))

        def reason(i: int, j: int) -> str:
            place = f"query {rows[0] + i}, key {columns[0] + j}"
            lines = [f"{whole[i][j]}: sample {batch}, head {head}, {place}"]
            return "\n".join(lines + [f"  {word[i][j]} {by}" for word, by in parts])

        return [[reason(i, j) for j in range(len(row))] for i, row in enumerate(whole)]

    def draw(
        self,
        T: int,
        S: int | None = None,
        *,
        batch: int = 0,
        head: int = 0,
        query_offset: Offset = None,
    ) -> Drawing:
        """Draw one sample and head: ■ where the query (down) sees the key (across), · where not.

        S is T where left out. A notebook shows a table, with the words of `explain` on each cell.
        """
        S = T if S is None else S
        checks.check_count("batch", batch, 0)
        checks.check_count("head", head, 0)
        samples = max(int(batch) + 1, checks.count_samples(query_offset))
        batches, heads, _, _ = self.sizes(samples, int(head) + 1, T, S)
        allowed = self.allowed(T, S, query_offset=query_offset, batch=batches, heads=heads)
        allowed = np.broadcast_to(allowed, (batches, heads, T, S))[batch, head]
        return draw_cells(allowed, self._table(T, S, batch, head, query_offset))

    def _repr_html_(self) -> str:
        """Show sample 0 and head 0 in a notebook: as large as the tables, or 8 x 8 without one."""
        known: dict[str, int] = {}
        longest, words = 8, ""
        try:
            for _, name, axes, table in self.tables():
                known |= dict(zip(axes, table.shape, strict=True))
                if name == "lengths" and len(table):
                    totals = table.reshape(len(table), -1).sum(1)
                    longest = max(longest, lowest_highest(totals)[1])
            if "S" not in known:
                words = ", chosen here: draw(T, S) draws another size"
            S = known.get("S", longest)
            return self._table(known.get("T", S), S, 0, 0, None, words)
        except Exception as error:  # a notebook asks by itself, and must not fail
            return html_of(f"{self!r} is drawn by draw(T, S): {error}")

    def _table(
        self, T: int, S: int, batch: int, head: int, query_offset: Offset, words: str = ""
    ) -> str:
        samples = max(batch + 1, checks.count_samples(query_offset))
        sizes, query_offset = self._call(T, S, query_offset, samples, head + 1)
        ends = (0, min(T, LONGEST)), (0, min(S, LONGEST))
        reasons = self._reasons(sizes, query_offset, batch, head, *ends)
        place = f"{self!r}, sample {batch}, head {head}"
        return mask_table(f"{place}; {sizes_of(T, S)}{words}", S, reasons)

    def sizes(self, batch: int, heads: int, T: int, S: int) -> tuple[int, int, int, int]:
        """Return (B, H, T, S), with B and H as large as the tables say where they say more."""
        dims = {"B": batch, "H": heads}
        for _, _, axes, table in self.tables():
            for axis, size in zip(axes, table.shape, strict=True):
                if axis in dims and (size > max(dims[axis], 1) or not size):
                    dims[axis] = size
        return dims["B"], dims["H"], T, S

    def _call(
        self, T: int, S: int, query_offset: Offset, batch: int, heads: int
    ) -> tuple[tuple[int, int, int, int], int | np.ndarray]:
        for name, size in {"T": T, "S": S, "batch": batch, "heads": heads}.items():
            checks.check_count(name, size, 0)
        sizes = self.sizes(int(batch), int(heads), int(T), int(S))
        checks.check_mask(self, sizes)
        return sizes, checks.check_query_offset(query_offset, self, sizes)


def _combine(name: str, rule: Callable, *parts: Mask) -> Mask:
    for part in parts:
        checks.check_is_mask("a mask combines with masks only", part, Mask)
    return Mask(name, rule, parts=parts, positional=any(part.positional for part in parts))


def _take(table: np.ndarray, axes: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    for letter, index in (("T", rows), ("S", columns)):
        if letter in axes:
            table = table.take(index.astype(np.intp), axes.index(letter))
    return table


@dataclass(frozen=True)
class PartRule:
    """The rule of a part: a rule that goes by positions, asked about where a part's cells stand."""

    name: str
    rule: Any

    @property
    def sentence(self) -> str:
        """Say what the rule means."""
        return self.rule.sentence

    @property
    def arguments(self) -> tuple[str, ...]:
        """Name the mask's settings and arrays."""
        return (*self.rule.arguments, "rows", "columns")

    def __call__(self, at: Any, *values: Any) -> Any:
        """Ask the rule."""
        return self.rule(at.part(*values[-2:]), *values[:-2])


@dataclass(frozen=True)
class DocumentsRule(PartRule):
    """The rule of a part of `packed`: which documents stand at its rows and columns is counted."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Name the mask's arrays."""
        return ("query_documents", "key_documents")

    def __call__(self, at: Any, *values: Any) -> Any:
        """Compare documents."""
        return at.rows(values[0]) == at.columns(values[1])


def _show(value: Any) -> str:
    if not is_array(value):
        return getattr(value, "__name__", repr(value))
    if math.prod(value.shape) <= 8 and is_concrete(value):
        return str(value.tolist())
    return f"{dtype_name(value)} {tuple(value.shape)}"


def _means(sentence: str) -> Callable:
    """Give a rule its sentence for `explain`, and the names of a mask's settings and arrays."""

    def give(rule: Any) -> Any:
        rule.sentence = sentence  # `python -OO` keeps no docstring
        rule.arguments = tuple(inspect.signature(rule).parameters)[1:]
        return rule

    return give


def causal() -> Mask:
    """Allow a query its own position and those before it.

    >>> print(causal().draw(3, 5, query_offset=2))
    ■ ■ ■ · ·
    ■ ■ ■ ■ ·
    ■ ■ ■ ■ ■
    """
    return Mask("causal", _causal, positional=True)


@_means("a query sees only its own position and those before it")
def _causal(at: Any) -> Any:
    return at.key <= at.query


def sliding_window(before: int, after: int = 0) -> Mask:
    """Allow a query `before` positions back, its own, and `after` ahead.

    A window of `before=1` is two keys wide: some libraries would call it 2. Raises ValueError
    for a negative count.

    >>> print(sliding_window(before=1).draw(4, 4))
    ■ · · ·
    ■ ■ · ·
    · ■ ■ ·
    · · ■ ■
    """
    checks.check_count("before", before, 0)
    checks.check_count("after", after, 0)
    return Mask(
        "sliding_window", _sliding_window, settings=(int(before), int(after)), positional=True
    )


@_means("a query sees only from `before` positions back to `after` ahead")
def _sliding_window(at: Any, before: int, after: int) -> Any:
    near, after = min(before, 2**30), min(after, 2**31 - 1)  # no sum may overflow 32 bits
    far = min(before - near, 2**30)
    return (at.query - near <= at.key + far) & (at.key - after <= at.query)


def chunked(size: int) -> Mask:
    """Allow a query the keys of its own chunk: positions go in chunks of `size`, the first from 0.

    With `& causal()` it is chunked local attention, as in Llama 4. Raises ValueError for a size
    below 1.

    >>> print((chunked(2) & causal()).draw(4, 4))
    ■ · · ·
    ■ ■ · ·
    · · ■ ·
    · · ■ ■
    """
    checks.check_count("size", size, 1)
    return Mask("chunked", _chunked, settings=(int(size),), positional=True)


@_means("a query sees only the keys of its own chunk of `size` positions")
def _chunked(at: Any, size: int) -> Any:
    size = min(size, 2**31 - 1)  # which 32 bits hold, and no position reaches
    return at.query // size == at.key // size


def window_at(before: int, rows: np.ndarray, columns: np.ndarray) -> Mask:
    """Return `sliding_window(before)` for positions of rows (B, T) and of columns (B, S)."""
    rule = PartRule("sliding_window", _sliding_window)
    return Mask("part", rule, (before, 0), (rows, columns), ("BT", "BS"))


def prefix(lengths: Integer[np.ndarray, "B"] | Sequence[int]) -> Mask:
    """Allow every query the first `lengths[b]` keys of its sample, and the rest causally.

    Raises TypeError unless lengths are integers, ValueError unless they are (B,) and not negative.

    >>> print(prefix([2]).draw(4, 4))
    ■ ■ · ·
    ■ ■ · ·
    ■ ■ ■ ·
    ■ ■ ■ ■
    """
    return Mask(
        "prefix", _prefix, arrays=(checks.check_lengths(lengths),), axes=("B",), positional=True
    )


@_means("everyone sees the prefix, the rest is causal")
def _prefix(at: Any, lengths: np.ndarray) -> Any:
    return (at.key < at.samples(lengths)) | (at.key <= at.query)


def padding(
    lengths: Integer[np.ndarray, "B"] | Sequence[int] | None = None,
    *,
    hidden: Bool[np.ndarray, "B S"] | None = None,
) -> Mask:
    """Hide the keys that are padding, by each sample's length or by `sequence_mask`'s array.

    It hides keys, never queries: a padded query still averages its allowed keys. Raises TypeError
    for a wrong kind, ValueError for a wrong shape, a negative length, or both arguments at once.

    >>> print(padding([2, 0]).draw(2, 3))
    ■ ■ ·
    ■ ■ ·
    """
    checks.check_one_of("lengths", lengths, "hidden", hidden)
    if hidden is None:
        return Mask("padding", _padding, arrays=(checks.check_lengths(lengths),), axes=("B",))
    return Mask("padding", _padding_hidden, arrays=(checks.check_hidden(hidden),), axes=("BS",))


@_means("only keys before the sample's length are allowed")
def _padding(at: Any, lengths: np.ndarray) -> Any:
    return at.key < at.samples(lengths)


@_means("keys marked as padding are hidden")
def _padding_hidden(at: Any, hidden: np.ndarray) -> Any:
    return ~at.columns(hidden)


def segments(
    query_ids: Integer[np.ndarray, "B T"] | Sequence,
    key_ids: Integer[np.ndarray, "B S"] | Sequence | None = None,
) -> Mask:
    """Allow a query the keys of its own segment: several documents packed in one row.

    With one argument the ids belong to positions, and `query_offset` moves the queries along
    them; with two they belong to the rows and columns of the call. Raises TypeError unless ids
    are integers, ValueError unless they are rank 2.

    >>> print((segments([[7, 7, 8, 8]]) & causal()).draw(4, 4))
    ■ · · ·
    ■ ■ · ·
    · · ■ ·
    · · ■ ■
    """
    queries = checks.check_ids("query_ids", query_ids)
    if key_ids is None:
        return Mask("segments", _segments, arrays=(queries,), axes=("BS",), positional=True)
    keys = checks.check_ids("key_ids", key_ids)
    return Mask("segments", _segments_pair, arrays=(queries, keys), axes=("BT", "BS"))


@_means("a query sees only the keys of its own segment")
def _segments(at: Any, ids: np.ndarray) -> Any:
    inside = (at.query >= 0) & (at.query < ids.shape[1])
    return inside & (at.positions(ids) == at.columns(ids))


@_means("a query sees only the keys of its own segment")
def _segments_pair(at: Any, query_ids: np.ndarray, key_ids: np.ndarray) -> Any:
    return at.rows(query_ids) == at.columns(key_ids)


def packed(lengths: Integer[np.ndarray, "B N"] | Sequence) -> Mask:
    """Allow a query the keys of its own document, of `lengths` (B, N) laid end to end.

    It is `segments` of the ids that they make, without these. What stands behind the last document
    is in none: no key is allowed, no query attends; a length of 0 fills up a shorter list. Raises
    TypeError unless lengths are integers, ValueError unless they are (B, N) and not negative.

    >>> print((packed([[2, 1]]) & causal()).draw(4, 4))
    ■ · · ·
    ■ ■ · ·
    · · ■ ·
    · · · ·
    """
    lengths = checks.check_lengths(lengths, "BN")
    return Mask("packed", _packed, arrays=(lengths,), axes=("BN",), positional=True)


@_means("a query sees only the keys of its own document")
def _packed(at: Any, lengths: np.ndarray) -> Any:
    query, key = at.documents(lengths)
    return (query == key) & (at.query >= 0) & (key < lengths.shape[1])


def pair_documents(lengths: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Mask:
    """Return `packed(lengths)` for positions of rows (B, T) and columns (B, S)."""
    query, key = count_ends(lengths, rows), count_ends(lengths, columns)
    nowhere = (rows < 0) | (query == lengths.shape[1])
    arrays = (np.where(nowhere, -1, query), key)
    return Mask("part", DocumentsRule("packed", _packed), arrays=arrays, axes=("BT", "BS"))


def allow(array: Bool[np.ndarray, "B H T S"]) -> Mask:
    """Allow a key to a query exactly where the array is True, in the call's own coordinates.

    B and H may be 1. Raises TypeError unless it is bool, ValueError unless it has rank 4.

    >>> print(allow(np.array([[[[True, False], [True, True]]]])).draw(2, 2))
    ■ ·
    ■ ■
    """
    return Mask("allow", _allow, arrays=(checks.check_cells("allow", array),), axes=("BHTS",))


@_means("True in the array is allowed")
def _allow(at: Any, array: np.ndarray) -> Any:
    return at.cells(array)


def hide(array: Bool[np.ndarray, "B H T S"]) -> Mask:
    """Hide a key from a query exactly where the array is True, in the call's own coordinates.

    B and H may be 1. Raises TypeError unless it is bool, ValueError unless it has rank 4.

    >>> print(hide(np.array([[[[True, False], [True, True]]]])).draw(2, 2))
    · ■
    · ·
    """
    return Mask("hide", _hide, arrays=(checks.check_cells("hide", array),), axes=("BHTS",))


@_means("True in the array is hidden")
def _hide(at: Any, array: np.ndarray) -> Any:
    return ~at.cells(array)


def predicate(function: Callable) -> Mask:
    """Let `function(batch, head, query, key)`, four index arrays that broadcast, decide.

    The escape hatch: nothing is known of it until its cells are looked at, so no tile can be
    skipped. It must be pure: within a call it may be asked any number of times. Raises TypeError
    unless it can be called, and when asked unless it returns bool.

    >>> print(predicate(lambda batch, head, query, key: (query + key) % 2 == 0).draw(2, 4,
    ...     query_offset=0))
    ■ · ■ ·
    · ■ · ■
    """
    checks.check_callable("predicate", function)
    return Mask("predicate", _predicate, settings=(function,), positional=True)


@_means("the function decides")
def _predicate(at: Any, function: Callable) -> Any:
    return at.call(function)
