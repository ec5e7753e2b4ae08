"""This attention inside flax: `attention_fn` for its multi-head modules, nnx and linen."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from .. import checks
from ..arrays import is_concrete
from ..attention import attend, steps_here
from ..call import check_call
from ..masks import Mask, allow, causal


def attention_fn(
    query: Float[Array, "*batch T H D"],
    key: Float[Array, "*batch S H_kv D"],
    value: Float[Array, "*batch S H_kv D_v"],
    bias: Float[Array, "..."] | None = None,
    mask: Shaped[Array, "..."] | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: Any = None,
    module: Any = None,
    is_causal: bool = False,
    force_fp32_for_softmax: bool = True,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
) -> Float[Array, "*batch T H D_v"]:
    """Attend as flax's `dot_product_attention` does, by `attention` and its contract.

    For `nnx.MultiHeadAttention(..., attention_fn=attention_fn)` and linen's modules. `mask` is True
    or 1 where a key is allowed; it and `bias` have all axes (*batch, H, T, S), each of 1 or full.
    Dropout draws what flax draws from `dropout_rng`; with a `module` the weights are sown as
    "attention_weights". A fully masked row is 0, where flax returns the mean over all keys. 16-bit
    inputs have their softmax and sums in float32, whatever `force_fp32_for_softmax` says.
    `precision` is that of the forward products; those of gradients go by JAX's own setting.

    Raises ValueError for shapes, for a mask of other numbers than 0 and 1 (under `jax.jit`, where
    that cannot be raised, the output is NaN), and for `is_causal` where queries and keys differ in
    number: flax lets the first query, not the last, look at the first key alone. Raises TypeError
    for the einsums of quantized modules, which would not be called.

    >>> module = nnx.MultiHeadAttention(2, 8, attention_fn=attention_fn, rngs=nnx.Rngs(0))
    >>> module(jnp.ones((3, 5, 8)), decode=False).shape
    (3, 5, 8)
    """
    if qk_attn_weights_einsum is not None or attn_weights_value_einsum is not None:
        raise TypeError("einsums must be None, attention has products of its own: got one")
    _check_axes(query, key, value)
    checks.check_dropout(dropout_rate)
    dtype = jnp.result_type(query, key, value) if dtype is None else dtype
    *batch, T, H, _ = query.shape
    sizes = (*batch, H, T, key.shape[-3])
    allowed, odd = (None, False) if mask is None else _read_mask(mask, sizes)
    q, k, v = (_heads_first(jnp.asarray(array, dtype)) for array in (query, key, value))
    bias = None if bias is None else _join_batch(_read_bias(bias, q.dtype), "bias", sizes)
    call = check_call(q, k, v, _with_causal(allowed, is_causal, sizes), bias)
    dropout = 0.0 if deterministic else float(dropout_rate)
    with _set_precision(precision):
        if dropout or module is not None:
            drawn = _draw(dropout, dropout_rng, sizes, broadcast_dropout)
            steps = steps_here(q, k, v, call._replace(dropout=dropout), drawn)
            output = steps.output
            if module is not None:
                _sow(module, steps.weights.reshape(sizes).astype(output.dtype))
        else:
            output = attend(q, k, v, call)
    output = output if odd is False else jnp.where(odd, jnp.nan, output)
    return output.swapaxes(1, 2).reshape(*batch, T, H, -1)


def _check_axes(query: Array, key: Array, value: Array) -> None:
    shapes = [tuple(array.shape) for array in (query, key, value)]
    if len({shape[:-3] for shape in shapes}) > 1 or min(map(len, shapes)) < 3:
        rule = "query, key and value must be (*batch, length, heads, dim) with the same batch"
        raise ValueError(f"{rule}: got {shapes[0]}, {shapes[1]} and {shapes[2]}")


def _heads_first(array: Array) -> Array:
    """Return (*batch, T, H, D) as (B, H, T, D)."""
    return array.reshape(math.prod(array.shape[:-3]), *array.shape[-3:]).swapaxes(1, 2)


def _join_batch(array: Array, name: str, sizes: tuple[int, ...]) -> Array:
    """Return what may have dims of 1 as (B, H, T, S), of which B and H may be 1."""
    fits = array.ndim == len(sizes)
    if not fits or any(n not in (1, full) for n, full in zip(array.shape, sizes, strict=True)):
        rule = f"{name} must have all axes (*batch, heads, T, S), each of 1 or full"
        raise ValueError(f"{rule}: got {tuple(array.shape)} for {sizes}")
    heads, batch = array.shape[-3], array.shape[:-3]
    batch = batch if set(batch) <= {1} else sizes[:-3]
    array = jnp.broadcast_to(array, (*batch, heads, *sizes[-2:]))
    return array.reshape(math.prod(batch), *array.shape[-3:])


def _read_mask(mask: Array, sizes: tuple[int, ...]) -> tuple[Mask, bool | Array]:
    """Return a mask of flax, and whether it holds other numbers than 0 and 1."""
    mask = jnp.asarray(mask)
    odd: bool | Array = False if mask.dtype == bool else ((mask != 0) & (mask != 1)).any()
    if is_concrete(odd):
        if odd:
            rule = "mask must be bool, or 1 where a key is allowed and 0 elsewhere, else a bias"
            raise ValueError(f"{rule}: got other numbers")
        odd = False
    return allow(_join_batch(mask.astype(bool), "mask", sizes)), odd


def _read_bias(bias: Array, dtype: DTypeLike) -> Array:
    bias = jnp.asarray(bias)
    floats = jnp.issubdtype(bias.dtype, jnp.floating) and bias.dtype != jnp.float32
    return bias.astype(dtype) if floats else bias


def _with_causal(mask: Mask | None, is_causal: bool, sizes: tuple[int, ...]) -> Mask | None:
    if not is_causal:
        return mask
    if sizes[-2] != sizes[-1]:
        rule = "is_causal needs as many queries as keys, leave it out where a cache decodes"
        raise ValueError(f"{rule}: got {sizes[-2]} and {sizes[-1]}")
    return causal() if mask is None else causal() & mask


def _draw(rate: float, rng: Array | None, sizes: tuple[int, ...], alike: bool) -> Array | None:
    """Return which weights dropout keeps, as flax draws it: `alike` for all samples and heads."""
    if not 0 < rate < 1:
        return None
    if rng is None:
        raise ValueError("dropout needs dropout_rng: got None")
    drawn = jax.random.bernoulli(
        rng, 1 - rate, (1,) * len(sizes[:-2]) + sizes[-2:] if alike else sizes
    )
    return jnp.broadcast_to(drawn, sizes).reshape(-1, *sizes[-3:])


def _set_precision(precision: Any) -> AbstractContextManager:
    """Set what the products in it are computed with, where anything is said."""
    if precision is None:
        return nullcontext()
    name = precision.name.lower() if isinstance(precision, lax.Precision) else precision
    if not isinstance(name, str):
        raise TypeError(f"precision must be one for all products: got {precision}")
    return jax.default_matmul_precision(name)


def _sow(module: Any, weights: Array) -> None:
    kind = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
    module.sow(kind, "attention_weights", weights)
