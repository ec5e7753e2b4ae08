"""What is shipped runs with `python -O` and on every operating system, as far as source tells."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["attn_numpy", "attn_torch", "attn_jax", "conformance", "benchmarks", "tools", "examples"]


def nodes(root: Path) -> Iterator[tuple[Path, ast.AST]]:
    """Yield what stands in sources that are no tests; in those, pytest keeps the asserts."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if not path.name.startswith("test_"):
                yield from ((path, node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))


def asserts(root: Path) -> list[str]:
    """Return where an assertion stands that `python -O` leaves out."""
    return [f"{path}:{n.lineno}" for path, n in nodes(root) if isinstance(n, ast.Assert)]


def decoded(root: Path) -> list[str]:
    """Return where a child's output is decoded as the system likes; ruff looks at files."""
    found = []
    for path, node in nodes(root):
        if isinstance(node, ast.Call):
            given = {keyword.arg for keyword in node.keywords}
            if "text" in given and "encoding" not in given:
                found.append(f"{path}:{node.lineno}")
    return found


def test_no_module_depends_on_assert():
    assert not (found := asserts(ROOT)), f"raise an error, for -O skips assert: {', '.join(found)}"


def test_output_of_children_is_decoded_as_utf_8():
    assert not (found := decoded(ROOT)), f"text=True needs encoding='utf-8': {', '.join(found)}"


@pytest.mark.parametrize(
    ("source", "check"),
    [("x = 1\nassert x", asserts), ("run(['ls'],\n  text=True)", decoded)],
    ids=["assert", "text"],
)
def test_the_check_finds_what_it_looks_for(tmp_path, source, check):
    (tmp_path / "conformance").mkdir()
    (tmp_path / "conformance/module.py").write_text(source, "utf-8")
    (tmp_path / "conformance/test_module.py").write_text(source, "utf-8")
    assert len(check(tmp_path)) == 1


def changed(source: str) -> list[int]:
    """Return the lines on which a file's import sets what belongs to another module."""
    found = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        found += [node.lineno for target in targets if isinstance(target, ast.Attribute)]
    return found


def test_importing_a_file_of_tests_changes_nothing_elsewhere():
    """Doctests are looked for in every file, so that all are imported into one process."""
    assert changed("a = 1\nblocked.ROWS = b = 2\nTABLE['own'] = 3\n") == [2]
    files = sorted((ROOT / "tests").glob("*.py"))
    found = [f"{path.name}:{line}" for path in files for line in changed(path.read_text("utf-8"))]
    assert files and not found, f"set it in a function, or where __name__ is __main__: got {found}"
