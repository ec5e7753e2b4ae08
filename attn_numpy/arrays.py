"""Questions about an array that each framework answers differently; `checks.py` asks them."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeGuard

import numpy as np

Array = np.ndarray


def is_array(value: Any) -> TypeGuard[Array]:
    """Whether the value is an array of this framework.

    No masked array: its mask would be lost. No matrix: its rank is always 2.
    """
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray | np.matrix)


def inside(value: Any) -> str:
    """Return how the array inside a box is written, and "" where it is none that we know.

    Always, in NumPy.
    """
    return ""


def is_concrete(array: Any) -> bool:
    """Whether the values can be looked at now.

    Always, in NumPy.
    """
    return True


def is_representable(integers: Array) -> bool:
    """Whether the framework computes with these integers as they are.

    Always, in NumPy.
    """
    return True


def dtype_name(array: Any) -> str:
    """Return the short name of the dtype, as NumPy writes it."""
    return _name(array.dtype)


@cache
def _name(dtype: Any) -> str:
    return dtype.name  # NumPy puts it together anew each time


def name_of(dtype: Any) -> str:
    """Return the short name of a dtype, and "" of what is none."""
    try:
        return np.dtype(dtype).name
    except TypeError:
        return ""


def is_cast(array: Any, dtype: str) -> bool:
    """Whether the framework casts between these dtypes by itself.

    Never, in NumPy.
    """
    return False


def to_numpy(array: Array) -> np.ndarray:
    """Return the values of a concrete array in NumPy."""
    return array


def from_numpy(values: np.ndarray) -> Array:
    """Return an array of this framework with NumPy's values."""
    return values


def lowest_highest(array: Array) -> tuple[int, int]:
    """Return the smallest and the largest of an array's integers."""
    return int(array.min()), int(array.max())


def signed_copy(integers: Array) -> Array:
    """Return the integers in a signed dtype, in memory that nobody else writes to."""
    return np.array(integers, np.int64 if integers.dtype.kind != "i" else None)


def is_symbolic(value: Any) -> bool:
    """Whether it is made of sizes that are not known yet.

    Never, in NumPy.
    """
    return False


def to_positions(integers: Array) -> Array:
    """Return the integers in the dtype of positions."""
    return integers.astype(np.int64)


def full_like(array: Array, value: int) -> Array:
    """Return an array like another with one value everywhere."""
    return np.full_like(array, value)


def copy_like(values: Array, array: Array) -> Array:
    """Return a copy of the values with the dtype of another array."""
    return values.astype(array.dtype)


def concatenate(arrays: Sequence[Array]) -> Array:
    """Join arrays along their first axis."""
    return np.concatenate(arrays)


def split(array: Array, parts: int) -> Sequence[Array]:
    """Cut an array into equal parts along its first axis."""
    return np.split(array, parts)
