"""Mutants by rule: small changes of a file's operators, numbers, arguments and statements.

Each replaces the text of one place, so that the file differs there only. Docstrings, annotations
and texts are left alone. Neither cosmic-ray nor mutmut serves: the former starts a cold process for
each mutant, the latter rewrites functions, which no longer compile; neither knows two suites.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .mutant import PATCHES, ROOT, SourceMutant

EQUIVALENT = PATCHES.with_name("equivalent.toml")
Reasons = dict[tuple[str, str, str], str]  # by file, line, and the line after a change
Edit = tuple[int, int, str]  # from, to, the new text

COMPARISONS = {
    "<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"), "==": ("!=",),
    "!=": ("==",), "is not": ("is",), "is": ("is not",), "not in": ("in",), "in": ("not in",),
}  # fmt: skip
ARITHMETIC = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "//", "**": "*", "&": "|", "|": "&",
}  # fmt: skip
BOTH_WAYS = (
    ("min", "max"), ("any", "all"), ("minimum", "maximum"), ("argmin", "argmax"), ("amin", "amax"),
    ("zeros", "ones"), ("zeros_like", "ones_like"), ("floor", "ceil"), ("tril", "triu"),
    ("cumsum", "cumprod"), ("sum", "prod"), ("isnan", "isinf"), ("logical_and", "logical_or"),
)  # fmt: skip
TWINS = dict(BOTH_WAYS) | {b: a for a, b in BOTH_WAYS}
OPERATOR = re.compile(r"is\s+not|not\s+in|is|in|and|or|[-+*/%&|<>=!@^]+")


def operators(backend: str, root: Path = ROOT, equivalent: Path = EQUIVALENT) -> list[SourceMutant]:
    """Return every mutant by rule of a backend's files, those that no call can show marked."""
    reasons = excused(equivalent)
    files = sorted((root / f"attn_{backend}").glob("*.py"))
    return [m for file in files for m in of_file(file, root, reasons)]


def excused(path: Path) -> Reasons:
    """Return the reasons why changes of a line show nothing, by file, line, and line after it.

    Raises ValueError where a table lacks something.
    """
    tables = tomllib.loads(path.read_text("utf-8")).get("change", []) if path.exists() else []
    for table in tables:
        if table.keys() != {"file", "line", "becomes", "reason"}:
            raise ValueError(f"{path.name}: a change has file, line, becomes, reason: got {table}")
    return {(t["file"], t["line"], t["becomes"]): t["reason"] for t in tables}


def of_file(
    path: Path, root: Path, reasons: dict[tuple[str, str, str], str]
) -> Iterator[SourceMutant]:
    """Give the mutants of a file, in the order of its text."""
    source, file = path.read_text("utf-8"), path.relative_to(root).as_posix()
    place = Places(source)
    for start, end, new in sorted(set(edits(ast.parse(source), place))):
        old = source[start:end]
        line = source.count("\n", 0, start) + 1
        column = start - source.rfind("\n", 0, start)
        name = f"{path.stem}:{line}:{column}:{' '.join(new.split()) or 'nothing'}"
        mutant = SourceMutant(name, file, "", source, start, old, new, kind="operator")
        before, after = mutant.before_and_after()
        reason = reasons.get((file, before, after), "")
        yield replace(mutant, sentence=f"`{before}` becomes `{after}`", equivalent=reason)


class Places:
    """Where nodes of the tree stand in the text: the tree counts bytes of UTF-8."""

    def __init__(self, source: str):
        self.source, self.lines = source, source.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def at(self, line: int, column: int) -> int:
        text = self.lines[line - 1].encode()[:column]
        return self.starts[line - 1] + len(text.decode())

    def of(self, node: ast.AST) -> tuple[int, int]:
        start = self.at(node.lineno, node.col_offset)  # type: ignore[attr-defined]
        return start, self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        return self.source[slice(*self.of(node))]

    def between(self, left: ast.AST, right: ast.AST) -> tuple[int, int, str]:
        """Return where the operator between two nodes stands, and which it is."""
        start, end = self.of(left)[1], self.of(right)[0]
        found = OPERATOR.search(self.source, start, end)
        if not found:
            raise ValueError(f"an operator must stand there: got {self.source[start:end]!r}")
        return *found.span(), " ".join(found[0].split())


def edits(tree: ast.AST, place: Places) -> Iterator[Edit]:
    """Give every change below a node."""
    for node in parts(tree):
        yield from edits(node, place)
        for rule in RULES.get(type(node), ()):
            yield from rule(node, place)


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """Give the nodes directly below one, but no annotation, decorator, text or raised error."""
    left_out: set[int] = {id(n) for n in getattr(node, "decorator_list", ())}
    left_out |= {id(getattr(node, name, None)) for name in ("annotation", "returns")}
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    for part in ast.iter_child_nodes(node):
        if id(part) not in left_out:
            yield part


def comparison(node: ast.Compare, place: Places) -> Iterator[Edit]:
    for left, right in zip([node.left, *node.comparators], node.comparators, strict=False):
        start, end, old = place.between(left, right)
        yield from ((start, end, new) for new in COMPARISONS[old])


def arithmetic(node: ast.BinOp, place: Places) -> Iterator[Edit]:
    start, end, old = place.between(node.left, node.right)
    if old in ARITHMETIC:
        yield start, end, ARITHMETIC[old]


def in_place(node: ast.AugAssign, place: Places) -> Iterator[Edit]:
    start, end, old = place.between(node.target, node.value)
    if old[:-1] in ARITHMETIC:
        yield start, end, ARITHMETIC[old[:-1]] + "="


def and_or(node: ast.BoolOp, place: Places) -> Iterator[Edit]:
    for left, right in zip(node.values, node.values[1:], strict=False):
        start, end, old = place.between(left, right)
        yield start, end, "or" if old == "and" else "and"


def unary(node: ast.UnaryOp, place: Places) -> Iterator[Edit]:
    if not isinstance(node.op, ast.UAdd):
        start = place.of(node)[0]
        yield start, start + (3 if isinstance(node.op, ast.Not) else 1), ""


def condition(node: ast.If | ast.IfExp | ast.While, place: Places) -> Iterator[Edit]:
    start, end = place.of(node.test)
    yield start, end, "False"
    if not isinstance(node, ast.While):
        yield start, end, "True"


def constant(node: ast.Constant, place: Places) -> Iterator[Edit]:
    start, end = place.of(node)
    if isinstance(node.value, bool):
        yield start, end, str(not node.value)
    elif isinstance(node.value, int | float):
        yield start, end, repr(node.value + 1)
        if node.value > 0:
            yield start, end, repr(node.value - 1)


def call(node: ast.Call, place: Places) -> Iterator[Edit]:
    """Drop a keyword argument, take the twin of a function, swap the branches of `where`."""
    start, end = place.of(node.func)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else place.text(node.func)
    if name in TWINS:
        yield end - len(name), end, TWINS[name]
    if name == "where" and len(node.args) == 3:
        (a, b), (c, d) = place.of(node.args[1]), place.of(node.args[2])
        yield a, d, place.source[c:d] + place.source[b:c] + place.source[a:b]
    for keyword in node.keywords:
        if keyword.arg:
            start, end = place.of(keyword)
            comma = re.compile(r",\s*").match(place.source, end)
            yield start, comma.end() if comma else end, ""


def statement(node: ast.stmt, place: Places) -> Iterator[Edit]:
    """Delete what is done for its effect: a call, a write into something, a name that changes."""
    if isinstance(node, ast.Expr):
        effect = isinstance(node.value, ast.Call)
    elif isinstance(node, ast.Assign):
        target = node.targets[0]
        used = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        again = isinstance(target, ast.Name) and target.id in used
        effect = again or isinstance(target, ast.Subscript | ast.Attribute)
    else:
        effect = True
    if effect:
        yield *place.of(node), "pass"


RULES: dict[type, tuple] = {
    ast.Compare: (comparison,),
    ast.BinOp: (arithmetic,),
    ast.AugAssign: (in_place, statement),
    ast.BoolOp: (and_or,),
    ast.UnaryOp: (unary,),
    ast.If: (condition,),
    ast.IfExp: (condition,),
    ast.While: (condition,),
    ast.Constant: (constant,),
    ast.Call: (call,),
    ast.Expr: (statement,),
    ast.Assign: (statement,),
    ast.Continue: (statement,),
    ast.Break: (statement,),
}
