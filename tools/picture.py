"""Draws the masks of the README: python tools/picture.py writes docs/masks.svg."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "masks.svg"
N, CELL, GAP, TOP, BOTTOM = 8, 20, 44, 26, 34  # positions; the rest in pixels
ALLOWED, HIDDEN, TEXT = "#2f81f7", "#8b949e", "#8b949e"  # readable on white and on black


def masks() -> dict:
    """Return the masks that are drawn, by their code."""
    sys.path.insert(0, str(ROOT))
    from attn_numpy import causal, packed, padding, sliding_window

    return {
        "causal()": causal(),
        "sliding_window(2)": sliding_window(2),
        "causal() & padding([5])": causal() & padding([5]),
        "causal() & packed(lengths)": causal() & packed([[3, 4, 1]]),
    }


def grid(code: str, mask, left: int) -> str:
    """Draw one mask: a row is a query, a column is a key, a filled square is allowed."""
    (allowed,) = mask.allowed(N, N)[0]
    squares = []
    for query, row in enumerate(allowed):
        for key, cell in enumerate(row):
            at = f'x="{left + key * CELL + 1}" y="{TOP + query * CELL + 1}"'
            look = f'fill="{ALLOWED}"' if cell else f'fill="{HIDDEN}" fill-opacity="0.18"'
            squares.append(f'<rect {at} width="{CELL - 2}" height="{CELL - 2}" rx="3" {look}/>')
    middle, below = left + N * CELL // 2, TOP + N * CELL + 22
    keys = f'<text x="{middle}" y="{TOP - 9}" font-size="12">keys</text>'
    name = f'<text x="{middle}" y="{below}" font-size="13">{code.replace("&", "&amp;")}</text>'
    where = f'x="{left - 9}" y="{TOP + N * CELL // 2}"'
    turned = f'transform="rotate(-90 {left - 9} {TOP + N * CELL // 2})"'
    queries = f'<text {where} {turned} font-size="12">queries</text>'
    return "\n".join([*squares, keys, queries, name])


def picture() -> str:
    """Return the whole drawing as SVG."""
    width = N * CELL + GAP
    grids = [grid(*named, GAP // 2 + i * width) for i, named in enumerate(masks().items())]
    size = f'viewBox="0 0 {len(grids) * width} {TOP + N * CELL + BOTTOM}"'
    style = f'font-family="ui-monospace, monospace" text-anchor="middle" fill="{TEXT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>Allowed cells of four masks, queries by keys</title>"
    return "\n".join([head, title, f"<g {style}>", *grids, "</g>", "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")
