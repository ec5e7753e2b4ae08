"""The chapter on what frameworks make of a call: one graph, exported, mapped, rematerialised."""

from dataclasses import replace

import numpy as np
import pytest

from .cases import multihead
from .cases.attention import BY_NAME, GROUPED, LENGTHS, MAIN, PLAIN, Case, names
from .cases.compare import check_output
from .cases.decoding import STREAMS, part
from .cases.models import ModelCase
from .cases.transforms import EVERY, GROWN, LONG, OTHERS, SIZES, check_calls, grown, other, rolled
from .contract import clause
from .mask_spec import Spec, causal, padding, predicate, sliding_window
from .oracle import reference, reference_layers
from .oracle.tolerance import Differs, compare, same
from .subjects.protocol import require

pytestmark = pytest.mark.untyped
HIDDEN = np.arange(7) >= np.array(LENGTHS)[:, None]  # (B, S)


def check_programs(programs: int) -> None:
    if programs != 1:
        raise Differs(f"expected one program for all values, got {programs}")


# TRF-1, as one graph


@clause("TRF-1")
@pytest.mark.parametrize("case", EVERY, ids=names(EVERY))
def test_one_graph_gives_what_the_oracle_gives_at_any_values(subject, case):
    require(subject, "transforms")
    check_programs(check_calls(subject, "graph", [case, other(case)]))


@clause("TRF-1")
def test_one_graph_does_not_round_logits_to_16_bits(subject):
    """Logits of 50: rounded to 16 bits they would move the weights by a tenth."""
    require(subject, "transforms")
    case, dtype = Case("sharp", MAIN._replace(D=7), causal() & padding(LENGTHS), 2), "bfloat16"
    query, key, value = case.inputs(dtype)
    inputs = ((query.astype(np.float32) * 20).astype(query.dtype), key, value)
    named = dict(zip(("query", "key", "value"), inputs, strict=True))
    (got,), _ = subject.transformed("graph", [{"inputs": named, "options": case.options(dtype)}])
    check_output(got, *inputs, "output of the graph", allowed=case.allowed())


COMPILED_BACK = [BY_NAME["causal_and_padding"], BY_NAME["allow"], OTHERS[3]]


@clause("TRF-1")
@pytest.mark.parametrize("case", COMPILED_BACK, ids=names(COMPILED_BACK))
def test_one_graph_gives_the_gradients_too(subject, case):
    require(subject, "transforms", "gradients")
    check_programs(check_calls(subject, "graph", [case, other(case)], gradients=True))


@clause("TRF-1")
@pytest.mark.parametrize("name", ["padding", "uniform_rows"])
def test_one_graph_of_the_frameworks_own_kernels(subject, name):
    require(subject, "transforms")
    case = next(case for case in EVERY if case.name == name)
    check_programs(check_calls(subject, "kernels", [case, other(case)]))


@clause("TRF-1")
def test_one_graph_of_a_long_call(subject):
    require(subject, "transforms")
    cases = [Case("long", LONG, sliding_window(40, 3), 1, seed=i) for i in range(2)]
    check_programs(check_calls(subject, "graph", cases))


def model_call(inputs: dict, options: dict, **more) -> dict:
    return {"inputs": inputs, "options": options} | more


MODELS = {
    "encoder_layer": (ModelCase("encoder_layer"), "src_key_padding_mask", "src"),
    "pre_norm": (ModelCase("encoder_layer", {"norm_first": True}), "src_key_padding_mask", "src"),
    "decoder_layer": (ModelCase("decoder_layer"), "memory_key_padding_mask", "memory"),
    "encoder": (ModelCase("encoder", {"norm": True}), "src_key_padding_mask", "src"),
}


@clause("TRF-1")
@pytest.mark.parametrize(
    ("name", "as_mask"),
    [
        ("encoder_layer", True),
        ("encoder_layer", False),
        ("pre_norm", False),
        ("decoder_layer", True),
    ],
)
def test_one_graph_of_a_model_with_padding(subject, name, as_mask):
    require(subject, "transforms", "layers")
    case, option, part = MODELS[name]
    hiddens = [HIDDEN, rolled(HIDDEN)]
    inputs = [case.inputs(), ModelCase(case.kind, case.changes, seed=1).inputs()]
    options = [{option: padding(hidden=h) if as_mask else h} for h in hiddens]
    calls = [model_call(x, o) for x, o in zip(inputs, options, strict=True)]
    parameters = case.parameters()
    given = {"kind": case.kind, "config": case.config, "parameters": parameters}
    found, programs = subject.transformed("graph", calls, **given)
    check_programs(programs)
    for got, x, hidden in zip(found, inputs, hiddens, strict=True):
        exact, naive = case.expected(x, parameters, **{part: (~hidden[:, None, None], None)})
        compare(got, exact["output"], naive["output"], "output of one graph")


DECODING = ["attention", "encoder", "decoder"]


@clause("TRF-1")
@pytest.mark.parametrize("name", DECODING)
def test_decoding_compiled_as_one_graph_is_compiled_once(subject, name):
    require(subject, "transforms")
    stream = STREAMS[name]
    x, decoding = stream.tokens(length=11), stream.start(subject, 12, compiled=True)
    stream.check_feeds(decoding, x, range(1, 12), *stream.one_pass(x))
    same(decoding.lengths, [11] * 3, "lengths")
    check_programs(decoding.programs)


# TRF-2, exported


@clause("TRF-2")
@pytest.mark.parametrize("name", GROWN)
def test_an_exported_call_is_right_at_every_size(subject, name):
    require(subject, "transforms")
    check_calls(subject, "exported", grown(name))


@clause("TRF-2")
@pytest.mark.parametrize("name", ["encoder_layer", "encoder"])
@pytest.mark.parametrize("has_padding", [False, True], ids=["plain", "padding"])
def test_an_exported_model_is_right_at_every_size(subject, name, has_padding):
    require(subject, "transforms", "layers")
    case, option, part = MODELS[name]
    calls, alloweds = [], []
    for i, (B, _, S) in enumerate(SIZES):
        x = np.random.default_rng(i).normal(size=(B, S, 14)).astype(np.float32)
        hidden = np.arange(S) >= (np.arange(B) * 3 % (S + 1))[:, None]
        calls.append(model_call({"src": x}, {option: hidden} if has_padding else {}))
        alloweds.append(~hidden[:, None, None] if has_padding else True)
    parameters = case.parameters()
    given = {"kind": case.kind, "config": case.config, "parameters": parameters}
    found, _ = subject.transformed("exported", calls, **given)
    for got, call, allowed in zip(found, calls, alloweds, strict=True):
        exact, naive = case.expected(call["inputs"], parameters, **{part: (allowed, None)})
        compare(got, exact["output"], naive["output"], "output of the exported model")


# TRF-3, mapped


def moved(case: Case) -> Case:
    """Return a call of other inputs, whose mask stays."""
    return replace(case, seed=case.seed + 1)


MAPPED = ["plain", "causal_and_padding", "causal_per_sample", "segments", "packed", "part", "allow",
          "predicate"]  # fmt: skip


@clause("TRF-3")
@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # on what vmap has stacked
@pytest.mark.parametrize("gradients", [False, True], ids=["output", "gradients"])
@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_call_is_the_loop(subject, name, gradients):
    """Samples are mapped, or masks and offsets too."""
    require(subject, "transforms", *(["gradients"] if gradients else []))
    case = BY_NAME[name]
    check_calls(subject, "mapped", [case, moved(case), moved(moved(case))], gradients)
    check_calls(subject, "mapped", [case, other(case)], gradients)


@clause("TRF-3")
@pytest.mark.parametrize("case", OTHERS, ids=names(OTHERS))
def test_every_other_call_mapped_is_the_loop(subject, case):
    require(subject, "transforms")
    check_calls(subject, "mapped", [case, other(case)])


@clause("TRF-3")
@pytest.mark.parametrize("gradients", [False, True], ids=["output", "gradients"])
def test_a_long_mapped_call_is_the_loop(subject, gradients):
    """Lengths, windows' offsets and inputs are mapped, over more than one tile."""
    require(subject, "transforms")
    ways = [([97], [2]), ([131], [0])]
    cases = [
        Case("long", LONG, causal() & padding(lengths), np.array(offset), seed=i)
        for i, (lengths, offset) in enumerate(ways)
    ]
    check_calls(subject, "mapped", cases, gradients)


@clause("TRF-3")
def test_mapped_models_are_the_loop(subject):
    require(subject, "transforms", "layers")
    cases = [ModelCase("encoder_layer", seed=i) for i in range(3)]
    x = cases[0].inputs()
    calls = [
        model_call(x, {"src_key_padding_mask": HIDDEN}, parameters=c.parameters()) for c in cases
    ]
    given = {"kind": "encoder_layer", "config": cases[0].config}
    found, _ = subject.transformed("mapped", calls, **given, parameters=cases[0].parameters())
    for case, got in zip(cases, found, strict=True):
        exact, naive = case.expected(x, case.parameters(), src=(~HIDDEN[:, None, None], None))
        compare(got, exact["output"], naive["output"], "output of a mapped model")


# TRF-6, rematerialised, scanned, altered


REMATERIALISED = [BY_NAME["causal_and_padding"], BY_NAME["allow"], BY_NAME["predicate"], OTHERS[3]]


@clause("TRF-6")
@pytest.mark.parametrize("case", REMATERIALISED, ids=names(REMATERIALISED))
def test_rematerialised_gradients_are_the_oracles(subject, case):
    require(subject, "transforms", "gradients")
    arguments = (*case.inputs("float32"), case.grad("float32"))
    got = subject.gradients(*arguments, through="remat", **case.options("float32"))
    exact, naive = case.expected_gradients("float32")
    for name in exact:
        compare(got[name], exact[name], naive[name], f"rematerialised gradient of {name}")


PARAMETERS = [PLAIN, *OTHERS[1:6]]


@clause("TRF-6")
@pytest.mark.parametrize("case", PARAMETERS, ids=names(PARAMETERS))
def test_inputs_may_be_parameters(subject, case):
    require(subject, "transforms")
    check_calls(subject, "parameters", [case])


WITH_GRADIENTS = [case for case in PARAMETERS if case.empty_rows != "nan"]


@clause("TRF-6")
@pytest.mark.parametrize("case", WITH_GRADIENTS, ids=names(WITH_GRADIENTS))
def test_parameters_as_inputs_have_gradients(subject, case):
    require(subject, "transforms")
    check_calls(subject, "parameters", [case], gradients=True)


@clause("TRF-6")
def test_scanned_layers_are_the_stack(subject):
    require(subject, "transforms", "layers")
    stack = ModelCase("encoder")
    parameters, x = stack.parameters(), stack.inputs()
    own = [reference_layers.within(parameters, f"layers.{i}.") for i in range(2)]
    layer = ModelCase("encoder_layer")
    calls = [model_call(x, {"src_key_padding_mask": HIDDEN}, parameters=p) for p in own]
    given = {"kind": layer.kind, "config": layer.config, "parameters": own[0]}
    (got,), _ = subject.transformed("scanned", calls, **given)
    exact, naive = stack.expected(x, parameters, src=(~HIDDEN[:, None, None], None))
    compare(got, exact["output"], naive["output"], "output of scanned layers")


ALTERED = ["deepcopied", "pickled", "wrapped", "packed"]


@clause("TRF-6")
@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize("name", ["SELF", "GROUPED", "NO_BIAS"])
def test_an_altered_attention_gives_the_same_numbers(subject, name, how):
    require(subject, "altered")
    call = getattr(multihead, name)
    keys = call.S or 5
    hidden = np.arange(keys) >= np.array([keys, 0, 3])[:, None]
    allowed = np.broadcast_to(~hidden[:, None, None], (3, call.heads[0], 5, keys))
    with subject.altered(how):
        call.check(subject, {"key_padding_mask": hidden}, allowed)


@clause("TRF-6")
@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize("name", ["encoder_layer", "decoder_layer", "encoder"])
def test_an_altered_model_gives_the_same_numbers(subject, name, how):
    require(subject, "altered", "layers")
    case, option, part = MODELS[name]
    with subject.altered(how):
        case.check(subject, {option: HIDDEN}, **{part: (~HIDDEN[:, None, None], None)})


@clause("TRF-6")
@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.parametrize("name", ["attention", "grouped", *DECODING[1:]])
def test_an_altered_model_decodes_to_the_same_numbers(subject, name, how):
    """The cache is made by the altered model too."""
    require(subject, "altered")
    stream = STREAMS[name]
    with subject.altered(how):
        decoding = stream.start(subject)
    stream.check_feeds(decoding, stream.tokens(), (3, 4, 5, 7), *stream.whole())


@clause("TRF-6")
def test_hooks_are_called(subject):
    """A hook that doubles what a projection gives is a projection of twice the parameters."""
    require(subject, "altered", "multihead")
    call = multihead.SELF
    parameters, inputs = call.parameters("float32"), call.inputs()
    for name in ("q_proj.weight", "q_proj.bias"):
        parameters[name] = parameters[name] / 2
    with subject.altered("hooked"):
        got, _ = subject.multihead(call.config, parameters, inputs[0], need_weights=False)
    exact, naive = call.expected(np.ones((3, 2, 5, 5), bool))
    compare(got, exact["output"], naive["output"], "output of a hooked attention")


# TRF-7, values that nobody may look at


def overflowing(number: float, policy: str) -> dict:
    """Return a call of three rows: a healthy one, one that overflows, a fully masked one."""
    query = np.ones((1, 2, 3, 5), np.float32)
    key, value = np.ones((1, 2, 7, 5), np.float32), np.ones((1, 2, 7, 2), np.float32)
    query[:, :, 1], key[:, :, :] = number, key * -1e25
    query[:, :, 0] = 1e-25
    hidden = np.zeros((1, 1, 3, 7), bool)
    hidden[:, :, 2] = True
    options = {"mask": Spec("hide", {"array": hidden}), "empty_rows": policy}
    inputs = {"query": query, "key": key, "value": value}
    return {"inputs": inputs, "options": options}


@clause("TRF-7")
@pytest.mark.parametrize(
    ("how", "policy", "number"),
    [
        *((how, "zero", 1e25) for how in ("graph", "parameters", "mapped", "kernels")),
        *((how, "uniform", 1e25) for how in ("graph", "parameters", "mapped")),
        *((how, "zero", np.inf) for how in ("graph", "parameters", "mapped")),
    ],
)
def test_an_overflowing_row_is_nan_where_nobody_can_look(subject, number, policy, how):
    require(subject, "transforms")
    call = overflowing(number, policy)
    got = subject.transformed(how, [call])[0][0]
    rows = np.array([1, np.nan, {"zero": 0, "uniform": 1}[policy]], np.float32)
    wanted = np.broadcast_to(rows[:, None], got.shape)
    same(np.isnan(got), np.isnan(wanted), f"NaN in the {how} output of an overflowing row")
    exact = wanted[:, :, [0, 2]]
    compare(got[:, :, [0, 2]], exact, exact, f"{how} output of the other rows")


GARBAGE = [np.nan, np.inf]


@clause("TRF-7")
@pytest.mark.parametrize("how", ["graph", "parameters", "mapped"])
@pytest.mark.parametrize("fill", GARBAGE)
@pytest.mark.parametrize("role", ["key", "value"])
def test_hidden_garbage_changes_nothing_where_nobody_can_look(subject, role, fill, how):
    require(subject, "transforms")
    case = BY_NAME["padding"]
    inputs = dict(
        zip(("query", "key", "value"), map(np.array, case.inputs("float32")), strict=True)
    )
    inputs[role].swapaxes(1, 2)[HIDDEN] = fill
    call = {"inputs": inputs, "options": case.options("float32")}
    got = subject.transformed(how, [call])[0][0]
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    compare(got, exact, naive, f"{how} output")


@clause("TRF-7")
@pytest.mark.parametrize("how", ["graph", "parameters", "mapped"])
def test_nan_reaches_the_rows_that_may_attend_to_it_where_nobody_can_look(subject, how):
    """In one key head of two, which two query heads share."""
    require(subject, "transforms", "grouped")
    case = Case("causal", GROUPED, causal(), np.array([0, 1, 2]))
    inputs = dict(
        zip(("query", "key", "value"), map(np.array, case.inputs("float32")), strict=True)
    )
    inputs["key"][:, 1, 3] = np.nan
    call = {"inputs": inputs, "options": case.options("float32")}
    got = subject.transformed(how, [call])[0][0]
    reached = case.allowed()[..., 3] & (np.arange(4) >= 2)[:, None]
    same(np.isnan(got), np.broadcast_to(reached[..., None], got.shape), "NaN in the output")
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    hidden = np.where(reached[..., None], exact, got)
    compare(hidden, exact, naive, "output of the rows that NaN does not reach")


@clause("TRF-7")
@pytest.mark.parametrize("how", ["graph", "parameters", "mapped"])
@pytest.mark.parametrize("role", ["key", "value"])
def test_the_mean_over_a_key_that_is_nan_is_nan_where_nobody_can_look(subject, role, how):
    """Sample 1 is hidden whole; of its two key heads, one holds the NaN."""
    require(subject, "transforms", "empty_rows", "grouped")
    case = Case("uniform", GROUPED, padding(LENGTHS), empty_rows="uniform")
    inputs = dict(
        zip(("query", "key", "value"), map(np.array, case.inputs("float32")), strict=True)
    )
    inputs[role][1, 1, 6] = np.nan
    call = {"inputs": inputs, "options": case.options("float32")}
    got = subject.transformed(how, [call])[0][0]
    lost = np.zeros(got.shape, bool)
    lost[1, 2:] = True
    same(np.isnan(got), lost, f"NaN in the {how} output")
    exact, naive = (steps["output"] for steps in case.expected("float32"))
    compare(np.where(lost, exact, got), exact, naive, f"{how} output of the other rows")


@clause("TRF-7")
@pytest.mark.parametrize("projection", ["k_proj", "v_proj"])
def test_weights_that_are_not_finite_decode_to_nan_where_nobody_can_look(subject, projection):
    require(subject, "transforms", "cache")
    stream = STREAMS["attention"]
    x, parameters = stream.tokens(length=11), stream.parameters()
    spoiled = np.array(parameters[f"{projection}.weight"])
    spoiled[0, 0] = np.nan
    parameters[f"{projection}.weight"] = spoiled
    given = {"capacity": 12, "batch_size": 3, "compiled": True}
    decoding = subject.decoding("attention", stream.config, parameters, **given)
    for t in range(11):
        got = decoding.feed(x[:, t : t + 1])
        same(got, np.full(got.shape, np.nan), f"token {t}")


@clause("TRF-7")
def test_beyond_the_capacity_is_nan_where_nobody_can_look(subject):
    require(subject, "transforms")
    stream = STREAMS["attention"]
    x, (exact, naive) = stream.tokens(), stream.whole()
    decoding = stream.start(subject, 5, compiled=True)
    for t in range(7):
        got = stream.feed(decoding, x[:, t : t + 1])
        if t < 5:
            part(got, exact, naive, t, f"token {t}")
        else:
            same(got, np.full(got.shape, np.nan), f"token {t} of five slots")
    for got, name in zip(decoding.look(x[:, :2]), ("output", "weights"), strict=True):
        same(got, np.full(got.shape, np.nan), f"{name} of a look at them")


@clause("TRF-7")
def test_hidden_tokens_leave_the_last_slot_alone_where_nobody_can_look(subject):
    """Each feed brings two tokens, and each sample stores one of them, the other, or none."""
    require(subject, "transforms")
    stream, hidden = STREAMS["attention"], np.array([[0, 1], [1, 0], [1, 1]], bool)
    x = stream.tokens(length=8)
    stored = np.stack([x[0, 0::2], x[1, 1::2], x[2, 0::2]])
    exact, naive = stream.one_pass(stored)
    decoding = stream.start(subject, 4, compiled=True)
    for t in range(4):
        got = decoding.feed(x[:, 2 * t : 2 * t + 2], hidden=hidden)
        part(got[[0, 1], [0, 1]][:, None], exact[:2], naive[:2], t, f"token {t} of four slots")
        same(got[hidden], np.zeros_like(got[hidden]), "hidden tokens")


POSITIONAL = {
    "causal": causal(),
    "window": sliding_window(3, 2),
    "predicate": predicate(lambda batch, head, query, key: key < query),
}
FAR = {"before": -(2**30), "at": 1, "behind": 2**30}


@clause("TRF-7")
@pytest.mark.parametrize("how", ["graph", "parameters", "mapped"])
@pytest.mark.parametrize("name", POSITIONAL)
def test_far_offsets_are_right_where_nobody_can_look(subject, name, how):
    require(subject, "transforms")
    case = Case("far", MAIN, POSITIONAL[name], np.array(list(FAR.values()), np.int32))
    check_calls(subject, how, [case, moved(case)] if how == "mapped" else [case])


@clause("TRF-7")
def test_fully_masked_rows_of_grouped_heads_where_nobody_can_look(subject):
    require(subject, "transforms")
    allowed = np.array(reference.allowed(causal(), GROUPED.call, 0))
    allowed[1, 2] = allowed[:, 3, 4] = False
    case = Case("rows", GROUPED, Spec("allow", {"array": allowed}), bias="rank4")
    check_programs(check_calls(subject, "graph", [case, other(case)]))
