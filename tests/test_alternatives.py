"""Every name that a wrong answer can get is given to an answer that is wrong in just that way."""

import numpy as np
import pytest

from conformance import naive, reference
from conformance.alternatives import Call, name_of
from conformance.cases import MAIN, PLAIN, SQUARE, Case, coins
from conformance.specs import allow, causal, padding

EMPTY = Case("empty", mask=padding([7, 0, 4]))
BOTH = Case("both", SQUARE, causal() & padding([6, 3, 4]))
FLAG = Case("flag", mask=causal())  # T != S, and nobody says where queries start
HEADS = Case("heads", mask=allow(coins(61, *MAIN.call) & ~coins(62, 3, 2, 5, 1, true=0.4)))


def answer(case: Case, seen=None, inputs=None, dtype="float32", **changes) -> np.ndarray:
    """Return the formula's answer to a case, for another mask or other inputs."""
    options = {"bias": None} | case.numbers(dtype) | changes
    seen = case.seen() if seen is None else np.broadcast_to(seen, case.shape.call)
    with np.errstate(all="ignore"):
        found = naive.attention(*(inputs or case.inputs(dtype)), seen=seen, **options)
    return found["output"]


def named(case: Case, output: np.ndarray, inputs=None, **options) -> str | None:
    dtype = output.dtype.name
    return name_of(Call(inputs or case.inputs(dtype), case.options(dtype) | options, output))


def tri(case: Case, offset: int = 0) -> np.ndarray:
    return np.tri(*case.shape.call[2:], offset, dtype=bool)


ANSWERS = {
    "conforms": (EMPTY, answer(EMPTY)),
    "mean": (EMPTY, answer(EMPTY, empty_rows="uniform")),
    "nan": (EMPTY, answer(EMPTY, empty_rows="nan")),
    "unmasked": (EMPTY, answer(EMPTY, True)),
    "inverted": (EMPTY, answer(EMPTY, ~EMPTY.seen())),
    "no-causal": (BOTH, answer(BOTH, reference.allowed(padding([6, 3, 4]), SQUARE.call))),
    "only-causal": (BOTH, answer(BOTH, tri(BOTH))),
    "top-left": (FLAG, answer(FLAG, tri(FLAG))),
    "bottom-right": (FLAG, answer(FLAG, tri(FLAG, 2))),
    "default-scale": (Case("scale", scale=0.7), answer(PLAIN)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_gets_its_name(name):
    case, output = ANSWERS[name]
    assert (named(case, output) or "conforms") == name


def test_nan_that_a_projection_spreads_to_all_heads_is_nan():
    empty = ~HEADS.seen().any(-1)
    assert (empty.any(1) != empty.all(1)).any(), "the case needs a token that is empty in one head"
    output = np.where(empty.any(1)[:, None, :, None], np.float32(np.nan), answer(HEADS))
    assert named(HEADS, output) == "nan"


@pytest.mark.parametrize("way", ["mask", "bias"])
def test_nan_of_a_hidden_value_is_poisoned_and_not_unmasked(way):
    hidden = ~np.broadcast_to(np.arange(7) < 4, MAIN.call)
    case = Case("half", mask=padding([4, 4, 4]) if way == "mask" else None)
    bias = np.where(hidden, -np.inf, 0).astype(np.float32)
    options = {} if way == "mask" else {"bias": bias}
    query, key, value = (np.array(x) for x in case.inputs("float32"))
    value[0, 0, 6, 3] = np.nan
    clean, seen = answer(case, ~hidden), (~hidden if way == "mask" else True)
    output = answer(case, seen, (query, key, value), **options)  # 0 * NaN is NaN
    assert np.isnan(output[0, 0]).any() and not np.isnan(output[1:]).any()
    assert named(case, output, (query, key, value), **options) == "poisoned"
    assert named(case, clean, (query, key, value), **options) is None


def test_float64_that_is_summed_in_float32_is_recognised():
    rough = answer(EMPTY, empty_rows="uniform").astype(np.float64)
    assert named(EMPTY, rough + 1e-7) == "mean"


def test_chance_has_no_name():
    output = answer(EMPTY, empty_rows="uniform")
    assert named(EMPTY, output, dropout=0.5, seed=1) is None
