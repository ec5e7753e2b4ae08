"""The chapter on 16 bits: what goes in comes out, and nothing stalls or overflows on the way."""

import numpy as np
import pytest

from .cases.attention import BY_NAME, PLAIN
from .cases.compare import check_output, check_steps, refused
from .contract import clause
from .oracle.tolerance import dtype as numpy_dtype
from .oracle.tolerance import same
from .subjects.protocol import require

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
