"""What differs between a stored vector and the same one derived again."""

from pathlib import Path

import numpy as np

from conformance.vectors import manifest, tensors
from conformance.vectors.check_answer import distance
from conformance.vectors.check_files import MANIFEST, TENSORS
from conformance.vectors.exchange import Store, vector_from_json, vector_to_json
from conformance.vectors.vector import Part, Vector

from .cases import RETIRED
from .derive import Derived, noted, said

# The naive formula rounds otherwise on another machine (other sums, other exponentials), so that an
# allowed error derived there may be larger or smaller than the stored one, by so much.
AGAIN = 2.0


def differences(stored: Vector, found: Derived) -> list[str]:
    """Say what differs, number by number; what the derivations disagree about comes first."""
    fresh, wrong = found.vector, list(found.faults)
    for group in ("inputs", "parameters"):
        wrong += _arrays(fresh, getattr(stored, group), getattr(fresh, group), group)
    wrong += _arrays(fresh, {"seen": stored.seen}, {"seen": fresh.seen}, "mask")
    if len(stored.expect) == len(fresh.expect):
        for kept, derived in zip(stored.expect, fresh.expect, strict=True):
            wrong += _part(found, kept, derived, derived.tensor)
    wrong += _texts(stored, fresh)
    notes, vain = noted(stored)
    wrong += vain
    for name in sorted(notes.telling.keys() | stored.telling.keys()):
        mine, theirs = stored.telling.get(name, 0), notes.telling.get(name, 0)
        if abs(mine - theirs) > 0.1 * abs(theirs):  # two digits are kept
            wrong.append(f"{fresh.id}, telling {name}: stored is {mine:g}, derived is {theirs:g}")
    return wrong


def _arrays(vector: Vector, stored: dict, fresh: dict, what: str) -> list[str]:
    """Compare what the case gives: bit by bit, or rather number by number."""
    wrong = []
    for name in sorted(stored.keys() | fresh.keys()):
        mine, theirs = stored.get(name), fresh.get(name)
        if mine is None and theirs is None:
            continue
        if mine is None or theirs is None or mine.shape != theirs.shape:
            one, other = (None if x is None else x.shape for x in (mine, theirs))
            wrong.append(f"{vector.id}, {what} {name}: stored is {one}, the case's {other}")
        elif (off := distance(mine, theirs) > 0).any():
            index = tuple(int(i) for i in np.argwhere(off)[0])
            numbers = f"stored is {mine[index].item()!r}, the case says {theirs[index].item()!r}"
            wrong.append(f"{vector.id}, {what} {name} at {index}: {numbers}")
    return wrong


def _part(found: Derived, stored: Part, fresh: Part, tensor: str) -> list[str]:
    """Compare one part's numbers: expected, region, allowed."""
    vector, wrong = found.vector, []
    at = f"{vector.id}, {tensor or fresh.kind}"
    wrong += _arrays(vector, {"region": stored.region}, {"region": fresh.region}, tensor)
    if stored.expected is not None and fresh.expected is not None:
        if stored.expected.shape != fresh.expected.shape:
            wrong.append(f"{at}: stored is {stored.expected.shape}, derived {fresh.expected.shape}")
        elif (off := distance(stored.expected, fresh.expected) > 0).any():
            index = tuple(int(i) for i in np.argwhere(off)[0])
            answers = found.first[tensor], found.second[tensor]
            wrong.append(said(vector, tensor, index, stored.expected, *answers))
    for name in sorted(stored.allowed.keys() | fresh.allowed.keys()):
        mine, theirs = stored.allowed.get(name, 0.0), fresh.allowed.get(name, 0.0)
        if not theirs / AGAIN <= mine <= theirs * AGAIN:
            wrong.append(f"{at}, allowed in {name}: stored is {mine:g}, derived is {theirs:g}")
    for name in sorted(stored.alternatives.keys() & fresh.alternatives.keys()):
        wrong += _part(found, stored.alternatives[name], fresh.alternatives[name], tensor)
    return wrong


def _texts(stored: Vector, fresh: Vector) -> list[str]:
    """Compare all that is no number: the manifest's own words, with tensors as their names."""
    wrong = []
    mine, theirs = (_words(vector_to_json(v, Store())) for v in (stored, fresh))
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            text = f"stored is {mine.get(name)}, the case says {theirs.get(name)}"
            wrong.append(f"{fresh.id}, {name}: {text}")
    return wrong


def _words(entry: dict, drop=("telling", "allowed")) -> dict:
    def bare(value):
        if isinstance(value, dict):
            return {name: bare(inner) for name, inner in value.items() if name not in drop}
        return [bare(inner) for inner in value] if isinstance(value, list) else value

    return bare(entry)


def frozen_differences(folder: Path, vectors: dict[str, Vector]) -> list[str]:
    """Say which stored ids a new set of vectors would drop, or give to other numbers."""
    if not (folder / MANIFEST).exists():
        return []
    arrays, _ = tensors.read(folder / TENSORS)
    wrong = []
    for entry in manifest(folder)["vectors"]:
        id = entry["id"]
        if id in RETIRED:
            continue
        if id not in vectors:
            wrong.append(f"an id is permanent: name a reason in RETIRED for giving up {id}")
            continue
        old, new = vector_from_json(entry, arrays), vectors[id]
        parts = zip(old.expect, new.expect, strict=False)
        pairs: list[tuple[dict, dict]] = [(old.inputs, new.inputs)]
        pairs += [(old.parameters, new.parameters)]
        pairs += [({"seen": old.seen}, {"seen": new.seen})]
        pairs += [({p.tensor: p.expected}, {q.tensor: q.expected}) for p, q in parts]
        changed = [line for mine, theirs in pairs for line in _arrays(new, mine, theirs, "numbers")]
        wrong += [f"what an id says does not change, give it a new one: {line}" for line in changed]
    return wrong
