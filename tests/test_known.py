"""Known differences: what an entry must say, what it matches, and that it cannot outlive itself."""

import re
import tomllib
from pathlib import Path

import pytest
from test_command_line import ROOT, cli, small_suite

from conformance.reports import known
from conformance.reports.report import read, results

CLAUSE = ["--clause", "CLEAN-2", "--clause", "EMPTY-1"]
ADAPTER = """
import numpy as np

class Subject:
    name = "mine"
    mask_polarity = "attend"

    def attention(self, query, key, value, *, mask=None):
        scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[3], dtype=query.dtype)
        scores = np.where(True if mask is None else mask, scores, -np.inf)
        weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e30))
        return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30) @ value
"""
ENTRY = """
[[known]]
clause = "CLEAN-2"
reason = "0 * NaN is NaN"
link = "https://example.org/1"
"""
CONFORMING = ENTRY.replace("CLEAN-2", "EMPTY-1")
NOT_OFFERED = ENTRY.replace("CLEAN-2", "CLEAN-3")

TWO_DEVICES = ADAPTER.replace(
    """
    def attention""",
    """    devices = ("cpu", "cuda")

    def __init__(self, device):
        self.clean = np.nan_to_num if device == "cpu" else np.asarray

    def attention""",
).replace("@ value", "@ self.clean(value)")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "adapter.py").write_text(ADAPTER, "utf-8")
    return tmp_path


def run(folder: Path, text: str | bytes, *options: str, root: Path = ROOT):
    (folder / "known.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    first = f"import sys; sys.path.insert(0, {str(folder)!r})"
    given = ["run", "--subject", "adapter:Subject", "--known", "known.toml", *options]
    return cli(*given, cwd=folder, first=first, root=root)


def test_known_difference_is_neither_pass_nor_failure(folder):
    done = run(folder, ENTRY, *CLAUSE)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(read(folder / ".conformance/report.jsonl"))
    outcomes = {line["outcome"] for line in found if line["clause"] == "CLEAN-2"}
    assert outcomes <= {"known difference", "not offered"}
    assert "known difference" in outcomes
    took = {line["took"] for line in found if line["outcome"] == "known difference"}
    assert took == {"poisoned", "nan"}  # the second where a fully masked row's values are NaN


def test_known_difference_that_has_begun_to_conform_is_an_error(folder):
    done = run(folder, CONFORMING, *CLAUSE)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    entry = "EMPTY-1, case '*', subject '*', device '*'"
    said = f"has begun to conform: take its entry ({entry}) out of known.toml\n"
    assert said in done.stdout
    assert re.search(r"run just this: .* --known known.toml\n", done.stdout)
    found = results(read(folder / ".conformance/report.jsonl"))
    assert "error" in {line["outcome"] for line in found if line["clause"] == "EMPTY-1"}
    *_, last = done.stdout.splitlines()
    now = "known differences must be taken out of known.toml: EMPTY-1 conforms now"
    assert last == f"does not conform: CLEAN-2 differs; {now}"
    assert "violates 1 clause:\n" in done.stdout


TABLES = "a file of known differences holds tables [[known]] and nothing else"
WRONG = {
    "no_such_case": (
        ENTRY.replace("reason", 'case = "test_nothing[*]"\nreason'),
        "a known difference must match a case of the suite: got CLEAN-2, case 'test_nothing[*]'",
    ),
    "no_such_clause": (ENTRY.replace("CLEAN-2", "CLEAN-99"), "has a clause of the contract"),
    "should": (
        ENTRY.replace("CLEAN-2", "CLEAN-6"),
        "a SHOULD clause needs no entry: got CLEAN-6 in known.toml",
    ),
    "no_reason": (ENTRY.replace("0 * NaN is NaN", " "), "reason, link: got no reason in {"),
    "no_link": (ENTRY.replace("link", "url"), "reason, link: got no link in {"),
    "no_outcome": (f'{ENTRY}outcome = "passes"\n', "outcome = 'differs' or 'error'"),
    "no_toml": ("[[known", "known differences are written in TOML: got known.toml, "),
    "no_utf_8": (b"\xff", "known differences are written in TOML: got known.toml, "),
    "one_table": (ENTRY.replace("[[known]]", "[known]"), f"{TABLES}: got {{'known': {{'clause'"),
    "a_text": ('known = "x"', f"{TABLES}: got {{'known': 'x'}} in known.toml"),
    "a_list_of_texts": ('known = ["x"]', f"{TABLES}: got {{'known': ['x']}} in known.toml"),
    "misspelt": (f"{ENTRY}[[knwon]]", f"{TABLES}: got {{'knwon': [{{}}]}} in known.toml"),
    "case_no_text": (f"{ENTRY}case = 3", "all of them texts: got {'clause': 'CLEAN-2'"),
    "clause_no_text": (ENTRY.replace('"CLEAN-2"', '["CLEAN-2"]'), "all of them texts: got"),
    "outcome_no_text": (f'{ENTRY}outcome = ["differs"]', "all of them texts: got"),
    "reason_no_text": (ENTRY.replace('"0 * NaN is NaN"', "0"), "all of them texts: got"),
}


@pytest.mark.parametrize("name", WRONG)
def test_entry_that_does_not_hold_is_refused(folder, name):
    text, words = WRONG[name]
    done = run(folder, text, *CLAUSE)
    assert done.returncode not in (0, pytest.ExitCode.TESTS_FAILED), done.stdout
    assert "--known: " in done.stderr and words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["no_such_case", "no_reason", "no_toml"])
def test_entry_that_does_not_hold_is_refused_of_a_whole_run_too(folder, name):
    text, words = WRONG[name]
    done = run(folder, text, root=small_suite(folder))
    assert done.returncode != 0, done.stdout
    said = "of the suite that is offered: got " if name == "no_such_case" else words
    assert said in done.stderr
    assert "INTERNALERROR" not in done.stderr + done.stdout


CRASHING = ADAPTER.replace("scores = query", "raise KeyError('no')\n        scores = query")


def test_crash_is_no_known_difference(folder):
    (folder / "adapter.py").write_text(CRASHING, "utf-8")
    done = run(folder, ENTRY, "--clause", "CLEAN-2")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "KeyError" in done.stdout
    done = run(folder, f'{ENTRY}outcome = "error"\n', "--clause", "CLEAN-2")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("options", [[], ["-v"]])
def test_entry_of_what_is_not_offered_is_an_error(folder, options):
    done = run(folder, ENTRY + NOT_OFFERED, *options, root=small_suite(folder))
    assert "a case of the suite that is offered: got CLEAN-3" in done.stderr
    assert done.stderr.rstrip().endswith("in known.toml")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED


ONE = ["--case", "test_zero_gives_exact_zeros[EMPTY-1-float32]"]


@pytest.mark.parametrize("options", [["-vk", "CLEAN-2"], CLAUSE, ["--profile", "half"], ONE])
def test_entry_of_what_was_left_out_is_no_error(folder, options):
    done = run(folder, ENTRY + NOT_OFFERED, *options)
    assert done.returncode == 0, done.stdout + done.stderr


def test_empty_file_has_no_entries(folder):
    (folder / "known.toml").write_text("# none yet\n", "utf-8")
    assert known.read(folder / "known.toml") == []


COVERED = ENTRY.replace("reason", 'case = "test_*"\nsubject = "mi*"\nreason')


@pytest.mark.parametrize("options", [["--clause", "CLEAN-2"], []])
def test_entry_that_another_covers_matches_too(folder, options):
    done = run(folder, ENTRY + COVERED, *options, root=small_suite(folder))
    assert done.stderr == ""
    assert " known to differ" in done.stdout


def test_first_entry_that_matches_counts(folder):
    (folder / "adapter.py").write_text(CRASHING, "utf-8")
    error = f'{COVERED}outcome = "error"\n'
    assert run(folder, error + ENTRY, "--clause", "CLEAN-2").returncode == 0
    done = run(folder, ENTRY + error, "--clause", "CLEAN-2")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED


def test_brackets_are_no_pattern():
    about = {"case": "test_it[ATT-1-*-[2, 0]]", "subject": "mine[*]", "device": "cuda[?]"}
    entry = known.Known("ATT-1", "r", "l", **about)
    case = ("ATT-1", "test_it[ATT-1-causal-[2, 0]]", "mine[fast]", "cuda[1]")
    assert entry.matches(*case)
    for i, other in enumerate(["ATT-2", "test_it[ATT-1-causal-2]", "minef", "cuda1"]):
        assert not entry.matches(*case[:i], other, *case[i + 1 :])


def test_difference_of_one_device_can_be_written_down(folder):
    (folder / "adapter.py").write_text(TWO_DEVICES, "utf-8")
    done = run(folder, ENTRY, "--clause", "CLEAN-2")
    assert "has begun to conform" in done.stdout  # on the CPU
    done = run(folder, f'{ENTRY}device = "cuda"\n', "--clause", "CLEAN-2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_entry_of_a_device_that_is_not_there_is_left_alone(folder):
    (folder / "adapter.py").write_text(TWO_DEVICES, "utf-8")
    text = f'{ENTRY}device = "cuda"\n'
    done = run(folder, text, "--clause", "CLEAN-2", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    for wrong in ('case = "test_nothing"', 'subject = "typo"'):
        done = run(folder, f"{text}{wrong}\n", "--clause", "CLEAN-2", "--device", "cpu")
        assert done.returncode == pytest.ExitCode.USAGE_ERROR, wrong
        assert "a known difference must match a case of the suite" in done.stdout + done.stderr


def test_missing_exception_can_be_written_down(folder):
    entry = ENTRY.replace("CLEAN-2", "MASK-6") + 'case = "*out_of_range*"\n'
    (folder / "known.toml").write_text(entry, "utf-8")
    only = ["--mutant", "lengths-clipped", "--clause", "MASK-6", "-k", "out_of_range"]
    done = cli("run", *only, "--known", "known.toml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(read(folder / ".conformance/report.jsonl"))
    assert {line["outcome"] for line in found} == {"known difference"}


def test_draft_names_a_device_where_there_are_two(folder):
    (folder / "adapter.py").write_text(TWO_DEVICES, "utf-8")
    run(folder, "", "--clause", "CLEAN-2")
    (folder / "known.toml").write_text(drafted(folder), "utf-8")
    (entry,) = known.read(folder / "known.toml")
    assert (entry.clause, entry.device, entry.case) == ("CLEAN-2", "cuda", "*")
    done = run(folder, drafted(folder), "--clause", "CLEAN-2")
    assert done.returncode == 0, done.stdout + done.stderr


def drafted(folder: Path) -> str:
    """Draft a file of known differences from the last report, and fill it in."""
    text = known.draft(read(folder / ".conformance/report.jsonl"))
    return text.replace('reason = ""', 'reason = "r"').replace('link = ""', 'link = "l"')


@pytest.mark.parametrize("name", ["mine[fast]", '[!a] a😀 "quoted" \\ \x07\t\x7f'])
def test_filled_draft_is_read_and_matches(folder, name):
    crash = CRASHING.replace("KeyError('no')", r"ValueError('\x1b[31mno\x1b[0m\x7f\x85\rno')")
    (folder / "adapter.py").write_text(crash.replace('"mine"', repr(name)), "utf-8")
    run(folder, "", "--clause", "CLEAN-2")
    text = drafted(folder)
    assert "# ValueError: [31mno[0mno\n" in text
    done = run(folder, text, "--clause", "CLEAN-2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_draft_has_an_entry_a_clause_or_a_case(folder):
    first = f"import sys; sys.path.insert(0, {str(folder)!r})"
    cli("run", "--subject", "adapter:Subject", *CLAUSE, cwd=folder, first=first)
    report = read(folder / ".conformance/report.jsonl")
    text = known.draft(report)
    (entry,) = tomllib.loads(text)["known"]
    assert (entry["clause"], entry["case"], entry["subject"]) == ("CLEAN-2", "*", "mine")
    assert (entry["reason"], entry["link"]) == ("", "")
    took = next(line["took"] for line in report if line.get("outcome") == "differs")
    assert took and f"# {took}" in text
    made = [
        {"type": "result", "clause": "ATT-1", "case": f"test_it[{n}]", "subject": "mine",
         "device": "cpu", "outcome": outcome, "took": None, "message": ["", "ATT-1: off"][n % 2]}
        for n, outcome in enumerate(["conforms", "differs", "error", "not offered"])
    ]  # fmt: skip
    entries = tomllib.loads(known.draft(made))["known"]
    assert [entry["case"] for entry in entries] == ["test_it[1]", "test_it[2]"]
    assert [entry.get("outcome") for entry in entries] == [None, "error"]
