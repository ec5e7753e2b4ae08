"""An example that Hypothesis finds is printed as a program, which runs for whoever was tested."""

import numpy as np
import pytest

from conformance import mutants, subjects
from conformance.cases.attention import Case, Shape
from conformance.mask_spec import causal, padding
from conformance.oracle.tolerance import Differs
from conformance.subjects.protocol import NotOffered
from conformance.test_fuzz import run, snippet

SHAPE = Shape(3, 2, 2, 5, 7, 11, 13)
CASE = Case("fuzz", SHAPE, causal() & padding([7, 0, 4]), np.array([2, -1, 0]), seed=5)
WRONG = {
    "a mutant": lambda: mutants.load("top-left"),
    "an adapter": lambda: subjects.plug("test_adapter:Recording")[0],
}


def test_the_program_of_a_right_subject_runs():
    exec(snippet(subjects.load("numpy"), CASE, "check_steps", "float64"), {})


@pytest.mark.parametrize("who", WRONG)
def test_the_program_finds_what_is_wrong_once_more(who):
    with pytest.raises(Differs, match=" at "):
        exec(snippet(WRONG[who](), CASE, "check_steps", "float32"), {})


def test_an_example_that_is_not_offered_has_no_program():
    def check(subject, case):
        raise NotOffered("no such thing")

    with pytest.raises(NotOffered) as caught:
        run(subjects.load("numpy"), CASE, check)
    assert not hasattr(caught.value, "__notes__")
