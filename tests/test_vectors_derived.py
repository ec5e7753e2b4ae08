"""How vectors are frozen: idle ones, disagreeing derivations and changed ids are all refused."""

import ast
import json
import math
import re
import sys
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from conformance.mask_spec import allow, padding
from conformance.oracle import reference, reference_heads
from conformance.vectors import HERE, VectorsError, check_files, load, manifest
from tools.vectors import (
    check_stored,
    digits,
    exact,
    exact_heads,
    exact_row,
    freeze,
    progress,
    sets,
)
from tools.vectors.cases import all_cases, make
from tools.vectors.derive import complete

CASES = {case.id: case for case in all_cases()}
ONE = CASES["ATT-1.causal"]
GRADIENT = CASES["GRAD-1.softcap"]
SINKS = CASES["ATT-15.gradients"]
PARTS = CASES["ATT-16.gradients"]
ROTARY = CASES["MHA-10.partial"]

# Idle vectors


def renamed(case, **changed):
    return replace(case, id=f"{case.clause}.made_up", **changed)


def sized(**sizes):
    return make.attend(
        "ATT-1.made_up", "x", shape=make.MAIN._replace(**sizes), mask=padding([3] * 3)
    )


SHOWN, HIDDEN = np.ones((1, 1, 5, 7), bool), np.zeros((1, 1, 5, 7), bool)
FLAT = {"value": np.ones((3, 2, 7, 13))}
IDLE = {
    "hidden": renamed(ONE, mask=allow(SHOWN)),
    "visible": renamed(ONE, mask=allow(HIDDEN)),
    "distinct_sizes": sized(D=7),
    "top_weight": renamed(ONE, scale=2.0**-10),
    "unmasked": renamed(ONE, mask=allow(SHOWN)),
    "transposed": renamed(ONE, mask=allow(SHOWN)),
    "uniform": renamed(ONE, scale=0.0),
    "unscaled": renamed(ONE, scale=1.0),
    "scaled_by_the_values_width": renamed(ONE, scale=13**-0.5),
}


@pytest.mark.parametrize("name", IDLE)
def test_idle_vector_is_refused(tmp_path, name):
    with pytest.raises(VectorsError) as error:
        freeze.write(tmp_path, [IDLE[name]])
    said = re.search(rf"ATT-1\.made_up tells nothing about {name}: got (.+)", str(error.value))
    assert said, str(error.value)
    assert float(said[1]) < (0.5 if name == "top_weight" else 1e-6)
    assert not list(tmp_path.iterdir()), "something was written"


def test_vector_whose_values_are_all_alike_tells_nothing(tmp_path):
    parts = make.close("output")
    with pytest.raises(VectorsError) as error:
        freeze.write(tmp_path, [renamed(ONE, inputs=ONE.inputs | FLAT, expect=parts)])
    for name in ("unmasked", "transposed", "uniform", "unscaled"):
        assert f"tells nothing about {name}" in str(error.value)


def test_exemption_from_what_is_there_is_refused(tmp_path):
    case = renamed(ONE, exempt={"hidden": "no", "speed": "no"})
    with pytest.raises(VectorsError) as error:
        freeze.write(tmp_path, [case])
    assert "ATT-1.made_up is exempt from hidden, and has it: got 60" in str(error.value)
    assert "ATT-1.made_up is exempt from speed, which is no property" in str(error.value)


def test_empty_region_is_refused(tmp_path):
    part = make.zero("output", np.zeros((3, 2, 5), bool))
    case = renamed(ONE, expect=(part, *ONE.expect))
    with pytest.raises(VectorsError, match="says nothing about output: its region is empty"):
        freeze.write(tmp_path, [case])


def test_number_that_a_dtype_cannot_hold_is_refused(tmp_path):
    query = ONE.inputs["query"].copy()
    query[0, 0, 0, 0] = 1 / 3
    with pytest.raises(VectorsError, match=r"float32 cannot hold .*0\.333.* of query"):
        freeze.write(tmp_path, [renamed(ONE, inputs=ONE.inputs | {"query": query})])


def test_expectation_that_no_derivation_gives_is_refused(tmp_path):
    case = renamed(ONE, expect=(make.zero("output"), *ONE.expect))
    with pytest.raises(VectorsError) as error:
        freeze.write(tmp_path, [case])
    for name in ("the loop oracle", "exact arithmetic"):
        assert f"{name} does not say what the case expects" in str(error.value)


# Ids are permanent


def test_what_is_written_is_what_is_read(tmp_path):
    text = freeze.write(tmp_path, [ONE, GRADIENT])
    assert text.startswith("2 vectors of 2 clauses written: ")
    for id, vector in load(tmp_path).items():
        stored = load()[id]
        kept = replace(stored, distractors=CASES[id].distractors)
        assert check_stored.differences(kept, complete(CASES[id])) == []
        for mine, theirs in zip(vector.expect, stored.expect, strict=True):
            np.testing.assert_array_equal(mine.expected, theirs.expected)


def test_written_again_the_files_are_the_same_bytes(tmp_path):
    freeze.write(tmp_path, [ONE, CASES["MASK-12.arrays"]])
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    freeze.write(tmp_path, [ONE, CASES["MASK-12.arrays"]])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_numbers_of_eight_bytes_are_aligned(tmp_path):
    freeze.write(tmp_path, [CASES["MASK-12.square"], CASES["MASK-1.other_id"], ONE])
    content = (tmp_path / check_files.TENSORS).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start]).values()
    assert any(entry["dtype"] == "BOOL" and entry["data_offsets"][1] % 8 for entry in entries)
    for entry in entries:
        if entry["dtype"] != "BOOL":
            assert (start + entry["data_offsets"][0]) % 8 == 0, entry


def test_id_cannot_be_dropped_without_a_reason(tmp_path, monkeypatch):
    freeze.write(tmp_path, [ONE, GRADIENT])
    with pytest.raises(
        VectorsError, match=r"name a reason in RETIRED for giving up GRAD-1\.softcap"
    ):
        freeze.write(tmp_path, [ONE])
    for module in (check_stored, freeze):
        monkeypatch.setattr(module, "RETIRED", {GRADIENT.id: "made up"})
    freeze.write(tmp_path, [ONE])
    assert manifest(tmp_path)["retired"] == {GRADIENT.id: "made up"}


def test_id_cannot_be_given_to_other_numbers(tmp_path):
    freeze.write(tmp_path, [ONE])
    other = replace(ONE, inputs=ONE.inputs | {"key": -ONE.inputs["key"]})
    text = r"give it a new one: ATT-1\.causal, numbers key at \(0, 0, 0, 0\)"
    with pytest.raises(VectorsError, match=text):
        freeze.write(tmp_path, [other])
    freeze.write(tmp_path, [replace(ONE, shows="the same in other words")])


# Derivations that go wrong


def softmax_of_base_two(logits, empty_rows, sink=None):
    exps = [2.0 ** (logit - max(logits)) for logit in logits]
    return [e / sum(exps) for e in exps]


def exp_a_little_off(x, own=digits.exp):
    return own(x) * (1 + Fraction(1, 10**11)) if x < 0 else own(x)


def one_key_too_far(spec, *query, own=reference.is_allowed):
    batch, head, row, column, offset = query
    return own(spec, batch, head, row, column, offset + 1)


def one_key_too_near(spec, query, offset, size, own=sets.allowed_keys):
    return own(spec, query, offset - 1, size)


def row_of_another_sign(self, by_weight, own=exact_row.ExactRow.pulls):
    return {s: -pull for s, pull in own(self, by_weight).items()}


def sink_with_a_share_of_nothing(logits, empty_rows, sink=None, own=reference.softmax):
    return [*own(logits, empty_rows), 0.0]


def pieces_of_one_top(pieces, own=exact_row.ExactRow.merged):
    for row in pieces:
        row.top = Fraction(0)
    return own(pieces)


def wrong_half(spec, head_dim, own=reference_heads.pairs):
    return [(j, i, step) for i, j, step in own(spec, head_dim)]


WRONG = {
    "oracle": (reference, "softmax", softmax_of_base_two, ONE, "ATT-1.causal, output at"),
    "exact": (exact_row, "exp", exp_a_little_off, ONE, "ATT-1.causal, output at"),
    "oracle_mask": (
        reference,
        "is_allowed",
        one_key_too_far,
        ONE,
        r"ATT-1.causal, seen at (0, 0, 0, 3)",
    ),
    "exact_mask": (
        sets,
        "allowed_keys",
        one_key_too_near,
        ONE,
        r"ATT-1.causal, seen at (0, 0, 0, 2)",
    ),
    "exact_gradient": (
        exact_row.ExactRow,
        "pulls",
        row_of_another_sign,
        GRADIENT,
        "GRAD-1.softcap, grad_",
    ),
    "oracle_sinks": (
        reference,
        "softmax",
        sink_with_a_share_of_nothing,
        SINKS,
        "ATT-15.gradients, grad_",
    ),
    "exact_sinks": (
        exact_row.ExactRow,
        "pull_of_sink",
        lambda self, by_weight, own=exact_row.ExactRow.pull_of_sink: -own(self, by_weight),
        SINKS,
        "ATT-15.gradients, grad_sinks at",
    ),
    "exact_merge": (
        exact_row.ExactRow,
        "merged",
        pieces_of_one_top,
        PARTS,
        "ATT-16.gradients, ",
    ),
    "oracle_pairs": (
        reference_heads,
        "pairs",
        wrong_half,
        ROTARY,
        "MHA-10.partial, turned_key at",
    ),
    "exact_pairs": (
        exact_heads,
        "frequency",
        lambda spec, pair, dim, own=exact_heads.frequency: own(spec, pair, dim + 2),
        ROTARY,
        "MHA-10.partial, turned_key at",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_derivation_is_noticed(monkeypatch, name):
    module, function, wrong, case, place = WRONG[name]
    monkeypatch.setattr(module, function, wrong)
    found = "\n".join(freeze.check(HERE, [case]))
    assert place in found, found[:500]
    for words in ("stored is", "the loop oracle says", "exact arithmetic says"):
        assert words in found.splitlines()[0], found.splitlines()[0]


def test_derivations_share_no_code():
    for module in (digits, exact, exact_heads, exact_row, sets):
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)
                 for alias in n.names}  # fmt: skip
        shared = {"reference", "reference_heads", "oracle", "expected", "naive", "cases"}
        assert not names & shared, module.__name__


def test_exponentials_and_roots_have_their_digits():
    e = "2.71828182845904523536028747135266249775724709369995957496696"
    assert abs(digits.exp(Fraction(1)) - Fraction(e)) < Fraction(1, 10**58)
    assert abs(digits.log(Fraction(e)) - 1) < Fraction(1, 10**58)
    assert abs(digits.root(2) ** 2 - 2) < Fraction(1, 10**58)
    assert digits.root(4) == 2
    assert float(digits.exp(Fraction(-801))) == 0 == math.exp(-801)


def test_cosine_and_sine_have_their_digits():
    two = "-0.41614683654714238699756822950076218976600077107554489075514997"
    pi = "3.14159265358979323846264338327950288419716939937510582097494459"
    cos, sin = exact_heads.cosine_and_sine(4, Decimal("0.5"))
    assert abs(cos - Fraction(two)) < Fraction(1, 10**58)
    assert abs(cos**2 + sin**2 - 1) < Fraction(1, 10**58)
    cos, sin = exact_heads.cosine_and_sine(90, Decimal(pi))
    assert abs(cos - 1) < Fraction(1, 10**58) and abs(sin) < Fraction(1, 10**58)


IDS = ["ATT-1.causal", "ATT-7.large", "ATT-16.gradients", "GRAD-1.softcap", "MHA-4.together",
       "MHA-10.norm_then_rotary"]  # fmt: skip


@pytest.mark.parametrize("id", IDS)
def test_sixty_digits_are_enough(monkeypatch, id):
    sixty = exact.derive(CASES[id])
    monkeypatch.setattr(digits, "DIGITS", 90)
    monkeypatch.setattr(digits, "PLACES", 400)
    for name, array in exact.derive(CASES[id]).items():
        np.testing.assert_array_equal(array, sixty[name], name)


def test_oracle_stays_within_its_counted_roundings_and_a_few_ulp():
    found = [complete(case) for case in CASES.values()]
    worst = max(found, key=lambda one: one.share)
    assert 0.01 < worst.share < 1, f"{worst.vector.id} uses {worst.share:.3g} of its bound"
    far = {one.vector.id: one.ulps for one in found if one.ulps > 8}
    assert set(far) == {"ATT-7.constant"}, far


# The command


def test_command_lists_checks_and_refuses(capsys, monkeypatch):
    assert freeze.main([]) == 0
    assert capsys.readouterr().out.startswith(f"{len(CASES)} vectors of ")
    monkeypatch.setattr(freeze, "check", lambda: ["ATT-1.causal, output at (0,): wrong"])
    assert freeze.main(["--check"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "ATT-1.causal, output at (0,): wrong\n")


def test_command_says_in_one_line_that_files_cannot_be_read(capsys, monkeypatch):
    def lost():
        raise FileNotFoundError("no such file: manifest.json")

    monkeypatch.setattr(freeze, "check", lost)
    assert freeze.main(["--check"]) == 2
    assert capsys.readouterr().err == "no such file: manifest.json\n"


def test_progress_is_shown_only_after_a_while(capsys, monkeypatch):
    assert list(progress.watched([1, 2, 3], "deriving")) == [1, 2, 3]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setattr(progress, "Console", lambda stderr: _loud())
    assert list(progress.watched([1, 2, 3], "deriving")) == [1, 2, 3]
    assert "deriving" in capsys.readouterr().err


def _loud():
    from rich.console import Console

    return Console(file=sys.stderr, force_terminal=True)
