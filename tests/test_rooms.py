"""Each room of the suite imports only the rooms that it may: the table says which.

What is imported is read from source, inside functions too.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room is a folder, or a file that stands alone; "chapters" are the tests and documents/.
# It may import itself and what is named here: a room, or of a room one module.
ROOMS = {
    "contract": set(),
    "mask_spec": set(),
    "oracle": {"mask_spec"},
    # the adapter asks the oracle for masks as arrays; the boundary compares what it was given
    "subjects": {"mask_spec", "oracle"},
    "cases": {"mask_spec", "oracle", "subjects.protocol"},
    # the plugin reads the ledger of tolerance; diagnosis compares with alternatives to the oracle
    "reports": {"contract", "mask_spec", "oracle"},
    "runs": {"reports"},
    "vectors": {"contract", "mask_spec", "oracle.tolerance", "subjects.protocol"},
    # a mutant is a subject with a mistake; one looks for the cases in which its mistake is seen
    "mutants": {"cases.decoding", "mask_spec", "oracle", "reports.suggest", "subjects"},
    "chapters": {
        "cases",
        "contract",
        "mask_spec",
        "oracle",
        "subjects.protocol",
        "subjects.stash",  # where subjects are compared with each other
        "vectors",
    },
    # the suite in somebody else's session; it imports the chapters by their names
    "embed": {
        "contract",
        "oracle.tolerance",
        "reports",
        "runs.examples",
        "runs.mappings",
        "subjects",
    },
    "__init__": {"embed.decorator"},
    "conftest": {
        "contract",
        "embed.chapters",
        "embed.plugin",
        "mutants",
        "oracle.tolerance",
        "reports",
        "runs.examples",
        "runs.limit",
        "runs.mappings",
        "runs.options",
        "subjects",
    },
    "__main__": {"contract", "reports", "runs"},
}
BESIDE = {"CONTRACT.md", "pytest.ini", "py.typed", "documents"}
OUTSIDE = ("tools", "tests", "benchmarks", "examples")  # no wheel holds them


def room_of(path: Path) -> str:
    """Return the room of a source file, by its path in conformance/."""
    first = path.parts[0].removesuffix(".py")
    return "chapters" if first == "documents" or first.startswith("test_") else first


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of each import in a source file."""
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name, word = ast.unparse(node.func).split(".")[-1], node.args[0]
            if name in ("import_module", "__import__") and isinstance(word, ast.Constant):
                yield node.lineno, word.value


def arrows(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield for each import between rooms: the place, the room that imports, what it imports."""
    suite = root / "conformance"
    for path in sorted(suite.rglob("*.py")):
        room = room_of(path.relative_to(suite))
        for line, name in imports(path, root):
            top, _, rest = name.partition(".")
            place = f"{path.relative_to(root)}, line {line}"
            if top in OUTSIDE:
                yield place, room, name
            elif top == "conformance" and rest and room_of(Path(*rest.split("."))) != room:
                yield place, room, rest


def covers(allowed: str, name: str) -> bool:
    return f"{name}.".startswith(f"{allowed}.")


def forbidden(root: Path) -> list[str]:
    """Return where a room imports what it may not."""
    return [
        f"{place}: {room} may not import {name}"
        for place, room, name in arrows(root)
        if not any(covers(allowed, name) for allowed in ROOMS.get(room, ()))
    ]


def test_rooms_import_only_what_they_may():
    found = forbidden(ROOT)
    assert not found, "move the function, or change the table:\n" + "\n".join(found)


def test_every_arrow_of_the_table_is_used():
    used = {(room, name) for _, room, name in arrows(ROOT)}
    idle = [
        f"{room} imports nothing of {allowed}"
        for room, row in ROOMS.items()
        for allowed in sorted(row)
        if not any(covers(allowed, name) for other, name in used if other == room)
    ]
    assert not idle, "take it out of the table: " + "; ".join(idle)


def test_rooms_form_no_circle():
    rooms = {room: {name.split(".")[0] for name in row} for room, row in ROOMS.items()}
    assert set(TopologicalSorter(rooms).static_order()) == set(ROOMS)


def test_suite_holds_rooms_and_chapters_alone():
    there = {path.name for path in (ROOT / "conformance").iterdir() if path.name[0] not in "._"}
    there |= {path.name for path in (ROOT / "conformance").glob("__*__.py")}
    chapters = {name for name in there if name.startswith("test_") and name.endswith(".py")}
    folders = {name for name in ROOMS if (ROOT / "conformance" / name).is_dir()}
    files = {f"{name}.py" for name in set(ROOMS) - folders - {"chapters"}}
    assert chapters
    assert there - chapters == folders | files | BESIDE


def asked_for(root: Path) -> list[str]:
    """Return where a backend imports its own interop, which is for those who ask for it."""
    return [
        f"{path.relative_to(root)}, line {line}: {name}"
        for folder in ("attn_numpy", "attn_torch", "attn_jax")
        for path in sorted((root / folder).rglob("*.py"))
        if path.parent.name != "interop"
        for line, name in imports(path, root)
        if covers(f"{folder}.interop", name)
    ]


def test_no_backend_imports_its_interop():
    assert not (found := asked_for(ROOT)), f"interop imports, nobody imports it: {found}"


def test_import_of_interop_is_found(tmp_path):
    for name in ("masks.py", "interop/torch_nn.py"):
        file = tmp_path / "attn_torch" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("from attn_torch.interop import torch_nn\n", "utf-8")
    assert asked_for(tmp_path) == ["attn_torch/masks.py, line 1: attn_torch.interop.torch_nn"]


def test_nothing_imports_conftest():
    found = [
        f"{path.relative_to(ROOT)}, line {line}"
        for folder in ("conformance", "tools", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in imports(path, ROOT)
        if covers("conformance.conftest", name)
    ]
    assert not found, f"pytest alone imports conftest.py: {'; '.join(found)}"


@pytest.mark.parametrize(
    ("path", "source", "caught"),
    [
        ("oracle/naive.py", "from ..cases import arrays", "oracle may not import cases.arrays"),
        ("oracle/naive.py", "from .. import subjects", "oracle may not import subjects"),
        ("cases/arrays.py", "import conformance.reports", "cases may not import reports"),
        (
            "reports/report.py",
            "def read():\n    from conformance.runs.run import run",
            "reports may not import runs.run.run",
        ),
        (
            "vectors/check_answer.py",
            "from ..oracle.expected import attention",
            "vectors may not import oracle.expected.attention",
        ),
        ("test_empty.py", "from .conftest import own", "chapters may not import conftest.own"),
        (
            "documents/test_models.py",
            "from ..subjects.adapter import Plugged",
            "chapters may not import subjects.adapter.Plugged",
        ),
        (
            "runs/run.py",
            "importlib.import_module('conformance.cases')",
            "may not import cases",
        ),
        ("mutants/cache.py", "from tools.mutants import gate", "may not import tools.mutants.gate"),
        (
            "lobby/door.py",
            "from .. import contract",
            "lobby may not import contract",
        ),
    ],
)
def test_forbidden_import_is_found(tmp_path, path, source, caught):
    file = tmp_path / "conformance" / path
    file.parent.mkdir(parents=True)
    file.write_text(source, "utf-8")
    (found,) = forbidden(tmp_path)
    assert found.endswith(caught) and f"{file.name}, line {1 + source.count(chr(10))}" in found


def test_imports_of_a_room_itself_and_of_others_packages_are_free(tmp_path):
    file = tmp_path / "conformance" / "oracle" / "naive.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import math, numpy\nfrom . import reference\nfrom ..mask_spec import Spec\n", "utf-8"
    )
    assert forbidden(tmp_path) == []
