"""The chapter on what a hidden position may hold: NaN, inf or 1e30, forward and backward."""

from functools import partial

import numpy as np
import pytest

from .cases.arrays import coins, normal
from .cases.attention import GROUPED, MAIN, Case
from .cases.compare import check_output
from .cases.multihead import CROSS
from .contract import clause
from .mask_spec import causal, hide, padding, predicate, segments
from .oracle import expected
from .oracle.tolerance import Differs, check_each, compare, same
from .subjects.protocol import TILE, require

pytestmark = pytest.mark.untyped

GARBAGE = [np.nan, np.inf, -np.inf]
LENGTHS = np.array([7, 0, 4])
PADDED = np.arange(7) >= LENGTHS[:, None]  # (B, S): hidden from every query of the sample
WAYS = {
    "lengths": {"mask": padding(LENGTHS)},
    "hidden": {"mask": padding(hidden=PADDED)},
    "hide": {"mask": hide(np.broadcast_to(PADDED[:, None, None], (3, 1, 5, 7)))},
    "bias": {"bias": np.where(PADDED[:, None, None], -np.inf, 0).astype(np.float32)},
}
SEEN = np.broadcast_to(~PADDED[:, None, None], MAIN.call)
PAST = np.broadcast_to(np.tri(5, 7, dtype=bool), MAIN.call)  # the last two keys are behind all
CLEAN = Case("clean")

# Two that together hide keys 3 and 4 from every query; ids, of which no query has 1 and 3.
FIRST = np.isin(np.arange(7), [3, 4]) & (np.arange(5) < 2)[:, None]
REST = np.isin(np.arange(7), [3, 4]) & ~(np.arange(5) < 2)[:, None]
IDS = np.array([[0, 0, 2, 2, 4]] * 3), np.array([[0, 4, 2, 1, 3, 2, 0]] * 3)
BIAS = normal(73, 3, 2, 5, 7, dtype_name="float32")
FOR_PARAMETERS = {
    "key_padding_mask": ({"key_padding_mask": PADDED}, SEEN),
    "attn_mask": ({"attn_mask": padding(LENGTHS)}, SEEN),
    "causal": ({"attn_mask": causal(), "query_offset": 0}, PAST),
    "predicate": (
        {"attn_mask": predicate(lambda b, h, q, k: k < 7 - 2 * b), "query_offset": 0},
        np.broadcast_to(np.arange(7) < np.array([7, 5, 3]).reshape(3, 1, 1, 1), MAIN.call),
    ),
    "two masks": (
        {"attn_mask": hide(FIRST[None, None]) & hide(REST[None, None])},
        np.broadcast_to(~(FIRST | REST), MAIN.call),
    ),
    "ids": (
        {"attn_mask": segments(*IDS)},
        np.broadcast_to((IDS[0][:, :, None] == IDS[1][:, None])[:, None], MAIN.call),
    ),
    "bias": ({"attn_mask": np.where(SEEN, BIAS, np.float32(-np.inf))}, SEEN),
    "mask and bias": (
        {
            "key_padding_mask": hide(FIRST[None, None]),
            "attn_mask": np.where(REST, np.float32(-np.inf), BIAS),
        },
        np.broadcast_to(~(FIRST | REST), MAIN.call),
    ),
}


def dirty(role: str, fill: float) -> list[np.ndarray]:
    """Return inputs with `fill` in every padded position of "key", "value" or "both"."""
    query, key, value = (np.array(x) for x in CLEAN.inputs("float32"))
    for name, x in (("key", key), ("value", value)):
        if role in (name, "both"):
            x.swapaxes(1, 2)[PADDED] = fill
    return [query, key, value]


def check_ways(subject, role: str, fill: float, way: str) -> None:
    require(subject, "attention")
    inputs = dirty(role, fill)
    for policy in ("zero", "nan") if "empty_rows" in subject.capabilities else ("zero",):
        got = subject.attention(*inputs, empty_rows=policy, **WAYS[way])
        check_output(got, *CLEAN.inputs("float32"), "output", allowed=SEEN, empty_rows=policy)
    steps = subject.steps(*inputs, **WAYS[way])
    check_output(steps["output"], *CLEAN.inputs("float32"), "output of the steps", allowed=SEEN)
    if "blocked" in subject.capabilities:
        walked = subject.blocked(*inputs, tile=TILE, **WAYS[way])
        check_output(walked, *CLEAN.inputs("float32"), "output by tiles", allowed=SEEN)


@clause("CLEAN-1")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fill", GARBAGE)
def test_a_hidden_key_may_hold_anything(subject, fill, way):
    check_ways(subject, "key", fill, way)


@clause("CLEAN-2")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fill", GARBAGE)
def test_a_hidden_value_may_hold_anything(subject, fill, way):
    check_ways(subject, "value", fill, way)


@clause("CLEAN-3")
@pytest.mark.parametrize("way", ["lengths", "bias"])
@pytest.mark.parametrize("fill", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("role", ["key", "value", "both"])
@pytest.mark.parametrize("through", ["attention", "steps", "blocked"])
def test_hidden_garbage_reaches_no_gradient(subject, through, role, fill, way):
    require(subject, "gradients")
    options = {"grad": CLEAN.grad("float32")} | WAYS[way]
    got = subject.gradients(*dirty(role, fill), through=through, **options)
    options.pop("mask", None)
    exact, naive = expected.gradients(*CLEAN.inputs("float32"), allowed=SEEN, **options)
    for name in exact:
        compare(got[name], exact[name], naive[name], f"gradient of {name}")


@clause("CLEAN-3")
@pytest.mark.parametrize("way", FOR_PARAMETERS)
@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_hidden_garbage_reaches_no_parameter(subject, fill, way):
    options, seen = FOR_PARAMETERS[way]
    bias = options["attn_mask"] if "bias" in way else None
    require(subject, "gradients", *([] if bias is None else ["attn_mask"]))
    clean = CROSS.check_gradients(subject, options, seen, bias=bias)
    query, key, value = CROSS.inputs()
    padded = ~seen.any((1, 2))[..., None]
    key, value = (np.where(padded, np.float32(fill), x) for x in (key, value))
    parameters = CROSS.parameters("float32")
    got = subject.multihead_gradients(
        CROSS.config, parameters, query, key, value, CROSS.grad(), **options
    )
    for name in clean:
        same(got[name], clean[name], f"gradient of {name}")


@clause("CLEAN-3")
@pytest.mark.parametrize("way", FOR_PARAMETERS)
def test_hidden_garbage_projected_before_reaches_no_parameter(subject, way):
    options, seen = FOR_PARAMETERS[way]
    require(subject, "gradients", *(["attn_mask"] if "bias" in way else []))
    query, *memory = CROSS.inputs()
    found, padded = [], ~seen.any((1, 2))[..., None]
    for fill in (0, np.nan):
        spoilt = [np.where(padded, np.float32(fill), x) for x in memory]
        call = CROSS.config, CROSS.parameters("float32"), query, *spoilt, CROSS.grad()
        found.append(subject.multihead_gradients(*call, projected=True, **options))
    clean, got = found
    for name in clean:
        same(got[name], clean[name], f"gradient of {name}")


@clause("CLEAN-4")
@pytest.mark.parametrize("role", ["key", "value"])
def test_visible_infinity_is_not_taken_for_a_number(subject, role):
    require(subject, "attention")
    inputs = [np.array(x) for x in CLEAN.inputs("float32")]
    inputs[["query", "key", "value"].index(role)][2, 1, 4] = np.inf
    got = subject.attention(*inputs)
    finite, sees = np.isfinite(got), np.zeros((3, 2, 1, 1), bool)
    sees[2, 1] = True
    check_each(finite | sees, got, "output", "a finite number where infinity is not seen")
    forgiven = finite.all(-1, keepdims=True) & sees
    check_each(~forgiven, got, "output", "NaN or infinity in a row that sees infinity")


@clause("ATT-9")
@pytest.mark.parametrize("fill", [np.inf, -np.inf])
@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("T", [1, 5])
def test_one_infinite_feature_is_in_every_path_what_it_is_in_one(subject, T, role, fill):
    """Of -inf times a query above 0 comes a logit that could pass for a hidden one."""
    require(subject, "attention", "steps")
    case = Case("feature", MAIN._replace(T=T), padding(LENGTHS), empty_rows="uniform")
    query, key, value = (np.array(x) for x in case.inputs("float32"))
    query[..., 3] = abs(query[..., 3])
    (key if role == "key" else value)[2, 1, 2, 3] = fill
    steps = subject.steps(query, key, value, **case.options("float32"))["output"]
    got = subject.attention(query, key, value, **case.options("float32"))
    same(np.isfinite(got), np.isfinite(steps), "what is finite of the output")


@clause("CLEAN-4")
def test_a_query_that_is_nan_gives_a_row_of_nan_alone(subject):
    require(subject, "attention")
    inputs = [np.array(x) for x in CLEAN.inputs("float32")]
    inputs[0][2, 1, 3, 4] = np.nan
    got, clean = (subject.attention(*x) for x in (inputs, CLEAN.inputs("float32")))
    row = np.zeros(MAIN.call[:3], bool)
    row[2, 1, 3] = True
    same(got[row], np.full((1, 13), np.nan), "the row of the query")
    same(got[~row], clean[~row], "every other row")


@clause("CLEAN-4")
@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("through", ["attention", "blocked"])
def test_visible_nan_reaches_exactly_those_who_see_it(subject, through, role, dtype):
    require(subject, through)
    inputs = [np.array(x) for x in CLEAN.inputs(dtype)]
    inputs[["query", "key", "value"].index(role)][2, 1, 4, 3] = np.nan
    call = subject.attention if through == "attention" else partial(subject.blocked, tile=TILE)
    clean = call(*CLEAN.inputs(dtype), mask=causal(), query_offset=2)
    got = call(*inputs, mask=causal(), query_offset=2)
    sees = np.zeros(MAIN.call[:3], bool)
    sees[2, 1, 2:] = True  # key 4 is seen from position 4 on: row 2
    wide = got.astype(np.float32)
    if not np.isnan(wide[sees]).any(-1).all():
        raise Differs(f"a row that sees a NaN must show it: got {wide[sees]}")
    others = (np.where(sees[..., None], 0, x) for x in (got, clean))
    same(*others, "rows that do not see the NaN")


@clause("CLEAN-4")
@pytest.mark.parametrize("way", ["array", "mask", "two masks", "bias"])
@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("head", [0, 1])
def test_a_key_that_one_head_may_see_is_not_hidden(subject, head, role, way):
    """A query whose other head sees the NaN is NaN: the heads are joined."""
    require(subject, "multihead", *(["attn_mask"] if way in ("array", "bias") else []))
    hidden = np.zeros((3, 2, 5, 7), bool)
    hidden[:, head, :, 4] = hidden[0, :, :, 4] = hidden[:, :, 3, 4] = True
    query, key, value = (np.array(x) for x in CROSS.inputs())
    (key if role == "key" else value)[:, 4] = np.nan
    mask = {
        "array": hidden,
        "mask": hide(hidden),
        "two masks": hide(hidden) & hide(np.zeros_like(hidden)),
        "bias": np.where(hidden, np.float32(-np.inf), BIAS),
    }[way]
    got, _ = subject.multihead(
        CROSS.config, CROSS.parameters("float32"), query, key, value,
        attn_mask=mask, need_weights=False,
    )  # fmt: skip
    sees = ~hidden[..., 4].all(1)
    same(np.isnan(got), np.broadcast_to(sees[..., None], got.shape), "NaN in the output")


@clause("CLEAN-4")
@pytest.mark.parametrize("masked", [False, True], ids=["seen", "hidden"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 5, 7), (1, 2, 1, 7)], ids=["2", "4", "heads"])
@pytest.mark.parametrize("through", ["attention", "steps", "blocked"])
def test_a_bias_that_is_nan_reaches_exactly_those_who_see_it(subject, through, shape, masked):
    require(subject, "attention" if through == "steps" else through)
    bias = normal(72, *shape, dtype_name="float32")
    index = (2, 1, 3, 4)[4 - bias.ndim :]
    at = tuple(min(i, size - 1) for i, size in zip(index, shape, strict=True))
    spoilt = bias.copy()
    spoilt[at] = np.nan
    options = {"mask": hide(np.broadcast_to(np.arange(7) == 4, (1, 1, 5, 7)))} if masked else {}
    call = {
        "attention": subject.attention,
        "steps": lambda *inputs, **options: subject.steps(*inputs, **options)["output"],
        "blocked": partial(subject.blocked, tile=TILE),
    }[through]
    got, clean = (call(*CLEAN.inputs("float32"), bias=x, **options) for x in (spoilt, bias))
    sees = np.broadcast_to(np.isnan(spoilt), MAIN.call).any(-1) & (not masked)
    same(got[sees], np.full((sees.sum(), MAIN.D_v), np.nan), "rows that see the NaN")
    others = (np.where(sees[..., None], 0, x) for x in (got, clean))
    same(*others, "rows that do not see the NaN")


@clause("CLEAN-5")
@pytest.mark.parametrize("way", WAYS)
def test_a_huge_hidden_number_does_not_leak(subject, way):
    check_ways(subject, "both", 1e30, way)


@clause("CLEAN-6")
@pytest.mark.parametrize("role", ["key", "value", "both"])
@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30])
def test_queries_do_not_notice_what_only_they_may_not_see(subject, role, fill):
    require(subject, "attention")
    inputs = [np.array(x) for x in CLEAN.inputs("float32")]
    for name, x in zip(("key", "value"), inputs[1:], strict=True):
        if role in (name, "both"):
            x[:, :, 5] = fill
    got = subject.attention(*inputs, mask=causal(), query_offset=2)[:, :, :3]
    case = Case("causal", mask=causal(), query_offset=2)
    exact, naive = (steps["output"][:, :, :3] for steps in case.expected("float32"))
    compare(got, exact, naive, "rows before the one that sees key 5")


@clause("CLEAN-6")
def test_gradients_do_not_notice_what_their_rows_may_not_see(subject):
    require(subject, "gradients")
    inputs = [np.array(x) for x in CLEAN.inputs("float32")]
    grad = CLEAN.grad("float32")
    grad[:, :, 3:] = 0
    hidden = np.array(coins(71, 3, 2, 5, 7, true=0.3))
    hidden[:, :, :3, 5] = True
    clean = subject.gradients(*inputs, grad, mask=hide(hidden))
    hidden[:, :, :, 5] = True  # the rows that would see key 5 would be NaN themselves
    inputs[1][:, :, 5] = inputs[2][:, :, 5] = np.nan
    got = subject.gradients(*inputs, grad, mask=hide(hidden))
    for name in ("query", "key", "value"):
        same(got[name], clean[name], f"gradient of {name}")


@clause("CLEAN-3")
@pytest.mark.parametrize("fill", [np.nan, np.inf, 3e38])  # whose products overflow either way
@pytest.mark.parametrize("through", ["attention", "steps", "blocked"])
def test_hidden_garbage_reaches_no_gradient_through_a_softcap(subject, through, fill):
    """In one key head of two, which two query heads share."""
    require(subject, "gradients", "grouped")
    case = Case("softcap", GROUPED, causal() & padding(LENGTHS), 2, "heads", None, 0.9)
    query, *others = (np.array(x) for x in case.inputs("float32"))
    query *= 8  # inf - inf, then
    clean, options = [query, *map(np.array, others)], case.options("float32")
    for x in others:
        x[2, 1, 4:] = fill
    got = subject.gradients(query, *others, case.grad("float32"), through=through, **options)
    numbers = case.numbers("float32")
    exact, naive = expected.gradients(
        *clean, case.grad("float32"), allowed=case.allowed(), **numbers
    )
    for name in exact:
        compare(got[name], exact[name], naive[name], f"gradient of {name}")
