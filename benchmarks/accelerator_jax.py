"""JAX's calls on a device: ours, jax.nn.dot_product_attention by implementation, flax's decoding.

Every call is compiled before it is timed; memory is what the compiled program says of itself.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

import attn_jax

from . import steps
from .accelerator import AcceleratorRow, TimedCall, allowed, lengths, mask
from .inputs import WINDOW
from .truth import given

IMPLEMENTATIONS = ("xla", "cudnn")


def start(device: str) -> None:
    """Take a device, and the highest precision for matrix products."""
    platform = {"cuda": "gpu"}.get(device, device)
    jax.config.update("jax_default_device", jax.devices(platform)[0])
    jax.config.update("jax_default_matmul_precision", "highest")


def makers(row: AcceleratorRow) -> dict[str, Callable[[], TimedCall]]:
    """Return what makes our call and its rivals' for one row."""
    if row.work == "decode":
        return {
            "ours": lambda: _step(row, steps.jax_step),
            "flax.nnx": lambda: _step(row, steps.nnx_step),
        }
    own = mask(attn_jax, row.work, row.shape)
    ours = lambda: _call(partial(attn_jax.attention, mask=own), row)  # noqa: E731
    return {"ours": ours} | {name: partial(_rival, row, name) for name in IMPLEMENTATIONS}


@lru_cache(maxsize=2)
def _inputs(shape, dtype: str, swapped: bool) -> list:
    turn = (lambda x: x.swapaxes(1, 2)) if swapped else (lambda x: x)
    return [jnp.asarray(turn(array), dtype) for array in given(shape)]


def _call(
    attend: Callable, row: AcceleratorRow, swapped: bool = False, dense: tuple = ()
) -> TimedCall:
    """Compile a call on arrays of its own layout, (B, H, T, D) or swapped (B, T, H, D).

    `dense` holds the call's dense mask, if it has one: an argument, for a constant of this size
    would be folded while compiling.
    """
    *arrays, grad = _inputs(row.shape, row.dtype, swapped)
    arrays += dense
    if row.backward:
        arrays.append(grad)
        program = jax.jit(
            lambda q, k, v, *rest: jax.vjp(lambda *qkv: attend(*qkv, *rest[:-1]), q, k, v)[1](
                rest[-1]
            )
        )
    else:
        program = jax.jit(attend)
    compiled = program.lower(*arrays).compile()
    analysis = compiled.memory_analysis()
    memory = None
    if analysis is not None:
        memory = (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / 2**20
    return TimedCall(lambda: compiled(*arrays), partial(_head, swapped), lambda: memory)


def _head(swapped: bool, result) -> list[np.ndarray]:
    parts = result if isinstance(result, tuple | list) else (result,)
    last = [part[-1, :, -1] if swapped else part[-1, -1] for part in parts]
    return [np.asarray(part.astype(jnp.float32)) for part in last]


def _rival(row: AcceleratorRow, implementation: str) -> TimedCall:
    """Compile jax.nn.dot_product_attention, the mask said in the way that it knows best."""
    options: dict = {}
    if row.work in ("causal", "window"):
        options["is_causal"] = True
    if row.work == "window":
        options["local_window_size"] = (WINDOW, 0)
    if row.work == "padded":
        options["key_value_seq_lengths"] = jnp.asarray(lengths(row.shape), jnp.int32)
    dense = (jnp.asarray(allowed(row.work, row.shape)),) if row.work == "packed" else ()
    peer = partial(jax.nn.dot_product_attention, implementation=implementation, **options)
    attend = lambda q, k, v, *own: peer(q, k, v, mask=own[0] if own else None)  # noqa: E731
    return _call(attend, row, swapped=True, dense=dense)


def _step(row: AcceleratorRow, make: Callable) -> TimedCall:
    batch, heads, context, width = row.shape
    own = steps.jax_module(heads * width, heads, row.dtype)
    tokens = jnp.asarray(steps.tokens(batch, context, heads * width), row.dtype)
    run = make(own, tokens)
    return TimedCall(run, lambda result: [np.asarray(result[:, 0].astype(jnp.float32))])
