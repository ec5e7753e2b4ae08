"""What libraries do, quoted from docs/atlas.json with version and date.

    ```{answers} causal-one-query
    ```

    One query sees {answer}`torch-sdpa causal-one-query` in PyTorch's function.

`answers` is a table: for each library, which of its variants give which answer. `answer` is one
answer's word; its version and date are what a pointer sees. `libraries` names those with a variant
that answers so: {libraries}`true attend`. `glance` is a table of several questions, a line of its
text for each, and `conversions` are the lines that take a mask to each library. Whoever asks for a
name that the atlas does not have fails the build.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective, SphinxRole


def atlas(env) -> dict:
    """Return the atlas' data; a page that quotes it is built anew when it changes."""
    file = Path(env.srcdir).parent / "docs" / "atlas.json"
    env.note_dependency(str(file))
    return json.loads(file.read_text("utf-8"))


def one_of(table: dict, what: str, name: str):
    """Return an entry. Raises ValueError where there is none."""
    if name not in table:
        raise ValueError(f"{what} must be one of {', '.join(table)}: got {name}")
    return table[name]


def rows(data: dict, question: str) -> list[tuple[str, dict, list[str]]]:
    """Return library, answer and the variants that give it; whoever offers nothing is left out."""
    found: dict[tuple[str, str], tuple[dict, list[str]]] = {}
    for name, peer in data["peers"].items():
        answer = peer["answers"][question]
        if answer["kind"] != "not offered":
            key = peer["library"], answer["word"]
            found.setdefault(key, (answer, []))[1].append(name)
    order = list(data["libraries"])
    return sorted(((key[0], *own) for key, own in found.items()), key=lambda r: order.index(r[0]))


class Answers(SphinxDirective):
    """A table of libraries."""

    required_arguments = 1

    def run(self):
        data, name = atlas(self.env), self.arguments[0]
        try:
            question = one_of(data["questions"], "a question", name)
        except ValueError as error:
            raise self.error(str(error)) from None
        lines = ["| library | answer | which is | gives | variants |", "|---|---|---|---|---|"]
        for library, answer, variants in rows(data, name):
            own = data["libraries"][library]
            cells = [f"{own['name']} {own['version']}", f"**{answer['word']}**"]
            known = question["answers"].get(answer.get("answer"), answer)
            cells += [known.get("means", ""), known.get("gives", "")]
            cells += [", ".join(f"`{variant}`" for variant in variants)]
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        link = f"[{question['title']}](/reference/atlas.md#{anchor(question['title'])})"
        lines += ["", f"Measured on {data['measured']}, on a CPU: {link}"]
        return [
            nodes.container("", *self.parse_text_to_nodes("\n".join(lines)), classes=["answers"])
        ]


class Answer(SphinxRole):
    """A word."""

    def run(self):
        data = atlas(self.env)
        try:
            peer, question = self.text.split()
            answers = one_of(data["peers"], "a peer", peer)
            answer = one_of(answers["answers"], "a question", question)
        except ValueError as error:
            return [], [self.inliner.reporter.error(str(error), line=self.lineno)]
        versions = ", ".join(f"{name} {v}" for name, v in answers["versions"].items())
        known = data["questions"][question]["answers"].get(answer.get("answer"), answer)
        said = f"{known.get('means') or answer['word']}: {peer}, {versions}, {data['measured']}"
        shown = nodes.abbreviation(self.rawtext, answer["word"], classes=["answer"])
        shown["explanation"] = said
        return [shown], []


class Libraries(SphinxRole):
    """The names of libraries, or how many there are: `true attend`, `true attend count`."""

    def run(self):
        data = atlas(self.env)
        question, _, asked = self.text.partition(" ")
        word = asked.removesuffix(" count")
        try:
            one_of(data["questions"], "a question", question)
        except ValueError as error:
            return [], [self.inliner.reporter.error(str(error), line=self.lineno)]
        named = [name for name, answer, _ in rows(data, question) if answer["word"] == word]
        names = [data["libraries"][name]["name"] for name in named]
        if not names:
            text = f"an answer must be somebody's: got {self.text}"
            return [], [self.inliner.reporter.error(text, line=self.lineno)]
        shown = (
            f"{len(names)}" if asked != word else " and ".join([", ".join(names[:-1]), names[-1]])
        )
        return [nodes.inline(self.rawtext, shown.removeprefix(" and "))], []


class Glance(SphinxDirective):
    """A table of the variants that answer alike by the questions of its lines, `name: head`."""

    has_content = True

    def run(self):
        data, heads = atlas(self.env), dict(line.split(": ", 1) for line in self.content)
        try:
            asked = {name: one_of(data["questions"], "a question", name) for name in heads}
        except ValueError as error:
            raise self.error(str(error)) from None
        found: dict[tuple, list[str]] = {}
        for name, peer in data["peers"].items():
            words = tuple(peer["answers"][question]["word"] for question in asked)
            found.setdefault((peer["library"], *words), []).append(name)
        linked = [
            f"[{heads[n]}](/reference/atlas.md#{anchor(q['title'])})" for n, q in asked.items()
        ]
        lines = [["library", *linked, "variants"], ["---"] * (len(heads) + 2)]
        for (library, *words), variants in found.items():
            own = data["libraries"][library]
            lines.append([f"{own['name']} {own['version']}", *(f"**{word}**" for word in words)])
            lines[-1].append(", ".join(f"`{variant}`" for variant in variants))
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        shown = self.parse_text_to_nodes(f"{text}\n\nMeasured on {data['measured']}, on a CPU.")
        return [nodes.container("", *shown, classes=["answers"])]


class Conversions(SphinxDirective):
    """A tab for each library: the lines that take a mask to it."""

    def run(self):
        data, text = atlas(self.env), ["::::{tab-set}", ":class: conversions", ""]
        for library, own in data["libraries"].items():
            text += [f":::{{tab-item}} {own['name']}", ""]
            said: dict[tuple, str] = {}
            for name, peer in data["peers"].items():
                if peer["library"] == library:
                    said.setdefault(tuple(peer["conversion"].values()), name)
            for (about, layout, line), name in said.items():
                word = data["peers"][name]["answers"]["true"]["answer"]
                means = data["questions"]["true"]["answers"][word]["means"]
                text += [f"**{about}**: {means}; inputs ({', '.join(layout.split())})", ""]
                text += ["```python", line, "```", ""]
            text += [f"{own['name']} {own['version']}, run on {data['measured']}.", ":::", ""]
        return self.parse_text_to_nodes("\n".join([*text, "::::"]))


def anchor(title: str) -> str:
    """Return the anchor of a heading of the atlas."""
    kept = (c for c in title.lower() if c.isalnum() or c in " -_")
    return "".join(kept).replace(" ", "-")


def setup(app):
    app.add_directive("answers", Answers)
    app.add_directive("glance", Glance)
    app.add_directive("conversions", Conversions)
    app.add_role("answer", Answer())
    app.add_role("libraries", Libraries())
    return {"parallel_read_safe": True}
