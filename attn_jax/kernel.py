"""One call of cuDNN's attention through JAX, on arrays whose heads stand before the positions.

JAX's public function wants them the other way round, which costs a copy of every array. What it
calls itself takes both: that is called here, as long as JAX has it in the known form.
"""

from inspect import signature
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

try:
    from jax._src.cudnn import fused_attention_stablehlo as private
except ImportError:  # a later JAX may have moved it
    private = None  # type: ignore[assignment]

IMPLEMENTATION: Literal["cudnn", "xla"] = "cudnn"
# What the private function must take to be called.
TAKEN = {"mask", "q_seqlen", "kv_seqlen", "scale", "mask_type", "qkv_layout",
         "sliding_window_length"}  # fmt: skip


class CudnnCall(NamedTuple):
    """What cuDNN is told of a call, beside the arrays; lengths and dense masks are made elsewhere.

    `dense` is how many samples at once get a dense mask; it is 0 where the rest says all.
    """

    scale: float
    causal: bool = False
    before: int | None = None  # how far back a window reaches
    padded: bool = False
    dense: int = 0


def takes_heads_first() -> bool:
    """Whether this JAX lets cuDNN take (B, H, T, D)."""
    function = getattr(private, "dot_product_attention", None)
    return function is not None and set(signature(function).parameters) >= TAKEN


def call_kernel_even(
    known: CudnnCall,
    query: Array,
    key: Array,
    value: Array,
    lengths: Array | None,
    mask: Array | None,
) -> Array:
    """Call the kernel with T and S made even: JAX refuses others with a mask or for gradients."""
    rows, columns = query.shape[2] % 2, key.shape[2] % 2
    if mask is not None:
        mask = _pad(mask, rows, columns)
    elif columns and lengths is None and not known.causal:
        lengths = jnp.full(len(key), key.shape[2], jnp.int32)
    padded = _pad(query, rows, 0), _pad(key, columns, 0), _pad(value, columns, 0)
    return call_kernel(known, *padded, lengths, mask)[:, :, : query.shape[2]]


def _pad(array: Array, rows: int, columns: int) -> Array:
    """Add zeros to the last two axes: with a causal mask, only an added query is allowed them."""
    widths = (0, 0), (0, 0), (0, rows), (0, columns)
    return jnp.pad(array, widths) if rows or columns else array


def call_kernel(
    known: CudnnCall,
    query: Array,
    key: Array,
    value: Array,
    lengths: Array | None,
    mask: Array | None,
) -> Array:
    """Return cuDNN's output, (B, H, T, D): `lengths` are those of keys, `mask` is True if allowed.

    What it returns for a fully masked row is up to cuDNN.
    """
    before = None if known.before is None else min(known.before, key.shape[2])
    if IMPLEMENTATION == "cudnn" and takes_heads_first():
        kinds = {"CAUSAL": known.causal, "PADDING": lengths is not None}
        name = "_".join(sorted((kind for kind in kinds if kinds[kind]), reverse=True))
        full = None if lengths is None else jnp.full_like(lengths, query.shape[2])
        return private.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            q_seqlen=full,
            kv_seqlen=lengths,
            scale=known.scale,
            mask_type=private.MaskType[name or "NO_MASK"],
            qkv_layout="BNTH",
            sliding_window_length=None if before is None else before + 1,  # its own position, too
        )
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    output = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        scale=known.scale,
        is_causal=known.causal,
        local_window_size=None if before is None else (before, 0),
        key_value_seq_lengths=lengths,
        implementation=IMPLEMENTATION,
    )
    return output.swapaxes(1, 2)
