"""Compares the three backends by their sources, definition by definition.

Files, names, order, parameters, decorators, base classes, bodies; of a docstring the first line,
and what is raised. Annotations are compared where they are the interface: fields and overloads.
Everything is compared without comments, and with the frameworks' names set aside.
A difference is one line: the file, the name, what differs, and what each backend has.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

from mirror_source import (
    MISSING,
    annotation,
    bases,
    decorators,
    definitions,
    first_line,
    kind,
    parameters,
    raises,
    source,
)

BACKENDS = ("numpy", "torch", "jax")
THERE = "there"
END = "nothing more"


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
        yield from _texts(file, name, "docstring", _each(first_line, nodes))
        yield from _texts(file, name, "bases", _each(bases, nodes))
        found = {
            b: {self._word(b, key): inner for key, inner in definitions(node).items()}
            for b, node in nodes.items()
        }
        yield from _names(file, name, "definition", found)
        for key, there in _by_name(found):
            yield from self._definition(file, f"{name}.{key}" if name else key, there)

    def _definition(self, file: str, name: str, nodes: dict) -> Iterator[Difference]:
        kinds = _each(kind, nodes)
        yield from _texts(file, name, "kind", kinds)
        if len(set(kinds.values())) > 1:
            return
        marks = {b: ", ".join(decorators(node)) or "none" for b, node in nodes.items()}
        yield from _texts(file, name, "decorators", marks)
        if "class" in kinds.values():
            yield from self._bodies(file, name, nodes)
        elif "value" in kinds.values():
            yield from _texts(file, name, "annotation", _each(annotation, nodes))
            yield from _values(file, name, {b: node.value for b, node in nodes.items()})
        else:
            yield from self._function(file, name, nodes)

    def _function(self, file: str, name: str, nodes: dict) -> Iterator[Difference]:
        yield from _texts(file, name, "docstring", _each(first_line, nodes))
        yield from _texts(file, name, "raises", _each(raises, nodes))
        yield from self._parameters(file, name, nodes)
        bodies = {b: self._body(node) for b, node in nodes.items()}
        for lines in zip_longest(*bodies.values(), fillvalue=END):
            if len(set(lines)) > 1:
                yield Difference(file, name, "body", dict(zip(bodies, lines, strict=True)))
                return

    def _body(self, function: ast.FunctionDef) -> list[str]:
        """Return a function's statements line by line, in names that are the same everywhere."""
        body = function.body[1:] if ast.get_docstring(function) else function.body
        words = self.words["numpy"] | self.words["torch"] | self.words["jax"]
        text = "\n".join(source(line, words) for line in body)
        return [line.strip() for line in text.splitlines()]

    def _parameters(self, file: str, name: str, nodes: dict) -> Iterator[Difference]:
        found = {
            b: {self._word(b, key): (arg, default) for key, arg, default in parameters(node.args)}
            for b, node in nodes.items()
        }
        yield from _names(file, name, "parameter", found)
        for key, there in _by_name(found):
            defaults = {b: default for b, (_, default) in there.items()}
            yield from _texts(file, name, f"default of {key}", defaults)
            if "@overload" in name:
                args = {b: annotation(arg) for b, (arg, _) in there.items()}
                yield from _texts(file, name, f"annotation of {key}", args)
        if "@overload" in name:
            yield from _texts(file, name, "returns", _each(annotation, nodes))

    def _word(self, backend: str, name: str) -> str:
        """Return a name together with the other backends' names for the same thing."""
        word, *rest = name.split("@")  # forward@overload1
        if word not in self.words[backend]:
            return name
        self.used.add((backend, word))
        return "@".join([self.words[backend][word], *rest])


def _files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if "__pycache__" not in path.parts]


def _each(ask: Callable[[Any], str], nodes: dict) -> dict[str, str]:
    return {backend: ask(node) for backend, node in nodes.items()}


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
        yield from _texts(file, name, "value", _each(source, values))


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
