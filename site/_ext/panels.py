"""Panels in which a reader runs Python: `python`, `judge` and `exercise`.

    ```{python}
    print(causal().draw(3, 3))
    ```

    ```{judge} python/adapters/mean.py
    ```

    ```{exercise} 1 inverted
    :right: CAUSE-1
    :wrong: ATT-5 EMPTY-1 MASK-7
    ```

What a panel shows is there from the build on: a page is complete without a script. `:raises:` of
`python` is as in `run`. The build plays each exercise, and fails if the right clause does not
break, if the mutant does not name it, or if a wrong one breaks.
"""

import re
import sys
from html import escape
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from execute import execute
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

import exercise
import page

ABSENT = "Python is not in this build of the site: what follows is what the build showed."
FIRST = "loads Python, 9 MB"
FENCE = re.compile(r"```python\n(.*?)\n```", re.DOTALL)


def raw(html: str) -> nodes.raw:
    return nodes.raw("", html, format="html")


class Panel(SphinxDirective):
    """What panels share: the frame, the buttons, and what the build shows."""

    def framed(self, ask: str, label: str, given: list, shown: str, name="") -> list:
        if not self.config.python_in_build:
            note = self.env.temp_data.setdefault("absent", ABSENT)  # once a page
            self.env.temp_data["absent"] = ""
            return [*([raw(f"<p><em>{note}</em></p>")] if note else []), *given, raw(shown)]
        verb = "Judge" if ask == "judge" else "Run"
        first, up = f"{verb} ({FIRST})", "../" * self.env.docname.count("/")
        data = f'data-ask="{ask}" data-name="{name}"'
        return [
            raw(f'<div class="python-panel" {data} role="group" aria-label="{label}">'),
            *given,
            raw(
                '<p class="python-bar" data-part="bar" hidden>'
                f'<button data-part="go" data-first="{first}" data-ready="{verb}">{first}</button>'
                '<button data-part="stop" disabled>Stop</button>'
                '<span data-part="state" role="status"></span></p>'
                f'<div class="python-shown" data-part="shown">{shown}</div></div>'
                f'<script type="module" src="{up}python/panel.mjs"></script>'
            ),
        ]

    def editor(self, code: str, label: str) -> nodes.raw:
        id, rows = f"code-{self.env.new_serialno('panel')}", max(3, len(code.splitlines()))
        field = f'<textarea id="{id}" rows="{rows}" spellcheck="false" wrap="off">'
        return raw(f'<label for="{id}">{label}</label>{field}\n{escape(code)}</textarea>')


class Python(Panel):
    """Code that a reader changes and runs."""

    has_content = True
    option_spec: ClassVar = {"raises": directives.unchanged_required}

    def run(self):
        code = "\n".join(self.content)
        names = self.env.temp_data.setdefault("python", {"__name__": "page"})
        text, html, raised = execute(code, names, *self.get_source_info())
        if raised != self.options.get("raises"):
            expected = self.options.get("raises", "no exception")
            raise self.error(f"python: expected {expected}: got {text}\n{code}")
        shown = (f"<pre>{escape(text)}</pre>" if text else "") + html
        return self.framed("run", "Python", [self.editor(code, "Python, yours to change")], shown)


class Judge(Panel):
    """An adapter that a reader changes and has judged."""

    required_arguments = 1

    def run(self):
        path = Path(__file__).parents[1] / self.arguments[0]
        self.env.note_dependency(str(path))
        code = path.read_text("utf-8").rstrip()
        if path.suffix == ".md":  # its first class
            code = next(found[1] for found in FENCE.finditer(code) if "class " in found[1])
        shown = page.judge(code)
        return self.framed("judge", "An adapter", [self.editor(code, "The adapter")], shown)


class Exercise(Panel):
    """A wrong implementation, and the question which clause it breaks."""

    required_arguments = 2  # a number and a mutant's name
    option_spec: ClassVar = dict.fromkeys(("right", "wrong"), directives.unchanged_required)

    def run(self):
        number, name = self.arguments
        right, wrong = self.options["right"], self.options["wrong"].split()
        mutant, (broken, _) = exercise.mutants.named(name), exercise.broken(name, right, *wrong)
        if {*broken} != {right} or {right, *wrong} & {*mutant.clauses} != {right}:
            raise self.error(f"exercise {name}: {right} alone breaks: got {[*broken]}")
        code = exercise.shown_code(name)
        helpers = exercise.called(name)
        given = [
            raw(f'<h3 id="bug-{number}">{number}. In front of <code>{mutant.method}</code></h3>'),
            nodes.literal_block(code, code, language="python"),
        ]
        if helpers:
            text = "\n\n".join(helpers)
            given.append(raw("<details><summary>What it calls</summary>"))
            given.append(nodes.literal_block(text, text, language="python"))
            given.append(raw("</details>"))
        given.append(raw(choices(number, sorted([right, *wrong]))))
        answer = (
            f'<details class="answer"><summary>The answer</summary><p>{escape(mutant.sentence)}</p>'
            f"<pre>{escape(broken[right])}</pre></details>"
        )
        return [*self.framed("exercise", f"Exercise {number}", given, "", name), raw(answer)]


def choices(number: str, clauses: list[str]) -> str:
    """Return the choice of a clause as HTML."""
    choice = '<label><input type="radio" name="bug-{}" value="{}"><span><b>{}</b> {}</span></label>'
    said = map(exercise.sentence, clauses)
    rows = [choice.format(number, id, id, text) for id, text in zip(clauses, said, strict=True)]
    return f"<fieldset><legend>Which clause breaks?</legend>{''.join(rows)}</fieldset>"


def setup(app):
    app.setup_extension("runtime")
    app.add_directive("python", Python)
    app.add_directive("judge", Judge)
    app.add_directive("exercise", Exercise)
    return {"parallel_read_safe": True}
