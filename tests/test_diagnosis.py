"""Every named alternative is recognised where it is taken, and none where the answer is right."""

from dataclasses import replace

import numpy as np
import pytest

from conformance.cases.arrays import coins
from conformance.cases.attention import BY_NAME, GROUPED, MAIN, MASKED, PLAIN, SQUARE, Case, names
from conformance.mask_spec import allow, causal, padding, sliding_window
from conformance.oracle import naive
from conformance.reports import recorded
from conformance.reports.diagnosis import NAMES, RIGHT, first_name, name_of
from conformance.reports.recorded import RecordedCall

LENGTHS = [7, 0, 4]
ROWS = {name: Case(name, mask=padding(LENGTHS)) for name in ("mean", "nan", "zero")}
ROWS["zero"] = replace(ROWS["zero"], empty_rows="uniform")
SHIFTED = Case("shifted", mask=causal(), query_offset=1)
SQUARED = Case("square", SQUARE, causal() & padding([7, 3, 4]))
CASES = ROWS | {
    "unmasked": BY_NAME["causal"],
    "inverted": BY_NAME["causal"],
    "transposed": Case("square", SQUARE, sliding_window(1, 3) & padding([7, 3, 4])),
    "first-sample": Case("padding", mask=padding([2, 7, 5])),
    "top-left": SHIFTED,
    "bottom-right": SHIFTED,
    "one-more": SQUARED,
    "one-less": Case("square", SQUARE, causal(), query_offset=2),
    "unmasked-row": ROWS["mean"],
    "no-causal": SQUARED,
    "only-causal": Case("square", SQUARE, causal() & padding([5, 3, 4])),
    "forgiven": BY_NAME["causal"],
    "poisoned": Case("padding", mask=padding([7, 3, 4])),
    "no-bias": Case("bias", bias="rank2", mask=padding([7, 3, 4])),
    "unscaled": BY_NAME["causal"],
    "scale-d": BY_NAME["causal"],
    "scale-d-v": BY_NAME["causal"],
    "default-scale": Case("scale", scale=0.3),
    "tiled": Case("grouped", GROUPED, padding([7, 3, 4])),
    "softcap-last": Case("softcap", softcap=0.9, bias="rank2"),
    "no-softcap": Case("softcap", softcap=0.9),
}


def called(case: Case, dtype: str = "float32") -> RecordedCall:
    return RecordedCall(case.inputs(dtype), case.options(dtype))


def formula(call: RecordedCall, **changes) -> np.ndarray:
    """Return what a wrong formula gives, in the precision of the call."""
    inputs = changes.pop("inputs", call.inputs)
    seen = changes.pop("seen", call.allowed())
    own = {
        n: call.options[n] for n in ("bias", "scale", "softcap", "empty_rows") if n in call.options
    }
    return naive.attention(*inputs, allowed=seen, **own | changes)["output"]


def taken(name: str, call: RecordedCall) -> np.ndarray:
    """Return the answer of an implementation that takes the alternative, made by another route."""
    (query, key, value), seen = call.inputs, call.allowed()
    (B, _, T, S), D = call.sizes, query.shape[3]
    match name:
        case "mean":
            output = formula(call)
            output[1] = value[1].mean(1, keepdims=True)
            return output
        case "nan" | "zero":
            output = formula(call)
            output[1] = np.nan if name == "nan" else 0
            return output
        case "unmasked-row":
            return np.where(seen.any(-1)[..., None], formula(call), formula(call, seen=True))
        case "unmasked":
            return formula(call, seen=True)
        case "inverted":
            return formula(call, seen=~seen)
        case "transposed":
            return formula(call, seen=np.transpose(seen, (0, 1, 3, 2)))
        case "first-sample":
            return formula(call, seen=seen[[0] * B])
        case "top-left":
            return formula(call, seen=np.tri(T, S, dtype=bool))
        case "bottom-right":
            return formula(call, seen=np.tri(T, S, S - T, dtype=bool))
        case "one-more":
            keys = np.arange(7) < np.array([7, 3, 4])[:, None, None, None]
            return formula(call, seen=np.tri(7, 7, 1, dtype=bool) & keys)
        case "no-causal":
            return formula(call, seen=np.arange(7) < np.array([7, 3, 4])[:, None, None, None])
        case "only-causal":
            return formula(call, seen=np.tri(7, dtype=bool))
        case "one-less":
            return formula(call, seen=np.tri(7, 7, 1, dtype=bool))
        case "poisoned":
            return formula(call, seen=True) * np.nan * (1 - seen.all(-1)[..., None]) + formula(call)
        case "forgiven":
            return formula(call)
        case "no-bias":
            return formula(call, bias=None)
        case "unscaled" | "scale-d" | "scale-d-v":
            return formula(call, scale={"unscaled": 1, "scale-d": 1 / D}.get(name, 13**-0.5))
        case "default-scale":
            return formula(call, scale=None)
        case "tiled":
            return formula(call, inputs=(query, *(np.concatenate([x, x], 1) for x in (key, value))))
        case "no-softcap":
            return formula(call, softcap=None)
        case "softcap-last":
            scores = np.einsum("bhtd,bhsd->bhts", query, key) / np.sqrt(D) + call.options["bias"]
            weights = np.exp(0.9 * np.tanh(scores / 0.9))
            return (weights / weights.sum(-1, keepdims=True) @ value).astype(np.float32)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("shape", "dtype")])
def test_alternative_is_recognised(name):
    call = called(CASES[name])
    if name in ("poisoned", "forgiven"):
        call.inputs = tuple(np.array(x) for x in call.inputs)
        call.inputs[2][1, :, 5] = 0
        answer = taken(name, call)
        call.inputs[2][1, :, 5] = np.nan
    else:
        answer = taken(name, call)
    call.output = answer
    assert name_of(call) == name


EVERYTHING = [*MASKED, *CASES.values()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", EVERYTHING, ids=names(EVERYTHING))
def test_right_answer_has_no_name(case, dtype):
    call = called(case, dtype)
    call.output = case.expected(dtype)[1]["output"]
    assert name_of(call) == RIGHT


def test_answer_that_is_no_alternatives_has_no_name():
    call = called(BY_NAME["causal"])
    call.output = np.random.default_rng(9).normal(size=(*MAIN.call[:3], 13)).astype(np.float32)
    assert name_of(call) is None
    call.output = call.output[..., :2]
    assert name_of(call) is None


def test_visible_nan_is_no_poison():
    call = called(BY_NAME["causal"])
    call.inputs = tuple(np.array(x) for x in call.inputs)
    call.inputs[2][:, :, 0] = np.nan  # everyone sees key 0
    call.output = np.full((*MAIN.call[:3], 13), np.nan, np.float32)
    assert name_of(call) == RIGHT


class Answering:
    """A subject whose every answer is a number."""

    def attention(self, query, key, value, **options):
        return np.full((*query.shape[:3], value.shape[3]), 3.0, np.float32)

    steps = blocked = attention


def test_subject_remembers_the_calls_of_one_test():
    subject = Answering()
    recorded.watch(subject)
    case = BY_NAME["causal"]
    for _ in range(2):
        subject.attention(*case.inputs("float32"), mask=causal(), query_offset=2)
    assert [call.options["query_offset"] for call in subject.calls] == [2, 2]
    assert subject.calls[0].output.shape == (3, 2, 5, 13)
    recorded.watch(subject)
    assert subject.calls == []
    subject.steps(*case.inputs("float32"))
    assert len(subject.calls) == 1


def test_float64_that_is_summed_in_float32_is_recognised():
    call = called(ROWS["mean"], "float64")
    call.output = taken("mean", called(ROWS["mean"])).astype(np.float64)
    assert name_of(call) == "mean"


def test_chance_has_no_name():
    call = called(ROWS["mean"])
    call.output = taken("mean", call)
    call.options |= {"dropout": 0.5, "seed": 1}
    assert name_of(call) is None


def test_nan_that_a_projection_spreads_to_all_heads_is_nan():
    hidden = coins(61, *MAIN.call) & ~coins(62, 3, 2, 5, 1, true=0.4)
    call = called(Case("heads", mask=allow(hidden)))
    empty = ~call.allowed().any(-1)
    assert (empty.any(1) != empty.all(1)).any(), "the case needs a token that is empty in one head"
    call.output = np.where(empty.any(1)[:, None, :, None], np.float32(np.nan), formula(call))
    assert name_of(call) == "nan"


@pytest.mark.parametrize("way", ["mask", "bias"])
def test_hidden_nan_that_reaches_all_is_poison(way):
    call = called(Case("half", mask=padding([4, 4, 4]) if way == "mask" else None))
    if way == "bias":
        call.options["bias"] = np.where(np.arange(7) < 4, 0, -np.inf).astype(np.float32)
    clean = formula(call)
    call.inputs = tuple(np.array(x) for x in call.inputs)
    call.inputs[2][0, 0, 6, 3] = np.nan
    call.output = formula(call)  # 0 * NaN is NaN
    assert np.isnan(call.output[0, 0]).any() and not np.isnan(call.output[1:]).any()
    assert name_of(call) == "poisoned"
    call.output = clean
    assert name_of(call) == RIGHT


def test_empty_row_that_is_nan_is_no_poison():
    call = called(ROWS["mean"])
    call.inputs = tuple(np.array(x) for x in call.inputs)
    call.inputs[2][1] = np.nan  # of the sample that may see nothing
    call.output = taken("nan", called(ROWS["mean"]))
    assert name_of(call) == "nan"


def test_alternative_that_is_the_right_answer_here_is_not_blamed():
    call = called(BY_NAME["causal"])  # all samples have one mask: the first one's is right
    call.inputs = tuple(np.array(x) for x in call.inputs)
    call.inputs[1][:, :, 0] = np.nan
    call.output = formula(RecordedCall(tuple(map(np.nan_to_num, call.inputs)), call.options))
    assert name_of(call) == "forgiven"


def test_failure_is_named_only_if_all_calls_are_explained():
    right, mean, odd = called(PLAIN), called(ROWS["mean"]), called(PLAIN)
    right.output, mean.output = formula(right), taken("mean", mean)
    odd.output = 1.3 * formula(odd)
    assert first_name([right, mean]) == "mean"
    assert first_name([right, mean, odd]) is None
    assert first_name([right]) is None
