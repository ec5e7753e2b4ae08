"""Compares the three backends by their sources, definition by definition.

Files, names, order, parameters, bodies; of a docstring the first line, and what is raised. Bodies
are compared without comments, and with the frameworks' names set aside.
A difference is one line: the file, the name, what differs, and what each backend has.
"""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations, zip_longest
from pathlib import Path

BACKENDS = ("numpy", "torch", "jax")
THERE, MISSING = "there", "missing"
FRAMEWORK = re.compile(r"\b(np|numpy|torch|jnp|jax)\.")  # np.float32 is torch.float32
MODULES = ("np", "numpy", "torch", "jnp", "jax")
SAME = {"ndarray": "Array", "Tensor": "Array", "keepdim": "keepdims"}  # in the text of a body
END = "nothing more"
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Difference:
    """One thing that is not the same in all backends, and what each of them has."""

    file: str
    name: str
    what: str
    has: dict[str, str]

    def __str__(self) -> str:
        place = f"{self.file}: {self.name}" if self.name else self.file
        return f"{place}: {self.what}: {', '.join(f'{b} {text}' for b, text in self.has.items())}"


class Mirror:
    """Compares attn_numpy, attn_torch and attn_jax of a root; `words` are names for one thing."""

    def __init__(self, root: Path, words: list[dict]):
        self.folders = {backend: root / f"attn_{backend}" for backend in BACKENDS}
        common = [("/".join(dict.fromkeys(word[b] for b in BACKENDS)), word) for word in words]
        self.words = {b: {word[b]: name for name, word in common} for b in BACKENDS}
        self.used: set[tuple[str, str]] = set()

    def differences(self) -> Iterator[Difference]:
        files = {backend: _files(folder) for backend, folder in self.folders.items()}
        for file in sorted(set().union(*files.values())):
            there = {b: self.folders[b] / file for b in BACKENDS if file in files[b]}
            yield from _texts(file, "", "file", {b: _has(file, files[b]) for b in BACKENDS})
            if file.endswith(".py"):
                trees = {b: ast.parse(path.read_text("utf-8")) for b, path in there.items()}
                yield from self._bodies(file, "", trees)

    def _bodies(self, file: str, name: str, nodes: dict) -> Iterator[Difference]:
        """Compare modules or classes: the first line, the definitions, then each of them."""
        lines = {backend: _first_line(node) for backend, node in nodes.items()}
        yield from _texts(file, name, "docstring", lines)
        found = {b: {self._word(b, key): n for key, n in _definitions(nodes[b])} for b in nodes}
        yield from _names(file, name, "definition", found)
        for key, there in _by_name(found):
            yield from self._definition(file, f"{name}.{key}" if name else key, there)

    def _definition(self, file: str, name: str, nodes: dict) -> Iterator[Difference]:
        kinds = {backend: _kind(node) for backend, node in nodes.items()}
        yield from _texts(file, name, "kind", kinds)
        if len(set(kinds.values())) > 1:
            return
        if "class" in kinds.values():
            yield from self._bodies(file, name, nodes)
        elif "value" in kinds.values():
            yield from _values(file, name, {b: node.value for b, node in nodes.items()})
        else:
            yield from self._function(file, name, nodes)

    def _function(self, file: str, name: str, nodes: dict) -> Iterator[Difference]:
        lines = {backend: _first_line(node) for backend, node in nodes.items()}
        yield from _texts(file, name, "docstring", lines)
        yield from _texts(file, name, "raises", {b: _raises(node) for b, node in nodes.items()})
        yield from self._parameters(file, name, nodes)
        bodies = {b: self._body(node) for b, node in nodes.items()}
        for lines in zip_longest(*bodies.values(), fillvalue=END):
            if len(set(lines)) > 1:
                yield Difference(file, name, "body", dict(zip(bodies, lines, strict=True)))
                return

    def _body(self, function: ast.FunctionDef) -> list[str]:
        """Return a function's statements line by line, in names that are the same everywhere."""
        body = function.body[1:] if ast.get_docstring(function) else function.body
        names = _Names(SAME | self.words["numpy"] | self.words["torch"] | self.words["jax"])
        text = "\n".join(ast.unparse(names.visit(copy.deepcopy(line))) for line in body)
        return [line.strip() for line in text.splitlines()]

    def _parameters(self, file: str, name: str, nodes: dict) -> Iterator[Difference]:
        found = {
            b: {self._word(b, key): text for key, text in _parameters(node.args)}
            for b, node in nodes.items()
        }
        yield from _names(file, name, "parameter", found)
        for key, texts in _by_name(found):
            yield from _texts(file, name, f"default of {key}", texts)

    def _word(self, backend: str, name: str) -> str:
        """Return a name together with the other backends' names for the same thing."""
        if name not in self.words[backend]:
            return name
        self.used.add((backend, name))
        return self.words[backend][name]


class _Names(ast.NodeTransformer):
    """Sets the frameworks' names aside: their modules, and what `words` says is one thing."""

    def __init__(self, words: dict[str, str]):
        self.words = words

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        name = self.words.get(node.attr, node.attr)
        if isinstance(node.value, ast.Name) and node.value.id in MODULES:
            return ast.Name(name)
        return ast.Attribute(node.value, name)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.words.get(node.id, node.id))

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self.generic_visit(node)
        return ast.arg(self.words.get(str(node.arg), node.arg), node.annotation)

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        self.generic_visit(node)
        return ast.keyword(node.arg and self.words.get(node.arg, node.arg), node.value)


def _files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if "__pycache__" not in path.parts]


def _has(name: str, names) -> str:
    return THERE if name in names else MISSING


def _texts(file: str, name: str, what: str, texts: dict) -> Iterator[Difference]:
    if len(set(texts.values())) > 1:
        yield Difference(file, name, what, texts)


def _names(file: str, name: str, kind: str, found: dict) -> Iterator[Difference]:
    """Compare which names there are, then the order of those that two backends share."""
    for key, _ in _by_name(found):
        yield from _texts(file, name, f"{kind} {key}", {b: _has(key, found[b]) for b in found})
    for first, second in combinations(found.values(), 2):
        shared = [k for k in first if k in second], [k for k in second if k in first]
        swapped = [pair for pair in zip(*shared, strict=True) if pair[0] != pair[1]]
        if swapped:
            has = {b: " before ".join(k for k in found[b] if k in swapped[0]) for b in found}
            yield Difference(file, name, f"order of {kind}s", has)
            return


def _by_name(found: dict[str, dict]) -> list[tuple[str, dict]]:
    """Turn what each backend has by name into what each name is by backend."""
    names = dict.fromkeys(name for named in found.values() for name in named)
    return [(name, {b: found[b][name] for b in found if name in found[b]}) for name in names]


def _values(file: str, name: str, values: dict) -> Iterator[Difference]:
    if name == "__all__":
        lists = {b: dict.fromkeys(ast.literal_eval(value)) for b, value in values.items()}
        yield from _names(file, name, "name", lists)
    else:
        yield from _texts(file, name, "value", {b: _source(value) for b, value in values.items()})


def _definitions(node: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Yield what a module or class defines, inside `if`, `try` and `with` too."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, FUNCTION | ast.ClassDef):
            yield inner.name, inner
        elif isinstance(inner, ast.Assign | ast.AnnAssign):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            names = (n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
            yield from ((name.id, inner) for name in names)
        elif isinstance(inner, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _definitions(inner)


def _kind(node: ast.stmt) -> str:
    if not isinstance(node, FUNCTION):
        return "class" if isinstance(node, ast.ClassDef) else "value"
    marks = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    marks &= {"property", "cached_property", "classmethod", "staticmethod"}
    return " ".join([*sorted(marks), "function"])


def _first_line(node: ast.AST) -> str:
    text = ast.get_docstring(node)
    return repr(text.splitlines()[0]) if text else MISSING


def _raises(node: ast.AST) -> str:
    """Return what a docstring says is raised: from its word "Raises" to the paragraph's end."""
    text = re.search(r"\bRaises\b.*?(?=\n\s*\n|\Z)", ast.get_docstring(node) or "", re.DOTALL)
    return repr(" ".join(text[0].split())) if text else MISSING


def _source(node: ast.expr | None) -> str:
    return FRAMEWORK.sub("", ast.unparse(node)) if node else "none"


def _parameters(args: ast.arguments) -> Iterator[tuple[str, str]]:
    """Yield each parameter with its default, and how it is given."""
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    for i, (arg, default) in enumerate(zip(positional, defaults, strict=True)):
        kind = "positional only" if i < len(args.posonlyargs) else "positional"
        yield arg.arg, f"{_source(default)} ({kind})"
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield arg.arg, f"{_source(default)} (keyword only)"
    for stars, arg in (("*", args.vararg), ("**", args.kwarg)):
        if arg:
            yield stars + arg.arg, "none (the rest)"


def excuses(exception: tuple[dict, str, str], difference: Difference) -> bool:
    """Whether a name of a row, and what it says differs, speak of this difference."""
    row, name, what = exception
    there = [backend for backend, text in difference.has.items() if text == THERE]
    place = fnmatchcase(difference.file, row["file"]) and fnmatchcase(difference.name, name)
    return place and fnmatchcase(difference.what, what) and row.get("only", there) == there


def complaints(root: Path, exceptions: dict) -> list[str]:
    """Return what differs without being excused, and every exception that excuses nothing."""
    mirror = Mirror(root, exceptions.get("word", []))
    differences = list(mirror.differences())
    rows = [
        (row, name, what)
        for row in exceptions.get("row", [])
        for name in ([row["name"]] if isinstance(row["name"], str) else row["name"])
        for what in row["differs"]
    ]
    lines = [str(d) for d in differences if not any(excuses(row, d) for row in rows)]
    for row, name, what in rows:
        if not any(excuses((row, name, what), difference) for difference in differences):
            place = ": ".join(filter(None, (row["file"], name, what)))
            lines.append(f"stale exception, remove it: {place}")
    for backend, words in mirror.words.items():
        unused = [word for word in words if (backend, word) not in mirror.used]
        lines += [f"stale word, remove it: {words[word]} of {backend}" for word in unused]
    return lines
