"""A call apart from its arrays: what is compiled, exported or mapped takes arrays alone.

A call is plain data: `{"inputs": {...}, "options": {...}}`, with `"grad"` where the gradients of
sum(grad * output) are asked for, and `"parameters"` where a model is given its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..mask_spec import Spec


def change(call: Any, array: Callable) -> Any:
    """Return a call in which every array, those of masks too, is what `array` makes of it."""
    if isinstance(call, np.ndarray):
        return array(call)
    if isinstance(call, Spec):
        parts = tuple(change(part, array) for part in call.parts)
        return replace(call, arguments=change(call.arguments, array), parts=parts)
    if isinstance(call, Mapping):
        return {name: change(value, array) for name, value in call.items()}
    return call


def arrays_of(call: Any) -> list[np.ndarray]:
    """Return the arrays of a call, always in the same order.

    >>> [array.tolist() for array in arrays_of({"inputs": {"x": np.ones(2)}, "by": 3})]
    [[1.0, 1.0]]
    """
    found: list[np.ndarray] = []
    change(call, found.append)
    return found


def symbols(calls: list) -> list[tuple[str | int, ...]]:
    """Return the shape of each array, with a letter for every size that differs between calls.

    Sizes that differ alike are one size: they get the same letter.
    """
    letters: dict[tuple[int, ...], str] = {}
    shapes = []
    for arrays in zip(*map(arrays_of, calls), strict=True):
        sizes = zip(*(array.shape for array in arrays), strict=True)
        shapes.append(
            tuple(
                s[0] if len(set(s)) == 1 else letters.setdefault(s, "abcdefgh"[len(letters)])
                for s in sizes
            )
        )
    return shapes
