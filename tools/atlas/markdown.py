"""Pieces of Markdown: tables, numbers, and masks as they are drawn."""

import numpy as np


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table; a cell never breaks it."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def number(x: float) -> str:
    """Return a number in four digits, the way a reader would write it.

    >>> [number(x) for x in (80.2, 0.0, float("nan"), -1e9, 60.142857)]
    ['80.2', '0', 'NaN', '-1e9', '60.14']
    """
    if np.isnan(x):
        return "NaN"
    if np.isinf(x):
        return "inf" if x > 0 else "-inf"
    return f"{x + 0.0:.4g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def numbers(array) -> str:
    """Return an array's numbers in order, rows of more than one apart.

    >>> numbers(np.array([[1.0], [7.0]])), numbers(np.array([[1.0, 7.0], [80.2, np.nan]]))
    ('1, 7', '1, 7 / 80.2, NaN')
    """
    array = np.asarray(array, np.float64)
    if array.ndim > 1 and array.shape[-1] > 1:
        return " / ".join(numbers(row) for row in array.reshape(-1, array.shape[-1]))
    return ", ".join(number(float(x)) for x in array.ravel())


def drawn(array: np.ndarray) -> str:
    """Return a mask's rows: ■ for True and · for False, or its numbers.

    >>> print(drawn(np.array([[True, False], [True, True]])))
    ■ ·
    ■ ■
    """
    array = np.atleast_2d(array)
    if array.dtype == bool:
        return "\n".join(" ".join("■" if x else "·" for x in row) for row in array)
    cells = [[number(float(x)) for x in row] for row in array]
    width = max(len(cell) for row in cells for cell in row)
    return "\n".join(" ".join(cell.rjust(width) for cell in row) for row in cells)


def folded(title: str, text: str) -> str:
    """Return text that opens at a click."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def beside(blocks: list[str], gap: str = "     ") -> str:
    """Return blocks of text next to each other.

    >>> print(beside(["a", "b\\nc"], " "))
    a b
      c
    """
    split = [block.splitlines() for block in blocks]
    height = max(map(len, split))
    widths = [max(map(len, lines), default=0) for lines in split]
    rows = [
        gap.join(
            (lines[i] if i < len(lines) else "").ljust(width)
            for lines, width in zip(split, widths, strict=True)
        ).rstrip()
        for i in range(height)
    ]
    return "\n".join(rows)


def anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading.

    >>> anchor("And by -1e9?")
    'and-by--1e9'
    """
    kept = (c for c in title.lower() if c.isalnum() or c in " -_")
    return "".join(kept).replace(" ", "-")


def evenly(items: list, most: int) -> list[list]:
    """Return the items in parts of about one size, none of more than so many.

    >>> evenly([1, 2, 3, 4, 5], 3)
    [[1, 2, 3], [4, 5]]
    """
    count = -(-len(items) // most)
    size = -(-len(items) // max(count, 1))
    return [items[first : first + size] for first in range(0, len(items), max(size, 1))]
