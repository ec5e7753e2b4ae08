"""The map from a backend's lines to the cases that run them, kept file by file of tests.

A record is pinned by what it was made of: the file of tests, what it imports, what all files of
tests share, and the backends that its cases reach.
"""

import ast
import hashlib
import json
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .child import LEFT_OUT, SUITE
from .mutant import BACKENDS, ROOT, SourceMutant

LIMIT = 1800.0  # seconds for one file
SHARED = {  # what no file of tests imports by name
    "conformance": [SUITE / "conftest.py", SUITE / "subjects", SUITE / "vectors"],
    "tests": [ROOT / "tests" / "conftest.py"],
}
COMPILED = ("compil", "one_graph", "exported", "nobody_can_look")  # in the names of such cases
Lines = dict[str, list[int]]


def digest(*paths: Path) -> str:
    """Return a hash of files' names and bytes, those in folders included."""
    every = [f for p in paths for f in ([p] if p.is_file() else sorted(p.rglob("*")))]
    found = hashlib.sha256()
    for file in every:
        if file.is_file() and file.suffix in (".py", ".json", ".toml", ".md", ".ini"):
            found.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:16]


@cache
def pin(where: str, file: str) -> str:
    """Return a hash of a file of tests, by its path in the repository, and of what it is made of.

    >>> pin("tests", "tests/test_mutate.py") == pin("tests", "tests/test_names.py")
    False
    """
    path = ROOT / file
    parts = imported(path) if path.suffix == ".py" and path.exists() else {path}
    return digest(*sorted(parts), *SHARED[where])


def imported(path: Path) -> set[Path]:
    """Return a file and the repository's files that it imports, backends left out.

    >>> found = imported(SUITE / "test_errors.py")
    >>> SUITE / "cases" / "refusals.py" in found, SUITE / "cases" / "decoding.py" in found
    (True, False)
    """
    found, new = set(), {path}
    while new:
        found |= new
        new = {part for known in new for part in imports(known)} - found
    return found


@cache
def imports(path: Path) -> set[Path]:
    """Return the repository's files that one file imports itself."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names: list[tuple[Path, str]] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [(ROOT, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = path.parents[node.level - 1] if node.level else ROOT
            start = f"{node.module}." if node.module else ""
            names += [(above, start + alias.name) for alias in node.names]
    words = {(above, tuple(name.split("."))) for above, name in names if name[:5] != "attn_"}
    places = {above.joinpath(*w[:n]) for above, w in words for n in range(1, len(w) + 1)}
    places |= {path.parent.joinpath(w[0]) for above, w in words if above == ROOT}
    files = {place.with_suffix(".py") for place in places} | {p / "__init__.py" for p in places}
    return {file for file in files if file.is_file()}


def units(where: str, backend: str) -> list[str]:
    """Return the files of tests that are recorded one by one: names as `child.words` takes them."""
    if where == "conformance":
        found = [*SUITE.glob("test_*.py"), *SUITE.glob("documents/test_*.py")]
        return sorted(path.relative_to(SUITE).as_posix() for path in found)
    out = {f"test_{name}.py" for name in LEFT_OUT}
    tests = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if path.name not in out]
    return [f"attn_{backend}", *(f"tests/{path.name}" for path in tests)]


class Reach:
    """What is recorded, and which cases a mutant needs."""

    def __init__(self, folder: Path):
        self.folder = folder / "map"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.records: dict[tuple[str, str], dict[str, dict]] = {}
        self.hashes = {f"attn_{name}": digest(ROOT / f"attn_{name}") for name in BACKENDS}

    def path(self, where: str, backend: str, unit: str) -> Path:
        whose = backend if where == "conformance" or unit.startswith("attn_") else "all"
        return self.folder / f"{where}-{whose}-{unit.replace('/', '-')}.json"

    def pin(self, where: str, unit: str) -> str:
        return pin(where, f"conformance/{unit}" if where == "conformance" else unit)

    def lacking(self, where: str, backend: str) -> Iterator[dict[str, Any]]:
        """Give the tasks that record what is not recorded, or no longer true."""
        for unit in units(where, backend):
            path = self.path(where, backend, unit)
            if path.exists():
                record = json.loads(path.read_text("utf-8"))
                pins = {name: self.hashes[name] for name in record["reached"]}
                if record["pin"] == self.pin(where, unit) and record["reached"] == pins:
                    self.records.setdefault((where, backend), {})[unit] = record["cases"]
                    continue
            task = {"backend": backend, "where": where, "files": [unit]}
            yield task | {"record": True, "limit": LIMIT}

    def keep(self, task: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep what a task has recorded. Cases that fail without a mutant judge none."""
        where, backend, (unit,) = task["where"], task["backend"], task["files"]
        bad = set(answer["bad"])
        cases = {name: found for name, found in answer["cases"].items() if name not in bad}
        cases |= {name: [0.0, {}] for name in bad}  # known, and never chosen
        reached = {file.split("/")[0] for _, lines in cases.values() for file in lines}
        if where == "conformance" or unit.startswith("attn_"):
            reached.add(f"attn_{backend}")
        record = {"pin": self.pin(where, unit), "cases": cases}
        record["reached"] = {name: self.hashes[name] for name in sorted(reached)}
        self.path(where, backend, unit).write_text(json.dumps(record), "utf-8")
        self.records.setdefault((where, backend), {})[unit] = cases

    def task(
        self,
        mutant: SourceMutant,
        where: str,
        every: bool = False,
        first: Collection[str] = (),
    ) -> dict[str, Any]:
        """Return the task that judges a mutant: the cases that reach it, the cheapest first.

        The tests named in `first`, which have caught others of its file, come before them; then
        the chapter of the file's name. What compiles comes last.
        """
        task: dict[str, Any] = {
            "backend": mutant.backend,
            "where": where,
            "file": mutant.file,
            "text": mutant.text,
        }
        recorded = self.records.get((where, mutant.backend), {})
        cases = {name: case for unit in recorded.values() for name, case in unit.items()}
        seconds = {name: own for name, (own, _) in cases.items()}
        if every:
            bad = [name for name, (own, lines) in cases.items() if not own and not lines]
            task |= {"order": {}, "known": bad}  # so that a case runs unless it is a bad one
            return task | {"limit": 120 + 10 * sum(seconds.values()), "seconds": seconds}
        chosen = reaching(mutant, cases)
        chapter = Path(mutant.file).stem
        met: dict[str, int] = {}
        ranks: dict[str, tuple] = {}
        for name in sorted(
            chosen, key=lambda name: (seconds[name], name)
        ):  # a case of each test, then a second of each
            test = name.split("[")[0]
            far = compiles(name), test not in first, f"test_{chapter}.py" not in test
            ranks[name] = (*far, met.setdefault(test, 0), seconds[name])
            met[test] += 1
        ordered = sorted(chosen, key=ranks.__getitem__)
        task |= {"order": {name: i for i, name in enumerate(ordered)}, "known": list(cases)}
        limit = 60 + 10 * sum(seconds[name] for name in chosen)
        files = [unit for unit, own in recorded.items() if not chosen.isdisjoint(own)]
        task["files"] = files if where == "tests" else []  # the suite's new cases are met too
        return task | {"limit": limit, "seconds": {name: seconds[name] for name in chosen}}


def reaching(mutant: SourceMutant, cases: dict[str, Any]) -> set[str]:
    """Return the cases that run what a mutant changes; where none does, those of its function.

    JAX traces once, so that a test's other cases are taken with those that were seen to run it.
    What torch compiles is not seen: the cases that compile, by their names, are taken too.
    """
    seen, *wider = around(mutant.source, *mutant.lines)
    chosen = running(cases, mutant.file, seen)
    if mutant.backend == "torch":
        chosen |= {name for name, (s, _) in cases.items() if s and compiles(name)}
    for lines in wider if not running(cases, mutant.file, seen) else ():
        if more := running(cases, mutant.file, lines):
            chosen |= more
            break
    if mutant.backend == "jax":
        tests = {name.split("[")[0] for name in chosen}
        chosen |= {n for n, (s, _) in cases.items() if s and n.split("[")[0] in tests}
    return chosen


def compiles(name: str) -> bool:
    return any(word in name for word in COMPILED)


def running(cases: dict[str, Any], file: str, lines: set[int]) -> set[str]:
    """Return the cases that were seen to run one of a file's lines."""
    return {name for name, (_, own) in cases.items() if not lines.isdisjoint(own.get(file, ()))}


def around(source: str, first: int, last: int) -> Iterator[set[int]]:
    """Give the lines of the statements that are changed, of their function, and of the file."""
    every = set(range(1, source.count("\n") + 2))
    functions, touched, outside = [], set(), False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            top, end = extent(node)
            if top <= last and first <= end:
                touched |= set(range(top, end + 1))
                outside |= isinstance(node, ast.FunctionDef | ast.ClassDef)
        if (
            isinstance(node, ast.FunctionDef)
            and node.lineno <= last
            and first <= (node.end_lineno or 0)
        ):
            functions.append(set(range(node.body[0].lineno, (node.end_lineno or 0) + 1)))
    inner = min(functions, key=len, default=every)
    yield touched if functions and not outside else set()  # import runs it, and no case
    yield inner
    yield every


def extent(node: ast.stmt) -> tuple[int, int]:
    """Return the first and last line of a statement, or of its head if it has a body."""
    last = node.end_lineno or node.lineno
    body = getattr(node, "body", None)
    decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
    return min([node.lineno, *decorators]), max(node.lineno, body[0].lineno - 1) if body else last
