"""Judging an answer: what a vector says of it, part by part, in words that name the place."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..oracle.tolerance import LEDGER, Differs
from .vector import Part, Vector

RULES = {"nan": "NaN", "finite": "a finite number", "zero": "exactly 0"}


class Refused(Exception):
    """The call was refused, as an answer: the error is its cause."""


def check_answer(
    vector: Vector, answer: Mapping[str, np.ndarray] | Refused, dtype: str
) -> list[str]:
    """Check an answer against a vector; return the alternatives that it took.

    The answer is a dict of arrays by the tensors' names, or `Refused`; the dtype is that of the
    call's numbers. Raises `Differs`.
    """
    if vector.refused:
        if not isinstance(answer, Refused):
            raise _differs(vector, f"expected a refusal ({vector.expect[0].rule}), got an answer")
        return []
    if isinstance(answer, Refused):
        raise _differs(vector, f"expected an answer, got a refusal: {answer}")
    taken = []
    for part in vector.expect:
        if part.tensor not in answer:
            raise _differs(vector, f"{part.tensor}: expected an array, got none")
        got = np.asarray(answer[part.tensor])
        got = got if got.dtype == bool else got.astype(np.float64)
        if part.kind == "either":
            taken.append(choose(vector, part, got, dtype))
        else:
            check_part(vector, part, got, dtype)
    return taken


def choose(vector: Vector, part: Part, got: np.ndarray, dtype: str) -> str:
    """Return the alternative that an answer takes; it must be the contract's, if that has one."""
    said = []
    for name, other in part.alternatives.items():
        own = replace(other, tensor=part.tensor, region=part.region)
        if wrong := misfit(vector, own, got, dtype):
            said.append(f"not {name!r}: {wrong[0]}")
        elif part.contract in (None, name):
            return name
        else:
            text = f"{part.tensor} takes {name!r}, the contract says {part.contract!r}"
            raise _differs(vector, text)
    raise _differs(vector, f"{part.tensor} takes no alternative: {'; '.join(said)}")


def check_part(vector: Vector, part: Part, got: np.ndarray, dtype: str) -> None:
    """Check one tensor against one part, which is not an `either`."""
    if wrong := misfit(vector, part, got, dtype):
        text, found = wrong
        raise _differs(vector, text, **found)


def misfit(vector: Vector, part: Part, got: np.ndarray, dtype: str) -> tuple[str, dict] | None:
    """Return where one tensor does not fit a part, in words and as data; None where it does."""
    shape = part.expected.shape if part.expected is not None else shape_of(vector, part.tensor)
    if got.shape != shape:
        return f"{part.tensor}: expected shape {shape}, got {got.shape}", {"took": "shape"}
    error, limit = errors(part, got, dtype)
    error = np.where(part.everywhere(shape), error, 0.0)
    worst = float(error.max(initial=0.0))
    if worst <= limit:
        LEDGER.enter(worst / limit if limit else 0.0, f"{part.tensor} of {vector.id}")
        return None
    index = tuple(int(i) for i in np.unravel_index(error.argmax(), shape))
    text = f"{part.tensor} at {index}: expected {wanted(part, index)}, got {shown(got[index])}"
    if part.kind == "close":
        share = f" ({worst / limit:.3g} x)" if limit else ""
        text += f", error {worst:.3g} of {limit:.3g} allowed in {dtype}{share}"
    found = {"index": index, "got": float(got[index]), "error": worst, "allowed": limit}
    return text, found | (
        {} if part.expected is None else {"expected": float(part.expected[index])}
    )


def errors(part: Part, got: np.ndarray, dtype: str) -> tuple[np.ndarray, float]:
    """Return how far each number is off, and how far it may be."""
    expected = np.zeros(()) if part.expected is None else part.expected
    with np.errstate(invalid="ignore"):
        match part.kind:
            case "nan":
                wrong = ~np.isnan(got)
            case "finite":
                wrong = ~np.isfinite(got)
            case "zero":
                wrong = got != 0
            case "exact":
                wrong = (got != expected) & ~(np.isnan(got) & np.isnan(expected))
            case "close":
                return distance(got, expected), part.allowed[dtype]
            case kind:
                raise ValueError(f"an expectation of the format: got {kind}")
    return np.where(wrong, np.inf, 0.0), 0.0


def distance(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return |got - expected|: 0 where both are NaN or the same infinity, inf where one is."""
    with np.errstate(invalid="ignore"):
        error = np.where(got == expected, 0.0, np.abs(got * 1.0 - expected * 1.0))
    error = np.where(np.isnan(got) & np.isnan(expected), 0.0, error)
    return np.where(np.isnan(error), np.inf, error)


def wanted(part: Part, index: tuple[int, ...]) -> str:
    if part.expected is None:
        return RULES[part.kind]
    exactly = "exactly " if part.kind == "exact" else ""
    return f"{exactly}{shown(part.expected[index])}"


def shown(number) -> str:
    return str(bool(number)) if isinstance(number, np.bool_) else f"{number:.9g}"


def shape_of(vector: Vector, tensor: str) -> tuple[int, ...]:
    """Return the shape of a tensor of the answer."""
    if tensor.startswith("grad_"):
        return vector.inputs[tensor.removeprefix("grad_")].shape
    if tensor.startswith("turned_"):
        return vector.inputs[tensor.removeprefix("turned_")].shape
    if vector.call == "multihead" and tensor == "output":
        return vector.inputs["query"].shape
    B, H, T, S = vector.cells
    shapes = {"output": (B, H, T, vector.sizes.get("D_v", 0)), "mean_weights": (B, T, S)}
    shapes["lse"] = (B, H, T)
    return shapes.get(tensor, vector.cells)


def _differs(vector: Vector, text: str, **found) -> Differs:
    return Differs(f"vector {vector.id}: {text}; it shows that {vector.shows}", **found)
