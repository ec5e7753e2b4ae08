"""The chapter on sinks: one more logit a head in the softmax of each row, with no value."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from .cases.attention import GROUPED, LENGTHS, MAIN, SQUARE, Case, names
from .cases.compare import (
    check_cut,
    check_cut_gradients,
    check_gradients,
    check_output,
    check_steps,
)
from .contract import clause
from .mask_spec import allow, causal, padding, predicate, sliding_window
from .oracle import expected
from .oracle.tolerance import Differs, compare, same
from .subjects.protocol import SMALL_BLOCKS, TILE, require

LAST = causal() & padding(LENGTHS)  # of which sample 1 is fully masked
CASES = [
    Case("plain", sinks="normal"),
    Case("one_head_has_none", sinks="none_in_head_0", mask=causal(), query_offset=2),
    Case("kernel_causal", SQUARE._replace(D=8, D_v=8), causal(), sinks="normal"),
    Case("kernel", SQUARE._replace(D=8, D_v=8), sinks="normal"),
    Case("lengths", mask=padding(LENGTHS), sinks="normal"),
    Case("grouped", GROUPED, LAST, 2, sinks="none_in_head_0"),
    Case("one_kv_head", GROUPED._replace(H_kv=1), LAST, 2, "heads", sinks="normal"),
    Case("everything", GROUPED, LAST, 2, "rank4", -0.7, 0.9, "uniform", sinks="normal"),
    Case("hiding_bias", GROUPED, None, None, "hiding", sinks="none_in_head_0"),
    Case("window", mask=sliding_window(2, 1), query_offset=1, sinks="normal"),
    Case(
        "predicate", GROUPED, predicate(lambda b, h, q, k: (q + k + h) % 3 > 0), 1, sinks="normal"
    ),
    Case("one_query", GROUPED._replace(T=1), padding(LENGTHS), sinks="none_in_head_0"),
    Case("nan_policy", mask=padding(LENGTHS), empty_rows="nan", sinks="none_in_head_0"),
]
BY_NAME = {case.name: case for case in CASES}
FEW = [BY_NAME[name] for name in ("one_head_has_none", "grouped", "everything")]
BACK = [case for case in CASES if case.empty_rows != "nan"]


@clause("ATT-15")
@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_a_sink_is_one_more_logit(subject, case):
    check_steps(subject, case, "float32")


@clause("ATT-15")
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("case", FEW, ids=names(FEW))
def test_a_sink_is_one_more_logit_in_other_dtypes(subject, case, dtype):
    check_steps(subject, case, dtype)


@clause("ATT-15")
@pytest.mark.parametrize("case", FEW, ids=names(FEW))
def test_sinks_of_float32_go_beside_16_bits(subject, case):
    require(subject, "attention", "sinks")
    inputs, options = case.inputs("bfloat16"), case.options("bfloat16")
    sinks = {"sinks": case.numbers("float32")["sinks"]}
    numbers = case.numbers("bfloat16") | sinks | {"allowed": case.allowed()}
    exact, naive = expected.attention(*inputs, **numbers)
    got = subject.attention(*inputs, **options | sinks)
    compare(got, exact["output"], naive["output"], "output")


@clause("ATT-15")
@pytest.mark.parametrize("setting", range(SMALL_BLOCKS))
@pytest.mark.parametrize("case", BACK, ids=names(BACK))
def test_a_sink_is_one_more_logit_in_small_blocks(subject, case, setting):
    if setting != BACK.index(case) % SMALL_BLOCKS:
        require(subject, "any_shape")
    check_cut(subject, case, "float32", setting, TILE)


@clause("ATT-15")
@pytest.mark.parametrize("case", BACK, ids=names(BACK))
def test_gradients_beside_a_sink_are_the_oracles(subject, case):
    check_gradients(subject, case)


@clause("ATT-15")
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_gradients_beside_a_sink_are_the_oracles_in_other_dtypes(subject, dtype):
    check_gradients(subject, BY_NAME["grouped"], dtype)


@clause("ATT-15")
@pytest.mark.parametrize("setting", range(SMALL_BLOCKS))
@pytest.mark.parametrize("case", FEW, ids=names(FEW))
def test_gradients_beside_a_sink_are_the_oracles_in_small_blocks(subject, case, setting):
    require(subject, "gradients", *(["any_shape"] if setting != FEW.index(case) else []))
    check_cut_gradients(subject, case, "float32", setting)


@clause("ATT-15")
@pytest.mark.parametrize("through", ["steps", "blocked"])
@pytest.mark.parametrize("case", FEW[1:], ids=names(FEW[1:]))
def test_gradients_beside_a_sink_are_the_oracles_by_every_path(subject, case, through):
    require(subject, "gradients", through)
    inputs, grad = case.inputs("float32"), case.grad("float32")
    got = subject.gradients(*inputs, grad, through=through, **case.options("float32"))
    exact, naive = case.expected_gradients("float32")
    for name in exact:
        compare(got[name], exact[name], naive[name], f"gradient of {name} by {through}")


@clause("ATT-15")
@pytest.mark.untyped
def test_a_compiled_call_knows_sinks(subject):
    require(subject, "compiled")
    case = BY_NAME["grouped"]
    exact, naive = case.expected("float32")
    inputs, options = case.inputs("float32"), case.options("float32")
    got = subject.compiled(*inputs, **options)
    compare(got["output"], exact["output"], naive["output"], "compiled output")
    require(subject, "gradients")
    got = subject.gradients(*inputs, case.grad("float32"), through="compiled", **options)
    exact, naive = case.expected_gradients("float32")
    for name in exact:
        compare(got[name], exact[name], naive[name], f"compiled gradient of {name}")


@clause("ATT-15")
@pytest.mark.parametrize("policy", ["zero", "nan", "uniform"])
@pytest.mark.parametrize("sink", [-np.inf, np.finfo(np.float32).min, -3.0, 3e38])
def test_beside_a_sink_a_fully_masked_row_is_0(subject, sink, policy):
    require(subject, "attention", "sinks", "empty_rows")
    hidden = np.ones(MAIN.call, bool)
    hidden[0, 0, 1] = hidden[1, 1] = False
    for mask in (allow(hidden), padding([7, 0, 4])):
        case = Case("hidden", mask=mask, empty_rows=policy)
        sinks = np.array([sink, sink], np.float32)
        options = case.options("float32") | {"sinks": sinks}
        empty = ~case.allowed().any(-1)
        ways = [subject.attention, lambda *a, **o: subject.steps(*a, **o)["output"]]
        ways += [partial(subject.blocked, tile=TILE)] if "blocked" in subject.capabilities else []
        for way in ways:
            got = way(*case.inputs("float32"), **options)
            same(got[empty], np.zeros_like(got[empty]), "fully masked rows")
    query, key, value = case.inputs("float32")
    none = subject.attention(query, key[:, :, :0], value[:, :, :0], sinks=sinks, empty_rows=policy)
    same(none, np.zeros_like(none), "rows without a key")


@clause("ATT-15")
@pytest.mark.parametrize("sink", [np.nan, np.inf])
@pytest.mark.parametrize("case", FEW, ids=names(FEW))
def test_a_sink_that_is_not_finite_spoils_its_head(subject, case, sink):
    require(subject, "attention", "sinks")
    sinks = case.numbers("float32")["sinks"].copy()
    sinks[1] = sink
    options = case.options("float32") | {"sinks": sinks}
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    exact = np.where((np.arange(case.shape.H) == 1)[:, None, None], np.nan, exact)
    inputs = case.inputs("float32")
    steps = subject.steps(*inputs, **options)["output"]
    for got, what in ((subject.attention(*inputs, **options), "output"), (steps, "the steps'")):
        compare(got, exact, naive, what)


@clause("ATT-15")
def test_a_sink_far_above_the_scores_or_below_them(subject):
    """Its distance is what counts: a row keeps its share at logits of 1e9, too."""
    require(subject, "attention", "sinks", "bias")
    inputs = Case("plain").inputs("float32")
    allowed = np.ones(MAIN.call, bool)
    for size in (-1e9, 1e4, 1e9):
        bias = np.full((5, 7), size, np.float32)
        sinks = np.array([size, size - 50], np.float32)
        got = subject.attention(*inputs, bias=bias, sinks=sinks)
        check_output(got, *inputs, f"output at {size}", allowed=allowed, bias=bias, sinks=sinks)


@clause("ATT-15")
def test_weights_beside_a_sink_sum_to_less_than_1(subject):
    require(subject, "attention", "weights", "sinks")
    case = BY_NAME["grouped"]
    weights = subject.steps(*case.inputs("float32"), **case.options("float32"))["weights"]
    total, some = weights.astype(float).sum(-1), case.allowed().any(-1)
    if not (total[:, 1:][some[:, 1:]] < 0.999).all():
        raise Differs(f"beside a sink weights sum to less than 1: got {total}")


@clause("ATT-15")
def test_dropout_drops_keys_and_no_sink(subject):
    """A value of 1 for one key alone shows its weight."""
    require(subject, "attention", "weights", "sinks", "dropout")
    query, key, _ = Case("plain", SQUARE).inputs("float32")
    value = np.broadcast_to(np.eye(7, dtype=np.float32), (3, 2, 7, 7))
    sinks = np.array([0.5, -1.0], np.float32)
    options = {"sinks": sinks, "dropout": 0.25, "seed": 5}
    steps = subject.steps(query, key, value, **options)
    weights, kept = steps["weights"], steps["output"] != 0
    compare(steps["output"], np.where(kept, weights / 0.75, 0), weights, "kept weights")
    share = kept.mean()
    if not 0.6 < share < 0.9:
        raise Differs(f"three quarters of the weights are kept: got {share}")
    whole = subject.steps(query, key, value, sinks=sinks)
    same(weights, whole["weights"], "weights before dropout")
    gone = subject.attention(query, key, value, **options | {"dropout": 1.0})
    same(gone, np.zeros_like(gone), "output where everything is dropped")


@clause("ATT-15")
def test_steps_of_one_head_take_one_sink(subject):
    require(subject, "steps", "errors", "sinks")
    case = replace(BY_NAME["lengths"], shape=MAIN._replace(H=1, H_kv=1), mask=None)
    inputs, options = case.inputs("float32"), case.options("float32")
    whole = subject.steps(*inputs, **options)
    three = subject.steps(*(x[:, 0] for x in inputs), **options)
    for name, array in three.items():
        same(array, whole[name][:, 0], name)
