"""The chapter on 16 bits: what goes in comes out, and nothing stalls or overflows on the way."""

from contextlib import nullcontext

import numpy as np
import pytest

from .cases.attention import BY_NAME, GROUPED, LENGTHS, MAIN, PLAIN, Case
from .cases.compare import check_output, check_steps, refused
from .contract import clause
from .mask_spec import causal, padding
from .oracle import expected
from .oracle.tolerance import compare, same
from .oracle.tolerance import dtype as numpy_dtype
from .subjects.protocol import SMALL_BLOCKS, require

HALVES = ["float16", "bfloat16"]


@clause("HALF-1")
@pytest.mark.parametrize("dtype", [*HALVES, "float32", "float64"])
def test_output_has_the_dtype_of_the_input(subject, dtype):
    require(subject, "attention")
    got = subject.attention(*PLAIN.inputs(dtype)).dtype.name
    assert got == dtype, f"HALF-1: expected {dtype}, got {got}"


@clause("HALF-2")
@pytest.mark.parametrize("dtype", HALVES)
def test_4096_equal_weights_sum_to_one(subject, dtype):
    require(subject, "attention")
    query, key, value = (
        np.full((1, 1, n, d), fill, numpy_dtype(dtype))
        for n, d, fill in ((3, 2, 0), (4096, 2, 1), (4096, 5, 1))
    )
    same(subject.attention(query, key, value), np.ones((1, 1, 3, 5)), "the mean of ones")


@clause("HALF-3")
@pytest.mark.parametrize("dtype", HALVES)
def test_products_beyond_float16_stay_finite(subject, dtype):
    require(subject, "attention")
    query, key, value = PLAIN.inputs(dtype)
    query, key = query * numpy_dtype(dtype).type(300), key * numpy_dtype(dtype).type(300)
    largest = abs(np.einsum("bhtd,bhsd->bhts", query.astype(float), key.astype(float))).max()
    assert largest > 65504, "the case does not overflow"
    check_output(
        subject.attention(query, key, value, scale=1e-5), query, key, value, "output", scale=1e-5
    )


@clause("HALF-4")
@pytest.mark.untyped
@pytest.mark.parametrize("odd", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("dtype", HALVES)
def test_mixed_dtypes_are_refused(subject, dtype, odd):
    require(subject, "attention")
    inputs = list(PLAIN.inputs("float32"))
    inputs[odd] = inputs[odd].astype(numpy_dtype(dtype))
    refused(
        subject,
        lambda: subject.attention(*inputs),
        TypeError,
        "must share a dtype",
        dtype,
        beside=lambda: subject.attention(*PLAIN.inputs("float32")),
    )


@clause("HALF-5")
@pytest.mark.parametrize("name", ["plain", "causal", "causal_and_padding", "window_or_prefix"])
@pytest.mark.parametrize("dtype", HALVES)
def test_16_bits_stay_within_the_budget(subject, dtype, name):
    check_steps(subject, BY_NAME[name], dtype)


SHARP = {
    "plain": Case("plain", MAIN._replace(D=7)),
    "causal": Case("causal", GROUPED._replace(D=7, D_v=7), causal() & padding(LENGTHS), 2),
}


@clause("HALF-5")
@pytest.mark.parametrize("name", SHARP)
@pytest.mark.parametrize("dtype", HALVES)
def test_large_logits_are_not_rounded_to_16_bits(subject, dtype, name):
    """Logits of 50: rounded to 16 bits they would move the weights by a tenth."""
    require(subject, "attention")
    case = SHARP[name]
    query, key, value = case.inputs(dtype)
    query = (query.astype(np.float32) * 20).astype(query.dtype)
    contexts = [nullcontext()]
    if {"small_blocks", "any_shape"} <= subject.capabilities:
        contexts += [subject.small_blocks(setting) for setting in range(SMALL_BLOCKS)]
    allowed = case.allowed()
    for context in contexts:
        with context:
            got = subject.attention(query, key, value, **case.options(dtype))
        check_output(got, query, key, value, "output", allowed=allowed)
    if "gradients" in subject.capabilities and name == "plain":
        got = subject.gradients(query, key, value, case.grad(dtype), **case.options(dtype))
        exact, naive = expected.gradients(query, key, value, case.grad(dtype), allowed=allowed)
        for role in exact:
            compare(got[role], exact[role], naive[role], f"gradient of {role}")
