"""Questions about an array that each framework answers differently; `checks.py` asks them."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import meta

Array = jax.Array | np.ndarray


def is_array(value: Any) -> TypeGuard[Array]:
    """Whether the value is an array of this framework.

    No masked array: its mask would be lost. No matrix: its rank is always 2.
    """
    return isinstance(value, Array) and not isinstance(value, np.ma.MaskedArray | np.matrix)


def inside(value: Any) -> str:
    """Return how the array inside a box is written, and "" where it is none that we know."""
    if isinstance(value, jax.Ref):
        return "ref[...]"
    name = type(value).__name__.lower()
    if isinstance(value, meta.AxisMetadata):
        return f"{name}.unbox()"
    return f"{name}[...]" if isinstance(value, nnx.Variable) else ""


def is_concrete(array: Any) -> bool:
    """Whether the values can be looked at now.

    Not while a function is traced over them.
    """
    return not isinstance(array, jax.core.Tracer)


def is_representable(integers: Array) -> bool:
    """Whether the framework computes with these integers as they are.

    JAX makes int32 of int64, unless jax_enable_x64 is on. What is traced has been made so.
    """
    held = jnp.iinfo(jax.dtypes.canonicalize_dtype(int))
    if integers.dtype.itemsize <= held.dtype.itemsize or not integers.size:
        return True
    lowest, highest = lowest_highest(integers)
    return held.min <= lowest and highest <= held.max


def dtype_name(array: Any) -> str:
    """Return the short name of the dtype, as NumPy writes it."""
    return _name(array.dtype)


@cache
def _name(dtype: Any) -> str:
    return dtype.name  # NumPy puts it together anew each time


def name_of(dtype: Any) -> str:
    """Return the short name of a dtype, and "" of what is none."""
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return ""


def is_cast(array: Any, dtype: str) -> bool:
    """Whether the framework casts between these dtypes by itself.

    Never, in JAX.
    """
    return False


def to_numpy(array: Array) -> np.ndarray:
    """Return the values of a concrete array in NumPy."""
    return np.asarray(array)


def from_numpy(values: np.ndarray) -> Array:
    """Return an array of this framework with NumPy's values."""
    return jnp.asarray(values)


def lowest_highest(array: Array) -> tuple[int, int]:
    """Return the smallest and the largest of an array's integers."""
    values = np.asarray(array)
    return int(values.min()), int(values.max())


def signed_copy(integers: Array) -> Array:
    """Return the integers in a signed dtype, in memory that nobody else writes to."""
    if isinstance(integers, np.ndarray):
        integers = np.array(integers)
    return integers if integers.dtype.kind == "i" else integers.astype(int)


def is_symbolic(value: Any) -> bool:
    """Whether it is made of sizes that are not known yet, as S - T of `jax.export` is."""
    return jax.export.is_symbolic_dim(value)


def to_positions(integers: Any) -> Array:
    """Return the integers in the dtype of positions.

    An eager call refuses what is farther than 2**30; where values are not known, that is taken.
    """
    if is_symbolic(integers):
        return jnp.asarray(integers)
    if not is_concrete(integers) and integers.dtype.itemsize > 2:
        integers = integers.clip(-(2**30) if integers.dtype.kind == "i" else 0, 2**30)
    return integers.astype(int)


def full_like(array: Array, value: int) -> Array:
    """Return an array like another with one value everywhere, concrete while tracing too."""
    return np.full(array.shape, value, array.dtype)


def copy_like(values: Array, array: Array) -> Array:
    """Return a copy of the values with the dtype of another array."""
    return values.astype(array.dtype)


def concatenate(arrays: Sequence[Array]) -> Array:
    """Join arrays along their first axis."""
    return jnp.concatenate(arrays)


def split(array: Array, parts: int) -> Sequence[Array]:
    """Cut an array into equal parts along its first axis."""
    return jnp.split(array, parts)
