"""Checking the files: the manifest's form and ids, the tensors' digest and names, their size."""

import json
import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from ..contract import clauses
from . import tensors

MANIFEST, TENSORS, SCHEMA = "manifest.json", "vectors.safetensors", "schema.json"
LARGEST = 2 * 1024 * 1024  # bytes of manifest and tensors together


def faults(found: dict, folder: Path) -> Iterator[str]:
    """Say what is wrong with the files: their form, their digest, their size, their ids."""
    wrong = list(misshapen(found))
    yield from wrong or unsound(found, folder)  # of a wrong form, it could not even be read


def unsound(found: dict, folder: Path) -> Iterator[str]:
    """Say what is wrong with files whose manifest follows its schema."""
    content = (folder / TENSORS).read_bytes()
    digest = sha256(content).hexdigest()
    if digest != found["tensors"]["sha256"]:
        stored = found["tensors"]["sha256"]
        yield f"{TENSORS}: the manifest's SHA-256 is {stored}, the file's is {digest}"
        if not readable(folder):
            return
    size = len(content) + (folder / MANIFEST).stat().st_size
    if size > LARGEST:
        yield f"the files must have at most {LARGEST} bytes together: got {size}"
    yield from misnamed(found, tensors.read(folder / TENSORS)[0].keys())
    yield from lonely(found["vectors"])


def readable(folder: Path) -> bool:
    """Whether the tensors file is one at all."""
    try:
        tensors.read(folder / TENSORS)
    except (ValueError, KeyError, struct.error):
        return False
    return True


def misshapen(found: dict) -> Iterator[str]:
    """Say where the manifest does not follow its schema; nothing without jsonschema."""
    try:
        from jsonschema import Draft202012Validator  # here: whoever lists vectors need not wait
        from jsonschema.exceptions import best_match
    except ImportError:
        return  # the digest of the tensors is checked all the same

    schema = json.loads(Path(__file__).with_name(SCHEMA).read_text("utf-8"))
    for error in Draft202012Validator(schema).iter_errors(found):
        error = best_match([error]) or error  # the one inside, where there is a choice
        path = list(error.absolute_path)
        if path[:1] == ["vectors"] and len(path) > 1:
            entry = found["vectors"][path[1]]
            name = entry.get("id", path[1]) if isinstance(entry, dict) else path[1]
            path = [f"vector {name}", *path[2:]]
        yield f"{MANIFEST}, {'/'.join(map(str, path)) or 'at the top'}: {error.message[:300]}"


def misnamed(found: dict, names) -> Iterator[str]:
    """Say which ids, clauses and tensors' names do not fit together."""
    ids = [entry["id"] for entry in found["vectors"]]
    for id in sorted({id for id in ids if ids.count(id) > 1 or id in found["retired"]}):
        yield f"an id is used once and never again: got {id}"
    for entry in found["vectors"]:
        clause = clauses().get(entry["clause"])
        if clause is None or entry["id"].split(".")[0] != entry["clause"]:
            yield f"{entry['id']}: its clause is the first part of its id: got {entry['clause']}"
        elif entry["level"] != clause.level:
            yield f"{entry['id']}: {clause.id} is a {clause.level} clause: got {entry['level']}"
    used = {name for entry in found["vectors"] for name in tensors_of(entry)}
    for name in sorted(used ^ set(names)):
        where = "is not in the file" if name in used else "belongs to no vector"
        yield f"{TENSORS}: the tensor {name} {where}"


# Where tensors' names stand; "tensor" is a mask's array, or a tensor of the answer (without "/").
NAMED = ("seen", "region", "expected", "tensor")


def tensors_of(entry: dict) -> set[str]:
    """Return the names of the tensors that an entry of the manifest mentions."""
    found: set[str] = set()

    def walk(value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in ("inputs", "parameters"):
                    found.update(inner.values())
                elif isinstance(inner, str) and "/" in inner and key in NAMED:
                    found.add(inner)
                else:
                    walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk({name: entry[name] for name in entry if name not in ("telling", "exempt", "shows")})
    return found


# What two vectors may share or not without being another call.
WORDS = {"id", "clause", "level", "shows", "expect", "telling", "exempt"}


def lonely(entries: list[dict]) -> Iterator[str]:
    """Say which refused calls do not stand beside an answered one that differs as they say."""
    by_id = {entry["id"]: entry for entry in entries}
    for entry in entries:
        part = entry["expect"][0]
        if part["kind"] != "raises":
            continue
        other = by_id.get(part["answered"])
        if other is None or other["expect"][0]["kind"] == "raises":
            yield f"{entry['id']}: {part['answered']} must be a vector that is answered"
            continue
        mine, theirs = (_fields(e) for e in (entry, other))
        found = {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
        if found != set(part["differs_in"]):
            text = f"it differs from {other['id']} in {sorted(found)}, not in {part['differs_in']}"
            yield f"{entry['id']}: {text}"


def _fields(entry: dict) -> dict:
    """Return what makes a call, inputs one by one."""
    found = {name: value for name, value in entry.items() if name not in WORDS | {"inputs"}}
    found["mask"] = (found.get("mask") or {}).get("structure")
    return found | {f"inputs.{name}": tensor for name, tensor in entry.get("inputs", {}).items()}
