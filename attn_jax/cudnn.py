"""cuDNN's attention on an NVIDIA GPU, for what it knows; the loops over tiles for the rest.

Where a program will run is known when it is lowered and not before, so a primitive stands for both
ways until then. The kernel gets numbers that are finite, and whose scores are: the loops stand
beside it in the program, for those that are not. Mapped by `jax.vmap` the call is the loops.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

from .arrays import is_array
from .blocked import COLUMNS, HEADS, ROWS, Cuts, attend_tiles, backward
from .call import Call
from .kernel import CudnnCall, call_kernel, call_kernel_even
from .masks import Mask
from .numerics import HUGE, upcast
from .tiles import Cells, Corner

PLATFORM = "cuda"
CUTS = Cuts(ROWS, COLUMNS, HEADS)
CELLS = 2**26  # of a dense mask, which takes 16 bits a cell
# A dense mask hides by adding -2**41 to a score. Two scores below this bound differ by less than
# that by far, so that the weight of a hidden key is 0.
DENSE_HUGE = 1e12


@cache
def has_cudnn() -> bool:
    """Whether this process has GPUs that cuDNN's attention runs on."""
    try:
        devices = jax.devices(PLATFORM)
    except RuntimeError:  # there is no such platform
        return False
    return all(float(device.compute_capability) >= 8 for device in devices)


def known_to_cudnn(dtype: Any, head_dim: int, value_dim: int, call: Call) -> CudnnCall | None:
    """Return what to tell cuDNN, and None where it does not know such a call.

    No bias: cuDNN takes -inf in one for a large number, and a fully masked row for the mean. No
    sinks. No dense mask in float16: scores can reach the number that hides a key there.
    """
    if dtype not in (jnp.float16, jnp.bfloat16) or head_dim != value_dim:
        return None
    if head_dim % 8 or head_dim > 128:
        return None
    if any(option is not None for option in (call.bias, call.softcap, call.sinks)):
        return None
    if not isinstance(call.scale, float):
        return None
    known = _known_structure(call)
    if known is None and dtype == jnp.bfloat16:
        samples, *others = _mask_shape(call)
        at_once = samples * math.prod(others) <= CELLS
        if at_once or math.prod(others) <= CELLS:
            known = CudnnCall(call.scale, dense=call.sizes[0] if at_once else 1)
    return known


def _known_structure(call: Call) -> CudnnCall | None:
    """Return what tells cuDNN the mask without a dense one, if anything does."""
    parts: dict[str, list[Mask]] = {"causal": [], "sliding_window": [], "padding": []}
    for part in _conjuncts(call.mask):
        if part.name not in parts or part.axes == ("BS",):
            return None
        parts[part.name].append(part)
    windows, paddings = parts["sliding_window"], parts["padding"]
    if len(windows) + len(paddings) > 1 or any(window.settings[1] for window in windows):
        return None
    causal = bool(parts["causal"] or windows)
    square = call.sizes[2] == call.sizes[3] and isinstance(call.query_offset, int)
    if causal and not (square and call.query_offset == 0):
        return None
    before = windows[0].settings[0] if windows else None
    return CudnnCall(call.scale, causal, before, bool(paddings))


def _conjuncts(mask: Mask | None) -> Iterator[Mask]:
    """Yield the parts of which a key must be allowed by each."""
    if mask is not None and mask.name == "&":
        for part in mask.parts:
            yield from _conjuncts(part)
    elif mask is not None:
        yield mask


def _mask_shape(call: Call) -> tuple[int, int, int, int]:
    """Return the largest shape that the call's dense mask can have."""
    batch, heads, queries, keys = call.sizes
    if call.mask is not None and all(leaf.name != "predicate" for leaf in call.mask.leaves()):
        batch, heads, _, _ = call.mask.sizes(1, 1, queries, keys)
        batch = max(batch, jnp.size(call.query_offset) if is_array(call.query_offset) else 1)
    return batch, heads, queries, keys


@partial(jax.jit, static_argnums=0)
def attention_known(known: CudnnCall, query: Array, key: Array, value: Array, call: Call) -> Array:
    """Attend as `attention_blocked` does: by cuDNN where the program runs on a GPU."""
    return attend_known(known, query, key, value, call)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def attend_known(known: CudnnCall, query: Array, key: Array, value: Array, call: Call) -> Array:
    """Return the output; `attention.py` says what its derivative is."""
    (output,) = _bind(known, query, key, value, call)
    return output


@partial(jax.jit, static_argnums=0)
def backward_known(known: CudnnCall, inputs: tuple, d_output: Array) -> list[Array]:
    """Return the gradients of query, key and value; the kernel's forward pass runs once more."""
    return _bind(known, *inputs, d_output)


def _bind(known: CudnnCall, *inputs: Any) -> list[Array]:
    """Run the forward pass, or the backward one if the output's gradient is among the inputs."""
    arrays, structure = jax.tree.flatten(inputs)
    arrays = [jnp.asarray(x) for x in arrays]

    def loops(*arrays: Array) -> list[Array]:
        return _by_loops(*jax.tree.unflatten(structure, arrays))

    def kernel(*arrays: Array) -> list[Array]:
        query, key, value, call, *grad = jax.tree.unflatten(structure, arrays)
        fine = _is_bounded(known, query, key, value, *grad)
        ways = partial(_by_kernel, known), _by_loops
        return lax.cond(fine, *ways, query, key, value, call, *grad)

    return known_p.bind(*arrays, kernel=kernel, loops=loops, count=3 if len(inputs) > 4 else 1)


def _by_loops(query: Array, key: Array, value: Array, call: Call, *grad: Array) -> list[Array]:
    inputs = query, key, value, call
    output, lse = attend_tiles(CUTS, *inputs)
    if not grad:
        return [output.astype(query.dtype)]
    return list(backward(CUTS, inputs, lse, output, upcast(grad[0]))[:3])


def _is_bounded(known: CudnnCall, query: Array, key: Array, *others: Array) -> Array:
    """Whether all numbers surely are finite, and all scores small: |q . k| <= |q|^2 + |k|^2.

    It is one sum of squares, for which arrays of one shape are read in one pass.
    """
    weight = max(1.0, abs(known.scale)) * (HUGE / DENSE_HUGE if known.dense else 1)
    sums: dict[tuple, Array] = {}
    for array, factor in ((query, weight), (key, weight), *((x, 1) for x in others)):
        square = factor * jnp.square(upcast(array))
        sums[array.shape] = sums[array.shape] + square if array.shape in sums else square
    return jnp.stack([x.sum() for x in sums.values()]).sum() < HUGE


def _by_kernel(
    known: CudnnCall, query: Array, key: Array, value: Array, call: Call, *grad: Array
) -> list[Array]:
    """Call the kernel for all samples, or for one after the other where the mask is large."""
    arrays = (query, key, value, *grad)
    if known.dense in (0, call.sizes[0]):
        return _at_once(known, call, None, *arrays)

    def attend(inputs: tuple) -> list[Array]:
        sample, *arrays = inputs
        return [x[0] for x in _at_once(known, call, sample, *(x[None] for x in arrays))]

    return lax.map(attend, (jnp.arange(call.sizes[0]), *arrays))


def _at_once(
    known: CudnnCall,
    call: Call,
    sample: Array | None,
    query: Array,
    key: Array,
    value: Array,
    *grad: Array,
) -> list[Array]:
    run = partial(_attend, known, call, sample, bool(grad))
    if not grad:
        return [run(query, key, value)]
    return list(jax.vjp(run, query, key, value)[1](grad[0].astype(query.dtype)))


# What is returned is like the first `count` inputs: like query, or like query, key and value.
known_p = Primitive("known_to_cudnn")
known_p.multiple_results = True


def _abstract(*avals: Any, kernel: Callable, loops: Callable, count: int) -> list:
    return list(avals[:count])


def _batch(arrays: list, axes: list, *, kernel: Callable, loops: Callable, count: int) -> tuple:
    return jax.vmap(loops, axes)(*arrays), [0] * count


def _lower(context: Any, *values: Any, kernel: Callable, loops: Callable, count: int) -> Any:
    """Take the kernel for one device; several take the loops, and so does what is exported."""
    module = context.module_context
    one = getattr(module.axis_context, "num_devices", 0) == 1
    if not one or module.lowering_parameters.for_export:  # a kernel is of one version of cuDNN
        return mlir.lower_fun(loops, multiple_results=True)(context, *values)
    # JAX's kernel asks which devices share it, and is told where it is looked for in a program.
    alone = replace(module.axis_context, device_assignment=tuple(jax.local_devices()[:1]))
    context = context.replace(module_context=module.replace(axis_context=alone))
    return mlir.lower_fun(kernel, multiple_results=True)(context, *values)


def _lower_elsewhere(
    context: Any, *values: Any, kernel: Callable, loops: Callable, count: int
) -> Any:
    return mlir.lower_fun(loops, multiple_results=True)(context, *values)


known_p.def_abstract_eval(_abstract)
batching.primitive_batchers[known_p] = _batch
mlir.register_lowering(known_p, _lower_elsewhere, cacheable=False)
mlir.register_lowering(known_p, _lower, platform=PLATFORM, cacheable=False)


def _attend(
    known: CudnnCall,
    call: Call,
    sample: Array | None,
    derived: bool,
    query: Array,
    key: Array,
    value: Array,
) -> Array:
    """Return the kernel's output, with our fully masked rows: no gradient reaches the kernel's."""
    lengths = mask = empty = None
    if known.dense:
        mask = _dense_mask(call, sample)
        empty = ~mask.any(-1, keepdims=True)
    elif known.padded:
        (table,) = (table for part in _conjuncts(call.mask) for table in part.arrays)
        lengths = jnp.broadcast_to(jnp.asarray(table), call.sizes[:1])
        empty = (lengths == 0)[:, None, None, None]
        lengths = lengths.clip(1, call.sizes[3]).astype(jnp.int32)
    run = call_kernel_even if derived or known.dense else call_kernel
    output = run(known, query, key, value, lengths, mask)
    return output if empty is None else jnp.where(empty, _empty_row(value, call), output)


def _dense_mask(call: Call, sample: Array | None) -> Array:
    """Return which key is allowed, (B or 1, H or 1, T, S): of all samples or of one."""
    at = Cells(call.sizes, call.query_offset, xp=jnp)
    if sample is not None:
        at = Corner(call.query_offset, (sample, 0, 0, 0), call.sizes[1:])
    allowed = jnp.ones((1, 1, 1, 1), bool) if call.mask is None else call.mask.evaluate(at)
    return jnp.broadcast_to(allowed, (*allowed.shape[:2], *call.sizes[2:]))


def _empty_row(value: Array, call: Call) -> Array:
    """Return what a fully masked row becomes, (B, H, 1, D_v) where it depends on the values."""
    if call.empty_rows != "uniform":
        return jnp.asarray(0 if call.empty_rows == "zero" else jnp.nan, value.dtype)
    mean = upcast(value).mean(2, keepdims=True).astype(value.dtype)
    return jnp.repeat(mean, call.sizes[1] // value.shape[1], axis=1)
