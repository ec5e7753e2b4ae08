"""`explorer`: the page on which every cell of a mask says why it is hidden.

The build writes the first picture by attn_numpy itself, and the rules' own sentences, into
site/explorer/frame.html; the modules beside it draw every other picture. Without scripts the first
picture stays, each cell with its reason. The page alone loads explorer.css and the modules.
"""

import json
import shutil
from html import escape
from pathlib import Path

from answers import atlas, rows
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import attn_numpy

SITE = Path(__file__).parents[1]
MODULES = ["page", "words", "state", "attention", "masks"]  # the first one loads the others

# The first picture, as in START of state.mjs; a browser test compares the two.
T, S, SAMPLE, CELL, OFFSET = 6, 8, 1, {"query": 3, "key": 6}, {"query_offset": 2}
PARTS = {"causal": attn_numpy.causal(), "padding": attn_numpy.padding([8, 5])}
MASK = PARTS["causal"] & PARTS["padding"]
FLOATS = "torch.where(allowed, 0.0"  # in a line that passes no boolean
READS = {"attend": ("true", "attend"), "hide": ("true", "hide"), "add": ("float-inf", "added")}
RULES = [
    *PARTS.values(),
    attn_numpy.sliding_window(0),
    attn_numpy.prefix([0]),
    attn_numpy.segments([[0]]),
    attn_numpy.packed([[1]]),
    attn_numpy.chunked(1),
]


class Explorer(SphinxDirective):
    """The explorer, with its first picture."""

    def run(self):
        frame = SITE / "explorer" / "frame.html"
        for file in (frame, attn_numpy.masks.__file__, __file__):
            self.env.note_dependency(str(file))
        self.env.metadata[self.env.docname]["explorer"] = "yes"
        html = frame.read_text("utf-8")
        for place, text in content(atlas(self.env)).items():
            html = html.replace(f"<!--{place}-->", text)
        return [nodes.raw("", html, format="html")]


def content(data: dict) -> dict[str, str]:
    """Return what the build writes into the frame, by place."""
    sentences = {mask.name: mask.rule.sentence for mask in RULES}
    given = {"sentences": sentences, "libraries": libraries(data)}
    hiding = [legend(name[0].upper(), f"hidden by {name}") for name in PARTS]
    scripts = [f'<link rel="modulepreload" href="_static/explorer/{name}.mjs">' for name in MODULES]
    scripts.append(f'<script type="module" src="_static/explorer/{MODULES[0]}.mjs"></script>')
    return {
        "expression": "causal() &amp; padding([8, 5])",
        "grid": picture(),
        "legend": "".join([legend("■", "allowed"), *hiding]),
        "reason": escape(MASK.explain(SAMPLE, 0, **CELL, **OFFSET)),
        "data": json.dumps(given).replace("<", "\\u003c"),
        "script": "".join(scripts),
    }


def libraries(data: dict) -> dict[str, str]:
    """Return who reads an array by each convention, and who by another, as the atlas has it."""
    told = {name: f"Read so by {readers(data, *read)}." for name, read in READS.items()}
    turned = readers(data, "float-inf", "inverted")
    told["add"] += f" Turned round without a word, so that -inf attends, by {turned}."
    return {name: f"{text} Measured on {data['measured']}." for name, text in told.items()}


def readers(data: dict, question: str, word: str) -> str:
    """Return the libraries, and their functions and layers, which answer a question by a word.

    A variant that reads True only where the library makes the mask of it is left out.
    """
    found = []
    for library, answer, variants in rows(data, question):
        lines = {name: data["peers"][name]["conversion"]["line"] for name in variants}
        taken = [n for n in variants if question != "true" or FLOATS not in lines[n]]
        if answer["word"] == word and taken:
            found.append(f"{' '.join(data['libraries'][library].values())} ({', '.join(taken)})")
    return "; ".join(found)


def legend(sign: str, word: str) -> str:
    kind = 'class="open"' if word == "allowed" else f'data-by="{sign}"'
    return f"<span><i {kind}>{sign}</i> {word}</span>"


def picture() -> str:
    """Return the first mask as a table's rows, as page.mjs draws them."""
    head = "".join(f'<th scope="col">{s}</th>' for s in range(S))
    rows = []
    for t in range(T):
        position = t + OFFSET["query_offset"]
        cells = "".join(cell(t, s) for s in range(S))
        rows.append(f'<tr><th scope="row">{t} <small>at {position}</small></th>{cells}</tr>')
    corner = "<td><small>query \\ key</small></td>"
    return f"<thead><tr>{corner}{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def cell(t: int, s: int) -> str:
    """Return one cell, with the letters of the parts that hide it and with its reason."""
    told = {name: mask.explain(SAMPLE, 0, t, s, **OFFSET) for name, mask in PARTS.items()}
    letters = "".join(name[0].upper() for name in PARTS if told[name].startswith("hidden"))
    kind = f'data-by="{letters}"' if letters else 'class="open"'
    at = " aria-selected" if {"query": t, "key": s} == CELL else ""
    reason = escape(MASK.explain(SAMPLE, 0, t, s, **OFFSET))
    return f'<td {kind}{at} title="{reason}">{letters or "■"}</td>'


def add_css(app, pagename, templatename, context, doctree):
    if "explorer" in app.env.metadata.get(pagename, {}):
        app.add_css_file("explorer.css")


def copy_modules(app, error):
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir, "_static", "explorer")
        folder.mkdir(parents=True, exist_ok=True)
        for name in MODULES:
            shutil.copy(SITE / "explorer" / f"{name}.mjs", folder)


def setup(app):
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", add_css)
    app.connect("build-finished", copy_modules)
    return {"parallel_read_safe": True}
