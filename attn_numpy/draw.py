"""Masks and weights as text for `print`, and as tables for a notebook.

A table needs no script, and reads in light and dark, in black and white, and without its style.
All three backends have this file byte for byte.
"""

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float

from . import checks
from .arrays import Array

SHADES = "·░▒▓█"
LONGEST = 32  # rows or columns of a table: a notebook keeps every cell's words
MOST = 4096  # cells of all its grids
BLUE = "#3a7fc1"  # stands out against white and against black
STYLE = """<style>
.attn-drawing.attn-drawing {overflow-x: auto; font-size: .85rem; line-height: 1.25}
.attn-drawing.attn-drawing p {margin: .2em 0 .5em}
.attn-drawing.attn-drawing table {display: inline-table; width: auto; margin: 0 1.5em .8em 0; border: 0; border-collapse: collapse; vertical-align: top; font-size: inherit}
.attn-drawing.attn-drawing caption {padding: 0 0 .2em; text-align: left; font-size: inherit; color: inherit}
.attn-drawing.attn-drawing :is(thead, tr) {border: 0; background: none !important}
.attn-drawing.attn-drawing :is(th, td) {min-width: 1.7em; height: 1.7em; padding: 0 .25em; border: 0; background: none; color: inherit; font-weight: normal; text-align: center; vertical-align: middle; white-space: pre}
.attn-drawing.attn-drawing thead th {vertical-align: bottom}
.attn-drawing.attn-drawing tbody th {text-align: right}
.attn-drawing.attn-drawing .down {height: auto; padding: .3em 0; text-align: right; writing-mode: vertical-rl}
.attn-drawing.attn-drawing td[title] {padding: 0; border: 1px solid #8888; print-color-adjust: exact}
.attn-drawing.attn-drawing .masked td[title] {background: repeating-linear-gradient(45deg, #8888 0 1px, #0000 1px 6px)}
@media (forced-colors: none) {.attn-drawing.attn-drawing td[style] {-webkit-text-fill-color: #0000}}
</style>
"""  # noqa: E501


class Drawing(str):
    """A drawing: `print` shows the text, a notebook the table."""

    table: str

    def __new__(cls, text: str, table: str = "") -> "Drawing":
        """Keep the table beside the text."""
        drawing = super().__new__(cls, text)
        drawing.table = table
        return drawing

    __repr__ = str.__str__

    def _repr_html_(self) -> str:
        return self.table


class Cell(NamedTuple):
    """A cell of a table: its sign, how far it is filled, from 0 to 1, and the words on it."""

    sign: str
    fill: float
    words: str


def draw_cells(allowed: Bool[Array, "T S"], table: str = "") -> Drawing:
    """Draw which key (across) each query (down) sees: ■ allowed, · hidden.

    >>> from .masks import causal
    >>> print(draw_cells(causal().allowed(2, 3, query_offset=0)[0, 0]))
    ■ · ·
    ■ ■ ·
    """
    rows = (" ".join("■" if cell else "·" for cell in row) for row in allowed.tolist())
    return Drawing("\n".join(rows), table)


def draw_weights(
    weights: Float[Array, "T S"] | Float[Array, "B H T S"],
    *,
    query_labels: Sequence[str] | None = None,
    key_labels: Sequence[str] | None = None,
) -> Drawing:
    """Draw attention weights, keys across and queries down, from · (0) by quarters to █ (1).

    A weight is rounded up, so only an exact 0 is drawn as ·; NaN is drawn as ?. Of (B, H, T, S)
    the heads are drawn side by side. Labels, T and S of them, are the tokens, say. A notebook
    shows a table with the number on each cell. Raises ValueError for another rank, and for labels
    that do not fit.

    >>> from .masks import causal
    >>> weights, words = 0.3 * causal().allowed(2, 2), ["I", "am"]
    >>> print(draw_weights(weights, query_labels=words, key_labels=words))
    head 0
      a
    I m
    ▒ ·     I
    ▒ ▒     am
    """
    checks.check_drawn(weights)
    T, S = weights.shape[-2:]
    queries = checks.check_labels("query_labels", query_labels, "T", T)
    keys = checks.check_labels("key_labels", key_labels, "S", S)
    if weights.ndim == 2:
        samples = [{"": weights.tolist()}]
    else:
        which = "sample {}, head {}" if len(weights) > 1 else "head {1}"
        samples = [
            {which.format(b, h): grid for h, grid in enumerate(heads)}
            for b, heads in enumerate(weights.tolist())
        ]
    text = "\n\n".join(_text(grids, queries or [""] * T, keys or [""] * S) for grids in samples)
    return Drawing(text, _weights_table(samples, queries, keys, T, S))


def _shade(weight: float) -> str:
    if not 0 <= weight <= 1.001:
        return "?"
    return SHADES[min(math.ceil(weight * 4), 4)]


def _text(grids: dict[str, list], queries: list[str], keys: list[str]) -> str:
    """Draw grids side by side: key labels read downwards, query labels stand at the end."""
    width = max([2 * len(keys) + 1, *(len(title) + 2 for title in grids)])
    lines = ["".join(title.ljust(width) for title in grids)] if any(grids) else []
    height = max(map(len, keys), default=0)
    for letters in zip(*(key.rjust(height) for key in keys), strict=True):
        columns = "".join(
            c if unicodedata.east_asian_width(c) in "WF" else f"{c} " for c in letters
        )
        lines.append((columns + " " * (width - 2 * len(keys))) * len(grids))
    for t, query in enumerate(queries):
        rows = (" ".join(map(_shade, grid[t])).ljust(width) for grid in grids.values())
        lines.append("".join(rows) + query)
    return "\n".join(line.rstrip() for line in lines)


# Tables


def mask_table(words: str, S: int, reasons: list[list[str]]) -> str:
    """Return a table of what `explain` says of cells: of all, or of the first rows and columns.

    A fully masked row is marked as such where all of its cells are there.
    """
    rows = []
    for query, row in enumerate(reasons):
        allowed = [reason.startswith("allowed") for reason in row]
        cells = [Cell("■" if a else "·", a, reason) for a, reason in zip(allowed, row, strict=True)]
        masked = len(row) == S and not any(allowed)
        rows.append(_row(str(query), cells, "fully masked" if masked else ""))
    return html_of(words, _grid("", range(min(S, LONGEST)), rows))


def _weights_table(
    samples: list[dict[str, list]], queries: list[str], keys: list[str], T: int, S: int
) -> str:
    every = [(title, grid) for grids in samples for title, grid in grids.items()]
    most = max(MOST // max(min(T, LONGEST) * min(S, LONGEST), 1), 1)
    tables = []
    for title, grid in every[:most]:
        rows = []
        for t, weights in enumerate(grid[:LONGEST]):
            cells = [
                Cell(_shade(w), w, f"query {_name(t, queries)}, key {_name(s, keys)}: {w:.4g}")
                for s, w in enumerate(weights[:LONGEST])
            ]
            note = "" if any(weights) else "all 0"
            rows.append(_row(queries[t] if queries else str(t), cells, note))
        columns = (keys or range(S))[:LONGEST]
        tables.append(_grid(title, columns, rows, bool(keys)))
    shown = f", the first {most} of {len(every)} grids" if most < len(every) else ""
    return html_of(f"attention weights; {sizes_of(T, S)}{shown}", "".join(tables))


def sizes_of(T: int, S: int) -> str:
    """Say how large a drawing is, and how much of it a table shows."""
    shown = f", the first {LONGEST} of them" if max(T, S) > LONGEST else ""
    return f"T = {T} queries down, S = {S} keys across{shown}"


def html_of(words: str, tables: str = "") -> str:
    """Return words and tables, as HTML that a notebook can show."""
    words = html.escape(words)
    group = f'<div class="attn-drawing" role="group" aria-label="{words}" tabindex="0">'
    return f"{STYLE}{group}<p>{words}</p>{tables}</div>"


def _name(place: int, labels: list[str]) -> str:
    return f"{place} ({labels[place]})" if labels else str(place)


def _grid(title: str, keys: Sequence, rows: list[str], down: bool = False) -> str:
    kind = ' class="down"' if down else ""
    caption = f"<caption>{title}</caption>" if title else ""
    columns = "".join(f'<th scope="col"{kind}>{html.escape(str(key))}</th>' for key in keys)
    head = f"<thead><tr><td></td>{columns}</tr></thead>"
    return f"<table>{caption}{head}<tbody>{''.join(rows)}</tbody></table>"


def _row(label: str, cells: list[Cell], note: str) -> str:
    shown = "".join(map(_cell, cells))
    end, masked = (f"<td>{note}</td>", ' class="masked"') if note else ("", "")
    return f'<tr{masked}><th scope="row">{html.escape(label)}</th>{shown}{end}</tr>'


def _cell(cell: Cell) -> str:
    style = ""
    if cell.sign not in "·?":
        style = f' style="background: {BLUE}{max(round(255 * min(cell.fill, 1)), 24):02x}"'
    return f'<td title="{html.escape(cell.words)}"{style}>{cell.sign}</td>'
