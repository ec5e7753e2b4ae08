"""Completing a case: its answer is derived twice, and kept where the two derivations agree."""

from dataclasses import dataclass, field, replace

import numpy as np

from conformance.oracle.tolerance import Differs
from conformance.vectors.check_answer import check_answer, distance
from conformance.vectors.vector import Part, Vector

from . import bound, discrimination, exact, oracle, sets


@dataclass
class Derived:
    """A completed vector, both answers, what speaks against it, and how near the bound it came."""

    vector: Vector
    first: dict[str, np.ndarray] = field(default_factory=dict)  # the loop oracle's
    second: dict[str, np.ndarray] = field(default_factory=dict)  # exact arithmetic's
    faults: list[str] = field(default_factory=list)
    share: float = 0.0  # of the oracle's bound
    ulps: float = 0.0  # of the tensor's largest number


def complete(case: Vector, stored: Vector | None = None) -> Derived:
    """Derive a case's answer twice. What is stored is only quoted where the two differ."""
    if case.refused:
        return Derived(case)
    wrong = [f"{case.id}: {text}" for text in unholdable(case)]
    if case.call in ("attention", "parts", "allowed", "multihead") and _masked(case):
        case = replace(case, seen=oracle.allowed_cells(case))
        looks = {"seen": case.seen}, {"seen": sets.allowed_cells(case)}
        wrong += disagreements(case, *looks, {}, {"seen": stored and stored.seen})
    found = Derived(case, oracle.derive(case), exact.derive(case), wrong)
    limits = bound.bounds(case)
    quoted = {part.tensor: part.expected for part in _flat(stored)} if stored else {}
    wrong += disagreements(case, found.first, found.second, limits, quoted)
    found.share, found.ulps = closeness(found.first, found.second, limits)
    allowed = oracle.allowances(case, found.second) if limits else {}
    expect = tuple(_filled(part, part.tensor, found.second, allowed) for part in case.expect)
    found.vector = replace(case, expect=expect)
    for name, answer in (("the loop oracle", found.first), ("exact arithmetic", found.second)):
        try:
            check_answer(found.vector, answer, case.dtypes[0])
        except Differs as error:
            wrong.append(f"{case.id}: {name} does not say what the case expects: {error}")
    return found


def _masked(case: Vector) -> bool:
    return case.mask is not None or case.call == "multihead"


def unholdable(case: Vector) -> list[str]:
    """Say which numbers one of the case's dtypes cannot hold."""
    wrong = []
    for name in case.dtypes[1:]:
        cast = case.cast(name)
        for given, turned in ((case.inputs, cast.inputs), (case.parameters, cast.parameters)):
            for tensor, array in given.items():
                if array.dtype.kind == "f":
                    off = distance(array, turned[tensor].astype(np.float64)) > 0
                    if off.any():
                        wrong.append(f"{name} cannot hold {array[off][0]!r} of {tensor}")
    return wrong


def disagreements(case: Vector, first: dict, second: dict, limits: dict, stored: dict) -> list[str]:
    """Say where the derivations differ by more than the oracle's roundings explain."""
    wrong = []
    for name in sorted(first.keys() & second.keys()):
        one, other = first[name], second[name]
        error = distance(one.astype(float), other.astype(float)) - limits.get(name, 0.0)
        if one.shape != other.shape or (error > 0).any():
            index = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
            wrong.append(said(case, name, index, stored.get(name), one, other))
    return wrong


def said(case: Vector, tensor: str, index: tuple, stored, first, second) -> str:
    """Name a number by vector, tensor and index, and what is stored and derived there."""
    kept = "nothing" if stored is None else repr(stored[index].item())
    return (
        f"{case.id}, {tensor} at {index}: stored is {kept}, the loop oracle says "
        f"{first[index].item()!r}, exact arithmetic says {second[index].item()!r}"
    )


def closeness(first: dict, second: dict, limits: dict) -> tuple[float, float]:
    """Return how much of its bound the oracle used, and its error in ulps of the largest number."""
    share, ulps = 0.0, 0.0
    for name, limit in limits.items():
        error = distance(first[name], second[name])
        if error.size:
            share = max(share, float((error / np.maximum(limit, 5e-324)).max()))
            finite = np.abs(second[name][np.isfinite(second[name])]).max(initial=0.0)
            ulps = max(ulps, float(error.max() / np.spacing(finite)))
    return share, ulps


def _flat(vector: Vector) -> list[Part]:
    """Return the parts that hold expected numbers, alternatives under their tensor's name."""
    parts = []
    for part in vector.expect:
        parts += [replace(p, tensor=part.tensor) for p in part.alternatives.values()] or [part]
    return [part for part in parts if part.expected is not None]


def _filled(part: Part, tensor: str, answer: dict, allowed: dict) -> Part:
    """Return a part with its numbers."""
    if part.kind == "either":
        others = {n: _filled(p, tensor, answer, allowed) for n, p in part.alternatives.items()}
        return replace(part, alternatives=others)
    if part.kind == "exact":
        return replace(part, expected=answer[tensor])
    if part.kind == "close":
        limits = part.allowed or allowed[tensor]
        limits = {name: limit for name, limit in limits.items() if name in allowed[tensor]}
        return replace(part, expected=answer[tensor], allowed=limits)
    return part


def noted(vector: Vector) -> tuple[Vector, list[str]]:
    """Return a completed vector with the notes of what it tells apart, and what it fails to."""
    notes = discrimination.notes(vector)
    kept = {name: number for name, number in notes.items() if name not in vector.exempt}
    return replace(vector, telling=kept), discrimination.faults(vector, notes)
