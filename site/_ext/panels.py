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
from mended import MENDED, mended

ABSENT = "Python is not in this build of the site: what follows is what the build showed."
NO_SCRIPT = "<noscript><p>Running needs JavaScript; below is what each panel shows.</p></noscript>"
FIRST = "9 MB to download"
TITLES = {  # of an exercise, by the method that it changes
    "steps": "The formula, computed",
    "mask": "A mask, built",
    "ask": "A mask, asked",
    "multihead": "The module, called",
    "sequence_mask": "A mask, from tokens",
    "look_ahead_mask": "A mask, from two lengths",
}
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
        note = self.env.temp_data.setdefault("no script", NO_SCRIPT)  # once a page
        self.env.temp_data["no script"] = ""
        back = "" if ask == "exercise" else '<button data-part="back">Put the code back</button>'
        return [
            *([raw(note)] if note else []),
            raw(f'<div class="python-panel" {data} role="group" aria-label="{label}">'),
            *given,
            raw(
                '<p class="python-bar" data-part="bar" hidden>'
                f'<button data-part="go" data-first="{first}" data-ready="{verb}">{first}</button>'
                f'<button data-part="stop" disabled>Stop</button>{back}'
                '<span data-part="state" role="status"></span></p>'
                f'<div class="python-shown" data-part="shown">{shown}</div></div>'
                f'<script type="module" src="{up}python/panel.mjs"></script>'
            ),
        ]

    def editor(self, code: str, label: str) -> nodes.raw:
        id, rows = f"code-{self.env.new_serialno('panel')}", max(3, len(code.splitlines()))
        field = f'<textarea id="{id}" rows="{rows}" spellcheck="false">'
        return raw(f'<label for="{id}">{label}</label>{field}\n{escape(code)}</textarea>')


class Python(Panel):
    """Code that a reader changes and runs."""

    has_content = True
    option_spec: ClassVar = {"raises": directives.unchanged_required}

    def run(self):
        code = "\n".join(self.content)
        names = self.env.temp_data.setdefault("python", {"__name__": "page"})
        text, html, raised = execute(code, names, "page", 0)
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
        panel = [self.editor(code, "The adapter")]
        return [*self.framed("judge", "An adapter", panel, page.judge(code)), *self.repair(path)]

    def repair(self, path: Path) -> list:
        """Return one way to mend the adapter, which conforms; [] if none is written."""
        if path.stem not in MENDED:
            return []
        code = mended(path)
        if not page.judge(code).startswith('<p class="verdict"><strong>Conforms'):
            raise self.error(f"judge: a repair must conform: got {page.judge(code)}\n{code}")
        block = nodes.literal_block(code, code, language="python")
        return [
            raw('<details class="repair"><summary>One repair</summary>'),
            block,
            raw("</details>"),
        ]


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
            raw(f'<h4 id="bug-{number}">{number}. {TITLES[mutant.method]}</h4>'),
            nodes.literal_block(code, code, language="python"),
        ]
        if helpers:
            text = "\n\n".join(helpers)
            given.append(raw("<details><summary>What it calls</summary>"))
            given.append(nodes.literal_block(text, text, language="python"))
            given.append(raw("</details>"))
        given.append(raw(choices(number, sorted([right, *wrong]))))
        sentence = exercise.marked(mutant.sentence)
        answer = (
            f'<details class="answer"><summary>The answer</summary><p>{sentence}</p>'
            f"<pre>{escape(broken[right])}</pre></details>"
        )
        return [*self.framed("exercise", f"Exercise {number}", given, "", name), raw(answer)]


def choices(number: str, clauses: list[str]) -> str:
    """Return the choice of a clause as HTML."""
    choice = '<label><input type="radio" name="bug-{}" value="{}"><span><b>{}</b> {}</span></label>'
    said = {id: exercise.marked(exercise.clauses()[id].sentence) for id in clauses}
    rows = [choice.format(number, id, id, text) for id, text in said.items()]
    return f"<fieldset><legend>Which clause breaks?</legend>{''.join(rows)}</fieldset>"


def setup(app):
    app.setup_extension("runtime")
    app.add_directive("python", Python)
    app.add_directive("judge", Judge)
    app.add_directive("exercise", Exercise)
    return {"parallel_read_safe": True}
