"""The chapter on parts: attention to some of the keys at a time, merged into the whole call's.

Where a new shape costs a compilation, few calls are asked about, and one split of each.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import pytest

from .cases.attention import BY_NAME, GROUPED, LENGTHS, MAIN, Case, move
from .cases.attention import FAR as FROM_ZERO
from .cases.cuts import CUT, HALVES, KINDS, dirtied
from .cases.parts import (
    check_merged,
    check_merged_gradients,
    even_split,
    gathered,
    pieces,
    splits,
    without_mean,
)
from .cases.sizes import TRUE_SIZES
from .contract import clause
from .mask_spec import allow, causal, padding
from .oracle import expected
from .oracle.tolerance import MERGED, Differs, check_each, compare, dtype, same
from .subjects.protocol import SMALL_BLOCKS, NotOffered, require

pytestmark = [pytest.mark.untyped, pytest.mark.needs("parts")]

WHOLE = [(without_mean(case), dtype_name) for case, dtype_name in CUT]
BACKWARD = [pair for pair in [*WHOLE, *HALVES] if pair[0].empty_rows != "nan"]
# What is asked about where a call is a program of its own: in the usual blocks and in small ones
FEW = {"plain-float32": [None], "grouped-float32": [None, 0], "nan-float32": [None],
       "softcap-float32": [None, 1], "one_kv_head-float32": [2],
       "causal_per_sample-float32": [None],
       "causal_and_lengths_mixed-bfloat16": [None, 1]}  # fmt: skip
FEW_BACKWARD = {"softcap-float32": [None, 1], "grouped-float32": [0], "grouped-float16": [None],
                "bias_rank2-float32": [2], "causal_before_the_keys_bare-float32": [1]}  # fmt: skip


def ids(pairs) -> list[str]:
    return [f"{case.name}-{dtype_name}" for case, dtype_name in pairs]


def ways(subject, name: str, case: Case, few: dict) -> list[tuple]:
    """Return the settings in which a subject is asked about a call, each with its splits."""
    keys, seed = case.shape.S, case.seed
    if "any_shape" in subject.capabilities:
        blocks = SMALL_BLOCKS if "small_blocks" in subject.capabilities else 0
        return [(i, splits(keys, 2 - (i is not None), 7 * seed + (i or 0)))
                for i in (None, *range(blocks))]  # fmt: skip
    if name not in few:
        raise NotOffered(f"{subject.name} would compile another call")
    return [(i, [even_split(keys, seed)]) for i in few[name]]


def in_blocks(subject, setting) -> AbstractContextManager:
    """Return the context in which calls are cut in small blocks, if there is a setting of them."""
    return nullcontext() if setting is None else subject.small_blocks(setting)


@clause("ATT-16")
@pytest.mark.parametrize(("case", "dtype_name"), WHOLE, ids=ids(WHOLE))
def test_parts_of_any_split_are_the_whole_call(subject, case, dtype_name):
    """Whatever stands in keys that no query is allowed."""
    policy, dirty = {"empty_rows": case.empty_rows}, dirtied(case, dtype_name)
    for setting, every in ways(subject, f"{case.name}-{dtype_name}", case, FEW):
        for split in every:
            sizes = [len(columns) for columns in split]
            for beside, inputs in {"": None, " beside hidden NaN and inf": dirty}.items():
                if beside and inputs is None:
                    continue
                given = pieces(case, dtype_name, split, inputs)
                with in_blocks(subject, setting):
                    got = subject.merged(case.inputs(dtype_name)[0], given, **policy)
                what = f"of parts of {sizes} keys{beside}, in small blocks {setting}"
                check_merged(got, case, dtype_name, what)


@clause("ATT-16")
@pytest.mark.parametrize(("case", "dtype_name"), BACKWARD, ids=ids(BACKWARD))
def test_parts_of_any_split_have_the_whole_calls_gradients(subject, case, dtype_name):
    """Of the output and of the log-sum-exp, and whatever stands in hidden keys."""
    require(subject, "gradients")
    dirty = dirtied(case, dtype_name)
    for setting, every in ways(subject, f"{case.name}-{dtype_name}", case, FEW_BACKWARD):
        split = every[0]
        sizes = [len(columns) for columns in split]
        for beside, inputs in {"": None, " beside hidden NaN and inf": dirty}.items():
            if beside and inputs is None:
                continue
            what = f"of parts of {sizes} keys{beside}, in small blocks {setting}"
            with in_blocks(subject, setting):
                check_merged_gradients(subject, case, dtype_name, split, what, inputs)


@clause("ATT-16")
def test_parts_have_the_gradients_of_a_log_sum_exp_alone(subject):
    """Where nobody asks for the output."""
    require(subject, "gradients")
    case, split = BY_NAME["causal_and_padding"], even_split(7, 3)
    for setting in (None, *range(SMALL_BLOCKS if "small_blocks" in subject.capabilities else 0)):
        with in_blocks(subject, setting):
            what = f"of a log-sum-exp, in small blocks {setting}"
            check_merged_gradients(subject, case, "float32", split, what, of=["lse"])


MOVED = ["causal_last", "causal_before_the_keys", "causal_per_sample", "window", "predicate"]


@clause("ATT-16")
@pytest.mark.parametrize("name", MOVED)
def test_positional_masks_of_neighbouring_keys_are_moved_by_the_offset(subject, name):
    """Key 0 of a part that begins at key 3 stands there: the queries start 3 places earlier."""
    mask, offset, T = KINDS[name]
    if name == "predicate":
        mask = KINDS["window"][0] | KINDS["causal_last"][0]
    case = Case(name, MAIN._replace(T=T), mask, offset)
    given = pieces(case, "float32", [np.arange(4), np.arange(4, 7)])
    for piece, start in zip(given, (0, 4), strict=True):
        piece |= {"mask": mask, "query_offset": np.asarray(offset) - start}
        if piece["query_offset"].ndim == 0:
            piece["query_offset"] = int(piece["query_offset"])
    got = subject.merged(case.inputs("float32")[0], given)
    check_merged(got, case, "float32", f"of {name} moved by the offset")


GROUPINGS = {
    "all": [0, 1, 2, 3], "back": [3, 2, 1, 0], "from_the_left": [[[0, 1], 2], 3],
    "from_the_right": [0, [1, [2, 3]]], "pairs": [[3, 1], [0, 2]],
}  # fmt: skip


@clause("ATT-16")
@pytest.mark.parametrize("name", GROUPINGS)
def test_parts_merge_in_any_order_and_grouping(subject, name):
    case = Case("grouped", GROUPED, causal() & padding(LENGTHS), 2, "heads", None, 0.9)
    given = pieces(case, "float32", [np.array(x) for x in ([6, 0], [5, 2], [3], [1, 4])])

    def nested(places):
        return [nested(x) if isinstance(x, list) else given[x] for x in places]

    got = subject.merged(case.inputs("float32")[0], nested(GROUPINGS[name]))
    check_merged(got, case, "float32", f"merged {name}")


def hidden_part(case: Case, fill: float) -> dict:
    """Return a piece of which no query is allowed a key."""
    _, key, value = case.inputs("float32")
    mask = allow(np.zeros((1, 1, case.shape.T, 2), bool))
    return {"key": key[:, :, :2] * fill, "value": value[:, :, :2] * fill, "mask": mask}


@clause("ATT-16")
@pytest.mark.parametrize("fill", [1, np.nan, np.inf, 1e30])
@pytest.mark.parametrize("before", [False, True])
def test_a_part_in_which_rows_are_fully_masked_changes_nothing(subject, before, fill):
    """Bit for bit, and two such parts are one."""
    case = BY_NAME["causal_and_padding"]
    query = case.inputs("float32")[0]
    own, nothing = pieces(case, "float32", [np.arange(7)]), [hidden_part(case, np.float32(fill))]
    alone = subject.merged(query, own)
    beside = subject.merged(query, nothing + own if before else own + nothing)
    for name, array in alone.items():
        same(beside[name], array, f"{name} beside a part of hidden keys")
    twice = subject.merged(query, nothing * 2)
    rows = np.zeros((3, 2, 5))
    wanted = {"sums": np.zeros((3, 2, 5, 13)), "maximum": rows - np.inf, "total": rows,
              "lse": rows - np.inf, "output": np.zeros((3, 2, 5, 13))}  # fmt: skip
    for name, array in wanted.items():
        same(twice[name], array, f"{name} of two parts of hidden keys")


@clause("ATT-16")
def test_no_key_at_all_is_a_part_of_fully_masked_rows(subject):
    case = Case("plain", MAIN)
    query = case.inputs("float32")[0]
    own, nothing = pieces(case, "float32", [np.arange(7), np.arange(0)])
    alone, beside = subject.merged(query, [own]), subject.merged(query, [nothing, own])
    for name, array in alone.items():
        same(beside[name], array, f"{name} beside a part of no key")
    for policy, row in {"zero": 0.0, "nan": np.nan}.items():
        got = subject.merged(query, [nothing], empty_rows=policy)["output"]
        same(got, np.full(got.shape, row), f"output of no key under {policy}")


@clause("ATT-16")
@pytest.mark.parametrize("fill", [np.nan, np.inf])
@pytest.mark.parametrize("role", ["key", "value"])
def test_what_is_no_number_in_a_part_reaches_its_rows_alone(subject, role, fill):
    case = BY_NAME["causal"]
    exact, rough = (steps["output"] for steps in case.expected("float32"))
    inputs = [np.array(x) for x in case.inputs("float32")]
    inputs[1 if role == "key" else 2][2, 1, 6] = fill
    reached = np.zeros(MAIN.call[:3], bool)
    reached[2, 1, 4:] = True  # key 6 is allowed from position 6 on: row 4
    split = [np.array([4, 6, 0]), np.array([], int), np.array([5, 2, 3, 1])]
    settings = [None]
    if "any_shape" in subject.capabilities:
        settings += range(SMALL_BLOCKS)
    for setting in settings:
        given = pieces(case, "float32", split, inputs)
        with in_blocks(subject, setting):
            got = subject.merged(inputs[0], given)
        for name in ("output", "lse"):
            if np.isfinite(got[name][reached]).all(-1).any():
                raise Differs(f"{name} of a row that may attend to {fill} must show it: got {got}")
        others = np.where(reached[..., None], exact, got["output"])
        compare(others, exact, rough, f"other rows in small blocks {setting}", MERGED)


@clause("ATT-16")
@pytest.mark.parametrize("fill", [-1e9, -1e30, np.finfo(np.float32).min], ids=str)
def test_a_finite_fill_is_no_mask_in_parts_either(subject, fill):
    """It swallows the scores: the mean of all values is left, whatever a logarithm would keep."""
    query, key, value = Case("plain").inputs("float32")
    split = [np.array([5]), np.array([0, 2, 6, 1, 3, 4])]
    given = [
        {
            "key": key[:, :, c],
            "value": value[:, :, c],
            "bias": np.full((5, len(c)), fill, np.float32),
        }
        for c in split
    ]
    mean = value.astype(np.float64).mean(2, keepdims=True)
    got = subject.merged(query, given)["output"]
    compare(got, np.broadcast_to(mean, got.shape), value.mean(2, keepdims=True), "mean", MERGED)


@clause("ATT-16")
@pytest.mark.parametrize("dtype_name", ["float32", "float16", "bfloat16"])
def test_4096_equal_weights_in_parts_sum_to_one(subject, dtype_name):
    """The sum of the values is beyond float16, and their mean is not."""
    shapes = ((3, 2, 0), (4096, 2, 1), (4096, 5, 100))
    query, key, value = (np.full((1, 1, n, d), x, dtype(dtype_name)) for n, d, x in shapes)
    ends = (0, 1000, 1007, 4096)
    given = [{"key": key[:, :, i:j], "value": value[:, :, i:j]} for i, j in pairwise(ends)]
    same(subject.merged(query, given)["output"], np.full((1, 1, 3, 5), 100), "the mean of 100s")


@clause("ATT-16")
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_an_overflowing_row_of_a_part_is_not_an_empty_one(subject, scale):
    """Alone it is NaN, or the largest's value; beside logits that are numbers it weighs nothing."""
    query = np.full((1, 1, 1, 3), 1e20, np.float32)
    far = np.full((1, 1, 2, 3), np.float32(-scale * 1e20))  # each logit is -inf in float32
    far[:, :, 1] *= 3
    near, ones = np.zeros((1, 1, 2, 3), np.float32), np.ones((1, 1, 2, 3), np.float32)
    lost = {"key": far, "value": np.array([[[[1] * 3, [5] * 3]]], np.float32), "scale": scale}
    number = {"key": near, "value": 3 * ones, "scale": scale}
    for given in ([lost], [lost, lost]):
        got = subject.merged(query, given, empty_rows="zero")["output"]
        check_each(np.isnan(got) | (got == 1), got, "output", "NaN or the value 1")
    for given in ([lost, number], [number, lost]):
        same(subject.merged(query, given)["output"], np.full((1, 1, 1, 3), 3.0), "output beside 0")


FAR = [{"key": 80.0, "value": 1.0}, {"key": -80.0, "value": 2.0}, {"key": 0.0, "value": 3.0}]


@clause("ATT-16")
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)], ids=str)
def test_parts_whose_scores_are_far_apart_do_not_overflow(subject, order):
    query = np.ones((1, 1, 1, 3), np.float32)
    given = [{n: np.full((1, 1, 2, 3), FAR[i][n], np.float32) for n in FAR[i]} for i in order]
    same(subject.merged(query, given)["output"], np.ones((1, 1, 1, 3)), "output")


COMPILED = [(BY_NAME["causal_and_padding"], "float32"), (Case("softcap", GROUPED,
             padding(LENGTHS), None, "heads", None, 0.9), "float16")]  # fmt: skip


@clause("ATT-16")
@pytest.mark.needs("compiled")
@pytest.mark.parametrize(("case", "dtype_name"), COMPILED, ids=ids(COMPILED))
def test_compiled_parts_are_the_whole_call(subject, case, dtype_name):
    """In one graph: the parts, how they merge and the last division."""
    given = pieces(case, dtype_name, even_split(7, 3))
    got = subject.merged(case.inputs(dtype_name)[0], given, through="compiled")
    check_merged(got, case, dtype_name, "of compiled parts")


@clause("ATT-16")
@pytest.mark.parametrize("T", [1, 5])
def test_parts_of_one_query_or_one_key_are_the_whole_call(subject, T):
    case = Case("few", MAIN._replace(T=T, S=3), padding([3, 0, 2]))
    given = pieces(case, "float32", [np.array([x]) for x in (2, 0, 1)])
    got = subject.merged(case.inputs("float32")[0], given)
    check_merged(got, case, "float32", "of parts of one key")


LONG = [case for case in TRUE_SIZES if case.shape.T > 1][:4]


@clause("ATT-16")
@pytest.mark.parametrize("case", LONG, ids=[case.name for case in LONG])
def test_parts_at_true_sizes_are_the_whole_call(subject, case):
    """Output and gradients: neighbouring keys, of which the parts are large and unequal."""
    if case is not LONG[1]:
        require(subject, "any_shape")
    S = case.shape.S
    split = np.split(np.arange(S), [S // 5, S // 5 + 1, S // 2])[::-1]
    query, grad = case.inputs("float32")[0], case.grad("float32")
    given = pieces(case, "float32", split)
    exact, rough = case.answers("attention", "float32")
    got = subject.merged(query, given)["output"]
    compare(got, exact["output"], rough["output"], "output of parts", MERGED)
    if "gradients" not in subject.capabilities:
        return
    exact, rough = case.answers("gradients", "float32")
    found = gathered(subject.merged_gradients(query, given, {"output": grad}), exact, split)
    for name in exact:
        compare(found[name], exact[name], rough[name], f"gradient of {name} of parts", MERGED)


@clause("ATT-16")
@pytest.mark.parametrize("far", FROM_ZERO)
def test_gradients_of_parts_far_from_zero_are_the_whole_calls(subject, far):
    """One key takes all of a row's weight, so that what cancels is all that there is."""
    require(subject, "gradients")
    case = BY_NAME["causal_and_padding"]
    inputs, grads = move(case, far), {"output": case.grad("float32")}
    call = (*inputs, grads["output"])
    exact, rough = expected.gradients(*call, allowed=case.allowed())
    more = expected.cancelled(*call, allowed=case.allowed())
    split = even_split(7, 4)
    given = pieces(case, "float32", split, inputs)
    got = gathered(subject.merged_gradients(inputs[0], given, grads), exact, split)
    for name in exact:
        words = f"gradient of {name} far from zero"
        compare(got[name], exact[name], rough[name], words, MERGED, more[name])


SINKS = np.array([0.7, -1.3, 2.1, 0.0], np.float32)


def with_sinks(case: Case, sinks: np.ndarray, numbers: dict) -> tuple[tuple, dict]:
    """Return a call in which a sink is one more key, of which the score is the bias alone."""
    query, key, value = case.inputs("float32")
    key, value = (np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))) for x in (key, value))
    bias = np.broadcast_to(numbers["bias"], (1, len(sinks), 1, case.shape.S))
    bias = np.concatenate([bias, sinks[None, :, None, None]], -1)
    allowed = np.pad(case.allowed(), ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=True)
    return (query, key, value), numbers | {"bias": bias, "allowed": allowed}


@clause("ATT-16")
@pytest.mark.parametrize("policy", ["zero", "nan"])
def test_sinks_join_the_total_of_what_is_merged(subject, policy):
    """As a key without a value would: a fully masked row is 0, and sinks have gradients, too."""
    case = Case("sinks", GROUPED, causal() & padding(LENGTHS), 2, "heads")
    numbers = case.numbers("float32")
    inputs, options = with_sinks(case, SINKS, numbers)
    exact, rough = (steps["output"] for steps in expected.attention(*inputs, **options))
    split = even_split(7, 5)
    given, query = pieces(case, "float32", split), inputs[0]
    got = subject.merged(query, given, sinks=SINKS, empty_rows=policy)["output"]
    compare(got, exact, rough, "output with sinks", MERGED)
    require(subject, "gradients")
    grads = {"output": case.grad("float32")}
    exact, rough = expected.gradients(*inputs, grads["output"], **options)
    more = expected.cancelled(*inputs, grads["output"], **options)
    for answer in (exact, rough):
        answer["sinks"] = answer["bias"][0, :, 0, -1]
        answer["bias"] = answer["bias"][..., :-1]
        answer |= {name: answer[name][:, :, :-1] for name in ("key", "value")}
    got = gathered(subject.merged_gradients(query, given, grads, sinks=SINKS), exact, split)
    for name in exact:
        words = f"gradient of {name} with sinks"
        compare(got[name], exact[name], rough[name], words, MERGED, more.get(name, more["bias"]))


@clause("ATT-16")
def test_a_sink_may_be_any_number(subject):
    """-inf is none, the lowest number next to none, NaN and inf make NaN of their head's rows."""
    case = Case("any_sink", GROUPED._replace(H=6, H_kv=2), padding([7, 0, 4]))
    query, given = (
        case.inputs("float32")[0],
        pieces(case, "float32", [np.arange(3), np.arange(3, 7)]),
    )
    lowest = np.finfo(np.float32).min
    sinks = np.array([-np.inf, lowest, np.nan, np.inf, -np.inf, 3e38], np.float32)
    got = subject.merged(query, given, sinks=sinks, empty_rows="nan")["output"]
    exact, rough = (np.array(steps["output"]) for steps in case.expected("float32"))
    for answer in (exact, rough):
        answer[:, 2:4], answer[:, 5] = np.nan, 0
    compare(got, exact, rough, "output with sinks", MERGED)
