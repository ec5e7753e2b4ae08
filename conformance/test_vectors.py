"""The frozen vectors, put to the subject: one test for each clause that has some.

The other chapters look at the same clauses with numbers of their own; here the subject meets what
an implementation in any other language meets.
"""

from collections.abc import Callable

import pytest

from .contract import clause
from .vectors.check_subject import check, checks

CHECKS = list(checks())


def params(own: str) -> list:
    """Return the vectors of a clause, each with a dtype."""
    found = []
    for entry, dtype in CHECKS:
        if entry["clause"] == own:
            name = entry["id"].split(".")[1]
            marks = [pytest.mark.untyped] * (entry["expect"][0]["kind"] == "raises")
            found.append(pytest.param(entry["id"], dtype, id=f"{name}-{dtype}", marks=marks))
    return found


def holding(own: str) -> Callable:
    """Make the test of a clause's vectors."""

    @clause(own)
    @pytest.mark.parametrize(("vector", "dtype"), params(own))
    def test_frozen_vector(subject, vector, dtype):
        check(subject, vector, dtype)

    test_frozen_vector.__name__ += f"_of_{own.replace('-', '_')}"
    return test_frozen_vector


for _own in dict.fromkeys(entry["clause"] for entry, _ in CHECKS):
    _test = holding(_own)
    globals()[_test.__name__] = _test
