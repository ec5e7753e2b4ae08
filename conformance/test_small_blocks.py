"""The chapter on calls that are cut: in small blocks, every path of large calls gives the formula.

Where a new shape costs a compilation, the usual shapes are asked about alone.
"""

from dataclasses import replace

import numpy as np
import pytest

from .cases import multihead
from .cases.attention import BY_NAME, GROUPED, LENGTHS, MAIN, SQUARE, Case
from .cases.compare import check_output
from .cases.cuts import CUT, HALVES, dirtied
from .cases.decoding import STREAMS
from .contract import clause
from .mask_spec import causal, padding, sliding_window
from .oracle import reference
from .oracle.tolerance import Differs, check_dtype, compare
from .subjects.protocol import SMALL_BLOCKS, NotOffered, require

pytestmark = [pytest.mark.untyped, pytest.mark.needs("small_blocks")]
IDS = [f"{case.name}-{dtype}" for case, dtype in CUT]
BACKWARD = [(case, dtype) for case, dtype in CUT if case.empty_rows != "nan"]
BACKWARD += HALVES
# Where each setting of each call is a program of its own: which ones are asked about
FEW = {"plain-float32": [0], "nan-float32": [0], "softcap-float32": [1], "grouped-float32": [0, 1],
       "one_kv_head-float32": [2], "window-float32": [1]}  # fmt: skip
FEW_BACKWARD = {"grouped-float32": [1], "one_kv_head-float32": [2], "window-float32": [1],
                "grouped-float16": [0], "uniform_of_groups-float32": [0]}  # fmt: skip


def settings(subject, name: str, few: dict[str, list[int]]) -> list[int]:
    """Return the settings in which a subject is asked about a call: fewer where it compiles."""
    if "any_shape" in subject.capabilities:
        return list(range(SMALL_BLOCKS))
    if name not in few:
        raise NotOffered(f"{subject.name} would compile another call")
    return few[name]


@clause("ATT-9")
@pytest.mark.parametrize(("case", "dtype"), CUT, ids=IDS)
def test_a_call_that_is_cut_gives_the_formula(subject, case, dtype):
    require(subject, "attention")
    exact, naive = (steps["output"] for steps in case.expected(dtype))
    options, dirty = case.options(dtype), dirtied(case, dtype)
    for setting in settings(subject, f"{case.name}-{dtype}", FEW):
        with subject.small_blocks(setting):
            got = subject.attention(*case.inputs(dtype), **options)
            beside = dirty and subject.attention(*dirty, **options)
        check_dtype(got, naive.dtype, "output")
        compare(got, exact, naive, f"output in small blocks {setting}")
        if beside is not None:
            what = f"output beside hidden NaN and inf, in small blocks {setting}"
            compare(beside, exact, naive, what)


@clause("GRAD-3")
@pytest.mark.parametrize(
    ("case", "dtype"), BACKWARD, ids=[f"{case.name}-{dtype}" for case, dtype in BACKWARD]
)
def test_a_call_that_is_cut_has_the_oracles_gradients(subject, case, dtype):
    require(subject, "gradients")
    exact, naive = case.expected_gradients(dtype)
    options = {"grad": case.grad(dtype)} | case.options(dtype)
    ways = {"": case.inputs(dtype), " beside hidden NaN and inf": dirtied(case, dtype)}
    for setting in settings(subject, f"{case.name}-{dtype}", FEW_BACKWARD):
        for way, inputs in ways.items():
            if inputs is None:
                continue
            with subject.small_blocks(setting):
                got = subject.gradients(*inputs, **options)
            for name in exact:
                what = f"gradient of {name}{way}, in small blocks {setting}"
                check_dtype(got[name], naive[name].dtype, what)
                compare(got[name], exact[name], naive[name], what)


BEGIN = padding(hidden=np.arange(8) < np.array([2, 0, 6])[:, None])


@clause("ATT-9")
def test_keys_that_begin_inside_of_a_block_count_once(subject):
    """Eight keys are whole blocks: the last one, moved back to fit, would be allowed whole.

    Two heads at a time are no part of the three that share a key head.
    """
    require(subject, "attention", "grouped")
    case = Case("begin", MAIN._replace(H=6, S=8), BEGIN)
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    for setting in settings(subject, case.name, {"begin": [1]}):
        with subject.small_blocks(setting):
            got = subject.attention(*case.inputs("float32"), **case.options("float32"))
        compare(got, exact, naive, f"output in small blocks {setting}")


SEES = np.zeros(MAIN.call[:3], bool)
SEES[2, 1, 4:] = True  # key 6 is allowed from position 6 on: row 4, in the last block of keys


@clause("CLEAN-4")
@pytest.mark.parametrize("fill", [np.nan, np.inf])
@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("scale", [None, -0.7])
def test_what_is_no_number_in_the_last_block_reaches_those_who_see_it(subject, scale, role, fill):
    require(subject, "attention", *(["scale"] if scale else []))
    case = replace(BY_NAME["causal"], scale=scale)
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    inputs = [np.array(x) for x in case.inputs("float32")]
    inputs[1 if role == "key" else 2][2, 1, 6] = fill
    for setting in settings(subject, "", {"": [0]}):
        with subject.small_blocks(setting):
            got = subject.attention(*inputs, **case.options("float32"))
        if np.isfinite(got[SEES]).all(-1).any():
            raise Differs(f"a row that sees {fill} must show it: got {got[SEES]}")
        what = f"rows that do not see {fill}, in small blocks {setting}"
        compare(np.where(SEES[..., None], exact, got), exact, naive, what)


@clause("CLEAN-2")
@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_a_hidden_value_beyond_a_hidden_block_may_hold_anything(subject, fill):
    """Its key is a number, so that only the sum of the last run of blocks shows it."""
    require(subject, "attention", "any_shape")
    hidden = np.array([0, 0, 1, 1, 0, 1, 0], bool)
    case = Case("gap", mask=padding(hidden=np.tile(hidden, (3, 1))))
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    query, key, value = (np.array(x) for x in case.inputs("float32"))
    value[:, :, 5] = fill
    for setting in range(SMALL_BLOCKS):
        with subject.small_blocks(setting):
            got = subject.attention(query, key, value, **case.options("float32"))
        compare(got, exact, naive, f"output in small blocks {setting}")


EVEN = SQUARE._replace(D_v=11)
LARGE = {"none": None, "causal": causal(), "lengths": padding(LENGTHS), "window": sliding_window(2),
         "both": causal() & padding(LENGTHS)}  # fmt: skip


@clause("CLEAN-4")
@pytest.mark.parametrize("fill", [np.nan, np.inf])
@pytest.mark.parametrize("name", LARGE)
def test_a_query_that_is_no_number_spoils_its_own_row(subject, name, fill):
    """A fully masked one is 0 all the same."""
    require(subject, "attention")
    case = Case(name, EVEN, LARGE[name])
    query, key, value = case.inputs("float32")
    spoilt = np.zeros(query.shape[:3], bool)
    spoilt[2, 1, 3] = spoilt[1, 0, 6] = True
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    exact = np.where((spoilt & case.allowed().any(-1))[..., None], np.nan, exact)
    query = np.where(spoilt[..., None] & (np.arange(11) == 4), np.float32(fill), query)
    for setting in settings(subject, name, {"both": [0]}):
        with subject.small_blocks(setting):
            got = subject.attention(query, key, value, **case.options("float32"))
        compare(got, exact, naive, f"output in small blocks {setting}")


SHARED = {(case.name, policy): case for case in [
    Case("none", GROUPED._replace(D_v=11)), Case("square", GROUPED._replace(T=7, D_v=11), causal()),
    Case("causal", GROUPED, causal(), 2), Case("lengths", GROUPED, padding(LENGTHS)),
    Case("window", GROUPED._replace(D_v=11), sliding_window(2, 1), 1),
    Case("softcap", GROUPED, causal() & padding(LENGTHS), 2, "heads", None, 0.9),
] for policy in ("zero", "uniform", "nan")}  # fmt: skip


@clause("CLEAN-4")
@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize(("name", "policy"), SHARED)
def test_what_is_no_number_in_a_shared_head_reaches_the_heads_that_share_it(
    subject, name, policy, role
):
    """So it does under "uniform" in fully masked rows, which take the mean over hidden keys too."""
    require(subject, "attention", "grouped", "empty_rows")
    case = replace(SHARED[name, policy], empty_rows=policy)
    (exact, naive), allowed = case.expected("float32"), case.allowed()
    inputs = [np.array(x) for x in case.inputs("float32")]
    inputs[1 if role == "key" else 2][:, 1, 5] = np.nan  # of heads 2 and 3
    reached = allowed[..., 5] | ~allowed.any(-1) & (policy == "uniform")
    reached &= np.arange(4)[:, None] >= 2
    subject_steps = subject.steps(*inputs, **case.options("float32"))["output"]
    found = {"the steps": subject_steps}
    for setting in settings(subject, f"{name}-{policy}", {"softcap-uniform": [0]}):
        with subject.small_blocks(setting):
            got = subject.attention(*inputs, **case.options("float32"))
            found[f"small blocks {setting}"] = got
    for way, got in found.items():
        if np.isfinite(got[reached]).all(-1).any():
            raise Differs(f"a row that sees NaN must show it, in {way}: got {got[reached]}")
        others = np.where(reached[..., None], exact["output"], got)
        compare(others, exact["output"], naive["output"], f"rows that do not see NaN, in {way}")


HIDDEN = np.arange(7) >= np.array(LENGTHS)[:, None]


@clause("MHA-4")
@pytest.mark.parametrize("name", ["CROSS", "GROUPED"])
def test_a_module_whose_call_is_cut_gives_the_formula(subject, name):
    require(subject, "multihead")
    call = getattr(multihead, name)
    allowed = reference.allowed(padding(LENGTHS), (3, call.heads[0], 5, 7))
    for setting in settings(subject, name, {"GROUPED": [1]}):
        with subject.small_blocks(setting):
            call.check(subject, {"key_padding_mask": HIDDEN}, allowed, need_weights=False)


@clause("GRAD-2")
@pytest.mark.parametrize("name", ["CROSS", "GROUPED"])
def test_a_module_whose_call_is_cut_has_the_oracles_gradients(subject, name):
    require(subject, "multihead", "gradients")
    call = getattr(multihead, name)
    allowed = reference.allowed(padding(LENGTHS), (3, call.heads[0], 5, 7))
    options = {"key_padding_mask": HIDDEN, "need_weights": False}
    arguments = (call.config, call.parameters("float32"), *call.inputs(), call.grad())
    exact, naive = call.expected_gradients(allowed)
    for setting in settings(subject, name, {"GROUPED": [1]}):
        with subject.small_blocks(setting):
            got = subject.multihead_gradients(*arguments, **options)
        for role in exact.keys() - {"k_proj.bias"}:  # which is 0, and so is its budget
            what = f"gradient of {role} in small blocks {setting}"
            compare(got[role], exact[role], naive[role], what)


@clause("CACHE-1")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["attention", "grouped"])
def test_decoding_whose_calls_are_cut_gives_one_pass(subject, name, dtype):
    """A prompt, tokens one by one, and a chunk behind them."""
    require(subject, "cache")
    stream = STREAMS[name]
    exact, naive = stream.whole(dtype)
    x = stream.tokens(dtype)
    for setting in settings(subject, f"{name}-{dtype}", {"grouped-bfloat16": [1]}):
        with subject.small_blocks(setting):
            decoding = stream.start(subject, dtype_name=dtype)
            stream.check_feeds(decoding, x, (3, 4, 5, 7), exact, naive)


def check_scaled(got, query, key, value, what: str, *, scale: float, **numbers) -> None:
    """Check an output against that of the same logits, made of numbers that are no trouble."""
    small = np.float32(2.0**-60)
    scale = scale * 2.0**120
    check_output(got, query * small, key * small, value, what, scale=scale, **numbers)


@clause("ATT-9")
@pytest.mark.parametrize("scale", [1e-37, -1e-37])
@pytest.mark.parametrize("name", LARGE)
def test_products_that_are_scaled_down_give_the_formula(subject, name, scale):
    """Queries times keys are larger than float32 holds: they must be scaled before."""
    require(subject, "attention", "scale")
    case = Case(name, EVEN, LARGE[name], scale=scale)
    query, key, value = case.inputs("float32")
    query, key = query * np.float32(4e20), key * np.float32(1e17)
    assert np.isinf(np.einsum("bhtd,bhsd->bhts", query, key)).any(), "no product is too large"
    allowed = case.allowed()
    for setting in settings(subject, name, {"window": [0]}):
        with subject.small_blocks(setting):
            got = subject.attention(query, key, value, **case.options("float32"))
        what = f"output in small blocks {setting}"
        check_scaled(got, query, key, value, what, allowed=allowed, scale=scale)
    if "steps" in subject.capabilities:
        got = subject.steps(query, key, value, **case.options("float32"))["output"]
        check_scaled(got, query, key, value, "output of the steps", allowed=allowed, scale=scale)


@clause("ATT-9")
@pytest.mark.parametrize("mask", [None, causal()], ids=["plain", "causal"])
def test_sums_that_are_scaled_down_give_the_formula(subject, mask):
    """Every product fits, and their sum over the width is larger than float32 holds."""
    require(subject, "attention", "scale")
    case = Case("sums", SQUARE._replace(D=67, D_v=67), mask, scale=1.25e-38)
    query, key, value = case.inputs("float32")
    large = np.float32(2.9e18)
    query, key = np.sign(query) * large, np.sign(query + key / 2) * large
    sums = query.astype(float) @ key.swapaxes(2, 3).astype(float)
    assert sums.max() > np.finfo(np.float32).max, "no sum is too large"
    assert (query.max() * key.max()) < 1e37, "a product alone is too large"
    got = subject.attention(query, key, value, **case.options("float32"))
    numbers = {"allowed": case.allowed(), "scale": case.scale}
    check_scaled(got, query, key, value, "output", **numbers)
