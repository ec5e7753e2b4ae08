"""The rule by which errors are judged, on numbers small enough to check by hand."""

import ml_dtypes
import numpy as np
import pytest

from conformance.oracle import expected, naive, reference
from conformance.oracle.tolerance import (
    LEDGER,
    Differs,
    Ledger,
    allowance,
    check_dtype,
    check_each,
    check_shape,
    close,
    compare,
    eps,
    same,
)

EXACT = np.array([[1.0, -4.0, 0.5], [2.0, 0.0, 3.0]])
NAIVE = EXACT + np.array([[0.0, 0.01, 0.0], [-0.02, 0.0, 0.0]])
LIMIT = 2 * 0.02 + 2 * 2.0**-23 * 4  # of EXACT and NAIVE, in float32


@pytest.fixture(autouse=True)
def ledger():
    """Open a page of the ledger, as the suite does for each test, and close it again."""
    LEDGER.open("ATT-1")
    yield LEDGER
    LEDGER.open("")


def got(index=(0, 1), error=0.0) -> np.ndarray:
    answer = EXACT.copy()
    answer[index] += error
    return answer.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "exponent"), [("float64", -52), ("float32", -23), ("float16", -10), ("bfloat16", -7)]
)
def test_eps_is_the_spacing_of_one(name, exponent):
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    assert eps(dtype) == 2.0**exponent
    one = np.ones((), dtype)
    assert one + dtype.type(eps(dtype)) > one, "1 + eps is the next number"
    assert one + dtype.type(eps(dtype) / 2) == one, "and nothing lies between"


def test_allowance_is_twice_the_naive_error_and_two_spacings_of_the_largest():
    assert allowance(EXACT, NAIVE, np.float32) == pytest.approx(LIMIT, rel=1e-12)
    assert allowance(EXACT, EXACT, np.float16) == 2 * 2.0**-10 * 4
    assert allowance(EXACT, EXACT, ml_dtypes.bfloat16) == 2 * 2.0**-7 * 4


def test_allowance_counts_finite_entries_only():
    exact, naive_answer = np.array([2.0, np.inf, np.nan, 5.0]), np.array([2.0, 0.0, 7.0, np.nan])
    assert allowance(exact, naive_answer, np.float64) == 4 * 2.0**-52
    assert allowance(exact[1:], naive_answer[1:], np.float64) == 0
    assert allowance(np.zeros((0, 3)), np.zeros((0, 3)), np.float32) == 0


@pytest.mark.parametrize("index", [(0, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize("sign", [1, -1])
def test_compare_draws_the_line_at_the_allowance(index, sign):
    compare(got(index, sign * LIMIT * 0.9999), EXACT, NAIVE, "output")
    with pytest.raises(Differs):
        compare(got(index, sign * LIMIT * 1.0001), EXACT, NAIVE, "output")


def test_compare_takes_the_spacing_from_the_answers_own_dtype():
    answer = EXACT.astype(np.float16)
    answer[0, 1] += 2 * np.spacing(np.float16(4))
    compare(answer, EXACT, EXACT, "output")
    with pytest.raises(Differs):
        compare(answer.astype(np.float32), EXACT, EXACT, "output")


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        (1.0, np.nan),
        (np.nan, 1.0),
        (1.0, np.inf),
        (np.inf, 1.0),
        (-np.inf, np.inf),
        (np.nan, np.inf),
        (np.inf, np.nan),
    ],
)
def test_compare_wants_nan_and_infinity_where_the_oracle_has_them(wanted, answer):
    exact, other = EXACT.copy(), got()
    exact[1, 0], other[1, 0] = wanted, answer
    with pytest.raises(Differs, match=r"at \(1, 0\)"):
        compare(other, exact, NAIVE, "output")
    with pytest.raises(Differs, match=r"at \(1, 0\)"):
        compare(other, exact, exact, "output")
    other[1, 0] = wanted
    compare(other, exact, NAIVE, "output")


def test_compare_allows_nothing_where_the_oracle_is_all_nan_or_all_zero():
    for fill in (np.nan, 0.0):
        exact = np.full((2, 3), fill)
        compare(exact.astype(np.float32), exact, exact, "output")
        with pytest.raises(Differs, match=r"output at \(0, 1\): .* of 0 allowed"):
            compare(np.where(np.arange(3) == 1, 1e-30, exact), exact, exact, "output")


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), (2, 1), ()])
def test_another_shape_is_refused_even_where_it_broadcasts(shape):
    answer = np.broadcast_to(np.float32(1), shape)
    for check in (
        lambda: compare(answer, np.ones((2, 3)), np.ones((2, 3)), "output"),
        lambda: same(answer, np.ones((2, 3)), "output"),
        lambda: close(answer, np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3)), "output"),
    ):
        with pytest.raises(Differs, match=r"ATT-1: output: expected shape \(2, 3\), got \("):
            check()


def test_text_names_clause_place_numbers_and_share():
    answer = got((0, 1), 1.0)
    answer[1, 2] += 2  # the worst
    with pytest.raises(Differs) as error:
        compare(answer, EXACT, NAIVE, "weights")
    assert str(error.value) == (
        "ATT-1: weights at (1, 2): expected 3, got 5, error 2 of 0.04 allowed (50 x)"
    )


def test_text_has_no_clause_where_none_is_open(ledger):
    ledger.open("")
    assert str(Differs("output is late")) == "output is late"


def test_same_refuses_one_unit_in_the_last_place():
    answer = np.linspace(-3, 7, 11, dtype=np.float32)
    same(answer.copy(), answer, "output")
    other = answer.copy()
    other[4] = np.nextafter(other[4], np.float32(9))
    text = r"ATT-1: output at \(4,\): expected exactly 1\.0, got 1\.0000001\d* \(1 of 11 differ\)"
    with pytest.raises(Differs, match=text):
        same(other, answer, "output")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_same_takes_nan_for_nan_and_either_zero_for_zero(name):
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    given = np.array([0.0, np.nan, -np.inf, 1.5]).astype(dtype)
    same(given, np.array([-0.0, np.nan, -np.inf, 1.5]), "output")  # the dtype is not compared
    for index, wrong in ((1, 0.0), (2, np.inf), (0, np.nan), (3, 1.5 + eps(dtype))):
        other = given.copy()
        other[index] = wrong
        with pytest.raises(Differs, match=rf"at \({index},\)"):
            same(other, given, "output")


def test_same_names_the_worst_place():
    with pytest.raises(
        Differs, match=r"at \(1, 0\): expected exactly 3.0, got 5.0 \(3 of 4 differ"
    ):
        same(np.array([[1.5, 2.0], [5.0, 4.25]]), np.array([[1.0, 2.0], [3.0, 4.0]]), "output")
    with pytest.raises(Differs, match=r"at \(1,\): expected exactly 2.0, got nan"):
        same(np.array([7.0, np.nan]), np.array([1.0, 2.0]), "output")


def test_rule_is_held_number_by_number(ledger):
    array = np.array([[1.0, -2.0], [np.nan, 4.0]])
    check_each([[True], [True]], array, "output", "a number")
    assert ledger.what == "output"
    with pytest.raises(Differs, match=r"output at \(0, 1\): expected a number, got -2.0 \(2 of 4"):
        check_each(array > 0, array, "output", "a number")


@pytest.mark.parametrize("pair", [(np.inf, np.inf), (np.nan, np.nan), (-np.inf, 1.0)])
def test_what_is_not_finite_is_close_to_nothing(pair):
    one, other = (np.array([1.0, x]) for x in pair)
    with pytest.raises(Differs, match=r"both at \(1,\)"):
        close(one, other, EXACT, NAIVE, "both")


def test_whole_numbers_are_another_dtype():
    for check in (lambda: compare(EXACT.astype(int), EXACT, NAIVE, "output"),
                  lambda: close(EXACT.astype(int), EXACT, EXACT, NAIVE, "output")):  # fmt: skip
        with pytest.raises(Differs, match="output: expected floats, got int64") as caught:
            check()
        assert caught.value.found["took"] == "dtype"


def test_same_compares_booleans_and_whole_numbers():
    same(np.array([True, False]), [True, False], "allowed")
    same(np.array([3, 5], np.int16), [3, 5], "keys")
    with pytest.raises(Differs, match=r"\(1 of 2 differ\)"):
        same(np.array([True, True]), [True, False], "allowed")


def test_close_holds_two_answers_to_the_budget_of_the_case():
    close(got(error=LIMIT * 0.99), got(), EXACT, NAIVE, "both paths")
    with pytest.raises(
        Differs, match=r"ATT-1: both paths at .*: expected .*, got .*, error .* allowed"
    ):
        close(got(error=LIMIT * 1.01), got(), EXACT, NAIVE, "both paths")


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_close_refuses_what_is_not_finite(fill):
    other = got()
    other[1, 1] = fill
    wrong = rf"both paths.* at \(1, 1\): expected a finite number, got {fill}$"
    for pair in ((other, got()), (got(), other), (other, other)):
        with pytest.raises(Differs, match=wrong):
            close(*pair, EXACT, NAIVE, "both paths")


def test_ledger_keeps_the_largest_share(ledger):
    for what, part in (("scores", 0.25), ("weights", 0.75), ("output", 0.5)):
        compare(got(error=LIMIT * part), EXACT, NAIVE, what)
    assert ledger.what == "weights"
    assert ledger.used == pytest.approx(0.75, abs=1e-4)
    same(got(), got(), "bits")
    assert ledger.what == "weights", "what is exact uses nothing"


def test_ledger_starts_anew_with_each_test():
    ledger = Ledger()
    ledger.open("EMPTY-1")
    ledger.enter(0.5, "output")
    ledger.open("EMPTY-2")
    assert (ledger.clause, ledger.used, ledger.what) == ("EMPTY-2", 0.0, "")


# What is expected: the naive formula in several orders


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def attention_call() -> dict:
    shapes = {"query": (2, 4, 3, 5), "key": (2, 2, 7, 5), "value": (2, 2, 7, 11)}
    arrays = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    return arrays | {"allowed": normal(3, 2, 4, 3, 7) < 0.5, "scale": 0.7, "softcap": 1.3}


def multihead_call() -> dict:
    shapes = {"q_proj": (6, 6), "k_proj": (6, 5), "v_proj": (6, 7), "out_proj": (6, 6)}
    parameters = {f"{name}.weight": normal(i, *s) for i, (name, s) in enumerate(shapes.items())}
    parameters |= {f"{name}.bias": normal(9 + i, 6) for i, name in enumerate(shapes)}
    sizes = {"query": (3, 2, 6), "key": (3, 5, 5), "value": (3, 5, 7)}
    arrays = {name: normal(20 + i, *size) for i, (name, size) in enumerate(sizes.items())}
    allowed = normal(30, 3, 2, 2, 5) < 0.5
    return {"parameters": parameters, "heads": 2, "kv_heads": 2, **arrays, "allowed": allowed}


CALLS = {
    "attention": [None, (3, 7), (2, 4, 3, 7), (1, 4, 1, 7), (2, 1, 3, 7)],
    "gradients": [None, (3, 7), (2, 4, 3, 7), (1, 4, 1, 7), (2, 1, 3, 7)],
    "multihead": [None, (2, 5), (3, 2, 2, 5), (1, 2, 1, 5), (3, 1, 2, 5)],
    "multihead_gradients": [None, (2, 5), (3, 2, 2, 5), (1, 2, 1, 5), (3, 1, 2, 5)],
}
NAMED = [(name, bias) for name, biases in CALLS.items() for bias in biases]


@pytest.mark.parametrize(("name", "bias"), NAMED, ids=str)
def test_turning_a_call_there_and_back_changes_nothing(monkeypatch, name, bias):
    """With the oracle, whose sums know no order, in the place of the naive formula."""

    def oracle(folded=False, **options):
        return getattr(reference, name)(**options)

    call = multihead_call() if name.startswith("multihead") else attention_call()
    if name.endswith("gradients"):
        out = (3, 2, 6) if name.startswith("multihead") else (2, 4, 3, 11)
        call["grad"] = normal(40, *out)
    if bias is not None:
        call["bias"] = normal(41, *bias)
    monkeypatch.setattr(naive, name, oracle)
    exact, naive_answer = getattr(expected, name)(**call)
    assert set(exact) == set(naive_answer)
    for key in exact:
        np.testing.assert_array_equal(naive_answer[key], exact[key], key)


def test_every_axis_is_turned_in_every_combination(monkeypatch):
    asked = []

    def recorded(query, key, value, **options):
        asked.append(np.concatenate([x.ravel() for x in (query, key, value)]).tobytes())
        return reference.attention(query, key, value, allowed=options["allowed"])

    monkeypatch.setattr(naive, "attention", recorded)
    call = attention_call()
    expected.attention(call["query"], call["key"], call["value"], allowed=call["allowed"])
    assert len(set(asked)) == 8, "queries, keys and features, each there or back"


def test_the_furthest_of_all_orders_is_taken_for_each_tensor(monkeypatch):
    call = attention_call()
    exact = reference.attention(**call)
    errors = iter(1e-3 * np.random.default_rng(5).permutation(32))
    drawn = []

    def naive_answer(folded=False, **options):
        drawn.append({name: next(errors) if name == "weights" else 0.0 for name in exact})
        answer = reference.attention(**options)
        return {name: answer[name] - drawn[-1][name] for name in answer}

    monkeypatch.setattr(naive, "attention", naive_answer)
    monkeypatch.setattr(expected, "_expect", expected._expect.__wrapped__)  # nothing remembered
    _, furthest = expected.attention(**call)
    worst = max(error["weights"] for error in drawn)
    assert abs(furthest["weights"] - exact["weights"]).max() == pytest.approx(worst)
    np.testing.assert_array_equal(furthest["output"], exact["output"])


def test_naive_formula_lies_near_the_oracle_but_not_on_it():
    call = {n: x.astype(np.float32) if n in ("query", "key", "value") else x
            for n, x in attention_call().items()}  # fmt: skip
    exact, naive_answer = expected.attention(**call)
    for name in ("scores", "weights", "output"):
        error = abs(naive_answer[name] - exact[name]).max()
        assert 0 < error < 1e-5, f"{name}: {error:.3g}"


def test_what_is_wrong_is_told_as_data_too():
    exact = np.array([[0.0, 2.0, -1.0]])
    with pytest.raises(Differs) as told:
        compare(np.float32([[0, 2, 0]]), exact, exact, "output")
    found = told.value.found
    assert (found["index"], found["expected"], found["got"], found["error"]) == ((0, 2), -1, 0, 1)
    assert found["allowed"] == allowance(exact, exact, "float32")
    with pytest.raises(Differs) as told:
        check_shape(exact, (3, 1), "output")
    assert told.value.found == {"took": "shape"}
    with pytest.raises(Differs) as told:
        check_dtype(exact, np.float32, "output")
    assert told.value.found == {"took": "dtype"}
