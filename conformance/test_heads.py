"""The chapter on heads: a width of their own, and what happens to them before they attend."""

import numpy as np
import pytest

from .cases.arrays import normal
from .cases.compare import refused
from .cases.decoding import part
from .cases.heads import (
    NORM,
    PROCESSES,
    ROTARY,
    case,
    check_turned,
    decode,
    one_pass,
    ragged,
)
from .contract import clause
from .mask_spec import causal
from .oracle.tolerance import same
from .subjects.protocol import require

pytestmark = pytest.mark.untyped

SETTINGS = {
    "head_dim": {},
    "qkv_bias": {"qkv_bias": True, "bias": False},
    "out_bias": {"qkv_bias": False, "bias": True},
    "scale": {"scale": -0.7},
    "softcap": {"softcap": 0.8},
    "scale_and_softcap": {"scale": 2.0, "softcap": 1.3},
    "sinks": {"sinks": True},
}
CUTS = {"ones": (1, 2, 3, 4, 5), "prompt": (4, 5, 6, 7), "chunks": (3, 5, 8)}


@clause("MHA-9")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_heads(subject, name, dtype):
    require(subject, "head_dim", "grouped")
    call = case(**SETTINGS[name])
    options, allowed = ragged(call)
    call.check(subject, options, allowed, average_weights=False, dtype_name=dtype)
    call.check(subject, options, allowed, need_weights=False, dtype_name=dtype)


@clause("MHA-9")
@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_of_settings_of_heads(subject, name):
    require(subject, "head_dim", "grouped")
    call = case(**SETTINGS[name])
    options, allowed = ragged(call)
    call.check_gradients(subject, options, allowed)


@clause("MHA-9")
@pytest.mark.parametrize("name", SETTINGS)
def test_parameters_of_settings_of_heads(subject, name):
    require(subject, "head_dim", "parameters", "grouped")
    call = case(**SETTINGS[name])
    shapes = {n: x.shape for n, x in subject.parameters(call.config).items()}
    assert shapes == {n: x.shape for n, x in call.parameters("float32").items()}


@clause("MHA-9")
@pytest.mark.parametrize("mask", [None, causal()], ids=["causal", "mask"])
@pytest.mark.parametrize("name", SETTINGS)
def test_decoding_with_settings_of_heads(subject, name, mask):
    require(subject, "head_dim", "grouped")
    decode(subject, case(**SETTINGS[name]), CUTS["prompt"], mask=mask)


@clause("MHA-10")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", PROCESSES)
def test_heads_are_changed_before_they_attend(subject, name, dtype):
    require(subject, "process_heads")
    call = case(PROCESSES[name])
    options, allowed = ragged(call)
    call.check(subject, options, allowed, average_weights=False, dtype_name=dtype)
    call.check(subject, options, allowed, need_weights=False, dtype_name=dtype)


@clause("MHA-10")
@pytest.mark.parametrize("name", PROCESSES)
def test_gradients_go_through_what_changes_heads(subject, name):
    require(subject, "process_heads")
    call = case(PROCESSES[name])
    options, allowed = ragged(call)
    call.check_gradients(subject, options, allowed)


@clause("MHA-10")
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", PROCESSES)
def test_decoding_equals_one_pass(subject, name, cuts):
    require(subject, "process_heads")
    decode(subject, case(PROCESSES[name]), CUTS[cuts])


@clause("MHA-10")
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_decoding_equals_one_pass_in_other_dtypes(subject, dtype):
    require(subject, "process_heads")
    decode(subject, case(PROCESSES["norm_then_rotary"]), CUTS["prompt"], dtype_name=dtype)


@clause("MHA-10")
def test_decoding_with_a_mask_equals_one_pass(subject):
    require(subject, "process_heads")
    decode(subject, case(PROCESSES["halves"]), CUTS["chunks"], mask=causal())


@clause("MHA-10")
@pytest.mark.parametrize("cuts", [range(1, 12), (1, 3, 7, 8, 11), (11,)], ids=len)
def test_decoding_in_a_window_equals_one_pass(subject, cuts):
    """Positions go on where old keys are dropped; a sink has its share of every row."""
    require(subject, "sinks", "errors")
    call = case(PROCESSES["norm_then_rotary"], sinks=True, softcap=1.3)
    decode(subject, call, tuple(cuts), window=3)


@clause("MHA-10")
def test_compiled_decoding_equals_one_pass(subject):
    require(subject, "process_heads", "compiled")
    decode(subject, case(PROCESSES["norm_then_rotary"]), (1, 2, 3, 4), compiled=True)


@clause("MHA-10")
@pytest.mark.parametrize("name", ["interleaved", "norm_then_rotary"])
def test_positions_count_what_is_stored(subject, name):
    """Hidden tokens take no position, on the left, on the right or between; lengths differ."""
    require(subject, "process_heads", "cache")
    call, T = case(PROCESSES[name]), 6
    parameters = call.parameters("float32")
    hidden = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0]], bool)
    x, step = (normal(s, 3, n, 14, dtype_name="float32") for s, n in ((1, T), (2, 2)))
    sizes = {"capacity": T + 3, "batch_size": 3}
    decoding = subject.decoding("attention", call.config, parameters, **sizes)
    prompt, then = decoding.feed(x, hidden=hidden), decoding.feed(step)
    same(decoding.lengths, (~hidden).sum(1) + 2, "lengths")
    for b, left_out in enumerate(hidden):
        alone = np.concatenate([x[b : b + 1, ~left_out], step[b : b + 1]], 1)
        got = np.concatenate([prompt[b : b + 1, ~left_out], then[b : b + 1]], 1)
        exact, naive = one_pass(call, alone, causal())
        part(got, exact, naive, 0, f"outputs of sample {b}")


@clause("MHA-10")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ROTARY)
def test_far_positions_of_each_sample(subject, name, dtype):
    places = np.array([[0, 1, 5], [4000, 7, 8191], [3, 2, 1]])
    check_turned(subject, ROTARY[name], places, dtype)
    check_turned(subject, ROTARY[name], places[1:2], dtype)


@clause("MHA-10")
def test_other_tokens_are_refused(subject):
    require(subject, "process_heads")
    call = case(PROCESSES["halves"])
    parameters, x = call.parameters("float32"), call.inputs()[0]
    right = lambda: subject.multihead(call.config, parameters, x)  # noqa: E731
    for wrong in (
        lambda: subject.multihead(call.config, parameters, x, x[:, ::-1] + 1),
        lambda: subject.multihead(call.config, parameters, x, x + 1, projected=True),
    ):
        refused(subject, wrong, ValueError, "own tokens", beside=right)
    offset = lambda: subject.multihead(call.config, parameters, x, query_offset=2)  # noqa: E731
    refused(subject, offset, ValueError, "query_offset must be 0", beside=right)


@clause("MHA-10")
def test_norms_start_at_one(subject):
    require(subject, "process_heads", "parameters")
    found = subject.parameters(case(NORM).config)
    for name in ("q_norm", "k_norm"):
        same(found[f"process_heads.{name}.weight"], np.ones(6, np.float32), name)
