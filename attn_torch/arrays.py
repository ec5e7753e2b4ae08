"""What the checks ask about an array: the questions that each framework answers its own way."""

import torch


def is_array(value) -> bool:
    """Whether the value is an array of this framework."""
    return isinstance(value, torch.Tensor)


def is_concrete(array) -> bool:
    """Whether the values can be looked at now.

    Not while `torch.compile` traces, nor in meta and fake tensors.
    """
    return type(array) is torch.Tensor and not array.is_meta and not torch.compiler.is_compiling()


def dtype_name(array) -> str:
    """Return the short name of the dtype, as NumPy writes it."""
    name = getattr(array.dtype, "name", str(array.dtype))  # a list's dtype is NumPy's
    return name.removeprefix("torch.")
