"""The cross-attention of a translation, as a picture and as text."""

import logging

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from attn_numpy import draw_weights

FONTS = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
         "PingFang SC", "Microsoft YaHei", "SimHei", "DejaVu Sans"]  # fmt: skip


def text(weights: np.ndarray, words: list[str], characters: list[str]) -> str:
    """Return the weights as shades, a written character a line, the words above their columns."""
    lines = [f"{i + 1:>2} {word}" for i, word in enumerate(words)]
    numbers = " ".join(str(i + 1) for i in range(len(words)))
    rows = zip(draw_weights(weights).splitlines(), characters, strict=True)
    return "\n".join([*lines, numbers, *(f"{row}  {character}" for row, character in rows)])


def draw(weights: np.ndarray, words: list[str], characters: list[str], path) -> None:
    """Write the weights as a picture, words across and written characters down.

    An SVG leaves its letters to the reader's fonts; a PNG needs a font here that has Chinese.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    known = set(font_manager.get_font_names())
    style = {"font.family": [f for f in FONTS if f in known], "svg.fonttype": "none"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(1.5 + 0.7 * len(words), 1.5 + 0.4 * len(characters)))
        axes = figure.subplots()
        image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(words)), words, rotation=30, ha="right")
        axes.set_yticks(range(len(characters)), characters)
        axes.set_xlabel("source")
        axes.set_ylabel("written")
        figure.colorbar(image, label="attention weight")
        figure.savefig(path, bbox_inches="tight")
