"""Checking a subject: which vector is run in which dtype, and whether the answer is right.

Nothing here needs pytest: the chapter of the vectors makes tests of it, a page a verdict.
"""

from collections.abc import Iterator

from ..oracle.tolerance import LEDGER, check_dtype
from ..oracle.tolerance import dtype as numpy_dtype
from ..subjects.protocol import Subject
from . import load, manifest
from .check_answer import Refused, check_answer
from .run_vector import offered, run_vector

# In these, one of each chapter, float64 and float16 are looked at too.
ALL_DTYPES = {
    "ATT-1.causal", "ATT-15.everything", "ATT-16.merged", "EMPTY-1.zero", "CLEAN-2.nan",
    "GRAD-1.causal", "MHA-4.key_padding", "MHA-10.halves",
}  # fmt: skip
ANSWERED_IN_FLOATS = ("attention", "multihead", "parts", "rotary")


def checks() -> Iterator[tuple[dict, str]]:
    """Yield vectors as in the manifest, each in float32 if it is for that, a few in more dtypes."""
    for entry in manifest()["vectors"]:
        usual = "float32" if "float32" in entry["dtypes"] else entry["dtypes"][0]
        for dtype in (usual, *(["float64", "float16"] if entry["id"] in ALL_DTYPES else [])):
            yield entry, dtype


def check(subject: Subject, id: str, dtype: str) -> None:
    """Run a vector on a subject and check its answer."""
    vector = offered(subject, load()[id])
    answer = run_vector(subject, vector, dtype)
    taken = check_answer(vector, answer, dtype)
    if vector.refused:  # whoever refuses everything has refused nothing
        run_vector(subject, offered(subject, load()[vector.expect[0].answered]), dtype)
    if taken:
        LEDGER.enter(LEDGER.used, f"{id} takes {', '.join(taken)}")
    if vector.call in ANSWERED_IN_FLOATS and not isinstance(answer, Refused):
        check_dtype(answer.get("output", next(iter(answer.values()))), numpy_dtype(dtype), id)
