"""The suite in somebody else's pytest session: every case is there, and the session is theirs."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_command_line import ROOT, cli

from conformance import parametrize_with_clauses
from conformance.embed.chapters import clause_cases
from conformance.reports.report import by_clause, read, results
from conformance.reports.verdict import is_must

PROFILES = ["empty", "hygiene", "causal"]
RIGHT = """
import numpy as np

class Subject:
    name = "right"
    mask_polarity = "attend"

    def attention(self, query, key, value, *, mask=None):
        allowed = np.ones((*query.shape[:3], key.shape[2]), bool) if mask is None else mask
        bad = ~(np.isfinite(key).all(-1) & np.isfinite(value).all(-1))
        key, value = (np.where(bad[..., None], np.float32(0), x) for x in (key, value))
        scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[3], dtype=query.dtype)
        scores = np.where(allowed, scores, -np.inf)
        weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), -1e30))
        output = weights @ value / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
        return np.where((allowed & bad[:, :, None]).any(-1)[..., None], np.nan, output)
"""
CLEANING = (
    "        key, value = (np.where(bad[..., None], np.float32(0), x) for x in (key, value))\n"
)
ADAPTERS = {
    "right": RIGHT,
    "inverted": RIGHT.replace('"attend"', '"hide"').replace('"right"', '"inverted"'),
    "poisoned": RIGHT.replace(CLEANING, "").replace('"right"', '"poisoned"'),
    "raising": RIGHT.replace(
        "allowed = np.ones", "raise KeyError(0)\n        allowed = np.ones", 1
    ).replace('"right"', '"raising"'),
}
KNOWN = "".join(
    f'[[known]]\nclause = "{clause}"\nsubject = "poisoned"\ncase = "{case}"\n'
    'reason = "0 * NaN is NaN"\nlink = "https://example.org/1"\n'
    for clause, case in [
        ("CLEAN-2", "*"),
        ("CLEAN-4", "test_visible_nan_reaches_exactly_those_who_see_it[*-value]"),
        ("CLEAN-4", "test_frozen_vector_of_CLEAN_4[*-value-*]"),
    ]
)
FILE = f"""
import gc, warnings
import numpy as np, pytest, sys
from hypothesis import settings
import right, inverted, poisoned, raising
from conformance import parametrize_with_clauses

settings.register_profile("steady", max_examples=7)
settings.load_profile("steady")

def state():
    return (gc.get_threshold(), list(warnings.filters), np.geterr(), settings.default,
            settings.get_current_profile_name())

BEFORE = state()
PROFILES = {PROFILES!r}

@parametrize_with_clauses(right.Subject, profiles=PROFILES)
def test_right(check):
    check()

class TestClass:
    @parametrize_with_clauses(inverted, profiles=PROFILES)
    def test_inverted(self, check):
        check()

@parametrize_with_clauses("poisoned:Subject", profiles=PROFILES, known="known.toml")
def test_poisoned(check):
    check()

@parametrize_with_clauses(right.Subject, profiles=["empty"], known="stale.toml")
def test_stale(check):
    check()

@parametrize_with_clauses(raising.Subject, profiles=["empty"])
def test_raising(check):
    check()

@parametrize_with_clauses(right.Subject, profiles=["empty"])
def test_the_session_is_as_it_was(check):
    before = state()
    check()
    assert state() == before
    assert before[3:] == BEFORE[3:] and before[0] == BEFORE[0]

def test_theirs():
    assert BEFORE[4] == "steady" and settings.default.max_examples == 7
    assert "conformance.conftest" not in sys.modules
"""
STALE = '[[known]]\nclause = "EMPTY-1"\nreason = "no"\nlink = "https://example.org/2"\n'


def pytest_in(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run pytest in a folder, as where this project's wheel is installed with its plugin."""
    info = folder / "site/attn_rosetta-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    points = project["entry-points"]["pytest11"].items()
    lines = "".join(f"{name} = {module}\n" for name, module in points)
    (info / "entry_points.txt").write_text(f"[pytest11]\n{lines}", "utf-8")
    (info / "METADATA").write_text("Name: attn-rosetta\nVersion: 0\n", "utf-8")
    path = os.pathsep.join([str(folder / "site"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", "pytest"]  # no folder on the path, as the script has it
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def outcomes(path: Path) -> dict[str, str]:
    """Return the outcome of each test in a file of JUnit's XML, by class and name."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = [f"{e.tag} {e.get('type', '')}".strip() for e in case]
        found[f"{case.get('classname')}.{case.get('name')}"] = "".join(kinds) or "passed"
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    for name, text in ADAPTERS.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    (folder / "known.toml").write_text(KNOWN, "utf-8")
    (folder / "stale.toml").write_text(STALE, "utf-8")
    (folder / "test_file.py").write_text(FILE, "utf-8")
    return folder


@pytest.fixture(scope="module")
def session(folder) -> tuple[subprocess.CompletedProcess, dict[str, str]]:
    """Run the file in a session that is strict and in which warnings are errors."""
    strict = ["-W", "error", "--strict-markers", "--strict-config", "--junitxml=junit.xml", "-rfE"]
    done = pytest_in(folder, *strict, "test_file.py")
    return done, outcomes(folder / "junit.xml")


@pytest.fixture(scope="module")
def reference(folder) -> list[dict]:
    """Put the same to the suite by its own command."""
    named = [f"--subject={name}:Subject" for name in ADAPTERS]
    profiles = [f"--profile={name}" for name in PROFILES]
    cli("run", *named, *profiles, "--known", "known.toml", "--junitxml=run.xml", cwd=folder)
    return results(read(folder / ".conformance/report.jsonl"))


def of(found: dict[str, str], test: str) -> dict[str, str]:
    """Return the outcomes of one test function by the suite's own names."""
    start = f"test_file.{test}["
    return {n.removeprefix(start)[:-1]: o for n, o in found.items() if n.startswith(start)}


SAME = {
    "conforms": {"passed"},
    "differs": {"failure", "skipped pytest.xfail"},  # the second: of a SHOULD clause
    "known difference": {"skipped pytest.xfail"},
    "not offered": {"skipped pytest.skip"},
}


@pytest.mark.parametrize("name", ["right", "inverted", "poisoned"])
def test_the_same_is_asked_with_the_same_outcome(session, reference, name):
    test = "TestClass.test_inverted" if name == "inverted" else f"test_{name}"
    found = of(session[1], test)
    assert len(found) > 50
    tried = {r["test"]: r["outcome"] for r in reference if r["subject"] == name}
    missing = {t for t, o in tried.items() if o != "not offered"} - set(found)
    assert not missing, f"asked by a run, and not by the decorator: {sorted(missing)}"
    other = {t: (o, tried[t]) for t, o in found.items() if o not in SAME[tried[t]]}
    assert not other, f"another outcome than in a run: {other}"
    late = [t for t, o in found.items() if o == "skipped pytest.skip"]
    assert len(late) < len(found) / 8, f"not offered, and collected: {late}"


def test_outcomes_are_what_the_adapters_deserve(session):
    found = {name: set(of(session[1], f"test_{name}").values()) for name in ADAPTERS}
    assert "failure" not in found["right"] and "passed" in found["right"]
    assert "failure" not in found["poisoned"] and "skipped pytest.xfail" in found["poisoned"]
    assert "failure" in set(of(session[1], "TestClass.test_inverted").values())
    assert found["raising"] == {"failure"}
    assert session[0].returncode == pytest.ExitCode.TESTS_FAILED


def test_a_failure_is_told_in_the_suites_words(session, reference):
    wrong = next(r for r in reference if r["subject"] == "inverted" and r["took"] == "inverted")
    text = session[0].stdout
    assert wrong["message"].splitlines()[0].removeprefix(f"{wrong['clause']}: ") in text
    assert "this answer is recognised as 'inverted': the mask inverted" in text
    node = f"test_file.py::TestClass::test_inverted[{wrong['test']}]"
    assert f"run just this: python -m pytest '{node}'" in text
    told = text.partition("test_raising")[0]
    assert "check.py" not in told and "compare.py" not in told, "a frame of the suite's is shown"


def test_an_exception_goes_through_with_the_suites_words(session):
    text = session[0].stdout
    assert ">       raise KeyError(0)" in text and "E       KeyError: 0" in text
    assert "E       subject raising, device cpu, dtype float32, case test_" in text
    frames = re.findall(r"^(\S+\.py):\d+: ", text, re.MULTILINE)
    assert set(frames) == {"test_file.py", "raising.py"}, "a frame of the suite's is shown"


def test_xml_of_a_run_shows_the_adapters_frames_alone(folder, reference):
    found = outcomes(folder / "run.xml")
    assert len(found) == len(reference)
    text = (folder / "run.xml").read_text("utf-8")
    assert "raising.py:9: in attention" in text and "<property" not in text
    assert str(ROOT) not in text, "a path of the suite's is shown"


def test_a_known_difference_that_conforms_fails(session, folder):
    found = of(session[1], "test_stale")
    wrong = {name for name, outcome in found.items() if outcome == "failure"}
    assert wrong and all("-EMPTY-1" in name for name in wrong)
    entry = "EMPTY-1, case '*', subject '*', device '*'"
    said = f"has begun to conform: take its entry ({entry}) out of {folder / 'stale.toml'}"
    assert said in session[0].stdout


def test_the_session_is_left_as_it_was(session, folder):
    found = of(session[1], "test_the_session_is_as_it_was")
    assert len(found) > 5 and set(found.values()) == {"passed"}, session[0].stdout[-3000:]
    assert session[1]["test_file.test_theirs"] == "passed"
    assert not (folder / ".hypothesis").exists()


TOLD = re.compile(
    r"^conformance: (\w+) on cpu, (\d+) cases, (\d+) clauses not offered$", re.MULTILINE
)


def test_what_is_not_offered_is_counted_and_not_collected(session, reference):
    found = TOLD.findall(session[0].stdout)[:3]
    counted = {name: int(cases) for name, cases, _ in found}
    tests = {"right": "test_right", "inverted": "TestClass.test_inverted",
             "poisoned": "test_poisoned"}  # fmt: skip
    assert counted == {name: len(of(session[1], test)) for name, test in tests.items()}
    for name, _, absent in found:
        by_id = by_clause([result for result in reference if result["subject"] == name])
        ours = {id for id, outcome in by_id.items() if outcome == "not offered" and is_must(id)}
        collected = {re.search(r"-cpu-(\w+-\d+)", test)[1] for test in of(session[1], tests[name])}
        assert int(absent) == len(ours - collected) > 3, "a run of the suite counts otherwise"


def test_workers_tell_what_is_not_offered_once(folder, session):
    done = pytest_in(folder, "-n2", "-k", "test_right and CAUSE-1", "test_file.py")
    assert "[gw1]" not in done.stdout and done.returncode == 0, done.stdout[-2000:]
    assert TOLD.findall(done.stdout) == TOLD.findall(session[0].stdout)[:1]


@pytest.fixture(scope="module")
def one_case(folder) -> subprocess.CompletedProcess:
    """Put one case to two subjects with the plugin's option, from another folder."""
    words = ["--pyargs", "conformance", "--conformance-profile=empty", "--conformance-known",
             "some.toml", "-k", "zeros and EMPTY-1-float32", "--junitxml=plugin.xml"]  # fmt: skip
    named = [f"--conformance-subject={name}:Subject" for name in ("right", "inverted")]
    text = STALE.replace("reason", 'subject = "inverted"\nreason')
    (folder / "some.toml").write_text(text, "utf-8")
    return pytest_in(folder, *words, *named)


def test_the_installed_plugin_asks_by_options(one_case, folder):
    found = outcomes(folder / "plugin.xml")
    case = "conformance.test_empty.test_zero_gives_exact_zeros[{}-cpu-EMPTY-1-float32]"
    expected = {"right": "passed", "inverted": "skipped pytest.xfail"}
    assert found == {case.format(name): outcome for name, outcome in expected.items()}
    assert one_case.returncode == 0, one_case.stdout
    assert "conformance: inverted on cpu, " in one_case.stdout
    assert "<property" not in (folder / "plugin.xml").read_text("utf-8")


def test_a_chapter_can_be_chosen_and_its_failure_be_repeated(folder):
    words = ["--pyargs", "conformance.test_causal", "--conformance-subject=inverted:Subject"]
    done = pytest_in(folder, *words, "-x", "-k", "CAUSE-1")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    (command,) = set(re.findall("run just this: python -m conformance (.*)", done.stdout))
    assert command.startswith("run --subject inverted:Subject --device cpu --case 'test_")


FORGOTTEN = """
import inverted
from conformance import parametrize_with_clauses

@parametrize_with_clauses(inverted, profiles=["empty"])
def test_forgotten(check):
    check  # and no ()
"""


def test_a_check_that_is_not_called_fails(folder):
    (folder / "test_forgotten.py").write_text(FORGOTTEN, "utf-8")
    done = pytest_in(folder, "-x", "test_forgotten.py")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "a test must call its check, as in check(): got <check of test_" in done.stdout


OPTION = "--conformance-subject"
REFUSED = {
    "no_such_class": (
        ["--pyargs", "conformance", f"{OPTION}=right:No"],
        f"{OPTION} right:No: it must name a class of right: got No",
    ),
    "no_such_module": (
        ["--pyargs", "conformance", f"{OPTION}=nowhere:Subject"],
        "No module named 'nowhere'; install it, or name its folder in PYTHONPATH",
    ),
    "no_such_profile": (
        ["--pyargs", "conformance", f"{OPTION}=right:Subject", "--conformance-profile=empt"],
        f"{OPTION} right:Subject: a profile must be one of masks, attention, empty,",
    ),
    "nothing_offered": (
        ["--pyargs", "conformance", f"{OPTION}=right:Subject", "--conformance-profile=cache"],
        "nothing would be tested: got a subject that offers nothing of it",
    ),
    "another_test_alone": (
        ["theirs.py", f"{OPTION}=right:Subject", "--conformance-profile=causal"],
        f"{OPTION} needs --pyargs conformance: got other tests alone",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_would_test_nothing_are_refused(folder, name):
    words, said = REFUSED[name]
    (folder / "theirs.py").write_text("def test_theirs(): pass\n", "utf-8")
    done = pytest_in(folder, *words)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert said in done.stderr and "Traceback" not in done.stderr


DRAFT = STALE.replace('reason = "no"', 'reason = ""  # 0')
NO_REASON = """
import right
from conformance import parametrize_with_clauses

@parametrize_with_clauses(right.Subject, profiles=["empty"], known="draft.toml")
def test_draft(check):
    check()
"""


def test_draft_without_a_reason_is_refused_in_a_sentence(folder):
    (folder / "draft.toml").write_text(DRAFT, "utf-8")
    (folder / "test_draft.py").write_text(NO_REASON, "utf-8")
    done = pytest_in(folder, "test_draft.py")
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    told = done.stdout.partition("ERROR collecting test_draft.py ____")[2].splitlines()[1:]
    said = "a known difference has clause, reason, link: got no reason in {'clause': 'EMPTY-1', "
    assert told[0].startswith(said) and told[0].endswith(f", {folder / 'draft.toml'}"), told
    assert told[1].startswith("====")


def nothing(): ...


class Attending:
    """An adapter that is never called."""

    mask_polarity = "attend"

    def attention(self, query, key, value, *, mask=None): ...


@pytest.mark.parametrize(
    ("subject", "options", "error", "text"),
    [
        (
            3,
            {},
            TypeError,
            "a class, a module that has a class Subject, or a text: got an instance of int",
        ),
        ("numpy", {}, ValueError, "it must be an adapter, a backend is --backend numpy"),
        (Attending, {"profiles": ["empt"]}, ValueError, "a profile must be one of masks,"),
        (Attending, {"profiles": []}, ValueError, "nothing would be tested"),
        (Attending, {"profiles": "empty"}, TypeError, "profiles must be a list of names"),
    ],
)
def test_a_decorator_that_means_nothing_is_refused(subject, options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        parametrize_with_clauses(subject, **options)(nothing)


def test_a_known_difference_must_match_a_case(tmp_path):
    (tmp_path / "known.toml").write_text(STALE.replace("EMPTY-1", "EMPTY-2"), "utf-8")
    rule = "a known difference must match a case of the suite that is offered: got EMPTY-2, case"
    options = {"profiles": ["empty"], "known": tmp_path / "known.toml"}
    with pytest.raises(ValueError, match=rule):
        parametrize_with_clauses(Attending, **options)(nothing)


def test_cases_are_named_as_pytest_names_them(folder):
    suite = str(ROOT / "conformance")
    words = [suite, f"-c{suite}/pytest.ini", "--backend=numpy", "--collect-only", "-q"]
    lines = pytest_in(folder, "-pno:attn_rosetta", *words).stdout.splitlines()
    theirs = [line.replace("[numpy-cpu-", "[", 1) for line in lines if "::" in line]
    ours = [f"{case.chapter.replace('.', '/')}.py::{case.name}" for case in clause_cases()]
    assert len(ours) == len(set(ours)) > 4000
    assert sorted(ours) == sorted(theirs)


LOADED = """
import sys

def test_it(pytestconfig):
    print("MODULES", *sorted(sys.modules))
    print("MARKS", *pytestconfig.getini("markers"))
"""


def test_a_session_that_asks_for_nothing_is_left_alone(tmp_path):
    (tmp_path / "test_it.py").write_text(LOADED, "utf-8")
    words = ["-s", "-q", "--strict-markers", "-W", "error"]
    with_plugin, without = (pytest_in(tmp_path, *words, *more).stdout.splitlines()
                            for more in ([], ["-p", "no:attn_rosetta"]))  # fmt: skip
    assert "1 passed" in with_plugin[-1] and "1 passed" in without[-1], with_plugin
    (modules, *told), (others, *same) = with_plugin[:2], without[:2]
    new = set(modules.split()) - set(others.split())
    assert new == {"conformance", "conformance.embed", "conformance.embed.plugin"}
    assert told == same
    assert {path.name for path in tmp_path.iterdir()} == {"site", "test_it.py"}


def test_the_suite_does_not_start_in_somebodys_session_by_itself(folder):
    """Its own settings and hooks are for its own command."""
    done = pytest_in(folder, "--pyargs", "conformance", "-q", "--collect-only")
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout[-2000:]
    assert "--pyargs conformance needs --conformance-subject: got none" in done.stdout
    assert "Traceback" not in done.stdout and "conftest" not in done.stdout
