"""The frozen vectors as they are stored: derived again, complete, small, and none of them idle."""

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from conformance.contract import clauses
from conformance.mask_spec import allow
from conformance.vectors import HERE, check_files, load
from tools.vectors import discrimination, exact, freeze
from tools.vectors.cases import all_cases, make

CASES = {case.id: case for case in all_cases()}
VECTORS = load()
ONE = "ATT-1.causal"
# What data can express of the contract. The rest needs a second call, a class or a clock.
EXPRESSIBLE = {
    *(f"MASK-{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14)),
    *(f"ATT-{n}" for n in (*range(1, 9), 15, 16)),
    *(f"EMPTY-{n}" for n in (1, 2, 3, 4, 6, 8, 9)),
    *(f"CLEAN-{n}" for n in range(1, 7)),
    *(f"CAUSE-{n}" for n in (1, 2, 3, 5)),
    *("GRAD-1", "HALF-2", "HALF-3", "HALF-4"),
    *(f"MHA-{n}" for n in (1, 3, 4, 5, 7, 9, 10)),
    *("DOC-A1", "DOC-A4", "DOC-A5"),
}


# What is stored


def test_stored_vectors_are_what_both_derivations_say():
    found = freeze.check()
    assert not found, "\n".join(found)


def test_every_clause_that_data_can_express_has_a_vector():
    assert {vector.clause for vector in VECTORS.values()} == EXPRESSIBLE
    assert set(clauses()) >= EXPRESSIBLE


def test_every_kind_of_expectation_occurs():
    kinds = {part.kind for vector in VECTORS.values() for part in vector.expect}
    assert kinds == {"close", "exact", "zero", "nan", "finite", "either", "raises"}


def test_alternatives_are_for_what_the_contract_leaves_open():
    for vector in VECTORS.values():
        for part in vector.expect:
            if part.kind == "either":
                sides = clauses()[vector.clause].level == "SHOULD"
                assert (part.contract in part.alternatives) == sides, vector.id
                assert sides or vector.clause == "ATT-7", vector.id


def test_files_are_small_and_their_digest_is_theirs():
    content = (HERE / check_files.TENSORS).read_bytes()
    found = json.loads((HERE / check_files.MANIFEST).read_text("utf-8"))
    assert len(content) + (HERE / check_files.MANIFEST).stat().st_size < 2 * 1024 * 1024
    assert found["tensors"]["sha256"] == sha256(content).hexdigest()


SAME = [
    ("EMPTY-4.padding", "EMPTY-4.hide", "EMPTY-4.bias", "EMPTY-4.mask_and_bias", "EMPTY-4.offset"),
    ("ATT-8.cells", "ATT-8.permuted_keys", "ATT-8.duplicated_keys"),
    ("ATT-4.constant_along_a_row", "ATT-4.without_the_constant"),
    ("CLEAN-1.nan", "CLEAN-1.inf", "CLEAN-1.minus_inf", "CLEAN-2.nan", "CLEAN-5.huge"),
    ("EMPTY-9.column_of_a_bias", "EMPTY-9.hidden_column"),
    ("MASK-5.de_morgan", "MASK-5.de_morgan_apart"),
    ("MHA-4.bool_rank_3", "MHA-4.bool_rank_4"),
]


def answer(id: str) -> np.ndarray:
    """Return the first numbers that a vector expects."""
    return next(p.expected for p in VECTORS[id].expect if p.expected is not None)


@pytest.mark.parametrize("ids", SAME, ids=lambda ids: ids[0])
def test_vectors_that_must_agree_have_one_answer_bit_for_bit(ids):
    for id in ids[1:]:
        np.testing.assert_array_equal(answer(id), answer(ids[0]), id)


def test_numbers_of_the_inputs_are_those_of_the_answers_that_must_agree():
    """A part's rows are those of a call whose other keys are hidden; a whole is its pieces."""
    merged, part = VECTORS["ATT-16.merged"], VECTORS["ATT-16.part"]
    for vector in (merged, part):
        keys = [s for piece in vector.settings["pieces"] for s in piece]
        seen = vector.seen & np.isin(np.arange(7), keys)
        plain = replace(vector, call="attention", mask=allow(seen), query_offset=None)
        given = next(p for p in vector.expect if p.tensor == "output" and p.kind == "close")
        np.testing.assert_array_equal(exact.derive(plain)["output"], given.expected)
    assert sorted(map(len, merged.settings["pieces"])) == [0, 1, 3, 3]
    lse = next(p.expected for p in part.expect if p.tensor == "lse")
    assert np.isneginf(lse).any() and np.isfinite(lse).any()


def test_relations_that_the_clauses_name_hold_in_the_stored_bits():
    np.testing.assert_array_equal(answer("ATT-8.doubled_values"), 2 * answer("ATT-8.cells"))
    batch, alone = answer("CAUSE-5.left"), answer("CAUSE-5.alone")
    np.testing.assert_array_equal(batch[2:, :, 2:], alone)
    one, inputs = VECTORS["MHA-3.identity"], VECTORS["MHA-3.identity"].inputs
    plain = replace(
        CASES[ONE], sizes=one.sizes | {"H_kv": 1}, mask=allow(one.seen), query_offset=None,
        inputs={name: inputs[name][:, None] for name in ("query", "key", "value")},
    )  # fmt: skip
    np.testing.assert_array_equal(exact.derive(plain)["output"][:, 0], answer("MHA-3.identity"))


# Exemptions


def test_exemptions_are_few_and_have_a_reason_of_the_list():
    reasons = {v for k, v in vars(make).items() if k.isupper() and isinstance(v, str)}
    answered = [v for v in VECTORS.values() if v.call in discrimination.WEIGHTED and not v.refused]
    assert len(answered) > 80
    for name in discrimination.PROPERTIES:
        excused = [v.id for v in answered if name in v.exempt]
        assert len(excused) <= len(answered) / 8, f"{name}: {excused}"
    for vector in VECTORS.values():
        assert set(vector.exempt.values()) <= reasons, vector.id
        if vector.call in discrimination.WEIGHTED and not vector.refused:
            assert make.NO_WEIGHTS not in vector.exempt.values(), vector.id
        assert (make.NO_ANSWER in vector.exempt.values()) == vector.refused, vector.id
