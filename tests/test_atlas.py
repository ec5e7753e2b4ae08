"""The atlas: no question is blind, every answer is recognised, and nobody is left out."""

import json
import os
from contextlib import suppress
from pathlib import Path

import atlas_peers
import numpy as np
import pytest

from conformance.contract import clauses
from conformance.reports.diagnosis import explains
from conformance.subjects.protocol import CAPABILITIES, NotOffered
from tools.atlas import collect as collecting
from tools.atlas import matrix
from tools.atlas.ask import ask, refusal
from tools.atlas.collect import Entry, collect
from tools.atlas.glance import GLANCE, STANDS_OUT
from tools.atlas.page import page, states
from tools.atlas.question import OwnMask, Question
from tools.atlas.questions import QUESTIONS
from tools.atlas.section import answer_of, shortened

HERE = Path(__file__).parent
EVERY = pytest.mark.parametrize("question", QUESTIONS.values(), ids=list(QUESTIONS))
NEEDS = {need for question in QUESTIONS.values() for need in question.needs}


def entry(name: str, cls: str, **changes) -> Entry:
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    settings = {"packages": ("numpy",), "environment": {"PYTHONPATH": path}} | changes
    return Entry(name, f"atlas_peers:{cls}", about=f"a {name}", **settings)


class Taker:
    """A library that gives one answer to everything, whatever it is asked for."""

    mask_polarity = "attend"
    capabilities = frozenset(NEEDS & set(CAPABILITIES)) | {"attention"}
    further = frozenset(NEEDS - set(CAPABILITIES)) - {"float16", "bfloat16"}
    dtypes = ("float32", "float16", "bfloat16")

    def __init__(self, question: Question, answer: np.ndarray):
        self.question, self.given = question, answer

    def answer(self) -> np.ndarray:
        """Return the answer in the precision of the question, before it is measured."""
        answer, (first, *_) = self.given, self.question.inputs
        if self.question.how == "gradients":  # the largest of each is what counts
            answer = answer[:, None, None, None, None] * np.ones((1, *first.shape))
        if self.question.name == "dropout":
            shares = np.resize(answer, (2, 3, 3))
            answer = shares[None] * np.array([1, 2, 4]) / 7
        return np.asarray(answer).astype(first.dtype)

    def attention(self, *inputs, **options):
        if self.question.how == "both":
            return self.answer()[0]
        return self.answer()

    def weights(self, *inputs, **options):
        return (self.answer()[1], None) if self.question.how == "both" else (None, self.answer())

    def gradients(self, *inputs, **options):
        return dict(zip(("query", "key", "value"), self.answer(), strict=True))

    def lse(self, *inputs, **options):
        return self.answer()

    def rotary(self, *inputs, **options):
        return [self.answer()]

    def decoding(self, *arguments):
        return self

    def feed(self, tokens):
        return self.answer()


class Fails(Taker):
    """A library that ends every call with an error."""

    def answer(self):
        raise self.given


def answered(peer, question: Question) -> dict:
    """Return what a library answers, without what was done to the mask."""
    return {field: x for field, x in ask(peer, question).items() if field != "adapter"}


@EVERY
def test_no_two_alternatives_give_the_same_answer(question):
    found = question.alternatives()
    dtype = question.inputs[0].dtype
    for i, (name, answer) in enumerate(found):
        for other_name, other in found[:i]:
            rounded = answer if question.how == "gradients" else answer.astype(dtype)
            blind = other_name != name and explains(rounded, other)
            assert not blind, f"{name} and {other_name} both give {answer.ravel()}"


@EVERY
def test_the_contracts_answer_is_one_of_them(question):
    names = [name for name, _ in question.alternatives()]
    assert question.contract in [*names, "refused"]
    assert question.clause in clauses()


@EVERY
def test_whoever_takes_an_alternative_is_recognised(question):
    for name, answer in question.alternatives():
        found = answered(Taker(question, answer), question)
        assert found == {"kind": "took", "took": name}


@EVERY
def test_an_answer_of_nobodys_is_recorded_with_its_numbers(question):
    name, answer = question.alternatives()[0]
    odd = np.full(answer.shape if answer.size else (1, 2, 3, 1), 12345.0)
    found = ask(Taker(question, odd), question)
    assert found["kind"] == "other", f"12345 is taken for {name}: {found}"
    assert found["numbers"]["first"], found


@EVERY
def test_an_error_is_recorded_as_a_refusal(question):
    found = answered(Fails(question, TypeError("\n no such mask\nmore")), question)
    said = {"error": "TypeError", "text": "TypeError: no such mask"}
    assert found == {"kind": "refused", "took": "refused"} | said


@EVERY
def test_what_is_not_offered_is_not_refused(question):
    found = ask(Fails(question, NotOffered("no such thing")), question)
    assert found == {"kind": "not offered", "text": "no such thing"}
    bare = Fails(question, AssertionError("asked for what it does not offer"))
    bare.capabilities, bare.dtypes = frozenset({"attention"}), ("float32",)
    bare.further = frozenset()
    assert (ask(bare, question)["kind"] == "not offered") is bool(question.needs)


HABITS = {
    "Toy": {
        "true": "attend", "float-inf": "added", "float-10": "added", "int-10": "refused",
        "rank-2": "queries by keys", "rank-3": "heads", "empty": "zero", "empty-weights": "zero",
        "weights-change": "unchanged", "empty-inf": "zero", "empty-1e9": "mean",
        "causal": "right", "causal-more-keys": "top-left", "causal-one-query": "top-left",
        "mask-and-causal": "both", "padding-and-causal": "both", "mask-and-bias": "both",
        "nan-key": "right", "nan-value": "poisoned", "grouped": "right", "no-keys": "zero",
        "half-empty": "zero", "half-1e9": "zero",
    },
    "Hider": {
        "true": "hide", "float-inf": "refused", "int-10": "cast, hidden", "rank-2": "key padding",
        "rank-3": "samples", "empty": "mean", "empty-weights": "mean", "weights-change":
        "unchanged", "causal-more-keys": "bottom-right", "causal-one-query": "bottom-right",
        "causal-more-queries": "bottom-right, mean", "mask-and-causal": "only the mask",
        "nan-value": "right",
    },
    "Caster": {
        "float-inf": "cast", "float-10": "cast", "int-10": "added", "empty": "nan",
        "mask-and-causal": "only the flag", "padding-and-causal": "only the flag",
        "empty-inf": "nan", "half-empty": "nan",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "name", "took"),
    [(cls, name, took) for cls, habits in HABITS.items() for name, took in habits.items()],
)
def test_a_librarys_habit_is_found_out(cls, name, took):
    found = ask(getattr(atlas_peers, cls)(), QUESTIONS[name])
    assert found.get("took") == took, found


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    """Measure toys as libraries are measured: one is not installed, one dies on the way."""
    entries = [
        entry("toy-attends", "Toy"),
        entry("toy-hides", "Hider"),
        entry("dies", "Dies"),
        entry("absent", "Toy", packages=("no_such_package",)),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "snippets", lambda: ())
        patch.setattr(collecting, "contract", lambda group, folder: {})
        data = collect(entries, tmp_path_factory.mktemp("atlas"))
    return json.loads(json.dumps(data))  # as it comes back from a file


def test_a_missing_package_is_said_and_not_dropped(measured):
    absent = measured["peers"]["absent"]
    assert absent["missing"] == ["no_such_package"]
    text = page(measured)
    assert "not installed: no_such_package" in text
    assert text.count("Not installed: `absent`.") == len(QUESTIONS)


def test_a_process_that_dies_leaves_what_it_had_found(measured):
    dies = measured["peers"]["dies"]
    assert dies["answers"]["float-10"]["took"] == "added"
    assert "int-10" not in dies["answers"]
    assert dies["failed"].startswith("the process ended with 7")
    assert answer_of(dies, "int-10")["kind"] == "no answer"
    assert "No answer: `dies` (the process ended with 7" in page(measured)


def test_a_library_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setitem(collecting.SECONDS, "answers", 4)
    found = collecting.answers(entry("hangs", "Hangs"), tmp_path)
    assert found["failed"] == "no answer within 4 seconds"
    assert found["answers"] == {}


def test_the_page_has_every_question_and_every_peer(measured):
    text = page(measured)
    for question in QUESTIONS.values():
        assert f"### {question.title}\n" in text
        assert f"[{question.clause}](" in text
    for name in measured["peers"]:
        assert f"| `{name}` |" in text.split("## The questions")[0]
    assert (
        "| [What does True say?](#what-does-true-say) | refused | attend 1 (2), hide 1 (1) |"
        in text
    )


def test_what_stands_out_is_an_answer_to_its_question():
    for name, took, text in STANDS_OUT:
        assert took in dict(QUESTIONS[name].answers()), f"{text}: {took!r} answers no {name}"
    assert GLANCE.keys() <= QUESTIONS.keys()


def test_the_page_says_who_took_what(measured):
    text = page(measured)
    section = text.split("### What does True say?")[1].split("###")[0]
    assert "| attend | True is what may be seen | 1, 7, 80.2 | `toy-attends`, `dies` |" in section
    assert "| hide | True is what is hidden | 70, 100, 10 | `toy-hides` |" in section
    section = text.split("### What is a mask of integers, 1 and 0?\n")[1].split("###")[0]
    assert "- `toy-attends`: `TypeError: a mask must be bool`" in section


def test_no_table_is_wider_than_a_page(measured):
    for line in page(measured).splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") <= 11, line


def test_variants_are_held_against_each_other(measured):
    own = page(measured).split("## Each against itself")[1]
    assert "### toy" not in own, "toys of different names are no variants"
    peers = {
        f"nnx-{name}": measured["peers"][peer]
        for name, peer in (("one", "toy-attends"), ("two", "toy-hides"))
    }
    own = page(measured | {"peers": peers}).split("## Each against itself")[1]
    assert "### flax.nnx\n" in own
    assert "(#what-does-true-say) | attend | hide |" in own
    assert "(#do-a-mask-and-a-bias-work-together)" not in own, "they agree on it"


def test_the_page_says_which_suite_ran_on_whom():
    def of(*days: str) -> dict[str, dict]:
        told = [{"of": {"date": day, "commit": f"c{day[-1]}"}} for day in days]
        return {f"p{i}": {"contract": own} for i, own in enumerate(told)}

    assert states(of("2026-11-27", "2026-11-27")) == ["It ran on 2026-11-27, at commit c7."]
    lines = "- on 2026-11-27, at commit c7: `p0`, `p2`\n- on 2026-11-28, at commit c8: `p1`"
    assert states(of("2026-11-27", "2026-11-28", "2026-11-27")) == [f"It ran\n\n{lines}"]
    assert states({"p": {"contract": {"results": [], "failed": ""}}}) == []


def result(clause: str, outcome: str, took=None, without_masked_rows=None) -> dict:
    about = {
        "clause": clause,
        "outcome": outcome,
        "took": took,
        "without_masked_rows": without_masked_rows,
    }
    return about | {"case": "a[x]", "message": "", "dtype": "float32"}


def test_what_is_owed_to_empty_rows_is_set_apart():
    mean = result("CAUSE-5", "differs", "mean", "conforms")
    assert matrix.verdict([mean, result("CAUSE-5", "conforms")]) == "fully masked rows"
    assert matrix.verdict([result("CAUSE-5", "differs", "mean", "differs")]) == "differs"
    assert matrix.verdict([mean, result("CAUSE-5", "differs", "top-left")]) == "differs"
    assert matrix.verdict([mean, result("CAUSE-5", "error")]) == "error"
    assert matrix.verdict([result("EMPTY-1", "differs", "mean", "conforms")]) == "differs"
    assert matrix.verdict([result("ATT-5", "not offered")]) == "not offered"
    both = [result("ATT-5", "not offered"), result("ATT-5", "conforms")]
    assert matrix.verdict(both) == "conforms"
    named = [mean, mean, result("CAUSE-5", "differs", "top-left")]
    assert matrix.how(named) == "top-left (1); 1 of 3 cases"
    assert matrix.how([mean]) == ""
    further = result("ATT-2", "differs", "mean", "not offered")
    assert matrix.verdict([further]) == "fully masked rows"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"took": "tiled"}, "tiled"),
        ({"took": "poisoned"}, "NaN or inf"),
        ({"took": "poisoned", "clause": "CLEAN-2"}, "poisoned"),
        ({"outcome": "error", "message": "ValueError: no"}, "ValueError"),
        (
            {"message": "ATT-7: output at (0, 2): expected NaN or the value 1, got 0.0 (3 of 4)"},
            "output: not NaN or the value 1",
        ),
        (
            {"message": "ATT-2: weights at (0,): expected exactly 0.0, got 0.5 (1 of 9 differ)"},
            "weights: beyond the tolerance",
        ),
        (
            {
                "message": "ATT-7: vector ATT-7.a: output takes no alternative: not 'nan': output "
                "at (0, 1): expected NaN, got 2"
            },
            "output takes no alternative",
        ),
        (
            {"message": "ATT-7: vector ATT-7.b: output at (0,): expected 1, got -inf; it shows"},
            "output: NaN or inf",
        ),
        (
            {"message": "HALF-1: expected float16, got float32"},
            "expected float16",
        ),
        (
            {"message": "ATT-1: output at (1, 0): expected 1, got nan, error inf"},
            "output: NaN or inf",
        ),
        (
            {"message": "ATT-1: output at (1, 0): expected 1, got 1.1", "dtype": "float64"},
            "output in float64: beyond the tolerance",
        ),
    ],
)
def test_a_difference_has_a_name(changes, name):
    clause = changes.get("message", "ATT-1:").partition(":")[0]
    wrong = result(clause if "-" in clause else "ATT-1", "differs") | changes
    assert matrix.how([wrong]) == f"{name} (1); 1 of 1 cases"


def test_the_suite_runs_on_a_peer_and_again_without_its_empty_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "PROFILES", ("causal", "empty", "half", "multihead"))
    found = collecting.contract([entry("toy-mean", "Mean"), entry("toy-zero", "Toy")], tmp_path)
    assert [own["failed"] for own in found.values()] == ["", ""]
    words = {name: matrix.verdicts(own["results"]) for name, own in found.items()}
    assert words["toy-mean"]["EMPTY-1"] == "differs" and words["toy-zero"]["EMPTY-1"] == (
        "conforms"
    )
    assert words["toy-mean"]["HALF-5"] == "fully masked rows"
    assert words["toy-zero"]["HALF-5"] == "conforms"
    cases = [result["case"] for own in found.values() for result in own["results"]]
    assert cases and not any("pair_by_pair" in case for case in cases)
    assert words["toy-mean"]["CAUSE-2"] == words["toy-zero"]["CAUSE-2"] == "differs"


def test_a_run_that_ends_early_says_why(tmp_path):
    found = collecting.contract([entry("nobody", "Nobody")], tmp_path)
    assert "Nobody" in found["nobody"]["failed"]


def test_an_answer_says_which_path_gave_it_and_what_became_of_the_mask(measured):
    class Tells(atlas_peers.Toy):
        def attention(self, *inputs, **options):
            self.path, self.did = "long way", (*self.did, "mask turned round")
            return super().attention(*inputs, **options)

    found = ask(Tells(), QUESTIONS["true"])
    assert found["path"] == "long way" and found["adapter"] == ["mask turned round"]
    peer = measured["peers"]["toy-attends"] | {"answers": {"true": found}}
    text = page(measured | {"peers": {"toy": peer}}).split("### What does True say?")[1]
    assert "| `toy` | long way | mask turned round |" in text.split("###")[0]


def test_weights_that_did_not_make_the_output_are_said():
    class Other(atlas_peers.Toy):
        def weights(self, *inputs, **options):
            output, weights = super().weights(*inputs, **options)
            return output, np.full_like(weights, 1 / 3)

    told = ["the weights are not those that made the output"]
    assert ask(Other(), QUESTIONS["empty-weights"])["adapter"] == told
    assert "adapter" not in ask(atlas_peers.Toy(), QUESTIONS["empty-weights"])


def test_who_is_right_here_and_not_in_every_case_of_the_clause_is_said(measured):
    contract = {"results": [result("CLEAN-1", "differs", took="poisoned")], "failed": ""}
    peer = measured["peers"]["toy-attends"] | {"contract": contract}
    text = page(measured | {"peers": {"toy": peer}})
    section = text.split("### Does NaN in a hidden key reach the output?")[1].split("###")[0]
    assert "not in every case of CLEAN-1:\n\n- `toy`: poisoned (1); 1 of 1 cases" in section


def test_an_own_mask_is_handed_over_the_way_it_is_wanted():
    seen = QUESTIONS["empty"].given["mask"]
    assert isinstance(seen, OwnMask)
    handed = {}

    class Looks(Taker):
        def attention(self, *inputs, **options):
            handed[self.mask_polarity] = options["mask"]
            return self.answer()

    question = QUESTIONS["empty"]
    for masks in ("attend", "hide", "add"):
        peer = Looks(question, question.alternatives()[0][1])
        peer.mask_polarity = masks
        with suppress(AssertionError):
            ask(peer, question)
    assert (handed["attend"] == seen.allowed).all() and (handed["hide"] == ~seen.allowed).all()
    assert (np.isneginf(handed["add"]) == ~seen.allowed).all()


def test_a_long_refusal_keeps_its_end():
    text = shortened("Fail: " + "x" * 200 + " the length must be greater than 0")
    assert text.startswith("Fail: xx") and text.endswith(" the length must be greater than 0")
    assert len(text) < 170 and shortened("short `name`") == "short 'name'"


def test_a_refusal_is_said_without_colours():
    where = "Exception encountered when calling A.call()."
    error = ValueError(f"{where}\n\n\x1b[1mno such\x1b[0m\nmore")
    assert refusal(error) == f"ValueError: {where} no such"
    assert refusal(AssertionError()) == "AssertionError"


def test_the_short_of_it_counts_who_was_asked(measured):
    text = page(measured).split("## At a glance")[1].split("One word a cell")[0]
    of_all = "- 1 of 1 (1 of 2 variants)"  # toys are all of one library
    assert f"{of_all} [let NaN in a hidden value reach the output](#does-nan-in" in text
    assert f"{of_all} [read a (B, S) mask as (T, S) where B = T](#what-is" in text
    assert "turn a float mask" not in text, "none of them casts"
