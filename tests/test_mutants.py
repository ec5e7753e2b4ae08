"""The gate: that it passes for real, and that it fails where it should, with words to act on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_report import result, whole, written

from conformance import subjects
from conformance.cases.attention import BY_NAME
from conformance.contract import clauses
from conformance.mutants import CHAPTERS, MUTANTS, Mutant, load, named
from tools.mutants import gate
from tools.mutants.verdict import Result, decide, results

ROOT = Path(__file__).parents[1]
MUST = [clause.id for clause in clauses().values() if clause.level == "MUST"]


# The mutants


def test_there_are_mutants_for_every_clause():
    assert len(MUTANTS) >= 40
    named_by = {clause for mutant in MUTANTS.values() for clause in mutant.clauses}
    assert named_by <= clauses().keys(), named_by - clauses().keys()
    assert set(MUST) <= named_by, [id for id in MUST if id not in named_by]


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_mutant_says_what_it_is(mutant):
    assert mutant.name == mutant.name.lower() and set(mutant.name) <= set(
        "abcdefghijklmnopqrstuvwxyz0123456789-"
    )
    assert mutant.sentence.endswith(".") and len(mutant.sentence) > 20, mutant.sentence
    assert mutant.clauses and len(set(mutant.clauses)) == len(mutant.clauses)
    assert mutant.base in subjects.BACKENDS and mutant.chapter in CHAPTERS


def test_no_two_mutants_say_the_same():
    for of in ("sentence", "mistake"):
        assert len({getattr(mutant, of) for mutant in MUTANTS.values()}) == len(MUTANTS)


def test_every_chapter_is_in_one_shard():
    sharded = [chapter for chapters in gate.SHARDS.values() for chapter in chapters]
    assert sorted(sharded) == sorted(CHAPTERS)
    assert {mutant.chapter for mutant in MUTANTS.values()} == set(CHAPTERS)


def test_a_name_may_be_written_either_way():
    assert named("first_sample_mask") is named("first-sample-mask") is MUTANTS["first-sample-mask"]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"^a mutant must be one of inverted, .*: got invented$"):
        named("invented")


def test_loading_a_mutant_breaks_its_method_and_nothing_else():
    right, wrong = subjects.load("numpy"), load("inverted")
    case = BY_NAME["causal"]
    call, options = case.inputs("float32"), case.options("float32")
    assert wrong.name == "inverted" and wrong.capabilities == right.capabilities
    tiles = [subject.blocked(*call, tile=(2, 3), **options) for subject in (right, wrong)]
    assert np.array_equal(*tiles)
    for found in (wrong.attention(*call, **options), wrong.steps(*call, **options)["output"]):
        assert abs(found - right.attention(*call, **options)).max() > 0.1


def test_a_function_of_the_module_can_be_wrong():
    right, wrong = subjects.load("numpy").module, load("bare-array-taken").module
    ones, bare = np.ones((1, 1, 2, 3)), np.ones((2, 2), bool)
    with pytest.raises(TypeError, match="mask must be a Mask"):
        right.attention(ones, ones, ones, mask=bare)
    assert wrong.attention(ones, ones, ones, mask=bare).shape == ones.shape
    assert wrong.causal is right.causal


# The judge, on results that were made up


def made_up(name="wrong", clauses=("ATT-1", "ATT-2"), raises=False) -> Mutant:
    return Mutant(name, "Everything is wrong.", clauses, "steps", print, "numpy", raises)


def of(subject: str, **outcomes: str) -> list[Result]:
    """Return a result a clause, such as `ATT_1="differs"`, with a case and a message."""
    return [
        Result(subject, name.replace("_", "-"), f"test[{name}]", outcome, f"message of {name}")
        for name, outcome in outcomes.items()
    ]


RIGHT = of("numpy", ATT_1="conforms", ATT_2="conforms", MASK_1="conforms")


def complaints(
    *results_: Result, mutant: Mutant | None = None, right=RIGHT, **options
) -> list[str]:
    options = {"all_clauses": False} | options
    return decide([mutant or made_up()], [*right, *results_], **options).complaints


def test_judge_passes_what_every_named_clause_catches():
    found = of("wrong", MASK_1="differs", ATT_1="differs", ATT_2="differs")
    verdict = decide([made_up()], [*RIGHT, *found], all_clauses=False)
    assert verdict.complaints == []
    assert verdict.kills == {
        "wrong": {id: f"message of {id.replace('-', '_')}" for id in ("MASK-1", "ATT-1", "ATT-2")}
    }


def test_judge_keeps_kills_in_the_contracts_order():
    found = of("wrong", ATT_2="differs", MASK_1="differs", ATT_1="differs")
    verdict = decide([made_up()], [*RIGHT, *found], all_clauses=False)
    assert list(verdict.kills["wrong"]) == ["MASK-1", "ATT-1", "ATT-2"]


def test_judge_reports_a_survivor():
    (text,) = complaints(*of("wrong", ATT_1="conforms", ATT_2="not offered"))
    assert text.splitlines() == [
        "wrong survives: Everything is wrong.",
        "  must be caught by: ATT-1, ATT-2",
        "  is caught by: nothing",
        "  run it alone: python -m tools.mutants wrong",
    ]


def test_judge_reports_a_mutant_that_no_case_reaches():
    (text,) = complaints()
    assert text.startswith("wrong survives") and "no case uses steps" in text


def test_judge_reports_what_only_others_catch():
    (text,) = complaints(*of("wrong", ATT_1="conforms", MASK_1="differs"))
    assert text.startswith("wrong is caught only by clauses that it does not name: Everything")
    assert "is caught by: MASK-1" in text


def test_judge_reports_a_named_clause_that_lets_it_pass():
    (text,) = complaints(*of("wrong", ATT_1="differs", ATT_2="conforms"))
    assert text.startswith("wrong is not caught by ATT-2: Everything is wrong.")
    assert "is caught by: ATT-1" in text


def test_judge_takes_no_exception_for_a_catch():
    (text,) = complaints(*of("wrong", ATT_1="error", ATT_2="error"))
    assert text.startswith("wrong survives")
    assert "raises in ATT-1, ATT-2, which is no catch; in ATT-1: message of ATT_1" in text


def test_judge_takes_an_exception_where_it_is_the_mutants_nature():
    found = of("wrong", ATT_1="error", ATT_2="differs")
    assert complaints(*found, mutant=made_up(raises=True)) == []


@pytest.mark.parametrize("outcome", ["differs", "error"])
def test_judge_reports_a_right_subject_that_does_not_conform(outcome):
    right = of("numpy", ATT_1=outcome, ATT_2="conforms")
    wrong = of("wrong", ATT_1="differs", ATT_2="differs")
    first, second = complaints(*wrong, right=right)
    assert first.startswith("numpy, the right subject, does not conform to ATT-1 in test[ATT_1]: ")
    assert "run it: python -m conformance run --backend numpy --clause ATT-1" in first
    assert second.startswith("wrong is not caught by ATT-1")  # such a kill proves nothing


def test_judge_counts_a_catch_only_where_the_right_subject_ran_the_same_case():
    right = [*of("numpy", ATT_2="conforms"), Result("numpy", "ATT-1", "another", "conforms", "")]
    (text,) = complaints(*of("wrong", ATT_1="differs", ATT_2="differs"), right=right)
    assert text.startswith("wrong is not caught by ATT-1")


def test_judge_reports_a_right_subject_that_ran_nothing():
    first, _ = complaints(*of("wrong", ATT_1="differs"), right=[])
    assert first.startswith("numpy, a right subject, ran no case")


def test_judge_leaves_should_clauses_of_the_right_subject_alone():
    found = of("wrong", ATT_1="differs", ATT_2="differs")
    assert complaints(*found, right=[*RIGHT, *of("numpy", CLEAN_6="differs")]) == []


def test_judge_reports_every_must_clause_that_catches_nothing():
    texts = complaints(*of("wrong", ATT_1="differs", ATT_2="differs"), all_clauses=True)
    assert [text.split()[0] for text in texts] == [
        id for id in MUST if id not in ("ATT-1", "ATT-2")
    ]
    assert texts[0].startswith(f"MASK-1 catches no mutant: {clauses()['MASK-1'].sentence}\n")


def test_judge_knows_the_tests_that_catch_nothing():
    right = [
        Result("numpy", "ATT-1", f"{case}", "conforms", "")
        for case in ("one[a]", "one[b]", "two[a]")
    ]
    right.append(Result("numpy", "ATT-1", "three[a]", "not offered", ""))
    wrong = [Result("wrong", "ATT-1", "one[b]", "differs", "")]
    verdict = decide([made_up(clauses=("ATT-1",))], [*right, *wrong], all_clauses=False)
    assert verdict.tests == {("ATT-1", "one"), ("ATT-1", "two")}
    assert verdict.idle == {("ATT-1", "two")}


def test_results_are_read_from_a_report(tmp_path):
    path = written(tmp_path / "report.jsonl", whole(result("HALF-4", "conforms")))
    assert results(path) == [
        Result("mine", "HALF-4", "test_it[cpu-HALF-4]", "conforms", "HALF-4: off")
    ]


def test_a_report_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "report.jsonl"
    path.write_text('{"type": "header"}\n')
    with pytest.raises(ValueError, match="ends with a footer"):
        results(path)


# The gate's command


def test_the_quick_gate_passes(tmp_path, capfd):
    status = gate.main(["--quick", f"--folder={tmp_path}"])
    out = capfd.readouterr().out
    assert status == 0, out
    first, last = out.splitlines()
    assert first == f"{len(MUST)} of {len(MUST)} MUST clauses catch a mutant"
    assert last.startswith(f"{len(MUTANTS)} of {len(MUTANTS)} mutants are caught by every clause")


def test_the_gate_clears_its_own_reports_and_nothing_else(tmp_path):
    (tmp_path / "models").mkdir()
    stale, others = tmp_path / "models/right.jsonl", tmp_path / "models/kernel.py"
    stale.write_text("of an earlier run", "utf-8")
    others.write_text("somebody's own", "utf-8")
    assert gate.main(["end-left-out", "--quick", f"--folder={tmp_path}"]) == 0
    assert not stale.exists()
    assert others.read_text("utf-8") == "somebody's own"


def test_a_mutant_alone_runs_on_whatever_uses_what_it_breaks(monkeypatch, tmp_path, capfd):
    """What it breaks is used by the cases of two of these three clauses."""
    clauses_ = [f"--clause={id}" for id in ("CACHE-10", "DOC-B11", "MASK-7")]
    child = gate.CHILD.replace("main()", f"main([*sys.argv[1:], *{clauses_}])")
    monkeypatch.setattr(gate, "CHILD", child)
    status, out = gate.main(["end_left_out", f"--folder={tmp_path}"]), capfd.readouterr().out
    assert status == 0 and out.startswith("end-left-out is caught by CACHE-10, DOC-B11\n"), out
    ran = results(tmp_path / "models" / "wrong.jsonl")
    assert {r.subject for r in ran} == {"end-left-out"}
    caught = [(r.clause, r.case.split("[")[0]) for r in ran if r.outcome == "differs"]
    assert {id for id, _ in caught} == {"CACHE-10", "DOC-B11"}
    # one case a test: a test that has caught it has no more to show
    assert len(caught) == len(set(caught)), caught
    right = results(tmp_path / "models" / "right.jsonl")
    assert {(r.subject, r.clause) for r in right} == {
        ("numpy", "CACHE-10"), ("numpy", "DOC-B11"), ("numpy", "MASK-7")
    }  # fmt: skip


SECRET = """
import sys
from tools.mutants import shard
from conformance.mutants.mutant import breaks

@breaks({method!r}, *{clauses!r})
def secretly_right(right, *call, **options):
    return right(*call, **options)

sys.exit(shard.main(sys.argv[1:]))
"""


def secret_run(folder: Path, method: str, *clauses: str, options: list[str]) -> list[Result]:
    """Run a shard for real on a mutant whose mistake is none."""
    code = SECRET.format(method=method, clauses=clauses)
    call = [sys.executable, "-c", code, str(folder), "secretly-right", *options]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [r for path in folder.glob("*.jsonl") for r in results(path)]


@pytest.mark.parametrize("depth", ["--quick", "--clause=ATT-1"])
@pytest.mark.parametrize("method", ["steps", "mask", "ask"])
def test_a_mutant_that_is_secretly_right_survives(tmp_path, method, depth):
    options = [depth, "--clause=ATT-1", "--clause=MASK-4", "--clause=CLEAN-2"]
    found = secret_run(tmp_path, method, "ATT-1", "MASK-4", options=options)
    mutant = Mutant("secretly-right", "Nothing.", ("ATT-1", "MASK-4"), method, print)
    verdict = decide([mutant], found, all_clauses=False)
    assert verdict.kills == {"secretly-right": {}}
    assert [text.splitlines()[0] for text in verdict.complaints] == [
        "secretly-right survives: Nothing."
    ]
    reached = {r.clause for r in found if r.subject == "secretly-right"}
    named_only, whole = {"ATT-1", "MASK-4"}, {"ask": {"MASK-4"}, "steps": {"ATT-1", "CLEAN-2"}}
    wanted = named_only if depth == "--quick" else whole.get(method, {"ATT-1", "MASK-4", "CLEAN-2"})
    assert reached == wanted


def test_a_mutant_runs_on_no_case_that_does_not_use_what_it_breaks(tmp_path):
    found = secret_run(tmp_path, "blocked", "CAUSE-4", options=["--clause=CAUSE-4"])
    right, wrong = ([r for r in found if r.subject == s] for s in ("numpy", "secretly-right"))
    assert {"attention" in r.case for r in right} == {True, False}
    assert len(wrong) == 3 and all("CAUSE-4-blocked" in r.case for r in wrong)


def test_a_mutant_is_not_held_against_other_subjects(tmp_path):
    found = secret_run(tmp_path, "save", "WGT-1", "WGT-4", options=["--quick"])
    across = [r for r in found if r.case.startswith("test_a_saved_model_comes_back_in_every")]
    assert {(r.subject, r.outcome) for r in across} == {
        ("numpy", "not offered"), ("secretly-right", "not offered")
    }  # fmt: skip


def fake(monkeypatch, tmp_path, outcome: str):
    """Let the suite find that everything that is named has this outcome."""

    def run(mutants, folder, quick=False):
        pairs = [(mutant, clause) for mutant in mutants for clause in mutant.clauses]
        bases = dict.fromkeys((mutant.base, clause) for mutant, clause in pairs)
        right = [Result(base, clause, clause, "conforms", "") for base, clause in bases]
        return right + [Result(m.name, clause, clause, outcome, "so") for m, clause in pairs]

    monkeypatch.setattr(gate, "run", run)
    return tmp_path / "docs" / "page.md"


def test_a_gate_that_fails_says_why_and_leaves_the_page_alone(monkeypatch, tmp_path, capsys):
    page = fake(monkeypatch, tmp_path, "conforms")
    assert gate.main([f"--page={page}"]) == 1
    out = capsys.readouterr().out
    for mutant in MUTANTS.values():
        assert f"{mutant.name} survives: {mutant.sentence}\n" in out
    assert "\nMASK-1 catches no mutant: " in out
    assert f"\n0 of {len(MUST)} MUST clauses catch a mutant\n" in out
    assert f"\n0 of {len(MUTANTS)} mutants are caught by every clause that they name; " in out
    assert not page.exists()


def test_a_few_mutants_need_not_cover_every_clause(monkeypatch, tmp_path, capsys):
    fake(monkeypatch, tmp_path, "differs")
    assert gate.main(["inverted", "top-left"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "inverted is caught by ATT-1, ATT-2, CAUSE-1, DOC-B8"
    assert second == "top-left is caught by ATT-1, CAUSE-3"
    assert last.startswith("2 of 2 mutants are caught by every clause that they name; ")


def test_the_page_has_every_mutant_and_every_clause(monkeypatch, tmp_path):
    page = fake(monkeypatch, tmp_path, "differs")
    assert gate.main([f"--page={page}"]) == 0
    text = page.read_text("utf-8")
    for mutant in MUTANTS.values():
        (line,) = [row for row in text.splitlines() if row.startswith(f"| `{mutant.name}` |")]
        assert mutant.sentence in line and line.count("|") == 5 + mutant.sentence.count("|")
        assert line.endswith(f"| {', '.join(f'**{id}**' for id in mutant.clauses)} |")
    for id in MUST:
        count = sum(id in mutant.clauses for mutant in MUTANTS.values())
        assert f" {id}: {count}" in text
    for title in CHAPTERS.values():
        assert f"\n## {title}\n" in text


@pytest.mark.parametrize("more", [["--quick"], ["inverted"]])
def test_the_page_is_of_everything(tmp_path, capsys, more):
    with pytest.raises(SystemExit) as ended:
        gate.main([f"--page={tmp_path / 'page.md'}", *more])
    assert ended.value.code == 2 and "--page is of every mutant" in capsys.readouterr().err


def test_mutants_are_listed(capsys):
    assert gate.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        [m.name, m.sentence] for m in MUTANTS.values()
    ]


def refused(capfd, status: int, *words: str) -> None:
    done = capfd.readouterr()
    assert (status, done.out) == (2, "")
    for word in words:
        assert word in done.err


def test_the_gate_refuses_a_name_that_does_not_exist(capfd):
    refused(capfd, gate.main(["invented"]), "a mutant must be one of", "got invented")


def test_the_gate_refuses_to_go_without_a_base(capfd, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    text = "what a mutant is made of must be installed: got torch lacks torch"
    refused(capfd, gate.main([f"--folder={tmp_path}"]), text)


def test_a_suite_that_breaks_down_is_no_verdict(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(gate, "CHILD", "raise SystemExit('no such thing')")
    status = gate.main(["inverted", f"--folder={tmp_path}"])
    refused(capfd, status, "the suite broke down (1):\nno such thing")
