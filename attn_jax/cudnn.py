"""cuDNN's attention on an NVIDIA GPU, for what it knows; the loops over tiles for everything else.

Where a program will run is known when it is lowered and not before, so a primitive stands for both
ways until then. The kernel gets numbers that are finite, and whose scores are: the loops stand
beside it in the program, for those that are not. Mapped by `jax.vmap` the call is the loops.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

from .blocked import COLUMNS, HEADS, ROWS, Cuts, attend_tiles, backward
from .call import Call
from .masks import Mask
from .numerics import is_bounded, upcast

PLATFORM = "cuda"
IMPLEMENTATION: Literal["cudnn", "xla"] = "cudnn"
CUTS = Cuts(ROWS, COLUMNS, HEADS)


class CudnnCall(NamedTuple):
    """What cuDNN is told of a call, beside the arrays; the lengths are in the mask's table."""

    scale: float
    causal: bool
    before: int | None  # how far back a window reaches
    padded: bool


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

    No bias: cuDNN takes -inf in one for a large number, and a fully masked row for the mean.
    """
    if dtype not in (jnp.float16, jnp.bfloat16) or head_dim != value_dim:
        return None
    if head_dim % 8 or head_dim > 128 or call.softcap is not None or call.bias is not None:
        return None
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
    if not isinstance(call.scale, float) or (causal and not (square and call.query_offset == 0)):
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
        query, key, value, *rest = jax.tree.unflatten(structure, arrays)
        fine = is_bounded(query, key, value, known.scale)
        return lax.cond(fine, partial(_by_kernel, known), _by_loops, query, key, value, *rest)

    return known_p.bind(*arrays, kernel=kernel, loops=loops, count=3 if len(inputs) > 4 else 1)


def _by_loops(query: Array, key: Array, value: Array, call: Call, *grad: Array) -> list[Array]:
    inputs = query, key, value, call
    output, lse = attend_tiles(CUTS, *inputs)
    if not grad:
        return [output.astype(query.dtype)]
    return list(backward(CUTS, inputs, lse, output, upcast(grad[0]))[:3])


def _by_kernel(
    known: CudnnCall, query: Array, key: Array, value: Array, call: Call, *grad: Array
) -> list[Array]:
    run = partial(_kernel, known, call)
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


def _kernel(known: CudnnCall, call: Call, query: Array, key: Array, value: Array) -> Array:
    lengths = None
    if known.padded:
        (table,) = (table for part in _conjuncts(call.mask) for table in part.arrays)
        lengths = jnp.broadcast_to(jnp.asarray(table), call.sizes[:1])
    query, key, turned = (x.swapaxes(1, 2) for x in (query, key, value))
    output = jax.nn.dot_product_attention(
        query,
        key,
        turned,
        scale=known.scale,
        is_causal=known.causal,
        local_window_size=None if known.before is None else (known.before, 0),
        key_value_seq_lengths=None if lengths is None else _fit(lengths, call.sizes[3]),
        implementation=IMPLEMENTATION,
    ).swapaxes(1, 2)
    if lengths is None:
        return output
    return jnp.where((lengths == 0)[:, None, None, None], _empty_row(value, call), output)


def _fit(lengths: Array, keys: int) -> Array:
    """Return lengths that the kernel takes: none is 0, for that of a sample is put in later."""
    return lengths.clip(1, keys).astype(jnp.int32)


def _empty_row(value: Array, call: Call) -> Array:
    """Return what a fully masked row becomes, (B, H, 1, D_v) where it depends on the values."""
    if call.empty_rows != "uniform":
        return jnp.asarray(0 if call.empty_rows == "zero" else jnp.nan, value.dtype)
    mean = upcast(value).mean(2, keepdims=True).astype(value.dtype)
    return jnp.repeat(mean, call.sizes[1] // value.shape[1], axis=1)
