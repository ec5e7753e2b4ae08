"""Mistakes in 16 bits, and in the dtype of what comes out."""

import numpy as np

from ..oracle.tolerance import dtype as numpy_dtype
from .arithmetic import attended, over_heads, recomputes
from .mutant import breaks


def is_half(array) -> bool:
    return array.dtype.itemsize == 2


@breaks("steps", "HALF-1", "HALF-5", "ATT-13")
def float32_for_float16(right, *inputs, **options):
    """16-bit inputs give a float32 output."""
    steps = right(*inputs, **options)
    if not is_half(inputs[0]):
        return steps
    return steps | {"output": steps["output"].astype(np.float32)}


@breaks("steps", "HALF-1", "ATT-1")
def float64_narrowed(right, *inputs, **options):
    """float64 inputs give a float32 output."""
    steps = right(*inputs, **options)
    if inputs[0].dtype != np.float64:
        return steps
    return steps | {"output": steps["output"].astype(np.float32)}


@breaks("steps", "HALF-2")
@recomputes
def sums_in_16_bits(right, *inputs, **options):
    """The weighted values are added up in 16 bits: a sum of 4096 ones stalls at 2048."""
    steps = right(*inputs, **options)
    if not is_half(inputs[0]) or options.get("empty_rows", "zero") != "zero":
        return steps
    value = over_heads(inputs[2], inputs[0])
    output = np.zeros_like(steps["output"])
    for s in range(value.shape[2]):
        weights = steps["weights"][..., s, None]
        part = np.where(weights == 0, 0, weights * value[:, :, None, s])
        output = (output + part).astype(output.dtype)
    return steps | {"output": output}


@breaks("steps", "HALF-3")
@recomputes
def products_in_16_bits(right, *inputs, softcap=None, **options):
    """Queries meet keys in float16, where a product beyond 65504 is infinite before its scaling."""
    steps = right(*inputs, softcap=softcap, **options)
    if inputs[0].dtype != np.float16 or softcap is not None:
        return steps
    query, key = inputs[0].astype(np.float32), over_heads(inputs[1], inputs[0])
    products = (query @ key.swapaxes(2, 3)).astype(np.float16).astype(np.float32)
    scale = options.get("scale") or query.shape[3] ** -0.5
    scores = np.where(np.isfinite(steps["scores"]), products * np.float32(scale), steps["scores"])
    masked = scores + (steps["masked_scores"] - steps["scores"])
    return attended(steps | {"scores": scores}, inputs, masked=masked)


@breaks("steps", "HALF-4")
def dtypes_mixed(right, *inputs, **options):
    """Inputs of different dtypes are cast to the first one's without a word."""
    return right(*(x.astype(inputs[0].dtype) for x in inputs), **options)


@breaks("steps", "EMPTY-7")
def empty_rows_in_16_bits(right, *inputs, **options):
    """In 16 bits a fully masked row is NaN whatever was asked for."""
    if inputs[0].dtype in (numpy_dtype("float16"), numpy_dtype("bfloat16")):
        options = options | {"empty_rows": "nan"}
    return right(*inputs, **options)
