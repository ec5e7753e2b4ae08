"""`run`: code that is executed when the page is built, anywhere on it, tabs included.

    ```{run}
    print(causal().draw(3, 3))
    ```

A page has one namespace, and its code runs in the page's order. Under the code stands what it
prints, and the value of a last expression, as in a notebook: as HTML if it has `_repr_html_`. An
exception fails the build, unless `:raises: TypeError` announces it: then its text is shown, and the
build fails if it does not come. `:hide:` runs without showing the code. Code in a plain `python`
fence is not run.
"""

from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from execute import execute
from sphinx.util.docutils import SphinxDirective


class Run(SphinxDirective):
    """A block of code, and what it prints."""

    has_content = True
    option_spec: ClassVar = {"raises": directives.unchanged_required, "hide": directives.flag}

    def run(self):
        for file in Path(__file__).parents[2].glob("attn_*/*.py"):
            self.env.note_dependency(str(file))  # a change to the code runs the page anew
        code, expected = "\n".join(self.content), self.options.get("raises")
        names = self.env.temp_data.setdefault("run", {"__name__": self.env.docname})
        shown, html, raised = execute(code, names, *self.get_source_info())
        if raised != expected:
            raise self.error(f"run: expected {expected or 'no exception'}: got {shown}\n{code}")
        blocks = [] if "hide" in self.options else [block(code, "python", "code")]
        if shown:
            blocks.append(block(shown, "text", "raised" if raised else "shown"))
        if html:
            blocks.append(nodes.raw("", f'<div class="shown">{html}</div>', format="html"))
        return blocks


def block(text: str, language: str, role: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language=language, classes=[role])


def setup(app):
    app.add_directive("run", Run)
    return {"parallel_read_safe": True}
