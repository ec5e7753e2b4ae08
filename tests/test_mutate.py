"""The tool of source mutants: what it changes, what it asks, what it keeps, what it says."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.progress import Progress

from tools.mutate import child, command, page, reach
from tools.mutate.mutant import ROOT, SourceMutant, patches
from tools.mutate.operators import EQUIVALENT, excused, of_file, operators
from tools.mutate.verdicts import Verdicts

SOURCE = '''"""A docstring with 1 < 2."""

SIZE = 8


def clipped(x: int = 3, *, low: int | None = None) -> int:
    """Return x - 1 at least."""
    if x < 0 and not low:
        raise ValueError(f"x must not be below {1 - 1}: got {x}")
    x = min(x, SIZE + 1)
    return where(x > 1, [x], sum([x], start=-2))
'''
TABLE = {
    "name": "a",
    "file": "attn_numpy/m.py",
    "sentence": "S.",
    "old": "SIZE = 8",
    "new": "SIZE = 9",
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "attn_numpy").mkdir()
    (tmp_path / "attn_numpy" / "m.py").write_text(SOURCE, "utf-8")
    return tmp_path


def written(root: Path, *tables: dict[str, str]) -> Path:
    folder = root / "patches"
    folder.mkdir()
    rows = [
        "\n".join(["[[patch]]", *(f"{k} = {json.dumps(v)}" for k, v in t.items())]) for t in tables
    ]
    (folder / "numpy.toml").write_text("\n".join(rows), "utf-8")
    return folder


def mutant(name: str = "a", old: str = "SIZE = 8", new: str = "SIZE = 9", **more) -> SourceMutant:
    return SourceMutant(name, "attn_numpy/m.py", "S.", SOURCE, SOURCE.index(old), old, new, **more)


# Patches


def test_every_patch_applies_to_the_source_of_today():
    """If it fails: write the patch's `old` anew from the source, or drop it with what it broke."""
    found = patches()
    assert len(found) >= 150
    texts = [(m.file, m.text) for m in found]
    assert not [m.id for m in found if texts.count((m.file, m.text)) > 1], "the same mistake twice"
    for one in found:
        assert one.sentence.strip().endswith((".", ".)")), f"{one.id}: a sentence ends with a stop"


def test_a_patch_replaces_one_place(root):
    (found,) = patches(written(root, TABLE), root)
    assert found.text == SOURCE.replace("SIZE = 8", "SIZE = 9")
    assert (found.id, found.backend, found.lines) == ("numpy/a", "numpy", (3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old": "SIZE = 7"}, "must occur once .* got 0 times in attn_numpy/m.py"),
        ({"old": "x"}, "must occur once"),
        ({"new": "SIZE ="}, "must compile"),
        ({"file": "conformance/m.py"}, "must be one of a backend"),
        ({"extra": "?"}, "a patch has file, name, new, old, sentence"),
    ],
)
def test_a_patch_that_cannot_be_used_is_refused(root, change, message):
    with pytest.raises(ValueError, match=f"numpy.toml, a: .*{message}"):
        patches(written(root, TABLE | change), root)


def test_two_patches_have_two_names(root):
    with pytest.raises(ValueError, match="must be its own: got numpy/a twice"):
        patches(written(root, TABLE, TABLE | {"new": "SIZE = 10"}), root)


# Changes by rule


def changes(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in of_file(root / "attn_numpy" / "m.py", root, {}):
        ast.parse(one.text)
        found.setdefault(one.old, []).append(one.new)
    return found


def test_changes_by_rule(root):
    found = changes(root)
    assert found["<"] == ["<=", ">="] and found[">"] == ["<=", ">="] and found["and"] == ["or"]
    assert found["not"] == [""] and found["-"] == [""] and found["min"] == ["max"]
    assert found["x < 0 and not low"] == ["False", "True"]
    assert found["3"] == ["2", "4"] and found["0"] == ["1"] and found["8"] == ["7", "9"]
    assert found["x = min(x, SIZE + 1)"] == ["pass"] and found["start=-2"] == [""]
    assert found["[x], sum([x], start=-2)"] == ["sum([x], start=-2), [x]"]


def test_docstrings_annotations_and_errors_are_left_alone(root):
    found = list(of_file(root / "attn_numpy" / "m.py", root, {}))
    assert {one.lines[0] for one in found} == {3, 6, 8, 10, 11}
    assert not any(one.old == "|" for one in found)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_changes_of_the_backends_compile(backend):
    every = list(of_file(ROOT / f"attn_{backend}" / "blocked.py", ROOT, {}))
    assert len(every) > 200
    for one in every[:: len(every) // 12]:
        ast.parse(one.text)


def test_a_change_that_shows_nothing_is_marked(root, tmp_path):
    listed = tmp_path / "equivalent.toml"
    reasons = 'file = "attn_numpy/m.py"\nline = "SIZE = 8"\nbecomes = "SIZE = 9"\nreason = "why"\n'
    listed.write_text(f"[[change]]\n{reasons}", "utf-8")
    found = of_file(root / "attn_numpy" / "m.py", root, excused(listed))
    assert [one.sentence for one in found if one.equivalent] == ["`SIZE = 8` becomes `SIZE = 9`"]
    listed.write_text('[[change]]\nline = "x"\n', "utf-8")
    with pytest.raises(ValueError, match="a change has file, line, becomes, reason"):
        excused(listed)


def test_every_excused_change_is_one_of_today():
    keys = excused(EQUIVALENT)
    backends = {file.split("/")[0].removeprefix("attn_") for file, _, _ in keys}
    words = {(m.file, *m.before_and_after()) for name in backends for m in operators(name)}
    old = [key for key in keys if key not in words]
    assert not old, f"the line has changed: write the table anew, or drop it: {old}"


def test_the_sample_is_seeded_and_every_file_has_its_turn():
    every = [mutant(f"{f}{i}") for f in "ab" for i in range(9)]
    every = [
        SourceMutant(m.name, f"attn_numpy/{m.name[0]}.py", *[""] * 2, 0, "", "") for m in every
    ]
    once, again = command.sampled(every, 0), command.sampled(every, 0)
    assert once == again != command.sampled(every, 1)
    assert [m.name[0] for m in once[:4]] in (["a", "b"] * 2, ["b", "a"] * 2)


# Which cases


def test_the_lines_of_a_statement_then_of_its_function():
    lines, function, every = reach.around(SOURCE, 10, 10)
    assert lines == {10} and function == set(range(7, 12)) and every >= {1, 11}
    assert next(reach.around(SOURCE, 6, 6)) == set()  # import runs a default, and no case


def test_cases_that_run_the_line_come_first_one_of_each_test():
    one = mutant(old="SIZE + 1", new="SIZE + 2")
    at = {"attn_numpy/m.py": [10]}
    cases = {"t[1]": [2.0, at], "t[2]": [1.0, at], "u[1]": [9.0, at], "v": [1.0, {"other": [10]}]}
    map_ = SimpleNamespace(records={("tests", "numpy"): {"tests/test_t.py": cases}})
    task = reach.Reach.task(map_, one, "tests")
    assert list(task["order"]) == ["t[2]", "u[1]", "t[1]"] and task["known"] == list(cases)
    assert next(iter(reach.Reach.task(map_, one, "tests", first={"u"})["order"])) == "u[1]"
    assert task["files"] == ["tests/test_t.py"] and task["text"] == one.text


def test_cases_that_torch_compiles_are_taken_though_others_are_seen():
    file = "attn_torch/m.py"
    one = SourceMutant("a", file, "S.", SOURCE, SOURCE.index("SIZE + 1"), "SIZE + 1", "SIZE + 2")
    at = {file: [10]}
    cases = {"t[1]": [1.0, at], "t_one_graph": [2.0, {}], "t_compiled": [0.0, {}], "u": [1.0, {}]}
    assert reach.reaching(one, cases) == {"t[1]", "t_one_graph"}  # one fails without a mutant


def test_where_every_case_runs_the_bad_ones_are_left_out():
    cases = {"good": [1.0, {"attn_numpy/m.py": [10]}], "bad": [0.0, {}], "far": [2.0, {}]}
    map_ = SimpleNamespace(records={("tests", "numpy"): {"tests/test_t.py": cases}})
    task = reach.Reach.task(map_, mutant(), "tests", every=True)
    plugin = child.ChosenCases(ROOT, print, task)
    items = [
        SimpleNamespace(path=ROOT / "t.py", nodeid=f"t.py::{name}")
        for name in ("good", "bad", "far", "new")
    ]
    plugin.known = {f"t.py::{name}" for name in plugin.known}
    plugin.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["t.py::good", "t.py::far", "t.py::new"]
    only = child.ChosenCases(ROOT, print, {"order": {"t.py::good": 0}})
    only.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["t.py::good"]


# The verdict, from real processes

FAKE = """
import json, sys
from pathlib import Path
from tools.mutate import child, mutant, record, worker
root = Path(sys.argv[1])
child.ROOT = worker.ROOT = root
child.SLOW = 0.5
sys.dont_write_bytecode = True  # as the worker does: a mutant of the same size and second is stale
import hypothesis, pytest, coverage
for line in sys.stdin:
    print("ANSWER", json.dumps(worker.answer(json.loads(line), root / "overlay")), flush=True)
"""
TESTS = """
from attn_numpy.m import clipped
import attn_numpy.m
attn_numpy.m.where = lambda test, yes, no: yes if test else no
def test_small(): assert clipped(2) == [2], "two stays two"
def test_large(): assert clipped(99) == [9]
"""


def test_verdicts_of_processes(root):
    (root / "tests").mkdir()
    (root / "tests" / "test_m.py").write_text(TESTS, "utf-8")
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\n", "utf-8")
    (root / "overlay" / "attn_numpy").mkdir(parents=True)
    (root / "overlay" / "attn_numpy" / "m.py").write_text(SOURCE, "utf-8")
    (root / "overlay" / "attn_numpy" / "__init__.py").touch()
    base = {"backend": "numpy", "where": "tests", "limit": 20, "files": ["tests/test_m.py"]}
    own = base | {"file": "attn_numpy/m.py"}
    loop = SOURCE.replace("    x = min", "    while x: pass\n    x = min")
    tasks = [
        base | {"record": True},
        own | {"text": SOURCE.replace("SIZE + 1", "SIZE + 2")},
        own | {"text": SOURCE.replace("x < 0", "x <= 0")},
        own | {"text": loop},
        own | {"text": "import nothing_of_that_name"},
    ]
    run = subprocess.run(
        [sys.executable, "-c", FAKE, str(root)],
        input="".join(json.dumps(task) + "\n" for task in tasks),
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        timeout=60,
    )
    answers = [json.loads(t[7:]) for t in run.stdout.splitlines() if t.startswith("ANSWER ")]
    assert len(answers) == len(tasks), run.stderr
    recorded, caught, survived, hung, broken = answers
    lines = {name.split("::")[1]: found for name, (_, found) in recorded["cases"].items()}
    assert lines["test_small"] == {"attn_numpy/m.py": [8, 10, 11]}
    assert (
        caught["case"] == "tests/test_m.py::test_large"
        and "assert [10] == [9]" in caught["message"]
    )
    assert survived["survived"] and "case" not in survived
    assert hung["case"] == "tests/test_m.py::test_small" and "took too long" in hung["message"]
    assert "nothing_of_that_name" in broken["message"]
    assert (root / "overlay" / "attn_numpy" / "m.py").read_text("utf-8") == SOURCE


# What is kept


def verdicts(folder: Path, suite: str = "1", tests: str = "1") -> Verdicts:
    found = Verdicts(folder)
    found.hashes = {"conformance": suite, "tests": tests}
    return found


def test_a_catch_is_kept_until_the_file_or_its_test_changes(tmp_path, monkeypatch):
    pins = {"conformance/test_a.py": "1", "tests/test_c.py": "1"}
    monkeypatch.setattr("tools.mutate.verdicts.pin", lambda where, file: pins[file])
    one = mutant()
    verdicts(tmp_path).keep(one, "tests", {"survived": True, "seconds": 1})
    catch = {"case": "conformance/test_a.py::t[x]", "seconds": 1}
    verdicts(tmp_path).keep(one, "conformance", catch)
    assert verdicts(tmp_path, "2", "2").get(one)["case"] == catch["case"]
    assert not verdicts(tmp_path).get(mutant(new="SIZE = 10"))
    pins["tests/test_c.py"] = "2"
    assert verdicts(tmp_path).get(one)
    pins["conformance/test_a.py"] = "2"
    assert not verdicts(tmp_path).get(one)


def test_a_record_says_what_is_true_and_which_case_to_ask_first(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.mutate.verdicts.pin", lambda where, file: pins[file])
    pins, record = (
        {"conformance/test_a.py": "1", "conformance/test_b.py": "1"},
        tmp_path / "p.jsonl",
    )
    every = [mutant("one", new="SIZE = 5"), mutant("two", new="SIZE = 6"), mutant("late")]
    first = Verdicts(tmp_path / "here", record)
    for one, file in zip(every, pins, strict=False):
        case = {"case": f"{file}::t[x]", "message": "long", "seconds": 1}
        first.keep(one, "conformance", case)
    pins["conformance/test_b.py"] = "2"
    first.write(every)
    fresh = Verdicts(tmp_path / "elsewhere", record)
    assert fresh.get(every[0]) and not fresh.get(every[1]) and not fresh.get(every[2])
    assert fresh.catches.keys() == {"numpy/one", "numpy/two"}
    task = fresh.again(every[1])
    assert task["files"] == ["test_b.py"] and task["order"] == {"conformance/test_b.py::t[x]": 0}
    assert "long" not in record.read_text("utf-8")


class Answers:
    """Workers that answer at once."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def ask(self, task):
        return self.answers.pop(0)

    def map(self, do, things):
        return ((thing, do(thing)) for thing in things)


def test_a_catch_of_before_counts_only_if_the_same_case_fails(tmp_path):
    found, every = verdicts(tmp_path), [mutant("one", new="1"), mutant("two"), mutant("late")]
    for one in every[:2]:
        answer = {"case": "conformance/test_errors.py::t", "seconds": 1}
        found.keep(one, "conformance", answer)
    found.known.clear()
    gone = {"case": "before the first case", "seconds": 1}
    with Progress(disable=True) as bars:
        command.ask_again(Answers(answer, gone), bars, found, every)
    assert [bool(found.get(one)) for one in every] == [True, False, False]


def test_a_record_is_pinned_by_what_its_chapter_imports_and_all_share(tmp_path, monkeypatch):
    files = ("shared.py", "test_a.py", "cases/b.py", "cases/c.py", "attn_numpy/m.py", "other.py")
    texts = dict.fromkeys(files, "")
    texts["test_a.py"] = "from .cases.b import f\nimport attn_numpy.m"
    texts["cases/b.py"] = "from . import c"
    (tmp_path / "cases").mkdir()
    (tmp_path / "attn_numpy").mkdir()
    monkeypatch.setattr(reach, "ROOT", tmp_path)
    monkeypatch.setitem(reach.SHARED, "conformance", [tmp_path / "shared.py"])
    before, changed = "", []
    for file in (*files, *files):  # each is written, then changed
        (tmp_path / file).write_text(texts[file], "utf-8")
        texts[file] += "\n1"
        reach.pin.cache_clear()
        reach.imports.cache_clear()
        after = reach.pin("conformance", "test_a.py")
        changed.append(file) if after != before else None
        before = after
    reach.pin.cache_clear()
    reach.imports.cache_clear()
    assert changed[-4:] == ["shared.py", "test_a.py", "cases/b.py", "cases/c.py"]


def test_a_survivor_is_asked_again_when_the_tests_change(tmp_path):
    one, first = mutant(), verdicts(tmp_path)
    first.keep(one, "conformance", {"survived": True, "seconds": 1})
    assert not first.get(one) and first.get(one, suite=True)["survived"]
    first.keep(one, "tests", {"survived": True, "seconds": 1})
    assert verdicts(tmp_path).get(one)["survived"]
    assert not verdicts(tmp_path, tests="2").get(one)
    assert not verdicts(tmp_path, suite="2").get(one)


# What is said


def judged(tmp_path) -> tuple[list[SourceMutant], Verdicts]:
    every = [
        mutant(name, new=f"SIZE = 1{i}") for i, name in enumerate(("suite", "tests", "nobody"))
    ]
    every += [
        mutant("same", new="SIZE = 2 * 4", equivalent="8 is 8."),
        mutant("late", new="SIZE = 5"),
    ]
    found = verdicts(tmp_path)
    found.keep(every[0], "conformance", {"case": "conformance/test_a.py::test_b[x]", "seconds": 1})
    for one, answer in (
        (every[1], {"case": "tests/test_c.py::test_d"}),
        (every[2], {"survived": True}),
    ):
        found.keep(one, "conformance", {"survived": True, "seconds": 1})
        found.keep(one, "tests", answer | {"seconds": 1})
    return every, found


def test_the_page_counts_and_lists(tmp_path):
    text = page.page(*judged(tmp_path))
    for name in ("numpy", "attn_numpy/m.py"):
        assert f"| `{name}` | 5 | 4 | 1 | 1 | 1 | 1 |" in text
    assert "## Nobody catches\n\n- `numpy/nobody`: S.\n" in text
    assert "| `numpy/suite` | S. | conformance: `test_a.py::test_b` |" in text
    assert (
        "| `numpy/same` | S. | 8 is 8. |" in text and "| `numpy/late` | S. | not judged |" in text
    )


def run_with(monkeypatch, every: list[SourceMutant], found: Verdicts) -> None:
    """Let the command find these mutants, and these verdicts after its run."""
    monkeypatch.setattr(command, "patches", lambda: list(every))
    monkeypatch.setattr(command, "operators", lambda backend: [])
    monkeypatch.setattr(command, "run", lambda options, mutants: found)


@pytest.mark.parametrize("drop", [False, True])
def test_the_exit_status_is_of_patches_that_nobody_catches(tmp_path, monkeypatch, capsys, drop):
    every, found = judged(tmp_path)
    every = [m for m in every if not (drop and m.name == "nobody")]
    run_with(monkeypatch, every, found)
    assert command.main(["--patches"]) == int(not drop)
    assert ("Nobody catches numpy/nobody" in capsys.readouterr().out) is not drop


def test_the_page_is_of_all_mutants_whichever_were_asked_for(tmp_path, monkeypatch):
    run_with(monkeypatch, *judged(tmp_path))
    path = tmp_path / "page.md"
    command.main(["suite", "--page", str(path)])
    assert not path.exists()  # one that is named is looked at, and the page stays as it is
    command.main(["--backend", "torch", "--page", str(path)])
    assert "| `attn_numpy/m.py` | 5 | 4 | 1 | 1 | 1 | 1 |" in path.read_text("utf-8")


def test_where_nothing_was_judged_in_time_the_command_says_so(tmp_path, monkeypatch, capsys):
    every, found = judged(tmp_path)
    run_with(monkeypatch, [m for m in every if m.name in ("same", "late")], found)
    assert command.main([]) == 2
    assert "must be judged in time: got nothing" in capsys.readouterr().err
    assert command.main(["same"]) == 0  # nothing is to judge


def test_an_unknown_name_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(command, "patches", lambda: [mutant()])
    assert command.main(["invented"]) == 2
    assert "no patch has this name: got invented" in capsys.readouterr().err
