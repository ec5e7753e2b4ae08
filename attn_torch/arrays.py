"""Questions about an array that each framework answers differently; `checks.py` asks them."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

Array = torch.Tensor
CAST = {"float16", "bfloat16", "float32"}  # what autocast makes one dtype of
PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_array(value: Any) -> TypeGuard[Array]:
    """Whether the value is an array of this framework.

    No sparse and no nested tensor: they know few of the operations that attention needs.
    """
    if not isinstance(value, torch.Tensor):
        return False
    return value.layout is torch.strided and not value.is_nested


def inside(value: Any) -> str:
    """Return how the array inside a box is written, and "" where it is none that we know."""
    if is_array(value) or not isinstance(value, torch.Tensor):
        return ""
    return "torch.nested.to_padded_tensor(tensor, 0)" if value.is_nested else "tensor.to_dense()"


def is_concrete(array: Any) -> bool:
    """Whether the values can be looked at now.

    Not while a graph is made (`torch.compile`, `torch.export`, `torch.jit.trace`), not where
    `torch.func` has wrapped the array, nor in meta tensors, fake ones and other subclasses.
    """
    if is_making_graph() or not has_values(array):
        return False
    return not (is_functorch_wrapped_tensor(array) or is_legacy_batchedtensor(array))


def is_making_graph() -> bool:
    """Whether operations are being recorded, to be done later with other values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def has_values(array: Any) -> bool:
    """Whether the array is an ordinary tensor, with values."""
    return type(array) in PLAIN and not array.is_meta


def is_representable(integers: Array) -> bool:
    """Whether the framework computes with these integers as they are.

    Always, in PyTorch.
    """
    return True


def dtype_name(array: Any) -> str:
    """Return the short name of the dtype, as NumPy writes it."""
    if isinstance(array, torch.Tensor):
        return str(array.dtype)[len("torch.") :]
    if isinstance(array, np.ndarray) and torch.compiler.is_compiling():  # it has a tensor's there
        array = torch.from_numpy(array)
    name = getattr(array.dtype, "name", str(array.dtype))  # a list's dtype is NumPy's
    return name.removeprefix("torch.")


def name_of(dtype: Any) -> str:
    """Return the short name of a dtype, and "" of what is none."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else ""


def is_cast(array: Any, dtype: str) -> bool:
    """Whether the framework casts between these dtypes by itself.

    Where autocast is on for the array's device, and never between others than its own.
    """
    return {dtype_name(array), dtype} <= CAST and is_autocast(array.device)


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for a device; for the meta device it cannot be."""
    kind = device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def is_distributed(array: Any) -> bool:
    """Whether an array is a DTensor, of which this device holds a part."""
    return array is not None and type(array) not in PLAIN and hasattr(array, "placements")


def on_ranks_of(shards: Any, array: Array) -> Any:
    """Return an array that every rank has whole as a DTensor, if `shards` is one beside it."""
    if not is_distributed(shards) or is_distributed(array):
        return array
    from torch.distributed.tensor import DTensor, Replicate

    mesh = shards.device_mesh
    return DTensor.from_local(array, mesh, [Replicate()] * mesh.ndim, run_check=False)


def to_numpy(array: Array) -> np.ndarray:
    """Return the values of a concrete array in NumPy."""
    return array.numpy(force=True)


def from_numpy(values: np.ndarray) -> Array:
    """Return an array of this framework with NumPy's values."""
    return torch.from_numpy(values)


def lowest_highest(array: Array) -> tuple[int, int]:
    """Return the smallest and the largest of an array's integers."""
    if array.numel() <= 64:  # a short list is sooner than three operations
        values = array.flatten().tolist()
        return min(values), max(values)
    if array.dtype == torch.uint64:  # int64 may not hold them
        return int(to_numpy(array).min()), int(to_numpy(array).max())
    lowest, highest = torch.stack(array.long().aminmax()).tolist()  # a device is asked once
    return lowest, highest


def signed_copy(integers: Array | np.ndarray) -> Array:
    """Return the integers in a signed dtype, in memory that nobody else writes to."""
    if isinstance(integers, np.ndarray):
        return torch.from_numpy(integers.astype(np.int64))
    return integers.clone() if dtype_name(integers).startswith("int") else integers.to(torch.int64)


def is_symbolic(value: Any) -> bool:
    """Whether it is made of sizes that are not known yet, as S - T of `torch.export` is."""
    return isinstance(value, torch.SymInt)


def to_positions(integers: Any) -> Any:
    """Return the integers in the dtype of positions; symbolic ones have it.

    An eager call refuses what is farther than 2**30; where values are not known, that is taken.
    """
    if is_symbolic(integers):
        return integers
    positions = integers.to(torch.int64)
    if is_concrete(integers):
        return positions
    if integers.dtype == torch.uint64:
        positions = torch.where(positions < 0, 2**30, positions)  # int64 does not hold it
    return positions.clamp(-(2**30), 2**30)


def full_like(array: Array, value: int) -> Array:
    """Return an array like another with one value everywhere."""
    return torch.full_like(array, value)


def copy_like(values: Array, array: Array) -> Array:
    """Return a copy of the values with the dtype of another array, on its device."""
    return values.to(array, copy=True)


def concatenate(arrays: Sequence[Array]) -> Array:
    """Join arrays along their first axis."""
    return torch.cat(tuple(arrays))


def split(array: Array, parts: int) -> Sequence[Array]:
    """Cut an array into equal parts along its first axis."""
    return array.chunk(parts)
