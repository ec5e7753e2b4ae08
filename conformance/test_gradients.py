"""The chapter on gradients: of attention, of every parameter, on every path."""

from contextlib import nullcontext

import numpy as np
import pytest

from .cases import multihead
from .cases.attention import (
    BY_NAME,
    FAR,
    GROUPED,
    LENGTHS,
    MAIN,
    MASKED,
    PLAIN,
    SQUARE,
    Case,
    move,
    names,
)
from .cases.compare import check_gradients, check_steps
from .contract import clause
from .mask_spec import causal, padding
from .oracle import expected, reference
from .oracle.tolerance import check_each, close, compare, eps
from .subjects.protocol import SMALL_BLOCKS, require

MIXED = [
    PLAIN,
    Case("bias_rank2", bias="rank2", mask=padding(LENGTHS)),
    Case("bias_heads", bias="heads", mask=causal(), query_offset=2),
    Case("softcap", softcap=0.9, bias="rank4", mask=causal(), query_offset=2),
    Case("scale", scale=-0.7, mask=causal(), query_offset=2),
    Case("grouped", GROUPED, causal() & padding(LENGTHS), query_offset=2),
    Case("uniform", mask=padding(LENGTHS), empty_rows="uniform"),
]

OFFSETS = np.array([6, 0, 2])
ONE_QUERY = [
    Case(f"one_query_{bias}", MAIN._replace(T=1), causal() & padding(LENGTHS), OFFSETS, bias)
    for bias in ("rank2", "heads", "rank4")
]
# Every shape of a bias that varies along the keys; where it does not, its gradient is 0
BIASES = [Case(f"bias_{dims}", bias=dims) for dims in ("S", "TS", "HTS", "BS", "BTS", "BHS")]
CONSTANT = [Case(f"bias_{dims or 'number'}", bias=dims) for dims in ("", "BT", "H")]
BESIDE = [
    Case("all_at_once", GROUPED, causal() & padding(LENGTHS), 2, "heads", -0.7, 0.9),
    Case("narrow_values", MAIN._replace(D_v=3), padding(LENGTHS)),
]

BOTH = [*(BY_NAME[name] for name in ("plain", "causal", "causal_and_padding", "allow")), *MIXED[1:]]


@clause("GRAD-1")
@pytest.mark.parametrize("case", [*MASKED, *MIXED], ids=names([*MASKED, *MIXED]))
def test_gradients_are_the_oracles(subject, case):
    check_gradients(subject, case)


@clause("GRAD-1")
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_gradients_are_the_oracles_in_other_dtypes(subject, dtype):
    check_gradients(subject, BY_NAME["causal_and_padding"], dtype)


@clause("GRAD-2")
@pytest.mark.parametrize("name", ["CROSS", "GROUPED", "WIDTHS", "NO_BIAS"])
def test_parameter_gradients_are_the_oracles(subject, name):
    call = getattr(multihead, name)
    allowed = reference.allowed(padding(LENGTHS), (3, call.heads[0], 5, 7))
    hidden = np.arange(7) >= np.array(LENGTHS)[:, None]
    call.check_gradients(subject, {"key_padding_mask": hidden}, allowed)


@clause("GRAD-3")
@pytest.mark.needs("gradients")
@pytest.mark.parametrize("through", ["attention", "blocked"])
@pytest.mark.parametrize("case", BOTH, ids=names(BOTH))
def test_gradients_of_both_paths_agree(subject, case, through):
    require(subject, "blocked")
    arguments = (*case.inputs("float32"), case.grad("float32"))
    fast = subject.gradients(*arguments, through=through, **case.options("float32"))
    textbook = subject.gradients(*arguments, through="steps", **case.options("float32"))
    exact, naive = case.expected_gradients("float32")
    for role in fast:
        close(fast[role], textbook[role], exact[role], naive[role], f"gradient of {role}")


@clause("GRAD-1")
@pytest.mark.parametrize("case", [*ONE_QUERY, *BESIDE], ids=names([*ONE_QUERY, *BESIDE]))
def test_gradients_beside_the_plain_call_are_the_oracles(subject, case):
    check_steps(subject, case, "float32")
    check_gradients(subject, case)


@clause("GRAD-1")
@pytest.mark.parametrize("case", BIASES, ids=names(BIASES))
def test_a_bias_of_any_shape_has_a_gradient_of_its_shape(subject, case):
    check_gradients(subject, case)


@clause("GRAD-1")
@pytest.mark.parametrize("case", CONSTANT, ids=names(CONSTANT))
def test_a_bias_that_is_constant_along_the_keys_has_no_gradient(subject, case):
    """All but rounding of the terms, of each weight times what the output moves by it."""
    require(subject, "gradients")
    inputs, grad = case.inputs("float32"), case.grad("float32")
    got = subject.gradients(*inputs, grad, **case.options("float32"))["bias"]
    weights = case.expected("float32")[0]["weights"]
    moves = np.einsum("bhts,bhtd,bhsd->bht", weights, abs(grad), abs(inputs[2]))[..., None]
    summed = tuple(axis for axis, size in enumerate(got.shape) if size == 1)
    most = 4 * eps("float32") * moves.sum(summed, keepdims=True)
    check_each(abs(got) <= most, got, "gradient of bias", f"at most {most.min():.2g}")


@clause("GRAD-1")
@pytest.mark.parametrize("far", FAR)
def test_gradients_of_inputs_far_from_zero_are_the_oracles(subject, far):
    require(subject, "gradients")
    case = BY_NAME["causal_and_padding"]
    inputs, grad = move(case, far), case.grad("float32")
    exact, naive = expected.gradients(*inputs, grad, allowed=case.allowed())
    got = subject.gradients(*inputs, grad, **case.options("float32"))
    for name in exact:
        compare(got[name], exact[name], naive[name], f"gradient of {name}")


RATE = 0.3
DROPPED = [
    Case("square", SQUARE._replace(D_v=7), causal() & padding(LENGTHS)),
    Case("all_at_once", GROUPED._replace(D_v=7), padding([7, 5, 4]), None, "heads", -0.7, 0.9),
]


@clause("ATT-12")
@pytest.mark.parametrize("case", DROPPED, ids=names(DROPPED))
def test_gradients_are_those_of_the_dropped_weights(subject, case):
    """Values that are unit vectors show which weights are dropped, by any path."""
    require(subject, "attention", "dropout")
    query, key, value = case.inputs("float32")
    options = case.options("float32") | {"dropout": RATE, "seed": 5}
    eye = np.broadcast_to(np.eye(7, dtype=np.float32), (3, case.shape.H_kv, 7, 7))
    kept = subject.attention(query, key, eye, **options) != 0
    assert 0 < kept.sum() < case.allowed().sum(), "ATT-12: a part of the weights is dropped"
    numbers = case.numbers("float32") | {"allowed": case.allowed(), "dropped": kept / (1 - RATE)}
    grad = case.grad("float32")
    exact, naive = expected.dropped(query, key, value, grad, **numbers)
    contexts = [nullcontext()]
    if {"small_blocks", "any_shape"} <= subject.capabilities:
        contexts += [subject.small_blocks(setting) for setting in range(SMALL_BLOCKS)]
    for context in contexts:
        with context:
            got = {"output": subject.attention(query, key, value, **options)}
            if "gradients" in subject.capabilities:
                got |= subject.gradients(query, key, value, grad, **options)
        for name, array in got.items():
            compare(array, exact[name], naive[name], name)
