"""What the frozen vectors are frozen from: the calls, and what is said of their answers."""

from conformance.vectors.vector import Vector

from . import attention, documents, empty, gradients, heads, masks, multihead, sinks

# An id is permanent. One that is given up stands here, with the reason, and is never used again.
RETIRED: dict[str, str] = {}


def all_cases() -> list[Vector]:
    """Return every case, by clause in the order of the chapters."""
    chapters = (masks, attention, sinks, empty, gradients, multihead, heads, documents)
    return [case for chapter in chapters for case in chapter.CASES]
