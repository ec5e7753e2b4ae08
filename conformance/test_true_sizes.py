"""The chapter on true sizes: hundreds and thousands of queries and keys, against the textbook."""

import pytest

from .cases.attention import names
from .cases.sizes import TRUE_SIZES
from .contract import clause
from .oracle.tolerance import check_dtype, compare
from .subjects.protocol import require


@clause("ATT-1")
@pytest.mark.parametrize("case", TRUE_SIZES, ids=names(TRUE_SIZES))
def test_output_is_the_formula_at_true_sizes(subject, case):
    require(subject, "attention")
    got = subject.attention(*case.inputs("float32"), **case.options_for(subject, "float32"))
    exact, naive = case.answers("attention", "float32")
    check_dtype(got, naive["output"].dtype, "output")
    compare(got, exact["output"], naive["output"], "output")


@clause("HALF-5")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", TRUE_SIZES[2:3], ids=names(TRUE_SIZES[2:3]))
def test_output_is_the_formula_at_true_sizes_in_16_bits(subject, case, dtype):
    require(subject, "attention")
    got = subject.attention(*case.inputs(dtype), **case.options_for(subject, dtype))
    exact, naive = case.answers("attention", dtype)
    check_dtype(got, naive["output"].dtype, "output")
    compare(got, exact["output"], naive["output"], "output")


@clause("GRAD-1")
@pytest.mark.parametrize("case", TRUE_SIZES, ids=names(TRUE_SIZES))
def test_gradients_are_the_formulas_at_true_sizes(subject, case):
    require(subject, "gradients")
    inputs, grad = case.inputs("float32"), case.grad("float32")
    got = subject.gradients(*inputs, grad, **case.options_for(subject, "float32"))
    exact, naive = case.answers("gradients", "float32")
    for name in exact:
        check_dtype(got[name], naive[name].dtype, f"gradient of {name}")
        compare(got[name], exact[name], naive[name], f"gradient of {name}")
