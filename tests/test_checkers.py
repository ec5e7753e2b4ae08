"""Every checker can fail: one tensor is wrong by a thousandth, and the text names it.

That the suite's tests can fail, each under its clause, is for the mutants and their gate to prove.
"""

from collections.abc import Callable

import numpy as np
import pytest

from conformance import subjects
from conformance.cases import multihead
from conformance.cases.attention import BY_NAME, PLAIN, SQUARE, Case
from conformance.cases.compare import check_gradients, check_output, check_steps
from conformance.mask_spec import causal
from conformance.mutants import MUTANTS, broken
from conformance.oracle.tolerance import Differs
from conformance.subjects.protocol import NotOffered


@pytest.fixture
def numpy_subject():
    return subjects.load("numpy")


@pytest.fixture
def torch_subject():
    if subjects.missing("torch"):
        pytest.skip("torch is not installed")
    return subjects.load("torch")


def off(name: str) -> Callable:
    """Return a mistake: the named tensor is a thousandth too large."""

    def mistake(right, *call, **options):
        found = right(*call, **options)
        return found | {name: found[name] * np.float32(1.001)}

    return mistake


@pytest.mark.parametrize("name", ["scores", "masked_scores", "weights", "output"])
def test_check_steps_looks_at_every_step(numpy_subject, name):
    check_steps(numpy_subject, BY_NAME["causal"], "float32")
    subject = broken(numpy_subject, "steps", off(name))
    with pytest.raises(Differs, match=rf"^{name} at \("):
        check_steps(subject, BY_NAME["causal"], "float32")


def test_hold_looks_at_what_is_seen(numpy_subject):
    case = Case("square", SQUARE, causal())
    inputs = case.inputs("float32")
    got = numpy_subject.attention(*inputs, mask=causal())
    check_output(got, *inputs, "output", allowed=case.allowed())
    with pytest.raises(Differs, match=r"^output at \("):
        check_output(got, *inputs, "output")
    with pytest.raises(Differs, match=r"^output at \("):
        check_output(got, *inputs, "output", allowed=case.allowed(), scale=1.0)


@pytest.mark.parametrize("name", ["query", "key", "value", "bias"])
def test_check_gradients_looks_at_every_gradient(torch_subject, name):
    case = Case("bias", bias="rank4")
    check_gradients(torch_subject, case)
    with pytest.raises(Differs, match=rf"^gradient of {name} at \("):
        check_gradients(broken(torch_subject, "gradients", off(name)), case)


def test_check_gradients_misses_what_is_left_out(torch_subject):
    subject = broken(torch_subject, "gradients", MUTANTS["bias-left-out"].mistake)
    with pytest.raises(Differs, match=r"^gradients: expected \['bias', 'key', 'query', 'value'\]"):
        check_gradients(subject, Case("bias", bias="rank4"))


EVERYTHING = np.ones((3, 2, 5, 7), bool)


@pytest.mark.parametrize("average", [True, False], ids=["averaged", "per_head"])
@pytest.mark.parametrize("wrong", [0, 1], ids=["output", "weights"])
def test_multihead_check_looks_at_output_and_weights(numpy_subject, wrong, average):
    def mistake(right, *call, **options):
        found = list(right(*call, **options))
        found[wrong] = found[wrong] * np.float32(1.001)
        return found

    options = {"average_weights": average}
    multihead.CROSS.check(numpy_subject, {}, EVERYTHING, **options)
    with pytest.raises(Differs, match=rf"^{('output', 'weights')[wrong]} at \("):
        multihead.CROSS.check(
            broken(numpy_subject, "multihead", mistake), {}, EVERYTHING, **options
        )


def test_multihead_check_wants_no_weights_that_nobody_asked_for(numpy_subject):
    def mistake(right, *call, need_weights=True, **options):
        return right(*call, **options)

    multihead.CROSS.check(numpy_subject, {}, EVERYTHING, need_weights=False)
    subject = broken(numpy_subject, "multihead", mistake)
    with pytest.raises(Differs, match=r"^weights were not asked for"):
        multihead.CROSS.check(subject, {}, EVERYTHING, need_weights=False)


@pytest.mark.parametrize(
    "name", ["query", "value", "k_proj.weight", "q_proj.bias", "out_proj.weight"]
)
def test_multihead_check_gradients_looks_at_every_gradient(torch_subject, name):
    multihead.CROSS.check_gradients(torch_subject, {}, EVERYTHING)
    subject = broken(torch_subject, "multihead_gradients", off(name))
    with pytest.raises(Differs, match=rf"^gradient of {name} at \("):
        multihead.CROSS.check_gradients(subject, {}, EVERYTHING)


def test_multihead_check_gradients_misses_what_is_left_out(torch_subject):
    def mistake(right, *call, **options):
        return {name: x for name, x in right(*call, **options).items() if name != "key"}

    subject = broken(torch_subject, "multihead_gradients", mistake)
    with pytest.raises(Differs, match=r"^gradients: expected \['k_proj.bias', .*'key', "):
        multihead.CROSS.check_gradients(subject, {}, EVERYTHING)


@pytest.mark.parametrize("name", ["scores", "weights", "output"])
def test_check_steps_wants_the_dtype_that_is_due(numpy_subject, name):
    """Judged by the spacing of its own dtype, a coarse answer would be allowed its coarseness."""

    def mistake(right, *call, **options):
        steps = right(*call, **options)
        return steps | {name: steps[name].astype(np.float16)}

    with pytest.raises(Differs, match=rf"^{name}\b.* float32.* float16"):
        check_steps(broken(numpy_subject, "steps", mistake), PLAIN, "float32")


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_multihead_check_wants_the_dtype_that_is_due(numpy_subject, dtype):
    def mistake(right, *call, **options):
        output, weights = right(*call, **options)
        return output.astype(dtype), weights

    with pytest.raises(Differs, match=rf"^output\b.* float32.* {dtype}"):
        multihead.CROSS.check(broken(numpy_subject, "multihead", mistake), {}, EVERYTHING)


def test_what_a_subject_does_not_declare_is_not_a_failure(numpy_subject):
    with pytest.raises(NotOffered, match="numpy does not offer gradients"):
        check_gradients(numpy_subject, PLAIN)
