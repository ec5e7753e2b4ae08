"""Torch's fused attention kernel: where it serves, and how it is called without its traps."""

from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .arrays import is_array, is_autocast
from .call import Call
from .numerics import (
    HUGE,
    largest,
    no_autocast,
    scale_or_default,
    split_nonfinite,
    surely_finite,
    upcast,
)
from .plan import SCORES

COMPILED = 2**20  # cells of one head, from which on a kernel is compiled for a mask

# Numbers of a 16-bit cache that a step on a CPU turns into float32 at once. Found at 2048 keys of
# 64 by timing 2**18 to 2**21: what the caches hold, and one call of the kernel for several heads.
STEP_NUMBERS = 2**19


def has_kernel(device: str, dtype: torch.dtype, head_dim: int, value_dim: int) -> bool:
    """Whether torch has a fused kernel, linear in memory, for such inputs on such a device."""
    if head_dim != value_dim:
        return False
    if device == "cpu":
        return True  # 16-bit inputs are computed in float32
    return device == "cuda" and dtype != torch.float64 and head_dim % 8 == 0 and head_dim <= 256


def has_exact_kernel(device: str, dtype: torch.dtype, head_dim: int, value_dim: int) -> bool:
    """Whether there is such a kernel that errs no more than the contract allows."""
    return is_exact(device, dtype) and has_kernel(device, dtype, head_dim, value_dim)


def is_exact(device: str, dtype: torch.dtype) -> bool:
    """Whether the kernels of a device round as little as the dtype shows.

    A GPU's take powers of 2 by approximation, where a weight of 1 becomes 0.9999998, and gradients
    take them of rounded sums: in float32 these erred by up to 70 times what the contract allows.
    """
    return device == "cpu" or dtype.itemsize == 2


def ways_on_gpu(
    dtype: torch.dtype, head_dim: int, value_dim: int, call: Call, derived: bool
) -> list[str]:
    """Return the ways to try on a CUDA device, in turn; "blocks" is the last, and always answers.

    The kernels are for 16 bits, as `is_exact` says. "flex" compiles for seconds, so that
    small calls take a dense mask, and so does what does not compile, while the mask is no larger
    than a block's scores. `derived` says that gradients may be asked for: with a dense mask those
    of a kernel may be NaN.
    """
    widths, known = (head_dim, value_dim), call.bias is None and bool(known_structure(call))
    kernel = call.softcap is None and has_exact_kernel("cuda", dtype, *widths)
    if not is_exact("cuda", dtype) or (known and kernel):
        return ["blocks"]  # which calls that kernel
    large = call.sizes[2] * call.sizes[3] >= COMPILED
    large &= call.softcap is not None or not known  # else no mask is needed
    fits = min(widths) >= 16 and max(widths) <= (128 if derived else 256)
    ways = ["flex"] * (large and fits and call.bias is None)
    padded = (max(widths) // 8 + 1) * 8
    if call.softcap is None and not derived and has_exact_kernel("cuda", dtype, padded, padded):
        ways += ["dense"] * (known or _mask_cells(call) <= SCORES)
    return [*ways, "blocks"]


def _mask_cells(call: Call) -> int:
    """Return how many cells the call's dense mask has at most."""
    batch, heads, queries, keys = call.sizes
    if call.mask is not None and all(leaf.name != "predicate" for leaf in call.mask.leaves()):
        batch, heads, _, _ = call.mask.sizes(1, 1, queries, keys)
        batch = max(batch, len(call.query_offset) if is_array(call.query_offset) else 1)
    elif call.mask is None:
        batch = heads = 1
    if call.bias is not None and call.bias.ndim == 4:
        batch, heads = max(batch, call.bias.shape[0]), max(heads, call.bias.shape[1])
    return batch * heads * queries * keys


def known_structure(call: Call) -> str:
    """Return "all" or "causal" where the mask, without being evaluated, is just that."""
    if call.mask is None:
        return "all"
    start = isinstance(call.query_offset, int) and call.query_offset == 0
    if call.mask.name != "causal" or not start:  # asked first: a graph remembers what sizes were
        return ""
    return "causal" if call.sizes[2] == call.sizes[3] else ""


def products_fit(query: Tensor, key: Tensor) -> bool:
    """Whether the kernel may multiply before it scales: no product overflows, NaN aside."""
    return largest(query) * largest(key) * query.shape[3] < HUGE


def fused(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, finite: bool = False
) -> Tensor:
    """Call torch's kernel; a row is NaN if it is allowed a key that is not finite.

    `finite` says that keys and values surely are; otherwise they are looked through.
    """
    nonfinite = None
    if not (finite or surely_finite(key, value)):
        key, value, nonfinite = split_nonfinite(key, value)
    if query.is_cpu and not (finite or products_fit(query, key)):
        query, scale = query * scale, 1.0
    output = call_kernel(query, key, value, scale, causal)
    if nonfinite is not None:
        nonfinite = nonfinite.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        allowed_any = nonfinite.cumsum(-1) > 0 if causal else nonfinite.any(-1, keepdim=True)
        output = torch.where(allowed_any[..., None], torch.nan, output)
    if not finite:  # of a few keys, the kernel takes those whose scores are all NaN for hidden
        output = output.where(query.isfinite().all(-1, keepdim=True), torch.nan)
    return output if output.dtype == query.dtype else output.to(query.dtype)


def fused_step(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float | None = None
) -> Tensor:
    """Attend with one query a sample, which is allowed the sample's first `lengths[b]` keys.

    No mask is needed: samples of one length share a call. Keys are not looked through, which would
    take as long as the kernel, so one that is not finite must be NaN: as `mark_nonfinite` makes it.
    """
    if is_autocast(query.device):
        with no_autocast(query):
            return fused_step(query, key, value, lengths, scale)
    scale, shape = scale_or_default(scale, query.shape[3]), query.shape
    query = query.reshape(len(query), key.shape[1], -1, query.shape[3])  # a group's heads as rows
    outputs, start = [], 0
    for length, run in groupby(lengths):
        at = slice(start, start := start + len(list(run)))
        allowed = key[at, :, :length], value[at, :, :length]
        outputs.append(_step(query[at], *allowed, scale))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.reshape(shape).to(query.dtype)


def _step(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend from the heads of a group to all keys: no more scores than these are numbers."""
    if not has_exact_kernel(key.device.type, key.dtype, key.shape[3], value.shape[3]):
        query, key, value = upcast(query), upcast(key), upcast(value)
        return (query * scale @ key.mT).softmax(-1) @ value
    if key.device.type == "cpu" and key.itemsize == 2:
        return _step_in_parts(query, key, value, scale)
    return call_kernel(query, key, value, scale, causal=False)


def _step_in_parts(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Call the kernel in float32 on 16-bit keys: some heads at a time, in buffers used again.

    A step reads each key once: to write all of them in float32 first takes longer than the rest.
    """
    heads = query.shape[0] * query.shape[1]
    many = max(STEP_NUMBERS // max(key[0, 0].numel(), 1), torch.get_num_threads())
    lines = [array.flatten(0, 1)[:, None].split(min(many, heads)) for array in (query, key, value)]
    there = [torch.empty_like(array[0], dtype=torch.float32) for array in lines[1:]]
    outputs = []
    for query_part, *parts in zip(*lines, strict=True):
        keys, values = (to[: len(x)].copy_(x) for to, x in zip(there, parts, strict=True))
        outputs.append(call_kernel(query_part, keys, values, scale, causal=False))
    return torch.cat(outputs).reshape(query.shape)


def call_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None = None,
) -> Tensor:
    """Call torch's kernel on finite keys; its result may be wider than the query."""
    q, k, v = query, key, value
    grouped = True if q.shape[1] != k.shape[1] else False  # noqa: SIM210 -- a graph's is no bool
    if query.is_cpu:
        if query.itemsize == 2:
            q, k, v = (upcast(array) for array in (q, k, v))
    elif grouped and (query.dtype == torch.float32 or mask is not None):
        groups, grouped = q.shape[1] // k.shape[1], False  # these kernels know no grouped heads
        k, v = (array.repeat_interleave(groups, dim=1) for array in (k, v))
    if causal and scale <= 0:  # the kernel would give NaN
        q, scale = q * scale, 1.0
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
        q, k, v = (array if array.stride(3) == 1 else array.contiguous() for array in (q, k, v))
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
