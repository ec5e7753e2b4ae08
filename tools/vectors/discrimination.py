"""What makes a vector worth keeping: it is not true of everything, and refuses the usual mistakes.

Each property is a number that must reach a least one. A vector that cannot have a property says
why, and is then held to not having it.
"""

from dataclasses import replace
from decimal import ROUND_FLOOR, Context

import numpy as np

from conformance.oracle.tolerance import dtype, eps
from conformance.vectors.check_answer import distance
from conformance.vectors.vector import Part, Vector

from . import distractors, oracle

BUDGETS = 100  # how far from the right answer a wrong one must lie
LEAST = {"hidden": 1, "visible": 1, "distinct_sizes": 1, "top_weight": 0.5}
WEIGHTED = ("attention", "parts", "multihead")
DISTINCT = ("B", "H", "T", "S", "D", "D_v", "E")  # H_kv is H where heads are not grouped
PROPERTIES = (*LEAST, *distractors.ALWAYS)


def notes(vector: Vector) -> dict[str, float]:
    """Return what a vector has of each property, as numbers; what it lacks is 0.

    A distance from a wrong answer is in budgets of float32 (or of the vector's widest 16-bit
    type), rounded down to two digits; for masks it is the number of cells that differ.
    """
    sizes = [vector.sizes[name] for name in DISTINCT if name in vector.sizes]
    found: dict[str, float] = dict.fromkeys(PROPERTIES, 0)
    found["distinct_sizes"] = len(set(sizes)) == len(sizes) > 1
    if vector.refused:
        return found
    if vector.call == "rotary":  # no mask and no weights: mistakes of its own alone
        return {"distinct_sizes": found["distinct_sizes"]} | _distances(vector, ())
    allowed = oracle.allowed_with_bias(vector)
    found |= {"hidden": int((~allowed).sum()), "visible": int(allowed.sum())}
    if vector.call not in WEIGHTED:
        found["unmasked"] = found["hidden"]
        found["transposed"] = int((distractors.column_by_column(allowed) != allowed).sum())
        return found
    weights = oracle.derive(vector)["weights"]
    found["top_weight"] = down(float(np.nan_to_num(weights).max(initial=0.0)))
    return found | _distances(vector, tuple(distractors.ALWAYS))


def _distances(vector: Vector, always: tuple[str, ...]) -> dict[str, float]:
    """Return how far wrong answers lie from the right one: those of every vector, and its own."""
    found = {}
    for name in (*always, *vector.distractors):
        wrong = (distractors.ALWAYS | distractors.OTHERS)[name](vector)
        found[name] = down(max(0.0, *(apart(part, vector, wrong) for part in flat(vector))))
    return found


def flat(vector: Vector) -> list[Part]:
    """Return the parts that hold numbers, of an `either` the contract's alternative."""
    parts = []
    for part in vector.expect:
        if part.kind == "either" and part.contract:
            own = part.alternatives[part.contract]
            part = replace(own, tensor=part.tensor, region=part.region)
        if part.kind in ("close", "exact"):
            parts.append(part)
    return parts or [Part(kind="none")]


def apart(part: Part, vector: Vector, wrong: dict[str, np.ndarray]) -> float:
    """Return how many budgets a wrong answer lies from a part's numbers."""
    if part.expected is None or not part.expected.size:
        return 0.0
    expected = part.expected.astype(float)
    error = distance(wrong[part.tensor].astype(float), expected)
    error = np.where(part.everywhere(error.shape), error, 0.0)
    narrow = next((d for d in vector.dtypes if d != "float64"), "float64")
    finite = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    limit = part.allowed.get(narrow, 2 * eps(dtype(narrow)) * float(finite))
    worst = float(error[np.isfinite(error)].max(initial=0.0))
    return worst / limit if limit else 0.0


def down(number: float) -> float:
    """Round down to two digits.

    >>> down(1289.0)
    1200.0
    """
    return float(Context(prec=2, rounding=ROUND_FLOOR).create_decimal(number))


def has(name: str, found: dict[str, float], vector: Vector) -> bool:
    """Whether a property is there."""
    least = LEAST.get(name, BUDGETS if vector.call in (*WEIGHTED, "rotary") else 1)
    return found[name] > least if name == "top_weight" else found[name] >= least


def faults(vector: Vector, found: dict[str, float]) -> list[str]:
    """Return why a vector must not be kept: a property that lacks, or is exempt and there."""
    wrong = []
    for name, number in found.items():
        there, excused = has(name, found, vector), name in vector.exempt
        if not there and not excused:
            wrong.append(f"{vector.id} tells nothing about {name}: got {number:g}")
        if there and excused:
            wrong.append(f"{vector.id} is exempt from {name}, and has it: got {number:g}")
    unknown = sorted(vector.exempt.keys() - found.keys())
    wrong += [f"{vector.id} is exempt from {name}, which is no property" for name in unknown]
    for part in vector.expect:
        if part.region is not None and not part.region.any():
            wrong.append(f"{vector.id} says nothing about {part.tensor}: its region is empty")
    return wrong
