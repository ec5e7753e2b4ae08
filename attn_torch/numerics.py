"""How numbers are kept right: the width of sums, the scale, and what is not finite."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import dtype_name, is_autocast, is_cast, is_concrete, on_ranks_of, to_numpy

HUGE = 1e37  # a bound on scores, below what float32 holds
FEW = 2**13  # numbers of which NumPy makes a norm sooner than torch begins


def upcast(array: Tensor) -> Tensor:
    """Return float64 as it is and everything else in float32: 16-bit sums stall."""
    return array if array.dtype in (torch.float32, torch.float64) else array.float()


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """Return what scores are multiplied by: 1/sqrt(D) where nothing is said."""
    return 1 / math.sqrt(head_dim) if scale is None else float(scale)


def no_autocast(array: Tensor) -> AbstractContextManager:
    """Return the context in which nothing is rounded to 16 bits: autocast would undo `upcast`."""
    if not is_autocast(array.device):
        return nullcontext()
    return torch.autocast(array.device.type, enabled=False)


def cast_like(array: Tensor, other: Tensor) -> Tensor:
    """Return an array in the dtype of another, should autocast make the one of the other."""
    if array.dtype == other.dtype or not is_cast(array, dtype_name(other)):
        return array
    return array.to(other.dtype)


def cast_alike(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return checked arrays in one dtype: where theirs differ autocast is on, and it is its own."""
    if query.dtype == key.dtype == value.dtype:
        return query, key, value
    dtype = torch.get_autocast_dtype(query.device.type)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def is_bounded(query: Tensor, key: Tensor, value: Tensor, scale: float) -> bool:
    """Whether all numbers surely are finite, and all scores, too: |q . k| <= |q| |k|."""
    norms = [_norm(x) for x in (query, key, value)]
    numbers = map(float, norms) if query.is_cpu else torch.stack(norms).tolist()  # one wait
    query_norm, key_norm, value_norm = numbers
    bounded = query_norm * key_norm * max(abs(scale), 1.0) < HUGE  # unscaled, too
    return bounded and math.isfinite(value_norm)


def largest(array: Tensor) -> float:
    """Return the largest absolute value, beside NaN too, which may be hidden."""
    return float(torch.where(array.isnan(), 0, array).detach().abs().max())


def may_overflow(query: Tensor, key: Tensor, scale: float) -> bool:
    """Whether a logit may leave float32: only the textbook path can tell it from a hidden one."""
    return largest(query) * largest(key) * query.shape[3] * abs(scale) > 1e38


def surely_finite(key: Tensor, value: Tensor) -> bool:
    """Whether both are finite, where a look neither waits for a device nor breaks a graph."""
    if key.device.type != "cpu" or not (is_concrete(key) and is_concrete(value)):
        return False
    return math.isfinite(_norm(key) + _norm(value))


def _norm(array: Tensor) -> Any:
    """Return the root of the sum of all squares, which is finite only if every number is.

    It is a number, or an array of one where a number would have to be waited for.
    """
    array = array.detach() if array.requires_grad else array
    if array.is_cpu and array.itemsize > 2:
        array = array if array.is_contiguous() else array.transpose(1, 2)  # heads of a module
        if array.is_contiguous():  # of what lies side by side, the fastest sum
            if array.numel() <= FEW:
                numbers = to_numpy(array)
                return math.sqrt(np.vdot(numbers, numbers))  # `dot` would warn of an overflow
            flat = array.view(-1)
            return math.sqrt(flat.dot(flat))
    dtype = None if array.itemsize > 2 else torch.float32  # of each number, with no copy of all
    return torch.linalg.vector_norm(array, dtype=dtype)


def split_nonfinite(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put 0 for what is not finite, and say which keys had any: 0 * NaN would reach every row."""
    key_finite, value_finite = torch.isfinite(key), torch.isfinite(value)
    nonfinite = ~(key_finite.all(-1) & value_finite.all(-1))  # (B, H_kv, S)
    return torch.where(key_finite, key, 0), torch.where(value_finite, value, 0), nonfinite


def zero_where_empty(query: Tensor, empty: Tensor) -> Tensor:
    """Put 0 for what is not finite in a fully masked row: its gradient is 0, and 0 * NaN is not."""
    return torch.where(empty & ~torch.isfinite(query), 0, query)


def surely_scored(query: Tensor, key: Tensor, value: Tensor, scale: float) -> bool:
    """Whether all three are finite and their scores, too, where a look costs little."""
    if key.device.type != "cpu" or not all(map(is_concrete, (query, key, value))):
        return False
    return is_bounded(query, key, value, scale)


def mark_nonfinite(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Put NaN for a key and its value if either is not finite: -inf would hide it.

    In both, as torch's kernel may take a row of scores that are all NaN for a hidden one.
    """
    if surely_finite(key, value):
        return key, value
    mark = ((key - key) + (value - value)).sum(-1, keepdim=True)  # 0, or else NaN
    return key + mark, value + mark


def set_nonfinite_aside(
    key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Put 0 for what is not finite in tokens, with marks that give it back to their heads.

    A token may be hidden, but a parameter's gradient sums over all: 0 * NaN would be in it.
    """
    if surely_finite(key, value):
        return key, value, None
    key_mark, value_mark = ((x - x).detach().sum(-1)[:, None, :, None] for x in (key, value))
    key, value = (torch.where(torch.isfinite(x), x, 0) for x in (key, value))
    return key, value, (key_mark, value_mark)  # of 0, or else NaN


def mark_heads(
    key: Tensor, value: Tensor, marks: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Put NaN for the heads of tokens that were not finite."""
    if marks is None:
        return key, value
    heads = zip((key, value), marks, strict=True)
    key, value = (x + on_ranks_of(x, mark.to(x.dtype)) for x, mark in heads)
    return key, value
