"""The chapter on fully masked rows: zero, NaN or uniform, in whatever way they were masked."""

from dataclasses import replace
from functools import partial
from itertools import cycle

import numpy as np
import pytest

from .cases import multihead
from .cases.arrays import coins, normal
from .cases.attention import LENGTHS, MAIN, MASKED, SQUARE, Case, Shape
from .cases.compare import check_gradients, check_output, check_steps
from .contract import clause
from .mask_spec import allow, causal, hide, padding
from .oracle.tolerance import Differs, compare, same
from .subjects.protocol import TILE, NotOffered, require

pytestmark = pytest.mark.untyped

POLICIES = ("zero", "nan", "uniform")
ROWS = coins(61, *MAIN.call, true=0.6) & ~coins(62, 3, 2, 5, 1, true=0.4)  # some rows of nothing


def case_of(policy: str, mask=None) -> Case:
    return Case(f"rows_{policy}", mask=mask or allow(ROWS), empty_rows=policy)


def check_rows(subject, policy: str, dtype: str) -> None:
    """Check fully masked rows by the policy, exactly, and all others by the oracle."""
    case = case_of(policy)
    steps = check_steps(subject, case, dtype)
    empty = ~ROWS.any(-1)
    assert 0 < empty.sum() < empty.size, "the case needs fully masked rows and others"
    if policy == "uniform":
        one_ulp = np.spacing(np.float32(1 / 7))
        weights = steps["weights"][empty]
        assert abs(weights - np.float32(1 / 7)).max() <= one_ulp, "uniform weights are 1/S"
    else:
        for name in {"weights", "output"} & set(steps):
            rows = steps[name][empty]
            fill = {"zero": 0.0, "nan": np.nan}[policy]
            same(rows, np.full(rows.shape, fill), f"{name} of fully masked rows")


@clause("EMPTY-1")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_gives_exact_zeros(subject, dtype):
    check_rows(subject, "zero", dtype)


@clause("EMPTY-1")
def test_zero_gives_exact_zeros_where_there_are_as_many_queries_as_keys(subject):
    """A path of its own in some: the one for self-attention."""
    steps = check_steps(subject, Case("square", SQUARE, mask=padding(LENGTHS)), "float32")
    for name in {"weights", "output"} & set(steps):
        same(steps[name][1], np.zeros_like(steps[name][1]), f"{name} of the empty sample")


@clause("EMPTY-1")
@pytest.mark.parametrize("fill", [np.nan, np.inf])
@pytest.mark.parametrize("through", ["attention", "steps", "blocked"])
def test_an_empty_row_is_zero_whatever_its_query_holds(subject, through, fill):
    require(subject, "blocked" if through == "blocked" else "attention")
    call = {
        "attention": subject.attention,
        "steps": lambda *inputs, **options: subject.steps(*inputs, **options)["output"],
        "blocked": partial(subject.blocked, tile=TILE),
    }[through]
    clean, empty = case_of("zero").inputs("float32"), ~ROWS.any(-1)
    query = np.where(empty[..., None], np.float32(fill), clean[0])
    got = call(query, *clean[1:], mask=allow(ROWS))
    same(got[empty], np.zeros((empty.sum(), MAIN.D_v)), "fully masked rows")
    check_output(got, *clean, "all other rows", allowed=ROWS)


@clause("EMPTY-2")
def test_nan_gives_nan_in_that_row_alone(subject):
    check_rows(subject, "nan", "float32")


@clause("EMPTY-3")
def test_uniform_gives_the_mean_over_all_keys(subject):
    check_rows(subject, "uniform", "float32")


@clause("EMPTY-3")
def test_uniform_is_the_mean_over_all_keys_where_one_query_sees_few(subject):
    """What is hidden from every sample may be left out of a step, but not here."""
    few = padding([3, 0, 1])
    check_steps(subject, Case("few", MAIN._replace(T=1), few, empty_rows="uniform"), "float32")


@clause("EMPTY-7")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_hold_in_16_bits(subject, policy, dtype):
    check_rows(subject, policy, dtype)


@clause("EMPTY-7")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_empty_rows_are_zero_in_16_bits(subject, dtype):
    check_empty_gradients(subject, dtype)


def ways(sample: int) -> dict[str, dict]:
    """Every way to hide all keys from one sample's queries."""
    lengths = [4 if b == sample else 7 for b in range(3)]
    hidden = np.zeros((3, 1, 5, 7), bool)
    hidden[sample] = True
    return {
        "padding": {"mask": padding([0 if b == sample else 7 for b in range(3)])},
        "hide": {"mask": hide(hidden)},
        "allow": {"mask": allow(~hidden)},
        "bias": {"bias": np.where(hidden, -np.inf, 0).astype(np.float32)},
        "mask_and_bias": {
            "mask": padding(lengths),
            "bias": np.where(hidden & (np.arange(7) < 4), -np.inf, 0).astype(np.float32),
        },
        "future": {"mask": causal(), "query_offset": np.where(np.arange(3) == sample, -9, 9)},
    }


@clause("EMPTY-4")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ways(1))
def test_it_does_not_matter_how_a_row_was_emptied(subject, way, policy):
    both = [*ways(1)].index(way), POLICIES.index(policy)
    require(subject, "attention", *(["any_shape"] if sum(both) % len(POLICIES) else []))
    inputs = case_of(policy).inputs("float32")
    allowed = np.broadcast_to((np.arange(3) != 1)[:, None, None, None], MAIN.call)
    steps = subject.steps(*inputs, empty_rows=policy, **ways(1)[way])
    output = subject.attention(*inputs, empty_rows=policy, **ways(1)[way])
    check_output(output, *inputs, "output", allowed=allowed, empty_rows=policy)
    check_output(
        steps["output"], *inputs, "output of the steps", allowed=allowed, empty_rows=policy
    )
    if "blocked" in subject.capabilities:
        walked = subject.blocked(*inputs, tile=TILE, empty_rows=policy, **ways(1)[way])
        check_output(walked, *inputs, "output by tiles", allowed=allowed, empty_rows=policy)
    if "weights" in steps:
        expected = {"zero": 0.0, "nan": np.nan, "uniform": np.float32(1 / 7)}[policy]
        compare(steps["weights"][1], np.full((2, 5, 7), expected), expected, "weights of the row")


@clause("EMPTY-4")
@pytest.mark.parametrize("policy", POLICIES)
def test_no_key_at_all_is_an_empty_row(subject, policy):
    shape = Shape(3, 2, 2, 5, 0, 11, 13)
    case = Case("no_key", shape, empty_rows=policy)
    output = check_steps(subject, case, "float32")["output"]
    fill = 0.0 if policy == "zero" else np.nan  # a mean over nothing is 0/0
    same(output, np.full((3, 2, 5, 13), fill), "output over no key")


@clause("EMPTY-4")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize("need_weights", [False, True], ids=["without_weights", "with_weights"])
@pytest.mark.parametrize("way", ["key_padding_mask", "attn_mask", "additive"])
def test_multihead_empties_rows_alike(subject, way, need_weights, training, policy):
    hidden = np.zeros((3, 7), bool)
    hidden[1] = True
    rank4 = np.broadcast_to(hidden[:, None, None], (3, 1, 5, 7))
    options = {
        "key_padding_mask": {"key_padding_mask": hidden},
        "attn_mask": {"attn_mask": rank4},
        "additive": {"attn_mask": np.where(rank4, -np.inf, 0).astype(np.float32)},
    }[way]
    allowed = np.broadcast_to(~hidden[:, None, None], (3, 2, 5, 7))
    multihead.CROSS.check(
        subject, options, allowed, empty_rows=policy, need_weights=need_weights, training=training
    )


@clause("EMPTY-4")
@pytest.mark.parametrize("need_weights", [False, True], ids=["without_weights", "with_weights"])
def test_self_attention_empties_rows_alike(subject, need_weights):
    hidden = np.zeros((3, 5), bool)
    hidden[1] = True
    allowed = np.broadcast_to(~hidden[:, None, None], (3, 2, 5, 5))
    options = {"key_padding_mask": hidden}
    multihead.SELF.check(subject, options, allowed, need_weights=need_weights)


@clause("EMPTY-4")
@pytest.mark.parametrize("policy", ["nan", "uniform"])
def test_multihead_over_no_key_is_an_empty_row(subject, policy):
    require(subject, "multihead")
    config = {"embed_dim": 14, "num_heads": 2, "empty_rows": policy}
    query, memory = normal(3, 2, 5, 14, dtype_name="float32"), np.zeros((2, 0, 14), np.float32)
    output, _ = subject.multihead(config, multihead.SELF.parameters("float32"), query, memory)
    same(output, np.full((2, 5, 14), np.nan), "output over no key")


@clause("EMPTY-5")
def test_an_empty_sample_changes_no_other_output(subject):
    require(subject, "attention")
    inputs = case_of("zero").inputs("float32")
    one, other = (subject.attention(*inputs, mask=padding([7, n, 4])) for n in (0, 5))
    same(one[[0, 2]], other[[0, 2]], "the other samples")
    assert not abs(one[1] - other[1]).max() <= 0.1, "EMPTY-5: the sample was not emptied"


@clause("EMPTY-5")
def test_an_empty_sample_changes_no_other_gradient(subject):
    require(subject, "gradients")
    case = case_of("zero")
    inputs, grad = case.inputs("float32"), case.grad("float32")
    one, other = (subject.gradients(*inputs, grad, mask=padding([7, n, 4])) for n in (0, 5))
    for name in ("query", "key", "value"):
        same(one[name][[0, 2]], other[name][[0, 2]], f"gradient of {name}, the other samples")


@clause("EMPTY-5")
def test_parameter_gradients_are_those_of_leaving_the_sample_out(subject):
    hidden = np.arange(7) >= np.array(LENGTHS)[:, None]
    allowed = np.broadcast_to(~hidden[:, None, None], (3, 2, 5, 7))
    got = multihead.CROSS.check_gradients(subject, {"key_padding_mask": hidden}, allowed)
    keep = [0, 2]
    exact, naive = multihead.CROSS.expected_gradients(allowed, keep=keep)
    for name in exact:
        if name not in ("query", "key", "value", "out_proj.bias"):  # the bias is all that is left
            compare(got[name], exact[name], naive[name], f"gradient of {name}")


def check_empty_gradients(subject, dtype: str) -> None:
    got = check_gradients(subject, case_of("zero"), dtype)
    for name, gradient in got.items():
        if not np.isfinite(gradient.astype(np.float32)).all():
            raise Differs(f"the gradient of {name} is not finite")
    empty = ~ROWS.any(-1)
    same(got["query"][empty], np.zeros((empty.sum(), 11)), "query gradient of fully masked rows")
    unseen = ~ROWS.any(2)
    assert unseen.any(), "the case needs a key that nobody sees"
    for name in ("key", "value"):
        zeros = np.zeros(got[name][unseen].shape)
        same(got[name][unseen], zeros, f"{name} gradient of keys that nobody sees")


@clause("EMPTY-6")
def test_gradients_of_empty_rows_are_zero(subject):
    check_empty_gradients(subject, "float32")


@clause("EMPTY-6")
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["uncapped", "capped"])
@pytest.mark.parametrize("through", ["attention", "steps", "blocked"])
@pytest.mark.parametrize("sinks", [None, "finite"], ids=["no_sink", "sinks"])
def test_a_query_of_nan_that_sees_nothing_has_no_gradient(subject, sinks, through, softcap):
    require(subject, "gradients", *(["blocked"] if through == "blocked" else []))
    require(subject, *(["sinks"] if sinks else []))
    case = Case("allow", mask=allow(ROWS), softcap=softcap, sinks=sinks)
    query, key, value = case.inputs("float32")
    query[~ROWS.any(-1)] = np.nan
    options = case.options("float32") | {"grad": case.grad("float32")}
    got = subject.gradients(query, key, value, through=through, **options)
    exact, naive = case.expected_gradients("float32")
    for name in exact:
        compare(got[name], exact[name], naive[name], f"gradient of {name} through {through}")


@clause("EMPTY-6")
def test_a_sample_of_nothing_gives_nothing_to_its_keys(subject):
    require(subject, "gradients")
    case = Case("padding", mask=padding(LENGTHS), bias="rank4")
    got = check_gradients(subject, case)
    for name in ("query", "key", "value", "bias"):
        same(got[name][1], np.zeros(got[name][1].shape), f"{name} gradient of the empty sample")


@clause("EMPTY-8")
@pytest.mark.parametrize("fill", [-1e9, np.finfo(np.float32).min], ids=["-1e9", "finfo.min"])
def test_a_finite_fill_is_not_a_mask(subject, fill):
    require(subject, "attention")
    inputs = case_of("zero").inputs("float32")
    bias = np.full((5, 7), fill, np.float32)
    got = subject.attention(*inputs, bias=bias)
    check_output(got, *inputs, "output", bias=bias)
    mean = inputs[2].astype(np.float64).mean(2, keepdims=True)
    # -1e9 swallows the scores (its ulp is 64), so the mean is all that is left
    compare(got, np.broadcast_to(mean, got.shape), inputs[2].mean(2, keepdims=True), "mean of V")


@clause("EMPTY-8")
def test_a_large_fill_in_float16_is_infinite_and_hides(subject):
    require(subject, "attention")
    inputs = case_of("zero").inputs("float16")
    with np.errstate(over="ignore"):
        bias = np.full((5, 7), -1e9).astype(np.float16)
    assert np.isneginf(bias).all()
    same(subject.attention(*inputs, bias=bias), np.zeros((3, 2, 5, 13)), "output")


@clause("EMPTY-9")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_hidden_column_is_not_a_nan(subject, policy):
    require(subject, "attention")
    case = case_of(policy)
    query, key, value = case.inputs("float32")
    bias = np.where(np.arange(7) == 3, -np.inf, 0).astype(np.float32) * np.ones((5, 1), np.float32)
    got = subject.attention(query, key, value, bias=bias, empty_rows=policy)
    others = np.delete(np.arange(7), 3)
    check_output(got, query, key[:, :, others], value[:, :, others], "output without the column")


BY_KIND = [
    replace(
        case, name=f"{case.name}_{policy}", mask=case.mask & padding([6, 0, 4]), empty_rows=policy
    )
    for case, policy in zip(MASKED, cycle(POLICIES), strict=False)
]


@clause("EMPTY-4")
@pytest.mark.parametrize("case", BY_KIND, ids=[case.name for case in BY_KIND])
def test_weights_beside_the_output_go_by_the_policy_for_every_mask(subject, case):
    if "any_shape" not in subject.capabilities and case not in BY_KIND[:5]:
        raise NotOffered(f"{subject.name} would compile another call")
    check_steps(subject, case, "float32")
