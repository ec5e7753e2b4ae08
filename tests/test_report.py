"""Reports: their schema, their formats, and what has changed between two of them."""

import json
from argparse import Namespace
from collections import Counter
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from conformance.__main__ import main
from conformance.contract import clauses
from conformance.reports import terminal
from conformance.reports.diagnosis import NAMES
from conformance.reports.diff import diff
from conformance.reports.failure import explain
from conformance.reports.report import OUTCOMES, in_short, line, outdated, read, results
from conformance.reports.summary import MOST_LINES, as_data, summary
from conformance.reports.terminal import show
from conformance.reports.verdict import verdict, violations
from conformance.runs.run import _print_verdict

HEADER = {
    "type": "header",
    "schema": 1,
    "python": "3.11.7",
    "platform": "Linux",
    "precision": "full",
    "subjects": [
        {"subject": "mine", "device": "cpu", "versions": {"mine": "1.2"}, "masks": "attend",
         "capabilities": ["attention"], "dtypes": ["float32"]},
    ],
    "arguments": [],
    "started": "2026-01-01T00:00:00",
}  # fmt: skip
FOOTER = {"type": "footer", "counts": {}, "seconds": 1.5, "exit": 0}


def result(clause: str, outcome: str, took: str | None = None, case: str = "", **more) -> dict:
    case = f"test_{case or 'it'}[{clause}]"
    return {
        "type": "result", "case": case, "clause": clause, "subject": "mine", "device": "cpu",
        "test": case.replace("[", "[mine-cpu-"), "outcome": outcome, "took": took,
        "used": 0.25 if outcome == "conforms" else None, "what": "output",
        "message": f"{clause}: off", "seconds": 0.1,
    } | more  # fmt: skip


def whole(*found: dict) -> list[dict]:
    """Return the report that has these results."""
    lines = [HEADER]
    for one in found:
        clause = clauses()[one["clause"]]
        about = {"clause": clause.id, "level": clause.level, "profile": clause.profile}
        lines += [{"type": "case", "case": one["case"], **about, "dtype": "float32"}, one]
    return [*lines, FOOTER | {"counts": dict(Counter(one["outcome"] for one in found))}]


OFF = "EMPTY-4: output at (1, 0): expected 0, got 0.5, error 0.5 of 1e-07 allowed (5e+06 x)"
LINES = whole(
    result("ATT-1", "conforms"),
    result("ATT-8", "differs", "mean"),
    result("EMPTY-1", "differs", "mean", got=0.5, expected=0.0, index=[1, 0, 2, 3]),
    result("EMPTY-4", "differs", "mean"),
    result("EMPTY-4", "differs", case="that", message=OFF),
    result("HALF-1", "error", message="TypeError: no float16"),
    result("CLEAN-2", "known difference", "poisoned"),
    result("CLEAN-6", "differs", "poisoned"),
    result("CACHE-1", "not offered"),
)


@pytest.fixture
def path(tmp_path) -> Path:
    return written(tmp_path / "report.jsonl", LINES)


def written(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(line(**fields) + "\n" for fields in lines), "utf-8")
    return path


def test_report_is_read_as_it_was_written(path):
    assert read(path) == LINES


def test_number_that_json_does_not_know_is_written_as_a_text(tmp_path):
    lines = whole(result("ATT-1", "differs", got=float("nan"), expected=float("-inf")))
    (found,) = results(read(written(tmp_path / "report.jsonl", lines)))
    assert (found["got"], found["expected"]) == ("NaN", "-inf")


def test_message_may_hold_any_character(tmp_path):
    lines = whole(result("ATT-1", "error", message="a\u2028b\u0085c"))
    assert read(written(tmp_path / "report.jsonl", lines)) == lines


def broken(change) -> list[dict]:
    lines = deepcopy(LINES)
    change(lines)
    return lines


WRONG_LINES = {
    "unknown_outcome": (broken(lambda x: x[2].update(outcome="passes")), 3),
    "unknown_field": (broken(lambda x: x[2].update(speed=3)), 3),
    "no_device": (broken(lambda x: x[4].pop("device")), 5),
    "no_subjects": (broken(lambda x: x[0].pop("subjects")), 1),
    "other_schema": (broken(lambda x: x[0].update(schema=2)), 1),
    "clause_without_a_number": (broken(lambda x: x[1].update(clause="ATT")), 2),
    "counts_of_something_else": (broken(lambda x: x[-1]["counts"].update(passes=3)), 20),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_line_that_is_not_of_the_schema_is_refused(tmp_path, name):
    lines, number = WRONG_LINES[name]
    path = written(tmp_path / "report.jsonl", lines)
    with pytest.raises(ValueError, match=rf"report\.schema\.json: got .*, line {number}$"):
        read(path)


ENDS = "a report begins with a header and ends with a footer, one of each, in JSON Lines: got "
CASES = "a report names each case of its results once: got "
COUNTS = "a footer counts the results of its report: got "
ONE_RESULT = "a report has one result a test: got ('mine', 'cpu', 'test_it[mine-cpu-ATT-1]') twice"
UNKNOWN = "a report has clauses of CONTRACT.md: got ATT-99 in "
NOT_WHOLE = {
    "two_headers": (broken(lambda x: x.insert(1, x[0])), ENDS),
    "two_footers": (broken(lambda x: x.append(x[-1])), ENDS),
    "two_reports": (LINES + LINES, ENDS),
    "footer_alone": ([LINES[-1]], ENDS),
    "result_missing": (broken(lambda x: x.pop(2)), CASES),
    "case_missing": (broken(lambda x: x.pop(1)), CASES),
    "case_doubled": (broken(lambda x: x.insert(1, x[1])), CASES),
    "case_and_result_missing": (broken(lambda x: [x.pop(1), x.pop(1)]), COUNTS),
    "result_doubled": (broken(lambda x: x.insert(2, x[2])), ONE_RESULT),
    "other_count": (broken(lambda x: x[-1]["counts"].update(conforms=2)), COUNTS),
    "other_outcome": (broken(lambda x: x[2].update(outcome="differs")), COUNTS),
    "unknown_clause": (broken(lambda x: x[2].update(clause="ATT-99")), UNKNOWN),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_report_that_is_not_whole_is_refused(tmp_path, capsys, name):
    lines, words = NOT_WHOLE[name]
    path = written(tmp_path / "report.jsonl", lines)
    assert main(["summary", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(words) and str(path) in said and said.count("\n") == 1


def test_report_that_is_not_there_says_who_writes_one(tmp_path, capsys):
    assert main(["summary", str(tmp_path / "none.jsonl")]) == 2
    rule = "a report must be there, python -m conformance run writes one"
    assert capsys.readouterr().err == f"{rule}: got no {tmp_path / 'none.jsonl'}\n"


def texts(lines: list[dict], **options) -> list[str]:
    return [line.text for line in summary(lines, **options)]


def test_summary_ends_with_the_violated_clauses_and_what_is_done_instead():
    mean = NAMES["mean"]
    assert texts(LINES, width=100)[-5:] == [
        "mine on cpu violates 4 clauses:",
        f"  EMPTY-1: {mean} (1)",
        f"  EMPTY-4: {mean} (1), output: beyond the tolerance (1)",
        "  HALF-1: TypeError (1)",
        "  in fully masked rows only: ATT-8",
    ]


def test_violated_clauses_take_no_more_than_a_screen():
    ids = [clause.id for clause in clauses().values() if clause.level == "MUST"][:40]
    many = whole(*(result(id, "differs", "inverted") for id in ids))
    told = texts(many, path="report.jsonl")[-MOST_LINES:]
    assert told[0] == "mine on cpu violates 40 clauses:"
    assert told[-1] == "  ... and 27 more: python -m conformance summary report.jsonl --wide"
    assert sum(f": {NAMES['inverted']} (1)" in text for text in told) == MOST_LINES - 2
    assert sum(f": {NAMES['inverted']} (1)" in text for text in texts(many, wide=True)) == 40


def test_summary_shows_the_worst_row_first_and_folds_what_conforms():
    head, *rows = texts(LINES)[:6]
    assert head.split()[:5] == ["subject", "device", "profile", "conform", "differ"]
    shown = ["empty", "attention", "half", "hygiene"]
    assert [row.split()[2] for row in rows[:4]] == shown
    fine = whole(result("ATT-1", "conforms"), result("EMPTY-1", "conforms", used=0.5))
    assert texts(fine)[0] == "mine cpu: 2 profiles conform, worst error 0.50 of the tolerance"
    assert [row.split()[2] for row in texts(fine, wide=True)[1:3]] == ["attention", "empty"]


def test_should_clause_that_differs_has_its_row():
    """It fails no run, and it is not folded away either."""
    head, row = texts(whole(result("CLEAN-6", "differs")), width=80)[:2]
    assert "0 of 1" in row and len(head) <= 80


@pytest.mark.parametrize("width", [66, 80, 100, 120, 160])
def test_summary_fits_the_terminal_and_uses_it(width):
    lines = texts(LINES, width=width)
    assert max(map(len, lines)) <= width, lines
    assert all(line == line.rstrip() for line in lines)
    title = lines[0].split("  ")
    assert ("not offered" in title) == (width >= 100)
    assert ("SHOULD" in title) == (width >= 80)
    assert ("in case" in title) == (width >= 120)
    wide = texts(LINES, width=width, wide=True)
    assert "SHOULD" in wide[0] and wide[0].endswith("in case")


def test_table_shows_what_is_in_the_report_in_columns_of_their_own():
    title, row = texts(LINES, width=100)[:2]
    for name, value in {"differ": "2", "known": "0", "not offered": "0"}.items():
        end = title.index(name) + len(name)
        assert row[:end].split()[-1] == value, name


VERDICTS = {
    "conforms": (["conforms"] * 3, 0, "conforms: 3 clauses", 0),
    "known": (["conforms", "known difference"], 0, "conforms: 1 clause, 1 known difference", 0),
    "not_offered": (["conforms", "not offered"], 0, "conforms: 1 clause, 1 clause not offered", 0),
    "one": (["differs", "conforms"], 1, "does not conform: ATT-1 differs", 1),
    "three": (["differs"] * 3, 1, "does not conform: ATT-1, ATT-2 and ATT-3 differ", 1),
    "five": (["differs"] * 5, 1, "does not conform: ATT-1, ATT-2 and 3 more differ", 1),
    "error": (
        ["differs", "error"], 1, "does not conform: ATT-1 differs; ATT-2 raises an error", 1
    ),
    "nothing": (
        ["not offered"], 0, "no verdict: nothing was tested, the subject offers nothing of it", 5
    ),
    "died": (
        ["conforms"], 1,
        "no verdict: a process ended early, or a test outside the suite failed", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict_in_words(name):
    outcomes, status, text, exit_status = VERDICTS[name]
    report = whole(*(result(f"ATT-{i}", outcome) for i, outcome in enumerate(outcomes, 1)))
    assert verdict(report, status) == (text, exit_status)


def test_verdict_names_first_what_is_not_only_of_fully_masked_rows():
    report = whole(result("ATT-1", "differs", "mean"), result("EMPTY-1", "differs", "mean"))
    assert verdict(report, 1)[0] == "does not conform: EMPTY-1 and ATT-1 differ"


def test_run_with_an_unused_known_difference_has_no_verdict(tmp_path, capsys):
    (tmp_path / "known.toml").write_text(
        '[[known]]\nclause = "ATT-2"\nreason = "r"\nlink = "l"\n', "utf-8"
    )
    asked = {"known": str(tmp_path / "known.toml"), "report": "r.jsonl", "smoke": False}
    report = whole(result("ATT-1", "conforms"))
    assert _print_verdict(Namespace(**asked), report, 0, whole=True) == 1
    said = capsys.readouterr()
    assert said.err.startswith(
        "a known difference must match a case of the suite that is offered: "
    )
    assert said.out.endswith(f"no verdict: an entry of {asked['known']} matches nothing\n")
    assert _print_verdict(Namespace(**asked | {"known": None}), report, 0, whole=True) == 0
    assert capsys.readouterr().out.endswith("report: r.jsonl\nconforms: 1 clause\n")


def test_should_clause_is_no_violation():
    report = whole(result("CLEAN-6", "differs"), result("ATT-1", "conforms"))
    assert verdict(report, 0) == ("conforms: 1 clause, SHOULD 0 of 1", 0)
    kept = whole(result("CLEAN-6", "conforms"), result("ATT-1", "conforms"))
    assert verdict(kept, 0) == ("conforms: 1 clause", 0)


NO_MUST = "no MUST clause was tested; SHOULD: "


@pytest.mark.parametrize(("outcome", "kept"), [("conforms", 1), ("differs", 0), ("error", 0)])
def test_run_of_should_clauses_alone_does_not_conform(outcome, kept):
    alone = whole(result("CLEAN-6", outcome))
    text = f"{NO_MUST}{kept} of 1 conform"
    assert verdict(alone, 0) == (text, 0)
    assert verdict(alone, 1)[0].startswith("no verdict: a process ended early")
    beside = whole(result("CLEAN-6", outcome), result("CLEAN-2", "not offered"))
    assert verdict(beside, 0) == (f"no verdict: {text}", 5)


def test_should_clause_that_is_not_offered_is_not_tested():
    text = "no verdict: nothing was tested, the subject offers nothing of it"
    assert verdict(whole(result("CLEAN-6", "not offered")), 0) == (text, 5)


NOW = outdated("EMPTY-1, case '*', subject '*', device '*'", "b.toml")
TAKE_OUT = "known differences must be taken out of b.toml: EMPTY-1 conforms now"


def test_known_difference_that_conforms_now_is_no_violation():
    now = result("EMPTY-1", "error", message=NOW)
    assert verdict(whole(now, result("ATT-1", "conforms")), 1) == (TAKE_OUT, 1)
    assert not violations(whole(now), 80)
    other = result("EMPTY-1", "differs", case="that")
    both = f"does not conform: EMPTY-1 differs; {TAKE_OUT}"
    assert verdict(whole(now, other), 1) == (both, 1)
    assert violations(whole(now, other), 80)[0].text == "mine on cpu violates 1 clause:"


def on(device: str, *found: dict, subject: str = "mine") -> list[dict]:
    """Return results on another subject or device."""
    return [one | {"subject": subject, "device": device} for one in found]


def beside(first: list[dict], subject: str, device: str, found: list[dict]) -> list[dict]:
    """Return a report of two subjects; their results are of different cases."""
    report = whole(*first, *found)
    other = HEADER["subjects"][0] | {"subject": subject, "device": device}
    return [HEADER | {"subjects": [*HEADER["subjects"], other]}, *report[1:]]


def test_verdict_names_the_subject_and_the_device_that_differ():
    fine, wrong = result("ATT-1", "conforms"), result("EMPTY-1", "differs", case="that")
    failed = result("EMPTY-4", "error", case="that")
    report = beside([fine], "mine", "cuda", on("cuda", wrong))
    assert verdict(report, 1)[0] == "does not conform: EMPTY-1 differs on mine cuda"
    report = beside([wrong], "two", "cpu", on("cpu", failed, subject="two"))
    told = "EMPTY-1 differs on mine; EMPTY-4 raises an error on two"
    assert verdict(report, 1)[0] == f"does not conform: {told}"
    report = beside([wrong], "two", "cuda", on("cuda", result("EMPTY-1", "differs"), subject="two"))
    assert verdict(report, 1)[0] == "does not conform: EMPTY-1 differs on mine cpu and two cuda"
    report = beside([wrong], "two", "cpu", on("cpu", result("EMPTY-1", "error"), subject="two"))
    assert verdict(report, 1)[0] == "does not conform: EMPTY-1 raises an error on two"


@pytest.mark.parametrize(
    ("id", "took", "where"),
    [("CAUSE-3", "mean", "in fully masked rows only, "), ("CAUSE-2", "top-left", ""),
     ("EMPTY-1", "mean", "")],
)  # fmt: skip
def test_failure_and_summary_say_alike_that_rows_are_wrong(id, took, where):
    wrong = result(id, "differs", took, message=f"{id}: off", dtype="float32")
    subject = SimpleNamespace(name="mine", device="cpu")
    *_, line, _ = explain(clauses()[id], subject, wrong, [], "python").splitlines()
    assert line == f"{where}this answer is recognised as '{took}': {NAMES[took]}"
    del wrong["dtype"]
    assert ("  in fully masked rows only: CAUSE-3" in texts(whole(wrong))) == bool(where)


def in_place(clause: str, took: str | None = None) -> dict:
    text = "your function changed its input `key` in place at (2, 0): expected exactly 1, got 3"
    return result(clause, "differs", took, message=f"{clause}: {text} (1 of 5 differ)")


def test_input_that_is_changed_in_place_is_told_once_and_first():
    wrong = [in_place("ATT-3"), in_place("ATT-8"), result("ATT-8", "differs", "mean", case="that")]
    report = whole(result("ATT-1", "differs", "inverted"), *wrong, in_place("CAUSE-1"))
    assert texts(report, width=160)[-3:] == [
        "  an input changed in place: ATT-3, CAUSE-1",
        f"  ATT-1: {NAMES['inverted']} (1)",
        f"  ATT-8: your function changed its input `key` in place (1), {NAMES['mean']} (1)",
    ]


def test_subject_of_which_nothing_was_tested_is_named():
    found = on("cpu", result("ATT-1", "not offered", case="that"), subject="two")
    report = beside([result("ATT-1", "conforms")], "two", "cpu", found)
    assert verdict(report, 0) == ("conforms: 1 clause; nothing of two was tested", 0)
    assert texts(report)[1] == "two cpu: nothing offered"
    report = beside([result("ATT-1", "conforms")], "two", "cuda", [])
    assert verdict(report, 0) == ("conforms: 1 clause; nothing of two cuda was tested", 0)


def test_message_is_cut_behind_the_name_of_its_exception():
    message = 'no answer at "a:b.py": it hangs'
    found = result("ATT-1", "error", message=message)
    assert in_short(found) == 'no answer at "a:b.py"'


def test_line_of_the_summary_is_cut_behind_a_word():
    message = "ATT-1: the rows that may attend to the last of the chapters should be unchanged"
    assert in_short(result("ATT-1", "differs", message=message)) == (
        "the rows that may attend to the last of the chapters ..."
    )
    lines = whole(result("ATT-1", "differs", case="a"), result("ATT-1", "conforms", case="b" * 40))
    lines[4] |= {"case": "test_some_thing_that_is_slow[ATT-1]", "what": "gradient of the first key"}
    for width in range(100, 130):
        shown = texts(lines, width=width)[1].rpartition("  ")[2]
        whole_text = "some_thing_that_is_slow: gradient of the first key"
        rest = whole_text.removeprefix(shown.removesuffix("…"))
        assert rest == "" or not rest[0].isalnum() or not shown[-2].isalnum(), shown


@pytest.mark.parametrize("outcome", ["differs", "conforms"])
def test_verdict_without_a_must_clause_is_not_green(monkeypatch, outcome):
    shown = []
    monkeypatch.setattr(terminal, "show", shown.extend)
    asked = Namespace(known=None, report="r.jsonl", smoke=False)
    assert _print_verdict(asked, whole(result("CLEAN-6", outcome)), 0, whole=True) == 0
    assert shown[-1].style == "bold yellow"
    _print_verdict(asked, whole(result("ATT-1", "conforms")), 0, whole=True)
    assert shown[-1].style == "bold green"


OLD = (
    '{"type": "header", "schema": 1, "python": "3.11.7", "platform": "Linux", "precision": "full", '
    '"subjects": [{"subject": "mine", "device": "cpu", "versions": {}, "masks": "attend", '
    '"capabilities": ["attention"], "dtypes": ["float32"]}], "arguments": ["smoke"], '
    '"started": "2026-01-01T00:00:00+0000"}\n'
    '{"type": "case", "case": "test_it[EMPTY-1]", "clause": "EMPTY-1", "level": "MUST", '
    '"profile": "empty", "dtype": "float32"}\n'
    '{"type": "result", "case": "test_it[EMPTY-1]", "clause": "EMPTY-1", "subject": "mine", '
    '"device": "cpu", "test": "test_it[mine-cpu-EMPTY-1]", "outcome": "differs", "took": "mean", '
    '"used": null, "what": null, "message": "EMPTY-1: off", "seconds": 0.1}\n'
    '{"type": "footer", "counts": {"differs": 1}, "seconds": 1.5, "exit": 1}\n'
)


def test_report_of_an_earlier_version_is_read(tmp_path, capsys):
    (tmp_path / "old.jsonl").write_text(OLD, "utf-8")
    assert main(["summary", str(tmp_path / "old.jsonl")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "does not conform: EMPTY-1 differs"
    assert said[-2] == f"  EMPTY-1: {NAMES['mean']} (1)"


def test_summary_counts_a_clause_once_a_profile():
    rows = {row["profile"]: row for row in as_data(LINES)["profiles"]}
    assert [rows["attention"][name] for name in OUTCOMES] == [1, 1, 0, 0, 0]
    assert [rows["empty"][name] for name in OUTCOMES] == [0, 2, 0, 0, 0]
    assert [rows["half"][name] for name in OUTCOMES] == [0, 0, 1, 0, 0]
    assert [rows["hygiene"][name] for name in OUTCOMES] == [0, 0, 0, 1, 0]
    assert rows["hygiene"]["should"] == "0 of 1"
    (row,) = as_data(whole(result("CLEAN-6", "not offered")))["profiles"]
    assert row["should"] == ""
    assert [rows["cache"][name] for name in OUTCOMES] == [0, 0, 0, 0, 1]


def named(name: str) -> list[dict]:
    """Return the lines of a run whose subject has another name."""
    lines = deepcopy(LINES)
    lines[0]["subjects"][0]["subject"] = name
    for one in results(lines):
        one["subject"] = name
    return lines


@pytest.mark.parametrize("name", ["mine[fast]", "mine[/fast]", ":warning:", "long" * 40])
def test_summary_shows_a_name_as_it_is(capsys, name):
    show(summary(named(name)))
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[:3] == [name, "cpu", "empty"]


def test_summary_in_markdown_is_a_table(path, capsys):
    assert main(["summary", str(path), "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    table = [row for row in text.splitlines() if row.startswith("|")]
    assert table[0].startswith("| subject | device | profile | conform |")
    assert len({row.count("|") for row in table}) == 1
    assert len(table) == 2 + 5
    assert "| mine | cpu | empty | 0 | 2 |" in text


def test_summary_in_json_is_data(path, capsys):
    assert main(["summary", str(path), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["subjects"][0]["subject"] == "mine"
    assert {d["clause"] for d in data["differences"]} >= {"EMPTY-1", "HALF-1", "CLEAN-2"}
    assert data["counts"] == LINES[-1]["counts"]


def test_one_line_has_subject_and_verdict(path, capsys):
    assert main(["summary", str(path), "--format", "line"]) == 0
    text = "EMPTY-1, EMPTY-4 and ATT-8 differ; HALF-1 raises an error"
    assert capsys.readouterr().out == f"mine on cpu: does not conform: {text}\n"


BADGES = {
    "conforms": (whole(result("ATT-1", "conforms")), "brightgreen", "conforms: 1 clause"),
    "differs": (LINES, "red", "does not conform: EMPTY-1, EMPTY-4 and ATT-8 differ; HALF-1"),
    "nothing": (whole(result("ATT-1", "not offered")), "lightgrey", "no verdict: nothing was"),
}


@pytest.mark.parametrize("name", BADGES)
def test_badge_is_what_an_endpoint_of_shields_gives(tmp_path, capsys, name):
    lines, color, text = BADGES[name]
    path = written(tmp_path / "report.jsonl", lines)
    assert main(["summary", str(path), "--format", "badge"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data.keys() == {"schemaVersion", "label", "message", "color"}
    assert (data["schemaVersion"], data["label"], data["color"]) == (1, "attention", color)
    assert data["message"].startswith(text)


def test_junit_has_what_was_tried_and_nothing_else(path, capsys):
    assert main(["summary", str(path), "--format", "junit"]) == 0
    (suite,) = ElementTree.fromstring(capsys.readouterr().out)
    assert suite.attrib == {
        "name": "mine on cpu", "failures": "4", "errors": "1", "skipped": "2", "tests": "8"
    }  # fmt: skip
    kinds = {case.get("name"): [e.tag for e in case] for case in suite}
    assert kinds["test_it[ATT-1]"] == [] and kinds["test_it[EMPTY-1]"] == ["failure"]
    assert kinds["test_it[HALF-1]"] == ["error"]
    assert kinds["test_it[CLEAN-2]"] == kinds["test_it[CLEAN-6]"] == ["skipped"]
    assert "test_it[CACHE-1]" not in kinds
    told = {case.get("name"): e.get("message") for case in suite for e in case}
    assert told["test_that[EMPTY-4]"] == OFF
    assert told["test_it[CLEAN-2]"] == "a known difference: CLEAN-2: off"
    assert told["test_it[CLEAN-6]"] == "a SHOULD clause: CLEAN-6: off"


def test_junit_takes_any_message(tmp_path, capsys):
    lines = whole(result("ATT-1", "error", message="<a> & \x00\x1b[31m ]]> 注意"))
    path = written(tmp_path / "report.jsonl", lines)
    assert main(["summary", str(path), "--format", "junit"]) == 0
    (error,) = ElementTree.fromstring(capsys.readouterr().out).iter("error")
    assert error.text == "<a> & ??[31m ]]> 注意"


def later(**outcomes: str) -> list[dict]:
    """Return the lines of a later run, with other outcomes by clause."""
    found = deepcopy(results(LINES))
    for one in found:
        one["outcome"] = outcomes.get(one["clause"].replace("-", ""), one["outcome"])
    return whole(*found)


def test_diff_of_the_same_is_nothing():
    assert diff(LINES, LINES) == ("nothing has changed", False)


def test_diff_tells_better_from_worse():
    text, worse = diff(LINES, later(EMPTY1="conforms", HALF1="differs"))
    assert not worse
    assert text.splitlines() == [
        "began to conform: 1",
        "  EMPTY-1 mine on cpu: test_it[EMPTY-1] (differs -> conforms)",
        "otherwise: 1",
        "  HALF-1 mine on cpu: test_it[HALF-1] (error -> differs)",
    ]
    text, worse = diff(LINES, later(ATT1="differs"))
    assert worse
    assert "ceased to conform: 1\n  ATT-1 mine on cpu" in text


@pytest.mark.parametrize("now", ["differs", "error"])
def test_known_difference_that_is_one_no_more_is_worse(now):
    text, worse = diff(LINES, later(CLEAN2=now))
    assert worse
    assert text.startswith("got worse: 1\n  CLEAN-2 mine on cpu: ")
    assert diff(later(CLEAN2=now), LINES)[1] is False


def test_diff_is_worse_only_where_something_fell():
    falls = {
        (was, now)
        for was in OUTCOMES
        for now in OUTCOMES
        if diff(later(ATT1=was), later(ATT1=now))[1]
    }
    assert falls == {
        *(("conforms", now) for now in OUTCOMES if now != "conforms"),
        ("known difference", "differs"),
        ("known difference", "error"),
    }


def test_diff_shows_what_came_and_went():
    gone = [line for line in LINES if line.get("clause") != "ATT-8"]
    text, worse = diff(LINES, [*gone[:-1], result("ATT-9", "conforms"), gone[-1]])
    assert not worse  # what is gone did not conform
    assert diff([HEADER, result("ATT-1", "conforms"), FOOTER], [HEADER, FOOTER])[1]
    assert "new: 1\n  ATT-9 mine on cpu: test_it[ATT-9] (absent -> conforms)" in text
    assert "gone: 1\n  ATT-8 mine on cpu: test_it[ATT-8] (differs -> absent)" in text


def test_diff_fails_where_something_ceased_to_conform(path, tmp_path, capsys):
    new = written(tmp_path / "new.jsonl", later(ATT1="error"))
    assert main(["diff", str(path), str(new)]) == 1
    assert "ceased to conform: 1" in capsys.readouterr().out
    assert main(["diff", str(new), str(path)]) == 0
    assert main(["diff", str(new), str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
