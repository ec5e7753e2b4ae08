"""NumPy's walk: what a block is for each size of call, and that it looks again where it has to.

The sizes at which it decides are made small here, so that small calls meet all of its ways.
"""

import numpy as np
import pytest
from fuzz_blocked import Structure, dirtied

from attn_numpy import MultiHeadAttention, attention, attention_steps, blocked, causal, padding
from conformance.oracle import expected
from conformance.oracle.tolerance import compare
from conformance.subjects import load

MODES = {  # what is set, and what the walk is then made of
    "lone": ({}, "_plan_lone"),
    "few": ({"LONE_CELLS": 0, "FEW_ROWS": 2, "CELLS": 40, "TURNED": 3}, "_plan_lone"),
    "tiles": ({"LONE_CELLS": 0, "FEW_KEYS": 0, "ROWS": 3, "COLUMNS": 2, "CELLS": 40}, "_plan"),
}
SAMPLES, HEADS, LENGTH, DIM = SIZES = (3, 4, 11, 5)
LENGTHS = [11, 0, 7]


@pytest.fixture(params=MODES)
def mode(request, monkeypatch) -> str:
    for name, value in MODES[request.param][0].items():
        monkeypatch.setattr(blocked, name, value)
    return request.param


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """The names of the walk's functions that were called."""
    names = []
    for name in ("_plan", "_plan_lone", "_score_with_care"):
        real = getattr(blocked, name)
        note = lambda *a, real=real, name=name: names.append(name) or real(*a)  # noqa: E731
        monkeypatch.setattr(blocked, name, note)
    return names


def inputs() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(3, *SIZES)).astype(np.float32))


def held(query, key, value, **options) -> None:
    """Compare with the textbook in float64, NaN for NaN."""
    got = attention(query, key, value, **options)
    naive = attention_steps(query, key, value, **options).output
    exact = attention_steps(*(np.float64(x) for x in (query, key, value)), **options).output
    compare(got, exact, naive, "output")


def test_each_mode_is_taken(mode, called):
    held(*inputs(), mask=causal() & padding(LENGTHS))
    assert set(called) == {MODES[mode][1]}


@pytest.mark.parametrize("seed", range(40))
def test_random_calls_agree_with_the_oracle(mode, seed):
    shape, _, (query, key, value, _), allowed, options, given = Structure(seed).draw(0)
    mine = (query, *dirtied(np.random.default_rng(seed), shape, allowed, options, key, value))
    exact, naive = expected.attention(query, key, value, allowed=allowed, **options)
    got = load("numpy").attention(*mine, **options, **given)
    compare(got, exact["output"], naive["output"], "output")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spoilt", ["key", "value"])
@pytest.mark.parametrize("policy", ["zero", "nan", "uniform"])
def test_what_is_not_finite_reaches_those_who_are_allowed_it(mode, called, bad, spoilt, policy):
    query, key, value = inputs()
    array = {"key": key, "value": value}[spoilt]
    array[0, 1, 4, 2] = bad  # from row 4 on it is allowed
    array[1, 2, 3, 1] = bad  # in a sample that is allowed nothing
    array[2, 0, 9, 0] = bad  # behind the length
    mask = causal() & padding(LENGTHS)
    got = attention(query, key, value, mask=mask, empty_rows=policy)
    steps = attention_steps(query, key, value, mask=mask, empty_rows=policy).output
    spoilt_rows = np.zeros(SIZES[:3], bool)
    spoilt_rows[0, 1, 4:] = True
    spoilt_rows[1] |= policy == "nan"
    spoilt_rows[1, 2] |= policy == "uniform"
    assert (np.isnan(got).all(-1) == spoilt_rows).all()
    assert (np.isnan(steps).any(-1) == spoilt_rows).all()
    assert np.isfinite(got[~spoilt_rows]).all()
    assert "_score_with_care" in called


def test_numbers_that_are_finite_are_met_once(mode, called):
    attention(*inputs(), mask=causal())
    assert "_score_with_care" not in called


def test_scores_with_squares_beyond_float32_are_met_again(mode, called):
    query, key, value = inputs()
    held(query * np.float32(1e15), key * np.float32(1e15), value, mask=causal())
    assert "_score_with_care" in called


@pytest.mark.parametrize("lengths", [[1, 2, 11], [0, 1, 1]])
def test_an_allowed_score_that_overflows_is_not_hidden(mode, lengths):
    """Rows that are allowed nothing else are NaN, as 0/0 is, and not 0 as fully masked ones."""
    query, key, value = np.ones((3, *SIZES), np.float32)
    key *= -np.float32(1e38)
    mask = padding(lengths)
    got = attention(query * np.float32(1e10), key, value, mask=mask)
    empty = np.array(lengths) == 0
    assert np.isnan(got[~empty]).all()
    assert (got[empty] == 0).all()


def test_keys_at_both_sides_are_cut_off(monkeypatch):
    widths, real = [], blocked._plan_lone
    monkeypatch.setattr(
        blocked, "_plan_lone", lambda hidden: widths.append(real(hidden)) or widths[-1]
    )
    hidden = np.ones((SAMPLES, LENGTH), bool)
    hidden[:, 3:6] = False
    attention(*inputs(), mask=padding(hidden=hidden))
    assert [(plan.kept, plan.width) for plan in widths] == [(slice(3, 6), 3)]


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_a_step_looks_at_its_keys_only_where_a_score_is_not_finite(called, bad):
    attn = MultiHeadAttention(10, 2, rng=np.random.default_rng(0)).eval()
    x = np.random.default_rng(1).normal(size=(2, 9, 10)).astype(np.float32)
    _, cache = attn.decode(x[:, :8], attn.new_cache(2, 9))
    if bad is not None:
        cache.key[1, 0, 3, 2] = bad  # behind the back of everyone
    called.clear()
    output, _ = attn.decode(x[:, 8:], cache)
    assert np.isfinite(output[0]).all()
    assert np.isnan(output[1]).all() == (bad is not None)
    assert ("_score_with_care" in called) == (bad is not None)
