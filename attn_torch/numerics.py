"""How numbers are kept right: the width of sums, the scale, and what is not finite."""

import math
from contextlib import nullcontext

import torch

from .arrays import is_concrete


def upcast(array):
    """Return float64 as it is and everything else in float32: 16-bit sums stall."""
    return array if array.dtype == torch.float64 else array.float()


def scale_or_default(scale: float | None, head_dim: int) -> float:
    """Return what scores are multiplied by: 1/sqrt(D) where nothing is said."""
    return 1 / math.sqrt(head_dim) if scale is None else float(scale)


def no_autocast(array):
    """Return the context in which nothing is rounded to 16 bits: autocast would undo `upcast`."""
    if array.is_meta:  # autocast knows no such device
        return nullcontext()
    return torch.autocast(array.device.type, enabled=False)


def all_finite(*arrays) -> bool:
    """Whether all are finite, and so small that no product of keys and values overflows."""
    first, *norms = (torch.linalg.vector_norm(upcast(array.detach())) for array in arrays)
    return math.isfinite(sum(norms, first))


def surely_finite(key, value) -> bool:
    """The same where a look is cheap: elsewhere it would wait for a device, or break a graph."""
    return key.device.type == "cpu" and is_concrete(key) and all_finite(key, value)


def split_nonfinite(key, value):
    """Put 0 for what is not finite, and say which keys had any: 0 * NaN would reach every row."""
    nonfinite = ~(key.isfinite().all(-1) & value.isfinite().all(-1))  # (B, H_kv, S)
    return torch.where(key.isfinite(), key, 0), torch.where(value.isfinite(), value, 0), nonfinite


def mark_nonfinite(key, value):
    """Put NaN for a key that is not finite or whose value is not: -inf would hide it."""
    if surely_finite(key, value):
        return key
    good = key.isfinite().all(-1, keepdim=True) & value.isfinite().all(-1, keepdim=True)
    return key.where(good, torch.nan)
