"""The frozen vectors: cases as data, by which attention in any language is checked (README.md)."""

import json
from functools import cache
from pathlib import Path

from . import tensors
from .check_files import MANIFEST, TENSORS, faults
from .exchange import vector_from_json
from .vector import Vector

HERE = Path(__file__).parent


class VectorsError(ValueError):
    """Frozen vectors that are not what they must be; the text says which, and why."""


def manifest(folder: Path = HERE) -> dict:
    """Return the manifest as it stands, unchecked."""
    return json.loads((folder / MANIFEST).read_text("utf-8"))


def load(folder: Path = HERE) -> dict[str, Vector]:
    """Return every vector by its id. Raises VectorsError where the files are invalid."""
    return _load(Path(folder))


@cache
def _load(folder: Path) -> dict[str, Vector]:
    found = manifest(folder)
    wrong = list(faults(found, folder))
    if wrong:
        raise VectorsError("\n".join(wrong))
    arrays, _ = tensors.read(folder / TENSORS)
    return {entry["id"]: vector_from_json(entry, arrays) for entry in found["vectors"]}
