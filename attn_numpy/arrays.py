"""What the checks ask about an array: the questions that each framework answers its own way."""

import numpy as np


def is_array(value) -> bool:
    """Whether the value is an array of this framework."""
    return isinstance(value, np.ndarray)


def is_concrete(array) -> bool:
    """Whether the values can be looked at now.

    Always, in NumPy.
    """
    return True


def dtype_name(array) -> str:
    """Return the short name of the dtype, as NumPy writes it."""
    return array.dtype.name
