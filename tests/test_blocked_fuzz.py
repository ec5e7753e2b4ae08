"""A few of the random calls of fuzz_blocked.py, on every run; run by hand it takes thousands."""

import pytest
from fuzz_blocked import fuzz

pytestmark = [pytest.mark.untyped, pytest.mark.usefixtures("compiles_quickly")]


@pytest.mark.parametrize("backward", [False, True], ids=["outputs", "gradients"])
def test_random_calls_of_the_blocked_path_are_the_oracles(backward):
    held, found = fuzz(8, 4, backward)
    assert held >= 12, f"too few calls to mean anything: {held}"
    assert not found, "\n".join(found)
