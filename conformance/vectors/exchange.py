"""Vectors to JSON and back: numbers of a case stand in the manifest, arrays in the tensors file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..contract import clauses
from ..mask_spec import Spec
from .vector import Part, Vector


class Store:
    """The tensors of a file in the making: equal arrays are kept once, under their first name."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}

    def add(self, name: str, array: np.ndarray) -> str:
        """Keep an array, and return the name by which it is found."""
        array = np.ascontiguousarray(array) if array.ndim else array
        known = self._names.setdefault((array.dtype.str, array.shape, array.tobytes()), name)
        if known == name:
            if name in self.tensors:
                raise ValueError(f"a tensor's name is used once: got {name} twice")
            self.tensors[name] = array
        return known


def vector_to_json(vector: Vector, store: Store) -> dict:
    """Return a vector's entry in the manifest; its arrays go to the store."""
    at = vector.id
    entry: dict[str, Any] = {
        "id": at,
        "clause": vector.clause,
        "level": clauses()[vector.clause].level,
        "shows": vector.shows,
        "call": vector.call,
        "sizes": vector.sizes,
        "dtypes": list(vector.dtypes),
    }
    arrays = {"inputs": vector.inputs, "parameters": vector.parameters}
    for group, found in arrays.items():
        if found:
            entry[group] = {n: store.add(f"{at}/{n}", x) for n, x in found.items()}
    if vector.settings:
        entry["settings"] = vector.settings
    if vector.mixed:
        entry["mixed"] = vector.mixed
    if vector.call in ("attention", "parts", "multihead", "allowed"):
        entry["mask"] = mask_to_json(vector, store)
        entry["query_offset"] = vector.query_offset
    if vector.call in ("attention", "parts"):
        entry |= {"scale": vector.scale, "softcap": vector.softcap}
    if vector.call in ("attention", "parts", "multihead"):
        entry["empty_rows"] = vector.empty_rows
    entry["expect"] = [
        part_to_json(part, f"{at}/expect.{i}", store) for i, part in enumerate(vector.expect)
    ]
    return entry | {"telling": vector.telling, "exempt": vector.exempt}


def mask_to_json(vector: Vector, store: Store) -> dict | None:
    """Return a mask as structure and as what it allows; None where the call has none."""
    if vector.mask is None and vector.call != "multihead":
        return None
    structure = vector.mask and spec_to_json(vector.mask, f"{vector.id}/mask", store)
    seen = None if vector.seen is None else store.add(f"{vector.id}/seen", vector.seen)
    return {"structure": structure, "seen": seen}


def vector_from_json(entry: dict, tensors: Mapping[str, np.ndarray]) -> Vector:
    """Return the vector of an entry. A tensor that is not in the file is a KeyError."""
    mask = entry.get("mask") or {"structure": None, "seen": None}
    arrays: dict[str, Any] = {
        group: {name: tensors[own] for name, own in entry.get(group, {}).items()}
        for group in ("inputs", "parameters")
    }
    given = ("id", "shows", "call", "sizes", "query_offset", "scale", "softcap", "empty_rows")
    same: dict[str, Any] = {name: entry[name] for name in given if name in entry}
    return Vector(
        **same,
        **arrays,
        settings=entry.get("settings", {}),
        mixed=entry.get("mixed", {}),
        dtypes=tuple(entry["dtypes"]),
        mask=mask["structure"] and spec_from_json(mask["structure"], tensors),
        seen=None if mask["seen"] is None else tensors[mask["seen"]],
        expect=tuple(part_from_json(part, tensors) for part in entry["expect"]),
        telling=entry["telling"],
        exempt=entry["exempt"],
    )


PLAIN = ("kind", "tensor", "allowed", "contract", "rule", "answered")


def part_to_json(part: Part, at: str, store: Store) -> dict:
    entry: dict = {"tensor": part.tensor} if part.tensor else {}
    entry["kind"] = part.kind
    for name in ("region", "expected"):
        if (array := getattr(part, name)) is not None:
            entry[name] = store.add(f"{at}.{name}", array)
    if part.kind == "close":
        entry["allowed"] = part.allowed
    if part.kind == "either":
        entry["contract"] = part.contract
        entry["alternatives"] = {
            name: part_to_json(other, f"{at}.{name}", store)
            for name, other in part.alternatives.items()
        }
    if part.kind == "raises":
        entry |= {"rule": part.rule, "answered": part.answered}
        entry["differs_in"] = list(part.differs_in)
    if part.taken_by:
        entry["taken_by"] = list(part.taken_by)
    return entry


def part_from_json(entry: dict, tensors: Mapping[str, np.ndarray]) -> Part:
    found: dict[str, Any] = {name: entry[name] for name in PLAIN if name in entry}
    found |= {name: tensors[entry[name]] for name in ("region", "expected") if name in entry}
    found |= {name: tuple(entry[name]) for name in ("differs_in", "taken_by") if name in entry}
    others = {
        name: part_from_json(other, tensors)
        for name, other in entry.get("alternatives", {}).items()
    }
    return Part(**found, alternatives=others)


def spec_to_json(spec: Spec, at: str, store: Store) -> dict:
    """Return a mask's structure; arrays of rank 4 are tensors, all others stand in it as lists."""
    entry: dict = {"kind": spec.kind}
    if spec.parts:
        parts = enumerate(spec.parts)
        entry["parts"] = [spec_to_json(part, f"{at}.{i}", store) for i, part in parts]
    if spec.arguments:
        entry["arguments"] = {}
        for name, value in spec.arguments.items():
            if np.ndim(value) == 4:
                entry["arguments"][name] = {"tensor": store.add(f"{at}.{name}", value)}
            else:
                entry["arguments"][name] = value.tolist() if np.ndim(value) else value
    return entry


def spec_from_json(entry: dict, tensors: Mapping[str, np.ndarray]) -> Spec:
    arguments = {}
    for name, value in entry.get("arguments", {}).items():
        if isinstance(value, dict):
            arguments[name] = tensors[value["tensor"]]
        else:
            arguments[name] = np.array(value) if isinstance(value, list) else value
    parts = tuple(spec_from_json(part, tensors) for part in entry.get("parts", []))
    return Spec(entry["kind"], arguments, parts)
