"""Find the bug: a wrong implementation as an exercise, and what the vectors say of it."""

import ast
import inspect
import re
from html import escape
from textwrap import dedent

from judge import failures, linked, report_on, strong, verdict_of

from conformance import mutants
from conformance.contract import clauses

NEUTRAL = "wrong"  # the name under which a mistake is shown


def broken(name: str, *only: str) -> tuple[dict[str, str], list[str]]:
    """Run vectors on a wrong implementation: each broken clause's failure, and all in short."""
    subject = mutants.load(name)
    subject.name = "this code"
    report = report_on([subject], only or clauses())
    return failures(report, [subject]), verdict_of(report)[1]


def play(name: str, predicted: str) -> str:
    """Return as HTML whether a predicted clause breaks, in the suite's words."""
    found, _ = broken(name, predicted)
    if found:
        said = strong(f"Right: {predicted} breaks.", marked(mutants.named(name).sentence))
        return f"{said}<pre>{escape(found[predicted])}</pre>"
    said = strong(f"No vector of {predicted} breaks. These clauses break:")
    return f"{said}<pre>{linked(chr(10).join(broken(name)[1]))}</pre>"


def shown_code(name: str) -> str:
    """Return the source of a mistake under a neutral name, without the words that tell it."""
    return without_words(inspect.unwrap(mutants.named(name).mistake), NEUTRAL)


def called(name: str) -> list[str]:
    """Return the source of the helpers that a mistake calls."""
    mistake = inspect.unwrap(mutants.named(name).mistake)
    (tree,) = ast.parse(dedent(inspect.getsource(mistake))).body
    nodes = ast.walk(ast.Module(tree.body, []))
    used = dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name))
    helpers = [mistake.__globals__.get(word) for word in used]
    own = "conformance.mutants"
    return [
        inspect.getsource(helper)
        for helper in helpers
        if inspect.isfunction(helper) and helper.__module__.startswith(own)
    ]


def without_words(function, name: str) -> str:
    """Return a function's source under another name, without decorators and docstring."""
    text = dedent(inspect.getsource(function))
    (node,) = ast.parse(text).body
    lines = text.splitlines()
    doc = node.body[0]
    head, rest = lines[node.lineno - 1 : doc.lineno - 1], lines[doc.end_lineno : node.end_lineno]
    text = "\n".join([*head, "\n".join(rest).lstrip("\n")])
    return text.replace(f"def {function.__name__}(", f"def {name}(", 1)


def marked(sentence: str) -> str:
    """Return a sentence as HTML, with its code as code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escape(sentence))
