"""The frozen vectors, put to the subject: one test for each clause that has some.

The other chapters look at the same clauses with numbers of their own; here the subject meets what
an implementation in any other language meets.
"""

from collections.abc import Callable

import pytest

from .contract import clause
from .oracle.tolerance import LEDGER, check_dtype
from .oracle.tolerance import dtype as numpy_dtype
from .vectors import load, manifest
from .vectors.check_answer import check_answer
from .vectors.run_vector import offered, run_vector

ENTRIES = manifest()["vectors"]
# In these, one of each chapter, float64 and float16 are looked at too.
ALL_DTYPES = {"ATT-1.causal", "EMPTY-1.zero", "CLEAN-2.nan", "GRAD-1.causal", "MHA-4.key_padding"}


def params(own: str) -> list:
    """Return the vectors of a clause, each in float32 if it is for that, a few in more dtypes."""
    found = []
    for entry in ENTRIES:
        if entry["clause"] == own:
            usual = "float32" if "float32" in entry["dtypes"] else entry["dtypes"][0]
            more = ["float64", "float16"] if entry["id"] in ALL_DTYPES else []
            name = entry["id"].split(".")[1]
            marks = [pytest.mark.untyped] * (entry["expect"][0]["kind"] == "raises")
            for dtype in (usual, *more):
                found.append(pytest.param(entry["id"], dtype, id=f"{name}-{dtype}", marks=marks))
    return found


def check(subject, id: str, dtype: str) -> None:
    """Run a vector on a subject and check its answer."""
    vector = offered(subject, load()[id])
    answer = run_vector(subject, vector, dtype)
    taken = check_answer(vector, answer, dtype)
    if vector.refused:  # whoever refuses everything has refused nothing
        run_vector(subject, offered(subject, load()[vector.expect[0].answered]), dtype)
    if taken:
        LEDGER.enter(LEDGER.used, f"{id} takes {', '.join(taken)}")
    if vector.call in ("attention", "multihead") and not vector.refused:
        check_dtype(answer.get("output", next(iter(answer.values()))), numpy_dtype(dtype), id)


def holding(own: str) -> Callable:
    """Make the test of a clause's vectors."""

    @clause(own)
    @pytest.mark.parametrize(("vector", "dtype"), params(own))
    def test_frozen_vector(subject, vector, dtype):
        check(subject, vector, dtype)

    test_frozen_vector.__name__ += f"_of_{own.replace('-', '_')}"
    return test_frozen_vector


for _own in dict.fromkeys(entry["clause"] for entry in ENTRIES):
    _test = holding(_own)
    globals()[_test.__name__] = _test
