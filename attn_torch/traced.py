"""Attention where values cannot be looked at: while a graph is made of a call, or of its steps.

Which keys are hidden is then a dense array, and what eager calls tell by a look at the numbers is
told by array operations. The mask is held as an array, and a copy of it in float32; no scores are.

Two cases differ from an eager call. On a GPU the kernel serves in float32 too, where it rounds more
than the contract allows (`fused.is_exact`): the formula would hold all scores. On a CPU the kernel
skips a first block of keys whose scores are all NaN, as inf - inf in products of finite numbers is;
with other keys the row is then finite.

`torch.jit.trace` records head_dim and the scale made of it as constants, and warns that it does:
trace anew for another head_dim.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor
from torch._C._functorch import get_dynamic_layer_stack_depth
from torch.autograd import forward_ad
from torch.nn.functional import pad

from .arrays import has_values, is_array, is_making_graph
from .blocked import empty_row_value
from .call import Call
from .fused import call_kernel, has_kernel
from .numerics import split_nonfinite, upcast, zero_where_empty
from .tiles import Cells

FAR = 1.6e38  # a bias beyond it, to either side, is so far off that nothing is added to it


def may_look(query: Tensor, key: Tensor, value: Tensor, call: Call) -> bool:
    """Whether the way may depend on values: nothing is recorded, transformed or has none."""
    if is_making_graph() or _is_transforming():
        return False
    everything = query, key, value, call.bias, call.sinks, *tables(call)
    return all([array is None or has_values(array) for array in everything])


def tables(call: Call) -> Iterator[Tensor]:
    """Yield the arrays that say what is hidden: the mask's tables, and where queries start.

    Of a predicate's, those in its closure; what else it looks at nobody can tell.
    """
    if call.mask is None:
        return
    if call.mask.name != "causal":
        for leaf in call.mask.leaves():
            yield from leaf.arrays
            if leaf.name == "predicate":
                yield from _captured(*leaf.settings)
    if is_array(call.query_offset):
        yield call.query_offset


def _captured(function: Callable) -> Iterator[Tensor]:
    """Yield the arrays in a function's closure."""
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # it is empty
            if is_array(cell.cell_contents):
                yield cell.cell_contents


def _is_transforming() -> bool:
    """Whether `torch.func` or forward-mode differentiation is under way."""
    return _is_in_functorch() or forward_ad._current_level >= 0


def _is_in_functorch() -> bool:
    return get_dynamic_layer_stack_depth() > 0


# PyTorch 2.11 compiles no call of the function inside, and takes the answer for a constant. It is
# what `torch.compiler.assume_constant_result` does, which needs seconds to load the compiler.
_is_in_functorch._dynamo_marked_constant = True  # type: ignore[attr-defined]


def kernel_serves(query: Tensor, key: Tensor, value: Tensor, call: Call) -> bool:
    """Whether torch's kernel can stand in the graph; where not, the textbook can.

    It knows no softcap and no sinks, and none of `torch.func`'s transformations. With a bias it
    has no gradients: they go by a log-sum-exp, which has lost count of the keys beside a fill.
    """
    if call.softcap is not None or call.sinks is not None or query.is_meta or _is_transforming():
        return False
    if call.bias is not None and _asks_gradients(query, key, value, call.bias):
        return False
    width = _padded_width(query, value)
    return has_kernel(query.device.type, query.dtype, width, width)


def _asks_gradients(*arrays: Tensor) -> bool:
    return torch.is_grad_enabled() and any(array.requires_grad for array in arrays)


def _padded_width(query: Tensor, value: Tensor) -> int:
    """Return the width of one column more than the wider has, as a multiple of 8."""
    return (max(int(query.shape[3]), int(value.shape[3])) // 8 + 1) * 8


def attend_traced(
    query: Tensor, key: Tensor, value: Tensor, call: Call, allowed: Tensor | None
) -> Tensor:
    """Attend by torch's kernel and array operations; `allowed` is None where the kernel knows it.

    Keys that are not finite and logits that overflow give what they give in `attend_steps`. Of a
    row whose logits all overflow the kernel makes 0, as of a fully masked one: a column of ones
    beside the values comes out as the sum of the row's weights, and tells.
    """
    dtype, empty, mask = query.dtype, None, None
    if call.bias is not None:
        query, key, value = upcast(query), upcast(key), upcast(value)
    key, value, nonfinite = split_nonfinite(key, value)
    causal = allowed is None and call.mask is not None
    rows = _rows_of_nonfinite(nonfinite, allowed, causal, query.shape[1] // key.shape[1])
    if allowed is not None:
        # A fully masked row is allowed every key, else its gradients would be NaN.
        empty = ~allowed.any(-1, keepdim=True)
        query = zero_where_empty(query, empty)
        mask = _kernel_mask(allowed | empty, empty, call, query)
    width = _padded_width(query, value)
    q, k = (pad(array, (0, width - array.shape[3])) for array in (query, key))
    v = pad(value, (0, width - value.shape[3]), value=1.0)
    scale = call.scale
    if q.itemsize > 2:  # products that are not scaled yet might overflow
        q, scale = q * scale, 1.0
    output = call_kernel(q, k, v, scale, causal, mask)
    healthy = (output[..., -1:] > 0.5) & ~rows  # the sum of weights is 1, or else 0 or NaN
    output = torch.where(healthy, output[..., : value.shape[3]], torch.nan)
    if empty is not None:
        output = torch.where(empty, empty_row_value(call, upcast(value), nonfinite), output)
    return output.to(dtype)


def allowed_cells(call: Call, device: torch.device) -> Tensor:
    """Return where both the mask and the bias allow a key, broadcasting to (B, H, T, S)."""
    allowed = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
    if call.mask is not None:
        allowed = call.mask.evaluate(Cells(call.sizes, call.query_offset, device=device))
    return allowed if call.bias is None else allowed & (call.bias != -torch.inf)


def _kernel_mask(allowed: Tensor, empty: Tensor, call: Call, query: Tensor) -> Tensor:
    """Return what the kernel takes: True where allowed, or the bias there and -inf elsewhere."""
    if call.bias is not None:
        bias = torch.where(empty, 0, call.bias.to(query))
        # A GPU's kernel multiplies by log2(e), which must not overflow: order is all that counts.
        bias = torch.where(bias.abs() > FAR, bias / 4 + bias.sign() * (0.75 * FAR), bias)
        allowed = torch.where(allowed, bias, -torch.inf)
    return allowed.expand(*allowed.shape[:2], *call.sizes[2:])


def _rows_of_nonfinite(
    nonfinite: Tensor, allowed: Tensor | None, causal: bool, groups: int
) -> Tensor:
    """Return which rows are allowed a key that is not finite: (B, H, T or 1, 1)."""
    nonfinite = nonfinite.repeat_interleave(groups, dim=1)
    if allowed is not None:
        rows = torch.einsum("bhts,bhs->bht", allowed.float(), nonfinite.float()) > 0
    else:
        rows = nonfinite.cumsum(-1) > 0 if causal else nonfinite.any(-1, keepdim=True)
    return rows[..., None]
