"""python -m tools.vectors [--check | --write]: derive the frozen vectors, twice, and compare.

A vector is written only if the loop oracle and exact arithmetic agree on it and it tells the right
answer from the usual wrong ones. The check does all of this again for what is stored.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from conformance.vectors import HERE, VectorsError, manifest, tensors
from conformance.vectors.check_files import MANIFEST, TENSORS, faults, misshapen, readable, unsound
from conformance.vectors.exchange import Store, vector_from_json, vector_to_json
from conformance.vectors.vector import Vector

from .cases import RETIRED, all_cases
from .check_stored import differences, frozen_differences
from .derive import Derived, complete, noted
from .progress import watched


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 0 only where nothing is wrong."""
    parser = argparse.ArgumentParser("tools.vectors", description=__doc__)
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--check", action="store_true", help="derive all vectors again and compare")
    asked.add_argument("--write", action="store_true", help="derive all vectors and write them")
    options = parser.parse_args(arguments)
    import_module("jsonschema")  # its check is left out where it is absent: not here
    try:
        if options.write:
            print(write())
            return 0
        wrong = check() if options.check else list(faults(manifest(), HERE))
        print("\n".join(wrong), file=sys.stderr, end="\n" * bool(wrong))
        if not wrong:
            print(summary(manifest(), "derived twice, and equal" if options.check else "read"))
        return 1 if wrong else 0
    except (OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2


def check(folder: Path = HERE, cases: list[Vector] | None = None) -> list[str]:
    """Return what is wrong with stored vectors, derived again by both derivations."""
    found = manifest(folder)
    wrong = list(misshapen(found))
    if wrong:
        return wrong
    wrong += unsound(found, folder)
    if not readable(folder):
        return [*wrong, f"{TENSORS} cannot be read"]
    stored = {entry["id"]: entry for entry in found["vectors"]}
    arrays, _ = tensors.read(folder / TENSORS)
    if cases is None:
        cases = all_cases()
        ids = [case.id for case in cases]
        wrong += [f"{id} is stored, and no case makes it" for id in stored if id not in ids]
        if found["retired"] != RETIRED:
            wrong.append(f"{MANIFEST}, retired: expected {RETIRED}, got {found['retired']}")
    for case in watched(cases, "deriving vectors"):
        if case.id not in stored:
            wrong.append(f"{case.id} is not stored: write the vectors")
            continue
        try:
            own = replace(vector_from_json(stored[case.id], arrays), distractors=case.distractors)
            wrong += differences(own, complete(case, own))
        except (KeyError, TypeError, ValueError) as error:
            wrong.append(f"{case.id} cannot be compared: {error!r}")
    return wrong


def derive(cases: list[Vector]) -> list[Vector]:
    """Return cases completed. Raises `VectorsError` with all that speaks against any of them."""
    done, wrong = [], []
    for case in watched(cases, "deriving vectors"):
        found: Derived = complete(case)
        vector, vain = noted(found.vector)
        wrong += found.faults + vain
        done.append(vector)
    if wrong:
        raise VectorsError("\n".join(wrong))
    return done


def write(folder: Path = HERE, cases: list[Vector] | None = None) -> str:
    """Derive the cases and write them; what is stored under an id does not change."""
    vectors, store = derive(all_cases() if cases is None else cases), Store()
    entries = [vector_to_json(vector, store) for vector in vectors]
    wrong = frozen_differences(folder, {vector.id: vector for vector in vectors})
    if wrong:
        raise VectorsError("\n".join(wrong))
    with TemporaryDirectory(dir=folder) as place:
        new = Path(place)
        # Eight bytes a number first, so that every one of them is aligned.
        arrays = sorted(store.tensors.items(), key=lambda named: -named[1].dtype.itemsize)
        tensors.write(new / TENSORS, dict(arrays))
        found = described(entries, sha256((new / TENSORS).read_bytes()).hexdigest())
        (new / MANIFEST).write_text(text_of(found), "utf-8")
        wrong = list(faults(found, new))
        if wrong:
            raise VectorsError("\n".join(wrong))
        for name in (TENSORS, MANIFEST):
            (new / name).replace(folder / name)
    return summary(found, "written", folder)


def described(entries: list[dict], digest: str) -> dict:
    """Return the manifest of these entries."""
    return {
        "format": "attn-rosetta vectors",
        "version": 1,
        "tensors": {"file": TENSORS, "sha256": digest},
        "retired": RETIRED,
        "vectors": entries,
    }


def text_of(found: dict) -> str:
    """Return a manifest as JSON, a list of plain values on one line.

    >>> print(text_of({"a": [1, [2, 3]]}), end="")
    {
     "a": [
      1,
      [2, 3]
     ]
    }
    """
    text = json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False)
    plain = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
    return plain.sub(lambda match: "[" + re.sub(r"\n *", " ", match[1]) + "]", text) + "\n"


def summary(found: dict, done: str, folder: Path = HERE) -> str:
    """Say how many vectors there are, of how many clauses and kinds, and in how many bytes."""
    vectors = found["vectors"]
    kinds = Counter(part["kind"] for entry in vectors for part in entry["expect"])
    size = sum((folder / name).stat().st_size for name in (MANIFEST, TENSORS))
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    clauses = len({entry["clause"] for entry in vectors})
    return (
        f"{len(vectors)} vectors of {clauses} clauses {done}: {size / 1024:.0f} KiB; "
        f"expectations: {counted}"
    )
