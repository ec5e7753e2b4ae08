"""The contract and the suite cover each other: every clause is tested, every test names a clause.

What the suite consists of is asked of a fresh interpreter; how its tests are written, of ast.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import contract
from conformance.subjects.protocol import CAPABILITIES

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "conformance"
BACKENDS = ("numpy", "torch", "jax")
PROFILES = ["masks", "attention", "empty", "hygiene", "causal", "gradients", "half", "multihead"]
PROFILES += ["layers", "cache", "weights", "transforms", "errors", "documents"]
LIST = """
import json, sys
import pytest

class Listing:
    def pytest_collection_finish(self, session):
        if session.testsfailed:
            return
        tests, subjects = [], {}
        for item in session.items:
            marks = [mark.args[0] for mark in item.iter_markers("clause")]
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            subject = parameters.get("subject")
            backend = subject and f"{subject.name}-{subject.device}"
            tests.append({"id": item.name, "clauses": marks, "backend": backend})
            if subject:
                subjects[subject.name] = sorted(subject.capabilities)
        print("\\n" + json.dumps({"tests": tests, "subjects": subjects}))

sys.exit(pytest.main([*sys.argv[1:], "--collect-only", "-qq"], plugins=[Listing()]))
"""


def collect(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """Collect the tests of a folder as the suite does, without running them."""
    own = [] if folder == SUITE else ["-p", "conformance.conftest"]
    settings = [f"-c{SUITE / 'pytest.ini'}", f"--rootdir={folder}", "--device=cpu"]
    arguments = [sys.executable, "-c", LIST, str(folder), *own, *settings, *options]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)


def listing(folder: Path, *options: str) -> dict:
    done = collect(folder, *options)
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-12:])
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def uncovered(clauses, found: dict) -> list[str]:
    """Return every clause that lacks a test on a backend."""
    tested = {(t["backend"], *t["clauses"]) for t in found["tests"] if t["backend"]}
    backends = sorted({backend for backend, *_ in tested})
    return [f"{id} has no test on {b}" for id in clauses for b in backends if (b, id) not in tested]


def astray(clauses, found: dict) -> list[str]:
    """Return every test that does not prove one clause on a subject, and say so in its id."""
    wrong = []
    for test in found["tests"]:
        head = "-".join([test["backend"] or "no subject", *test["clauses"]])
        known = len(test["clauses"]) == 1 and test["clauses"][0] in clauses
        if not (known and f"[{head}" in test["id"] and test["backend"]):
            wrong.append(f"{test['id']}: on {test['backend']}, proves {test['clauses']}")
    return wrong


@pytest.fixture(scope="module")
def suite():
    """Every test of the suite, and what every subject declares."""
    return listing(SUITE)


def test_every_clause_has_a_test_on_every_backend(suite):
    assert tuple(suite["subjects"]) == BACKENDS
    found = uncovered(contract.clauses(), suite)
    assert not found, "\n".join(found)


def test_every_test_proves_one_clause_on_a_subject(suite):
    found = astray(contract.clauses(), suite)
    assert not found, "\n".join(found)


def test_every_capability_is_known_and_declared(suite):
    declared = {name for capabilities in suite["subjects"].values() for name in capabilities}
    assert declared == set(CAPABILITIES)


def test_clauses_are_read_completely():
    text = (SUITE / "CONTRACT.md").read_text("utf-8")
    items = [line for line in text.splitlines() if line.startswith("- ")]
    unread = [line for line in items if not contract.CLAUSE.fullmatch(line)]
    assert not unread, "a clause is '- **ID** MUST: ...' or SHOULD:\n" + "\n".join(unread)
    assert len(contract.clauses()) == len(items) > 50


def test_profiles_are_known_and_in_order():
    assert contract.profiles() == [name for name in PROFILES if name in contract.profiles()]


def test_every_profile_has_its_own_letters():
    letters = {(c.profile, c.id.split("-")[0]) for c in contract.clauses().values()}
    assert len(letters) == len(contract.profiles()) == len({word for _, word in letters})


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("- **ATT-1** MUST: attend.", ["ATT-1"]),
        ("- **ATT-1** MAY: attend.", []),
        ("- **ATT1** MUST: attend.", []),
        ("- ATT-1 MUST: attend.", []),
    ],
)
def test_line_that_is_no_clause_is_not_read(line, read):
    assert [match["id"] for match in [contract.CLAUSE.fullmatch(line)] if match] == read


def test_clause_id_used_twice_is_refused(tmp_path, monkeypatch):
    twice = "## masks\n- **MASK-1** MUST: one.\n- **MASK-1** MUST: another.\n"
    (tmp_path / "CONTRACT.md").write_text(twice, "utf-8")
    monkeypatch.setattr(contract, "__file__", str(tmp_path / "contract.py"))
    with pytest.raises(ValueError, match="a clause id is never reused: got MASK-1 twice"):
        contract.clauses.__wrapped__()


def test_mark_with_an_unknown_clause_is_refused():
    with pytest.raises(ValueError, match=r"a test proves a clause of CONTRACT\.md: got ATT-99"):
        contract.clause("ATT-99")


MADE_UP = """
import pytest
from conformance.contract import clause

@clause("ATT-1")
def test_output(subject): ...
"""


def made_up(folder: Path, more: str) -> Path:
    (folder / "test_made_up.py").write_text(f"{MADE_UP}\n{more}\n", "utf-8")
    return folder


def test_test_without_a_clause_is_refused(tmp_path):
    done = collect(made_up(tmp_path, "def test_lost(subject): ..."), "--backend=numpy")
    assert done.returncode != 0
    assert "a test names its clause: got test_lost" in done.stdout


def test_clause_without_a_test_is_found(tmp_path):
    found = listing(made_up(tmp_path, ""), "--backend=numpy")
    assert uncovered(["ATT-1", "ATT-2"], found) == ["ATT-2 has no test on numpy-cpu"]


ASTRAY = """
def test_plain(): ...

@clause("ATT-2")
def test_of_nobody(): ...

@pytest.mark.clause("ATT-99")
def test_unknown(subject): ...

@clause("ATT-2")
@clause("ATT-3")
def test_two(subject): ...
"""


def test_test_that_proves_no_clause_is_found(tmp_path):
    found = listing(made_up(tmp_path, ASTRAY), "--backend=numpy")
    assert astray(contract.clauses(), found) == [
        "test_plain: on None, proves []",
        "test_of_nobody: on None, proves ['ATT-2']",
        "test_unknown[numpy-cpu-ATT-99]: on numpy-cpu, proves ['ATT-99']",
        "test_two[numpy-cpu-ATT-3]: on numpy-cpu, proves ['ATT-3', 'ATT-2']",
    ]


def called(node: ast.AST) -> set[str]:
    """Return the last word of everything that is called inside a node, and "assert"."""
    calls = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    asserts = any(isinstance(inner, ast.Assert) for inner in ast.walk(node))
    return {getattr(f, "attr", getattr(f, "id", "")) for f in calls} | (
        {"assert"} if asserts else set()
    )


def idle(paths) -> list[str]:
    """Return the tests that assert nothing, expect no error and call nothing that compares."""
    trees = [ast.parse(path.read_text("utf-8")) for path in paths]
    nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    comparing, grown = {"assert", "Differs", "raises"}, True
    while grown:
        names = {node.name for node in nodes if called(node) & comparing}
        comparing, grown = comparing | names, not names <= comparing
    tests = [node for node in nodes if node.name.startswith("test_")]
    return [node.name for node in tests if not called(node) & comparing]


def test_no_test_passes_without_comparing():
    found = idle(SUITE.rglob("*.py"))
    assert not found, "these tests compare nothing:\n" + "\n".join(found)


def test_test_that_compares_nothing_is_found(tmp_path):
    (tmp_path / "checks.py").write_text(
        "def hold(got): raise Differs('no')\ndef look(got): return got\n", "utf-8"
    )
    (tmp_path / "test_made_up.py").write_text(
        "def test_asserting(subject):\n    assert subject\n"
        "def test_refusing(subject):\n    with pytest.raises(ValueError): subject()\n"
        "def test_holding(subject):\n    helper(subject)\n"
        "def test_looking(subject):\n    look(subject)\n"
        "def test_calling(subject):\n    subject.attention()\n"
        "def helper(got):\n    checks.hold(got)\n",
        "utf-8",
    )
    assert idle(tmp_path.glob("*.py")) == ["test_looking", "test_calling"]


def skipping(paths) -> list[str]:
    """Return where a test is skipped, or excused, by hand."""
    words = {"skip", "skipif", "xfail", "importorskip"}
    found = []
    for path in paths:
        names = (n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if hasattr(n, "attr"))
        found += [f"{path.name}, line {n.lineno}: {n.attr}" for n in names if n.attr in words]
    return found


def test_subject_is_excused_by_what_it_declares_alone():
    found = skipping(SUITE.rglob("test_*.py"))
    assert not found, "let the subject declare it (a capability, a dtype):\n" + "\n".join(found)


def test_skip_by_hand_is_found(tmp_path):
    source = "def test_it(subject):\n    pytest.skip('no')\npytestmark = pytest.mark.xfail\n"
    (tmp_path / "test_made_up.py").write_text(source, "utf-8")
    lines = ["test_made_up.py, line 2: skip", "test_made_up.py, line 3: xfail"]
    assert sorted(skipping(tmp_path.glob("*.py"))) == lines
