"""Attention of arrays (B, T, H, D), the order of axes that JAX's and flax's functions have."""

from typing import Any

from jaxtyping import Array, Float

from ..attention import attention


def attention_bthd(
    query: Float[Array, "B T H D"],
    key: Float[Array, "B S H_kv D"],
    value: Float[Array, "B S H_kv D_v"],
    **options: Any,
) -> Float[Array, "B T H D_v"]:
    """Attend as `attention` does, with the heads behind the positions, as in `jax.nn`.

    `attention` itself cannot tell such arrays from its own: it would attend from head to head, and
    return the shape that was expected. Masks, bias and all other options are as there, in
    (B, H, T, S). Raises as `attention` does, whose messages name the axes in its own order.

    >>> import jax
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 3, 4))
    >>> output = attention_bthd(query, key, value)
    >>> bool(abs(output - jax.nn.dot_product_attention(query, key, value)).max() < 1e-5)
    True
    """
    heads_first = (
        array.swapaxes(1, 2) if array.ndim == 4 else array for array in (query, key, value)
    )
    return attention(*heads_first, **options).swapaxes(1, 2)
