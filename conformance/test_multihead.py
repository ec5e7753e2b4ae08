"""The chapter on multi-head attention: the documents' call, its masks, its parameters."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

from .cases import multihead
from .cases.arrays import coins, normal
from .cases.attention import LENGTHS
from .cases.compare import refused
from .cases.multihead import CROSS, GROUPED, SELF, MultiHeadCase
from .contract import clause
from .mask_spec import causal, padding, sliding_window
from .oracle import expected, reference
from .oracle.tolerance import Differs, check_each, check_shape, close, compare, same
from .subjects.protocol import NotOffered, require

pytestmark = pytest.mark.untyped

HIDDEN = np.arange(7) >= np.array(LENGTHS)[:, None]  # (B, S), as key_padding_mask takes it
RAGGED = np.broadcast_to(~HIDDEN[:, None, None], (3, 2, 5, 7))
ALL = np.ones((3, 2, 5, 7), bool)


@clause("MHA-1")
def test_width_is_kept(subject):
    require(subject, "multihead")
    config = {"embed_dim": 512, "num_heads": 8}
    parameters = multihead.MultiHeadCase(config, kdim=512, vdim=512).parameters("float32")
    x = normal(0, 2, 7, 512, dtype_name="float32")
    output, weights = subject.multihead(config, parameters, x)
    check_shape(output, (2, 7, 512), "output")
    if "weights" in subject.capabilities:
        check_shape(weights, (2, 7, 7), "weights")


@clause("MHA-1")
def test_neighbours_stay_neighbours_in_a_head(subject):
    require(subject, "multihead")
    eye, zero = np.eye(128, dtype=np.float32), np.zeros((128, 128), np.float32)
    parameters = {f"{n}.weight": eye for n in ("v_proj", "out_proj")}
    parameters |= {"q_proj.weight": zero, "k_proj.weight": eye}
    x = normal(0, 1, 7, 128, dtype_name="float32")
    config = {"embed_dim": 128, "num_heads": 8, "bias": False}
    hidden = np.array([[True] + [False] * 6] + [[False] * 7] * 7)[None, :, None, :]
    hidden = np.broadcast_to(hidden, (1, 8, 7, 7))  # head 0 alone does not see key 0
    output, _ = subject.multihead(config, parameters, x, attn_mask=hidden)
    mean, tail = x.astype(float).mean(1), x[:, 1:].astype(float).mean(1)
    exact = np.concatenate([tail[:, :16], mean[:, 16:]], -1)
    naive = np.concatenate([x[:, 1:].mean(1)[:, :16], x.mean(1)[:, 16:]], -1)
    spread = [np.broadcast_to(y[:, None], output.shape) for y in (exact, naive)]
    compare(output, *spread, "head 0 is the first 16 features")


@clause("MHA-2")
@pytest.mark.parametrize("heads", [1, 2, 7])
def test_parameter_count_does_not_depend_on_heads(subject, heads):
    require(subject, "multihead")
    found = subject.parameters({"embed_dim": 14, "num_heads": heads})
    count = sum(x.size for x in found.values())
    assert count == 4 * (14 * 14 + 14), f"MHA-2: {heads} heads have {count} parameters"


@clause("MHA-2")
def test_weights_start_xavier_uniform_and_biases_at_zero(subject):
    require(subject, "multihead")
    found = subject.parameters({"embed_dim": 140, "num_heads": 2, "kdim": 60})
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        weight = found[f"{name}.weight"]
        bound = np.sqrt(6 / sum(weight.shape))
        same(found[f"{name}.bias"], np.zeros(140), f"{name}.bias")
        top, spread = abs(weight).max() / bound, weight.std() / (bound / np.sqrt(3))
        text = f"MHA-2: {name}.weight within +-{bound:.3f}: top {top:.3f}, spread {spread:.3f}"
        assert 0.99 < top <= 1 and 0.97 < spread < 1.03, text


@clause("MHA-3")
def test_one_head_differs_from_attention_by_the_last_map(subject):
    require(subject, "multihead")
    eye = np.eye(14, dtype=np.float32)
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    parameters = {f"{name}.weight": eye for name in names}
    config = {"embed_dim": 14, "num_heads": 1, "bias": False}
    x = SELF.inputs()[0]
    plain = expected.attention(*[x[:, None]] * 3, allowed=np.ones((3, 1, 5, 5), bool))
    plain = [steps["output"][:, 0] for steps in plain]
    output, _ = subject.multihead(config, parameters, x)
    compare(output, *plain, "with W^o = I")
    parameters["out_proj.weight"] = normal(8, 14, 14, dtype_name="float32")
    output, _ = subject.multihead(config, parameters, x)
    assert abs(output - plain[0]).max() > 0.1, "MHA-3: W^o has no effect"


def masks() -> dict[str, tuple[dict, np.ndarray, np.ndarray | None]]:
    """Return options, what is allowed, and the bias that is added, by name."""
    rank2, rank4 = coins(81, 5, 7, true=0.3), coins(82, 3, 2, 5, 7, true=0.3)
    added = normal(83, 5, 7, dtype_name="float32")
    per_head = normal(84, 3, 2, 5, 7, dtype_name="float32")
    look_ahead = np.where(np.tri(5, 7, dtype=bool), 0, -np.inf).astype(np.float32)
    top_left = np.broadcast_to(np.tri(5, 7, dtype=bool), ALL.shape)
    ragged_causal = causal() & padding([6, 2, 7])
    window = reference.allowed(sliding_window(2, 1), (3, 2, 5, 7), 2)
    return {
        "none": ({}, ALL, None),
        "key_padding": ({"key_padding_mask": HIDDEN}, RAGGED, None),
        "bool_rank2": ({"attn_mask": rank2}, np.broadcast_to(~rank2, ALL.shape), None),
        "bool_rank3": ({"attn_mask": rank4.reshape(6, 5, 7)}, ~rank4, None),
        "bool_rank4": ({"attn_mask": rank4}, ~rank4, None),
        "float_rank2": ({"attn_mask": added}, ALL, added),
        "float_rank3": ({"attn_mask": per_head.reshape(6, 5, 7)}, ALL, per_head),
        "float_rank4": ({"attn_mask": per_head}, ALL, per_head),
        "look_ahead": ({"attn_mask": look_ahead}, top_left, None),
        "mask": ({"attn_mask": sliding_window(2, 1), "query_offset": 2}, window, None),
        "offset_per_sample": (
            {"attn_mask": causal(), "query_offset": np.array([2, 0, 5])},
            np.broadcast_to(reference.allowed(causal(), (3, 1, 5, 7), [2, 0, 5]), ALL.shape),
            None,
        ),
        "both": ({"attn_mask": rank4, "key_padding_mask": HIDDEN}, ~rank4 & RAGGED, None),
        "float_and_padding": ({"attn_mask": added, "key_padding_mask": HIDDEN}, RAGGED, added),
        "mask_and_padding": (
            {"attn_mask": ragged_causal, "key_padding_mask": HIDDEN, "query_offset": 2},
            RAGGED & reference.allowed(ragged_causal, (3, 2, 5, 7), 2),
            None,
        ),
    }  # fmt: skip


@clause("MHA-4")
@pytest.mark.parametrize("name", masks())
def test_every_kind_of_mask(subject, name):
    options, allowed, bias = masks()[name]
    CROSS.check(subject, options, allowed, bias=bias, average_weights=False)


@clause("MHA-5")
def test_weights_come_averaged_or_per_head(subject):
    require(subject, "weights")
    _, per_head = CROSS.check(subject, {}, ALL, average_weights=False)
    _, averaged = CROSS.check(subject, {}, ALL)
    check_shape(per_head, (3, 2, 5, 7), "weights by head")
    check_shape(averaged, (3, 5, 7), "averaged weights")
    CROSS.check(subject, {}, ALL, need_weights=False)


@clause("MHA-5")
@pytest.mark.parametrize("average", [True, False])
def test_sequence_first_changes_the_layout_of_inputs_only(subject, average):
    require(subject, "multihead")
    parameters, inputs = CROSS.parameters("float32"), CROSS.inputs()
    options = {"key_padding_mask": HIDDEN, "average_weights": average}
    first = subject.multihead(CROSS.config, parameters, *inputs, **options)
    config = CROSS.config | {"batch_first": False}
    turned = [x.swapaxes(0, 1) for x in inputs]
    output, weights = subject.multihead(config, parameters, *turned, **options)
    same(output.swapaxes(0, 1), first[0], "output, sequence first")
    if "weights" in subject.capabilities:
        same(weights, first[1], "weights, batch first either way")


@clause("MHA-6")
@pytest.mark.parametrize("name", ["GROUPED", "WIDTHS", "NO_BIAS"])
def test_other_sizes(subject, name):
    call = getattr(multihead, name)
    allowed = np.broadcast_to(~HIDDEN[:, None, None], (3, call.heads[0], 5, 7))
    options = {"key_padding_mask": HIDDEN}
    call.check(subject, options, allowed, average_weights=False)
    if "parameters" in subject.capabilities:
        shapes = {n: x.shape for n, x in subject.parameters(call.config).items()}
        own = {n: x.shape for n, x in call.parameters("float32").items()}
        assert shapes == own, f"MHA-6: {shapes}"


@clause("MHA-6")
def test_key_left_out_is_self_attention_and_value_left_out_is_key(subject):
    SELF.check(subject, {}, np.ones((3, 2, 5, 5), bool))
    require(subject, "multihead")
    parameters, (query, key, _) = CROSS.parameters("float32"), CROSS.inputs()
    short = subject.multihead(CROSS.config, parameters, query, key)
    long = subject.multihead(CROSS.config, parameters, query, key, key)
    same(short[0], long[0], "output with value left out")


@clause("MHA-6")
def test_value_left_out_is_the_key_and_not_the_query(subject):
    require(subject, "multihead")
    parameters, (query, _, _) = SELF.parameters("float32"), SELF.inputs()
    key = query[::-1] + 1  # of the query's own shape
    short, long = (
        subject.multihead(SELF.config, parameters, query, *x) for x in ([key], [key, key])
    )
    same(short[0], long[0], "output with value left out")


@clause("MHA-6")
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(subject, dtype):
    CROSS.check(subject, {"key_padding_mask": HIDDEN}, RAGGED, dtype_name=dtype)


@clause("MHA-6")
def test_no_query_gives_an_empty_output(subject):
    require(subject, "multihead")
    x = np.zeros((3, 0, 14), np.float32)
    options = {"attn_mask": causal(), "query_offset": 0}
    output, weights = subject.multihead(
        CROSS.config, CROSS.parameters("float32"), x, *CROSS.inputs()[1:], **options
    )
    check_shape(output, (3, 0, 14), "output")
    if "weights" in subject.capabilities:
        check_shape(weights, (3, 0, 7), "weights")


@clause("MHA-6")
@pytest.mark.untyped
def test_sizes_that_do_not_divide_are_refused(subject):
    require(subject, "multihead")
    config = {"embed_dim": 14, "num_heads": 3}
    call = (SELF.parameters("float32"), SELF.inputs()[0])
    text = "multiple of num_heads: got 14 and 3"
    refused(
        subject,
        lambda: subject.multihead(config, *call),
        ValueError,
        text,
        beside=lambda: subject.multihead(SELF.config, *call),
    )
    if "parameters" in subject.capabilities:
        right = partial(subject.parameters, SELF.config)
        refused(subject, lambda: subject.parameters(config), ValueError, text, beside=right)


@clause("MHA-7")
def test_padding_hides_keys_and_not_queries(subject):
    require(subject, "multihead")
    parameters = SELF.parameters("float32") | {"out_proj.weight": np.eye(14, dtype=np.float32)}
    parameters["out_proj.bias"] = np.zeros(14, np.float32)
    hidden = np.arange(5) >= np.array([5, 1, 3])[:, None]
    output, _ = subject.multihead(
        SELF.config, parameters, SELF.inputs()[0], key_padding_mask=hidden
    )
    alive = (abs(output) > 0.01).any(-1, keepdims=True) | ~hidden[..., None]
    check_each(alive, output, "output", "a padded query's own, not 0")


@clause("MHA-7")
def test_an_empty_row_gives_the_bias_of_the_last_map(subject):
    output, _ = CROSS.check(subject, {"key_padding_mask": HIDDEN}, RAGGED)
    bias = CROSS.parameters("float32")["out_proj.bias"]
    same(output[1], np.broadcast_to(bias, (5, 14)), "output of the empty sample")


def _torch_module(parameters):
    import torch

    peer = torch.nn.MultiheadAttention(14, 2, batch_first=True)
    packed = [parameters[f"{n}_proj.weight"] for n in "qkv"]
    state = {
        "in_proj_weight": np.concatenate(packed),
        "in_proj_bias": np.concatenate([parameters[f"{n}_proj.bias"] for n in "qkv"]),
        "out_proj.weight": parameters["out_proj.weight"],
        "out_proj.bias": parameters["out_proj.bias"],
    }
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

    def call(inputs, hidden, look_ahead):
        arrays = [torch.from_numpy(x) for x in inputs]
        masks = {"key_padding_mask": torch.from_numpy(hidden)}
        if look_ahead is not None:
            masks["attn_mask"] = torch.from_numpy(~look_ahead)
        return [x.detach().numpy() for x in peer(*arrays, **masks)]

    return call


def _flax_module(parameters):
    import jax
    import jax.numpy as jnp
    from flax import nnx

    peer = nnx.MultiHeadAttention(2, 14, decode=False, rngs=nnx.Rngs(0))
    for name, ours in zip(("query", "key", "value"), "qkv", strict=True):
        weight, bias = parameters[f"{ours}_proj.weight"], parameters[f"{ours}_proj.bias"]
        getattr(peer, name).kernel[...] = jnp.asarray(weight.T.reshape(14, 2, 7))
        getattr(peer, name).bias[...] = jnp.asarray(bias.reshape(2, 7))
    peer.out.kernel[...] = jnp.asarray(parameters["out_proj.weight"].T.reshape(2, 7, 14))
    peer.out.bias[...] = jnp.asarray(parameters["out_proj.bias"])

    def call(inputs, hidden, look_ahead):
        allowed = jnp.asarray(~hidden)[:, None, None]
        allowed = allowed if look_ahead is None else allowed & look_ahead
        with jax.default_matmul_precision("highest"):  # else a GPU rounds factors to TF32
            return [np.asarray(peer(*map(jnp.asarray, inputs), mask=allowed))]

    return call


@clause("MHA-8")
@pytest.mark.parametrize("look_ahead", [False, True], ids=["padding", "look_ahead"])
@pytest.mark.parametrize("peer", ["torch", "flax"])
def test_equals_the_frameworks_own_module(subject, peer, look_ahead):
    require(subject, "multihead")
    if not find_spec(peer):
        raise NotOffered(f"{peer} is not installed")
    parameters, inputs = CROSS.parameters("float32"), CROSS.inputs()
    hidden = np.arange(7) >= np.array([7, 2, 4])[:, None]  # no fully masked row: there they differ
    triangle = np.tri(5, 7, dtype=bool) if look_ahead else None
    theirs = {"torch": _torch_module, "flax": _flax_module}[peer](parameters)(
        inputs, hidden, triangle
    )
    options = {"key_padding_mask": hidden}
    if look_ahead:
        options["attn_mask"] = ~triangle
    ours = subject.multihead(CROSS.config, parameters, *inputs, **options)
    allowed = np.broadcast_to(~hidden[:, None, None], ALL.shape) & (
        triangle if look_ahead else True
    )
    exact, naive = CROSS.expected(allowed)
    for got, own, name in zip(ours, theirs, ("output", "weights"), strict=False):
        if got is None:  # weights that the subject does not offer
            continue
        in_exact, in_naive = exact[name], naive[name]
        if name == "weights":
            in_exact, in_naive = in_exact.mean(1), in_naive.mean(1)
        compare(own, in_exact, in_naive, f"the peer's own {name}")
        close(got, own, in_exact, in_naive, f"{name} against {peer}")


# MHA-11, sizes that the configuration knows

RESIZED = ["narrower", "wider", "narrower_queries", "narrower_keys", "narrower_values",
           "narrower_output"]  # fmt: skip


def refused_or_by_head_dim(subject, how: str, call) -> None:
    """Check that a resized attention is refused in words, or has heads of the right width."""
    try:
        weights = call()
    except (TypeError, ValueError, RuntimeError) as refusal:
        words, own = str(refusal), "errors" in subject.capabilities and how != "narrower_output"
        if own and not ("must" in words and ": got" in words):  # else the framework refuses it
            raise Differs(f"expected a rule and ': got', got {words}") from refusal
        return
    heads = {"narrower": 2, "wider": 8}.get(how)
    if weights is None or heads is None or weights.shape[1] != heads:
        shape = None if weights is None else weights.shape
        raise Differs(f"{how} projections: expected a refusal, got weights {shape}")


@clause("MHA-11")
@pytest.mark.untyped
@pytest.mark.parametrize("how", RESIZED)
@pytest.mark.parametrize("need_weights", [False, True], ids=["output", "weights"])
def test_heads_of_another_width_are_not_regrouped(subject, how, need_weights):
    require(subject, "altered", "multihead")
    config = {"embed_dim": 16, "num_heads": 4}
    call = MultiHeadCase(config, kdim=16, vdim=16)
    parameters, x = call.parameters("float32"), normal(3, 3, 5, 16, dtype_name="float32")

    def run():
        options = {"need_weights": need_weights, "average_weights": False}
        return subject.multihead(config, parameters, x, **options)[1]

    run()
    with subject.altered(how):
        refused_or_by_head_dim(subject, how, run)


@clause("MHA-11")
@pytest.mark.untyped
@pytest.mark.parametrize("how", [how for how in RESIZED if how != "narrower_output"])
def test_heads_of_another_width_are_not_cached(subject, how):
    require(subject, "altered", "cache")
    config = {"embed_dim": 16, "num_heads": 4}
    parameters = MultiHeadCase(config, kdim=16, vdim=16).parameters("float32")
    x = normal(3, 3, 2, 16, dtype_name="float32")
    with subject.altered(how):
        decoding = subject.decoding("attention", config, parameters, capacity=5, batch_size=3)

    def run():
        decoding.feed(x)

    refused_or_by_head_dim(subject, how, run)
    same(decoding.lengths, np.zeros(3, int), "lengths after the refusal")


# MHA-12, twins


@clause("MHA-12")
@pytest.mark.parametrize("name", ["SELF", "CROSS", "GROUPED"])
def test_two_masks_are_what_their_intersection_is(subject, name):
    require(subject, "multihead")
    call = getattr(multihead, name)
    keys, offset = call.S or 5, np.array([0, 2, 1])
    lengths = padding([keys, 0, 3])
    allowed = reference.allowed(lengths & causal(), (3, call.heads[0], 5, keys), offset)
    options = {"query_offset": offset}
    both = {"key_padding_mask": lengths, "attn_mask": causal()}
    for masks in (both, {"attn_mask": lengths & causal()}):
        call.check(subject, options | masks, allowed)


@clause("MHA-12")
def test_averaged_weights_of_grouped_heads_are_the_mean(subject):
    require(subject, "multihead", "weights", "grouped")
    hidden = np.arange(7) >= np.array([7, 0, 4])[:, None]
    allowed = np.broadcast_to(~hidden[:, None, None], (3, 4, 5, 7))
    for average in (False, True):
        GROUPED.check(subject, {"key_padding_mask": hidden}, allowed, average_weights=average)


@clause("MHA-12")
@pytest.mark.parametrize("name", ["SELF", "CROSS"])
def test_one_sample_with_the_sequence_first_is_that_sample(subject, name):
    require(subject, "multihead", "sequence_first")
    call = getattr(multihead, name)
    keys = call.S or 5
    hidden = np.arange(keys) >= np.array([keys, 0, 3])[:, None]
    allowed = np.broadcast_to(~hidden[:, None, None], (3, 2, 5, keys))
    exact, naive = call.expected(allowed)
    config, inputs = call.config | {"batch_first": False}, call.inputs()
    for b in range(3):
        own = [x[b : b + 1].swapaxes(0, 1) for x in inputs]
        options = {"key_padding_mask": hidden[b : b + 1], "need_weights": False}
        got, _ = subject.multihead(config, call.parameters("float32"), *own, **options)
        part = np.array(exact["output"]).astype(got.dtype)
        check_shape(got, (5, 1, 14), "output")
        part[b] = got[:, 0]
        compare(part, exact["output"], naive["output"], f"output of sample {b}")


@clause("EMPTY-3")
def test_a_uniform_row_is_the_mean_of_values_beside_nan_in_another_sample(subject):
    require(subject, "multihead", "empty_rows")
    call = MultiHeadCase(CROSS.config | {"empty_rows": "uniform"}, S=7)
    lengths = [4, 0, 7]
    hidden = np.arange(7) >= np.array(lengths)[:, None]
    allowed = np.broadcast_to(~hidden[:, None, None], (3, 2, 5, 7))
    exact, naive = call.expected(allowed, empty_rows="uniform")
    query, key, value = call.inputs()
    key[0, 5], value[0, 6] = np.nan, np.inf  # hidden
    config, parameters = call.config, call.parameters("float32")
    got, _ = subject.multihead(
        config, parameters, query, key, value, key_padding_mask=hidden, need_weights=False
    )
    compare(got[1:], exact["output"][1:], naive["output"][1:], "output of other samples")
