"""The chapter on attention itself: the formula, its symmetries, and what must not change it."""

import numpy as np
import pytest

from .cases import multihead
from .cases.arrays import coins, normal
from .cases.attention import (
    BY_NAME,
    FAR,
    GROUPED,
    LENGTHS,
    MAIN,
    MASKED,
    PLAIN,
    SQUARE,
    TALL,
    TRAP,
    Case,
    Shape,
    move,
    names,
)
from .cases.compare import check_output, check_steps, refused
from .contract import clause
from .mask_spec import allow, causal, hide, packed, padding, prefix, segments, sliding_window
from .oracle.naive import attention as naive_attention
from .oracle.tolerance import allowance, check_each, close, compare, same
from .oracle.tolerance import dtype as numpy_dtype
from .subjects.protocol import STEPS, TILE, require

RAGGED = BY_NAME["causal_and_padding"]
SHAPES = [
    Case("square", SQUARE, causal()),
    Case("square_padding", SQUARE, causal() & padding(LENGTHS)),
    Case("tall", TALL, causal(), query_offset=0),
    Case("tall_from_before_the_keys", TALL, causal(), query_offset=-2),
    Case("every_axis_alike", TRAP, sliding_window(1) & padding([3, 0, 2])),
    Case("one_query", Shape(3, 2, 2, 1, 7, 11, 13), causal(), query_offset=4),
]
KERNEL = [  # torch's fused kernel serves: on a GPU only widths that are alike and a multiple of 8
    Case("kernel_causal", Shape(3, 4, 2, 7, 7, 8, 8), causal()),
    Case("kernel", SQUARE._replace(D=8, D_v=8)),
]
FORMULA = [PLAIN, *MASKED, *SHAPES, *KERNEL]
SCALES = [
    Case(
        f"scale_{scale}_{'causal' if mask else 'plain'}", SQUARE._replace(D_v=11), mask, scale=scale
    )
    for scale in (0.0, 1.0, -0.7)
    for mask in (None, causal())
]
MIXED = [
    Case("bias_rank2", bias="rank2", mask=padding(LENGTHS)),
    Case("bias_rank4", bias="rank4", mask=causal(), query_offset=2),
    Case("bias_heads", bias="heads"),
    Case("softcap", softcap=0.9, mask=causal(), query_offset=2, bias="rank2"),
    Case("grouped", GROUPED, causal() & padding(LENGTHS), query_offset=2),
    Case("one_kv_head", Shape(3, 4, 1, 5, 7, 11, 13), hide(coins(9, 3, 4, 5, 7, true=0.3))),
]


@clause("ATT-1")
@pytest.mark.parametrize("case", FORMULA, ids=names(FORMULA))
def test_output_is_the_formula(subject, case):
    require(subject, "attention")
    exact, naive = case.expected("float32")
    got = subject.attention(*case.inputs("float32"), **case.options("float32"))
    compare(got, exact["output"], naive["output"], "output")


@clause("ATT-1")
@pytest.mark.parametrize("dtype", ["float64"])
@pytest.mark.parametrize("name", ["plain", "causal", "padding", "window_or_prefix"])
def test_output_is_the_formula_in_float64(subject, name, dtype):
    check_steps(subject, BY_NAME[name], dtype)


@clause("ATT-7")
@pytest.mark.parametrize("far", FAR)
def test_output_of_inputs_far_from_zero_is_the_formula(subject, far):
    require(subject, "attention")
    case = BY_NAME["causal_and_padding"]
    inputs = move(case, far)
    got = subject.attention(*inputs, **case.options("float32"))
    check_output(got, *inputs, "output", allowed=case.allowed())


@clause("ATT-1")
@pytest.mark.parametrize("case", SCALES, ids=names(SCALES))
def test_scale_may_be_any_number(subject, case):
    check_steps(subject, case, "float32")


@clause("ATT-2")
@pytest.mark.parametrize("name", ["causal", "padding", "allow", "causal_and_padding", "not_window"])
def test_weights_are_a_distribution_over_what_is_seen(subject, name):
    case = BY_NAME[name]
    weights = check_steps(subject, case, "float32")["weights"]
    allowed = case.allowed()
    check_each(weights >= 0, weights, "weights", "no negative number")
    same(weights[~allowed], np.zeros((~allowed).sum()), "hidden weights")
    naive = case.expected("float32")[1]["weights"].sum(-1)
    compare(weights.sum(-1), allowed.any(-1), naive, "sums of rows")


@clause("ATT-3")
@pytest.mark.parametrize("shape", [Shape(3, 2, 2, 0, 7, 11, 13), Shape(0, 2, 2, 5, 7, 11, 13)])
def test_no_query_or_no_sample_gives_an_empty_output(subject, shape):
    case = Case("empty", shape, causal(), query_offset=2)
    check_steps(subject, case, "float32")


NOTHING = {
    "padding": padding(np.zeros(0, int)),
    "prefix": prefix(np.zeros(0, int)),
    "segments": segments(np.zeros((0, 7), int)),
    "packed": packed(np.zeros((0, 2), int)),
    "allow": allow(np.zeros((0, 1, 5, 7), bool)),
}


@clause("ATT-3")
@pytest.mark.parametrize("name", NOTHING)
def test_masks_of_no_sample_give_an_empty_output(subject, name):
    case = Case(name, MAIN._replace(B=0), NOTHING[name], query_offset=2)
    check_steps(subject, case, "float32")


@clause("ATT-3")
def test_no_key_is_an_empty_row_for_every_query(subject):
    case = Case("no_key", Shape(3, 2, 2, 5, 0, 11, 13), causal(), query_offset=0)
    same(check_steps(subject, case, "float32")["output"], np.zeros((3, 2, 5, 13)), "output")


@clause("ATT-4")
@pytest.mark.parametrize("case", MIXED[:3], ids=names(MIXED[:3]))
def test_mask_and_bias_work_together(subject, case):
    check_steps(subject, case, "float32")


@clause("ATT-4")
def test_minus_infinity_in_a_bias_hides_like_a_mask(subject):
    require(subject, "attention")
    hidden = coins(51, *MAIN.call, true=0.4)
    bias = np.where(hidden, -np.inf, normal(52, *MAIN.call)).astype(np.float32)
    inputs, finite = PLAIN.inputs("float32"), np.where(hidden, 0, bias)
    by_bias = subject.attention(*inputs, bias=bias)
    by_mask = subject.attention(*inputs, bias=finite, mask=hide(hidden))
    same(by_bias, by_mask, "a bias of -inf against hide")
    check_output(by_bias, *inputs, "output", allowed=~hidden, bias=bias)


@clause("ATT-4")
@pytest.mark.parametrize("constant", [1.0, -3.5])
def test_a_constant_bias_along_a_row_changes_nothing(subject, constant):
    require(subject, "attention")
    inputs = PLAIN.inputs("float32")
    bias = np.full((5, 7), constant, np.float32)
    allowed = np.ones(MAIN.call, bool)
    exact = PLAIN.expected("float32")[0]["output"]
    naive = naive_attention(*inputs, allowed=allowed, bias=bias)["output"]  # the sum's own rounding
    compare(subject.attention(*inputs, bias=bias), exact, naive, "output of the same without bias")


@clause("ATT-5")
@pytest.mark.parametrize("case", MIXED[4:], ids=names(MIXED[4:]))
def test_grouped_heads_repeat_their_keys(subject, case):
    steps = check_steps(subject, case, "float32")
    query, key, value = case.inputs("float32")
    tiled = [np.tile(x, (1, case.shape.H // case.shape.H_kv, 1, 1)) for x in (key, value)]
    if case.shape.H_kv > 1:
        other = subject.attention(query, *tiled, **case.options("float32"))
        assert abs(other - steps["output"]).max() > 0.1, "ATT-5: the case cannot tell tile apart"


@pytest.mark.untyped
@clause("ATT-5")
def test_head_counts_that_do_not_divide_are_refused(subject):
    require(subject, "attention")
    query, key, one = (normal(n, 2, n, 5, 7, dtype_name="float32") for n in (3, 2, 1))
    refused(
        subject,
        lambda: subject.attention(query, key, key),
        ValueError,
        "multiple of key heads: got 3 and 2",
        beside=lambda: subject.attention(query, one, one),
    )


@clause("ATT-6")
def test_softcap_comes_before_bias_and_mask(subject):
    case = MIXED[3]
    check_steps(subject, case, "float32")
    exact, _ = case.expected("float32")
    bias = case.numbers("float32")["bias"]
    late = case.softcap * np.tanh((PLAIN.expected("float32")[0]["scores"] + bias) / case.softcap)
    allowed = case.allowed()
    assert abs(late - exact["masked_scores"])[allowed].max() > 0.1, "ATT-6: the case is blind"


@clause("ATT-7")
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_do_not_overflow(subject, size):
    require(subject, "attention")
    query, key, value = PLAIN.inputs("float32")
    got = subject.attention(query, key, value, scale=size)
    check_output(got, query, key, value, "output", scale=size)


@clause("ATT-7")
def test_a_very_negative_visible_logit_beats_hidden_ones(subject):
    require(subject, "attention")
    inputs = PLAIN.inputs("float32")
    bias = np.full((5, 7), -2e9, np.float32)
    allowed = np.broadcast_to(np.arange(7) == 3, MAIN.call)
    got = subject.attention(*inputs, bias=bias, mask=allow(allowed))
    same(got, np.broadcast_to(inputs[2][:, :, 3:4], got.shape), "the one allowed value")


@clause("ATT-7")
@pytest.mark.parametrize("policy", ["zero", "uniform"])
def test_an_overflowing_row_is_not_an_empty_one(subject, policy):
    require(subject, "attention", *(["empty_rows"] if policy != "zero" else []))
    query, key = np.full((1, 1, 1, 3), 1e20, np.float32), np.ones((1, 1, 2, 3), np.float32)
    key[0, 0, 0] = -1e20  # the one allowed logit is -inf in float32
    value = np.array([[[[1.0], [5.0]]]], np.float32)
    got = subject.attention(query, key, value, mask=padding([1]), empty_rows=policy)
    check_each(np.isnan(got) | (got == 1), got, "output", "NaN or the value 1")


@clause("ATT-7")
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_row_whose_every_logit_overflows_is_not_an_empty_one(subject, scale):
    require(subject, "attention", "scale")
    query = np.full((1, 1, 1, 3), 1e20, np.float32)
    key = np.full((1, 1, 2, 3), np.float32(-scale * 1e20))  # each logit is -inf in float32
    got = subject.attention(query, key, np.ones((1, 1, 2, 3), np.float32), scale=scale)
    check_each(np.isnan(got) | (got == 1), got, "output", "NaN or the value 1")


@clause("ATT-7")
@pytest.mark.parametrize("fill", [np.nan, np.inf])
@pytest.mark.parametrize("T", [1, 2])  # of one query, hidden keys may be left out beforehand
def test_an_overflowing_row_beside_hidden_garbage_is_not_an_empty_one(subject, T, fill):
    require(subject, "attention")
    query, key = np.full((1, 1, T, 3), 1e20, np.float32), np.full((1, 1, 3, 3), fill, np.float32)
    key[0, 0, 0] = -1e20  # the one allowed logit is -inf in float32
    value = np.array([[[[1.0], [5.0], [7.0]]]], np.float32)
    got = subject.attention(query, key, value, mask=padding([1]))
    check_each(np.isnan(got) | (got == 1), got, "output", "NaN or the value 1")


def _twice(subject, case, change, dtype="float32"):
    """Return the outputs of a case and of the changed call, and the case's (naive, exact)."""
    require(subject, "attention")
    inputs, options = case.inputs(dtype), case.options(dtype)
    exact, naive = case.expected(dtype)
    options["mask"] = allow(case.allowed())
    before = subject.attention(*inputs, **options)
    changed, mask = change(*inputs, case.allowed())
    after = subject.attention(*changed, **options | {"mask": allow(mask)})
    return before, after, (exact["output"], naive["output"])


@clause("ATT-8")
def test_permuted_keys_change_nothing(subject):
    order = np.array([3, 6, 0, 5, 1, 4, 2])

    def change(query, key, value, allowed):
        return (query, key[:, :, order], value[:, :, order]), allowed[..., order]

    before, after, budget = _twice(subject, BY_NAME["allow"], change)
    close(after, before, *budget, "output after permuting the keys")


@clause("ATT-8")
def test_permuted_queries_permute_the_output(subject):
    order = np.array([4, 2, 0, 1, 3])

    def change(query, key, value, allowed):
        return (query[:, :, order], key, value), allowed[:, :, order]

    before, after, budget = _twice(subject, BY_NAME["allow"], change)
    close(after, before[:, :, order], *budget, "output after permuting the queries")


@clause("ATT-8")
@pytest.mark.parametrize("axis", [0, 1], ids=["samples", "heads"])
def test_samples_and_heads_are_independent(subject, axis):
    one = (2, 1)[axis]  # sample 1 sees nothing: whatever it holds would change nothing
    at = (slice(None),) * axis + (one,)

    def change(*inputs_and_mask):
        changed = [np.array(x) for x in inputs_and_mask]
        for x in changed[:3]:
            x[at] += 1
        return changed[:3], changed[3]

    before, after, _ = _twice(subject, RAGGED, change)
    same(np.delete(after, one, axis), np.delete(before, one, axis), "the others")
    largest = np.nanmax(abs(after[at] - before[at]))  # a fully masked row may be NaN: EMPTY-1's
    assert largest > 0.1, "ATT-8: nothing was changed"


@clause("ATT-8")
def test_output_is_linear_in_the_values(subject):
    def change(query, key, value, allowed):
        return (query, key, 2 * value), allowed  # a power of two: rounding is the same

    before, after, _ = _twice(subject, RAGGED, change)
    same(after, 2 * before, "output of twice the values")


@clause("ATT-8")
def test_output_lies_within_the_visible_values(subject):
    case = BY_NAME["allow"]
    output = check_steps(subject, case, "float32")["output"]
    value, allowed = case.inputs("float32")[2][:, :, None], case.allowed()[..., None]
    low = np.where(allowed, value, np.inf).min(3)
    high = np.where(allowed, value, -np.inf).max(3)
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    empty, slack = ~case.allowed().any(-1, keepdims=True), allowance(exact, naive, "float32")
    inside = (output >= low - slack) & (output <= high + slack)
    check_each(inside | empty, output, "output", "a number within the values that its query sees")


@clause("ATT-8")
def test_one_visible_key_gives_its_value(subject):
    require(subject, "attention")
    inputs, keys = PLAIN.inputs("float32"), np.array([6, 0, 3, 3, 1])
    allowed = np.broadcast_to(np.arange(7) == keys[:, None], MAIN.call)
    same(subject.attention(*inputs, mask=allow(allowed)), inputs[2][:, :, keys], "output")


@clause("ATT-8")
def test_equal_logits_give_the_mean(subject):
    require(subject, "attention")
    query, key, value = RAGGED.inputs("float32")
    got = subject.attention(np.zeros_like(query), key, value, **RAGGED.options("float32"))
    check_output(got, np.zeros_like(query), key, value, "output", allowed=RAGGED.allowed())
    mean = value[0, :, :3].astype(np.float64).mean(1)
    compare(got[0, :, 0], mean, value[0, :, :3].mean(1), "mean of the three allowed values")


@clause("ATT-8")
def test_duplicated_keys_change_nothing(subject):
    def change(query, key, value, allowed):
        return (query, *(np.tile(x, (1, 1, 2, 1)) for x in (key, value))), np.tile(allowed, 2)

    before, after, budget = _twice(subject, BY_NAME["allow"], change)
    close(after, before, *budget, "output after duplicating every key")


@clause("ATT-9")
@pytest.mark.parametrize("case", [*MASKED, *MIXED], ids=names([*MASKED, *MIXED]))
def test_asking_for_steps_does_not_change_the_output(subject, case):
    require(subject, "weights")
    steps = check_steps(subject, case, "float32")
    output = subject.attention(*case.inputs("float32"), **case.options("float32"))
    exact, naive = case.expected("float32")
    close(output, steps["output"], exact["output"], naive["output"], "output with and without")


PATHS = [PLAIN, *MASKED, *MIXED, *SHAPES, *SCALES[:2]]


@clause("ATT-9")
@pytest.mark.parametrize("case", PATHS, ids=names(PATHS))
def test_walking_tiles_gives_the_textbooks_output(subject, case):
    require(subject, "blocked")
    exact, naive = case.expected("float32")
    got = subject.blocked(*case.inputs("float32"), tile=TILE, **case.options("float32"))
    textbook = subject.steps(*case.inputs("float32"), **case.options("float32"))["output"]
    compare(got, exact["output"], naive["output"], "output by tiles")
    close(got, textbook, exact["output"], naive["output"], "output by tiles and by the textbook")


@clause("ATT-9")
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_walking_tiles_keeps_every_dtype(subject, dtype):
    require(subject, "blocked")
    exact, naive = RAGGED.expected(dtype)
    got = subject.blocked(*RAGGED.inputs(dtype), tile=TILE, **RAGGED.options(dtype))
    assert got.dtype == numpy_dtype(dtype), f"ATT-9: expected {dtype}, got {got.dtype}"
    compare(got, exact["output"], naive["output"], "output by tiles")


@clause("ATT-10")
@pytest.mark.parametrize("layout", ["transposed", "reversed", "broadcast"])
def test_strides_do_not_matter(subject, layout):
    require(subject, "attention")
    inputs = RAGGED.inputs("float32")
    if layout == "broadcast":
        views = [np.broadcast_to(x[:1, :, :, :], x.shape) for x in inputs]
    elif layout == "reversed":
        views = [np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1] for x in inputs]
    else:
        views = [np.ascontiguousarray(x.swapaxes(1, 3)).swapaxes(1, 3) for x in inputs]
    plain = [np.ascontiguousarray(x) for x in views]
    assert any(v.strides != p.strides for v, p in zip(views, plain, strict=True))
    got = subject.attention(*views, **RAGGED.options("float32"))
    check_output(got, *plain, "output", allowed=RAGGED.allowed())


@clause("ATT-10")
def test_no_array_given_is_written_to(subject):
    require(subject, "attention")
    inputs = [np.array(x) for x in RAGGED.inputs("float32")]
    before = [x.copy() for x in inputs]
    subject.attention(*inputs, **RAGGED.options("float32"))
    for name, array, own in zip(("query", "key", "value"), inputs, before, strict=True):
        same(array, own, f"{name} after the call")


@clause("ATT-10")
def test_no_input_is_written_to(subject):
    require(subject, "errors")
    inputs = [np.array(x) for x in RAGGED.inputs("float32")]
    inputs[1][2, 0, 6] = np.nan  # hidden: whoever cleans it must not clean the caller's array
    bias = np.where(coins(53, 5, 7, true=0.2), -np.inf, 1).astype(np.float32)
    given = [subject.array(x) for x in (*inputs, bias)]
    mask = subject.mask(RAGGED.mask)
    subject.module.attention(*given[:3], bias=given[3], mask=mask, query_offset=2)
    for name, array, before in zip(
        ["query", "key", "value", "bias"], given, (*inputs, bias), strict=True
    ):
        same(subject.numpy(array), before, f"{name} after the call")


WALKED = [  # eager calls walk over blocks here, compiled ones of torch take a dense mask
    RAGGED,
    MIXED[4],
    Case("nan_rows", mask=padding(LENGTHS), empty_rows="nan", bias="rank2"),
]
EVERYTHING = Case(
    "everything", GROUPED, causal() & padding(LENGTHS), query_offset=2, softcap=0.9, bias="rank2"
)


@pytest.mark.untyped
@clause("ATT-11")
@pytest.mark.parametrize("case", [*KERNEL, *WALKED], ids=names([*KERNEL, *WALKED]))
def test_compiled_equals_eager(subject, case):
    require(subject, "compiled")
    exact, naive = case.expected("float32")
    got = subject.compiled(*case.inputs("float32"), **case.options("float32"))
    compare(got["output"], exact["output"], naive["output"], "compiled output")


@pytest.mark.untyped
@clause("ATT-11")
def test_compiled_steps_equal_eager_ones(subject):
    require(subject, "compiled", "steps")
    case = EVERYTHING
    exact, naive = case.expected("float32")
    got = subject.compiled(*case.inputs("float32"), through="steps", **case.options("float32"))
    for name in STEPS:
        compare(got[name], exact[name], naive[name], f"compiled {name}")


@pytest.mark.untyped
@clause("ATT-11")
def test_compiled_gradients_equal_eager_ones(subject):
    require(subject, "compiled", "gradients")
    case = KERNEL[0]
    inputs, options = case.inputs("float32"), case.options("float32")
    got = subject.gradients(*inputs, case.grad("float32"), through="compiled", **options)
    exact, naive = case.expected_gradients("float32")
    for name in exact:
        compare(got[name], exact[name], naive[name], f"compiled gradient of {name}")


def _weights_after_dropout(subject, dropout: float, seed: int | None):
    """Return the dropped weights, read off an output whose values are the unit vectors."""
    query, key, _ = SQUARE_CASE.inputs("float32")
    value = np.broadcast_to(np.eye(7, dtype=np.float32), (3, 2, 7, 7))
    options = SQUARE_CASE.options("float32")
    return subject.attention(query, key, value, dropout=dropout, seed=seed, **options)


SQUARE_CASE = Case("square", SQUARE, causal() & padding(LENGTHS))


@clause("ATT-12")
def test_dropout_of_zero_is_the_identity_and_of_one_gives_zero(subject):
    require(subject, "attention")
    inputs, options = SQUARE_CASE.inputs("float32"), SQUARE_CASE.options("float32")
    plain = subject.attention(*inputs, **options)
    same(subject.attention(*inputs, dropout=0.0, seed=3, **options), plain, "dropout of 0")
    got = subject.attention(*inputs, dropout=1.0, seed=3, **options)
    same(got, np.zeros_like(plain), "dropout of 1")


@clause("ATT-12")
def test_kept_weights_are_scaled_by_what_is_left(subject):
    require(subject, "attention")
    exact, naive = (steps["weights"] for steps in SQUARE_CASE.expected("float32"))
    got = _weights_after_dropout(subject, 0.25, seed=3)
    kept = got != 0
    compare(got, np.where(kept, exact / 0.75, 0), np.where(kept, naive / 0.75, 0), "weights")
    share = 1 - kept[exact > 0].mean()
    sigma = np.sqrt(0.25 * 0.75 / (exact > 0).sum())
    assert abs(share - 0.25) < 4 * sigma, f"ATT-12: a quarter is dropped: got {share:.3f}"


@clause("ATT-12")
def test_every_sample_and_head_drops_its_own(subject):
    require(subject, "attention")
    kept = _weights_after_dropout(subject, 0.5, seed=3) != 0
    kept = kept[np.ix_([0, 2], [0, 1], range(3, 7))]  # what both samples see, four rows of it
    patterns = {kept[b, h, :, :4].tobytes() for b in range(2) for h in range(2)}
    assert len(patterns) == 4, f"ATT-12: {len(patterns)} patterns for four heads"


@clause("ATT-12")
@pytest.mark.parametrize("need_weights", [False, True], ids=["without_weights", "with_weights"])
def test_a_module_drops_in_training_only(subject, need_weights):
    require(subject, "multihead")
    parameters, x = multihead.SELF.parameters("float32"), multihead.SELF.inputs()[0]
    config = multihead.SELF.config | {"dropout": 1.0}
    options = {"need_weights": need_weights, "seed": 1}
    dropped, _ = subject.multihead(config, parameters, x, training=True, **options)
    bias = np.broadcast_to(parameters["out_proj.bias"], dropped.shape)
    same(dropped, bias, "training with a dropout of 1")
    exact, naive = multihead.SELF.expected(np.ones((3, 2, 5, 5), bool))
    plain, _ = subject.multihead(config, parameters, x, **options)
    compare(plain, exact["output"], naive["output"], "evaluation")
    config["dropout"] = 0.5
    first, other = (
        subject.multihead(config, parameters, x, training=True, need_weights=need_weights, seed=s)
        for s in (1, 2)
    )
    assert abs(first[0] - other[0]).max() > 1e-3, "ATT-12: two seeds drop the same"


@clause("ATT-12")
def test_the_same_seed_drops_the_same(subject):
    require(subject, "attention")
    first, again = (_weights_after_dropout(subject, 0.25, seed=3) for _ in range(2))
    same(again, first, "weights of the same seed")
    assert (_weights_after_dropout(subject, 0.25, seed=4) != first).any(), "ATT-12: seed ignored"


@clause("ATT-12")
def test_without_a_seed_every_call_drops_its_own(subject):
    require(subject, "errors", "attention", "any_shape")  # JAX must be given a random source
    first, other = (_weights_after_dropout(subject, 0.25, seed=None) for _ in range(2))
    assert (first != other).any(), "ATT-12: two calls without a seed drop the same"


@clause("ATT-13")
@pytest.mark.parametrize("case", [PLAIN, *MIXED], ids=names([PLAIN, *MIXED]))
def test_each_step_is_what_its_name_says(subject, case):
    require(subject, "steps")
    steps = check_steps(subject, case, "float32")
    hidden = ~case.allowed()
    same(steps["masked_scores"][hidden], np.full(hidden.sum(), -np.inf), "masked where hidden")
    finite = np.isfinite(steps["scores"])
    check_each(finite, steps["scores"], "scores", "a number before the mask")


@clause("ATT-13")
def test_weights_are_taken_before_dropout(subject):
    require(subject, "weights")
    options = SQUARE_CASE.options("float32") | {"dropout": 0.5, "seed": 1}
    steps = subject.steps(*SQUARE_CASE.inputs("float32"), **options)
    exact, naive = SQUARE_CASE.expected("float32")
    compare(steps["weights"], exact["weights"], naive["weights"], "weights")


@clause("ATT-13")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_steps_of_16_bit_inputs_are_float32(subject, dtype):
    require(subject, "steps")
    steps = check_steps(subject, RAGGED, dtype)
    got = [steps[name].dtype.name for name in ("scores", "masked_scores", "weights", "output")]
    assert got == ["float32"] * 3 + [dtype], f"ATT-13: got {got}"


ONE_HEAD = Shape(B=3, H=1, H_kv=1, T=5, S=7, D=11, D_v=13)
LESSONS = {
    2: (Case("one_sample", ONE_HEAD._replace(B=1), causal(), query_offset=2), np.s_[0, 0]),
    3: (Case("one_head", ONE_HEAD, causal() & padding(LENGTHS), query_offset=2), np.s_[:, 0]),
}


@clause("ATT-14")
@pytest.mark.parametrize("rank", LESSONS)
def test_steps_have_the_rank_that_was_given(subject, rank):
    require(subject, "errors")
    case, place = LESSONS[rank]
    exact, naive = case.expected("float32")
    inputs = (array[place] for array in case.inputs("float32"))
    steps = subject.steps(*inputs, **case.options("float32"))
    for name in STEPS:
        got, wanted = steps[name].shape, exact[name][place].shape
        assert got == wanted, f"ATT-14: {name} must be {wanted}: got {got}"
        compare(steps[name], exact[name][place], naive[name][place], name)
