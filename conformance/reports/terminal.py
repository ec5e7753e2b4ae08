"""Lines for a terminal: as wide as it is, coloured where it has colours and rich is installed."""

import re
import shutil
from collections.abc import Iterable
from textwrap import wrap
from typing import NamedTuple


class Line(NamedTuple):
    """A line of text, and its style as rich names it."""

    text: str
    style: str = ""


def columns() -> int:
    """Return the width of the terminal; 80 where there is none."""
    return shutil.get_terminal_size().columns


def show(lines: Iterable[Line]) -> None:
    """Print lines; rich leaves colours out where the output is no terminal or NO_COLOR is set."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        print("\n".join(line.text for line in lines), flush=True)
        return
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(Text(line.text, line.style))


def folded(text: str, width: int, style: str = "") -> list[Line]:
    """Return a text as lines of a width; all but the first are indented."""
    inner = " " * (len(text) - len(text.lstrip()) + 2)
    parts = wrap(text, width, subsequent_indent=inner, break_long_words=False)
    return [Line(part, style) for part in parts]


def cut(text: str, width: int) -> str:
    """Return a text of at most a width, without the rest behind a word, or within the only one.

    >>> cut("zero_gives_zeros: output", 13), cut("attention", 5)
    ('zero_gives_…', 'atte…')
    """
    if len(text) <= width:
        return text
    begun = text[: width - 1]
    return (re.sub(r"[^\W_]+$", "", begun) or begun) + "…"


def aligned(rows: list[list[str]], left: Iterable[int]) -> list[str]:
    """Return the rows of a table as text; numbers stand at the right of their column.

    >>> aligned([["profile", "differ"], ["empty", "3"]], left=[0])
    ['profile  differ', 'empty         3']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
