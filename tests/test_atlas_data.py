"""The atlas as data, the sample that is asked again, and the lines that convert a mask."""

import json
from pathlib import Path

import pytest
from test_peers import HERE

from conformance.subjects.peers import PEERS
from tools.atlas import again, conversions, direct
from tools.atlas.ask import answer, load
from tools.atlas.conversions import Conversion, fault
from tools.atlas.publish import known
from tools.atlas.questions import QUESTIONS

DOCS = Path(__file__).parents[1] / "docs"
DATA = json.loads((DOCS / "atlas.json").read_text("utf-8"))
PAGE = (DOCS / "atlas.md").read_text("utf-8")
OLD = "the data are older than what they are of: run nox -s atlas"


def test_data_and_page_are_of_one_session():
    assert f"It was measured on {DATA['measured']} with Python {DATA['python']} " in PAGE
    assert list(DATA["peers"]) == list(PEERS), OLD
    for name, peer in DATA["peers"].items():
        versions = ", ".join(
            f"{package} {version}" for package, version in peer["versions"].items()
        )
        assert f"| `{name}` | {peer['about']} | {versions} |" in PAGE
        words = [peer["answers"][question]["word"] for question in ("true", "float-inf", "rank-2")]
        assert f"| `{name}` | {' | '.join(words)} | " in PAGE


@pytest.mark.parametrize("name", QUESTIONS)
def test_data_say_what_a_question_and_its_answers_are(name):
    question, told = QUESTIONS[name], DATA["questions"][name]
    assert told["title"] == question.title and told["contract"] == question.contract, OLD
    assert told["answers"] == known(question), OLD
    for peer, found in DATA["peers"].items():
        said = found["answers"][name]
        assert said.get("answer") in [None, *told["answers"]], (peer, said)
        assert said["kind"] in ("took", "refused", "other", "not offered"), (peer, said)


# Asked again


def test_every_peer_can_be_asked_again():
    assert set(direct.CALLS) == set(PEERS)


ONE_OF_A_KIND = (
    "true", "rank-2", "empty", "causal-more-keys", "nan-key", "nan-value", "half-empty", "grouped",
    "rank-2-apart",
)  # fmt: skip


@pytest.mark.parametrize("name", HERE)
def test_other_code_gets_the_same_answers_from_a_library(name):
    asked = 0
    for question in (QUESTIONS[q] for q in ONE_OF_A_KIND):
        found = answer(load(name), question)
        if again.askable(name, question, found):
            asked += 1
            assert again.ask(name, question) == again.word(found), question.name
    assert asked > 1


def test_an_error_of_these_calls_is_not_taken_for_the_librarys(monkeypatch):
    question = QUESTIONS["rank-2-apart"]
    found = answer(load("torch-sdpa"), question)
    asked = again.ask("torch-sdpa", question)
    assert asked == again.word(found) == "refused, RuntimeError"
    monkeypatch.setitem(direct.CALLS, "torch-sdpa", (lambda q, k, v, mask: unknown, {}))  # noqa: F821
    data = of_one_cell("torch-sdpa/rank-2-apart", found, again.ask("torch-sdpa", question))
    told = "the atlas says refused, RuntimeError, asked again it is refused, NameError"
    assert again.differences(data) == [f"torch-sdpa/rank-2-apart: {told}"]


def of_one_cell(cell: str, found: dict, asked: str) -> dict:
    """Return what a session found that asked one question of one peer, and asked it again."""
    peer, question = cell.split("/")
    peers = {peer: {"answers": {question: found}}}
    return {"measured": "2026-11-27", "again": {cell: asked}, "peers": peers}


def test_a_sample_is_the_same_for_a_date_and_another_for_another():
    peers = {
        name: {"answers": {q: {"kind": a["kind"]} for q, a in peer["answers"].items()}}
        for name, peer in DATA["peers"].items()
    }
    cells = again.sample(peers, "2026-11-27")
    assert cells == again.sample(peers, "2026-11-27") != again.sample(peers, "2026-11-28")
    turned = dict(reversed(peers.items()))  # peers are done in any order
    assert cells == again.sample(turned, "2026-11-27")
    assert len(set(cells)) == again.CELLS
    assert all(QUESTIONS[question].how == "attention" for _, question in cells)


def test_an_answer_that_was_another_is_reported():
    mean = {"kind": "took", "took": "mean"}
    told = "jax-nn/empty: the atlas says mean, asked again it is zero"
    assert again.differences(of_one_cell("jax-nn/empty", mean, "zero")) == [told]
    data = of_one_cell("jax-nn/empty", mean, "mean")
    assert again.differences(data) == []
    failed = data | {"again": {"jax-nn": "no answer within 180 seconds"}}
    assert "no answer within" in again.differences(failed)[0]


def test_a_sample_that_was_not_asked_again_is_reported():
    mean = {"kind": "took", "took": "mean"}
    data = of_one_cell("jax-nn/empty", mean, "mean")
    assert again.differences(data | {"again": {}}) == ["no cell was asked again"]
    data["peers"]["jax-nn"]["answers"]["true"] = {"kind": "took", "took": "attend"}
    assert again.differences(data) == ["jax-nn/true: not asked again"]


# Conversions


def test_every_peer_has_a_line():
    assert set(conversions.conversions()) == set(PEERS)
    for name, own in conversions.conversions().items():
        line = {"name": own.name, "layout": own.layout, "line": own.line}
        assert DATA["peers"][name]["conversion"] == line, OLD


@pytest.mark.parametrize("name", HERE)
def test_a_line_gives_what_the_mask_gives(name):
    assert fault(name) == ""


PATHS = {  # the path of another peer, where one is to be told apart by it
    "torch-sdpa": "torch-sdpa-math",
    "torch-sdpa-math": "torch-sdpa",
    "torch-mha-train": "torch-mha-train-weights",
    "torch-mha-train-weights": "torch-mha-train",
    "torch-mha-eval": "torch-mha-fast",
    "torch-mha-eval-weights": "torch-mha-fast-weights",
    "torch-mha-fast": "torch-mha-eval",
    "torch-mha-fast-weights": "torch-mha-eval-weights",
}


@pytest.mark.parametrize(("name", "other"), PATHS.items(), ids=list(PATHS))
def test_a_line_that_goes_by_another_path_is_found_out(monkeypatch, name, other):
    own = conversions.conversions()[name]
    changed = own._replace(variants={name: own.variants.get(other, "")})
    monkeypatch.setattr(conversions, "conversions", lambda: {name: changed})
    assert fault(name).startswith(f"it does not run {own.operators[name]}: ")


@pytest.mark.parametrize("name", ["torch-sdpa-math", "torch-mha-fast"])
def test_a_variants_settings_end_with_its_line(name):
    import torch

    assert fault(name) == ""
    assert torch.is_grad_enabled() and torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("attention(q, k, v, mask=hide(allowed))", "it gives another output than the Mask: "),
        ("attention(q, k, v, mask=mask)", "it gives the same with the mask turned round: "),
        ("attention(q, k, v, mask=allowed)", "TypeError: mask must be a Mask"),
    ],
)
def test_a_wrong_line_is_found_out(monkeypatch, line, told):
    setup = "from attn_numpy import hide"
    own = Conversion("ours", ["ours"], "numpy", "B H T D", line, setup)
    monkeypatch.setattr(conversions, "conversions", lambda: {"ours": own})
    assert fault("ours").startswith(told)
