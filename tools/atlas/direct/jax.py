"""JAX's own, and what is written in JAX."""
# mypy: disable-error-code="import-not-found"

import numpy as np

from .arrays import apart, joined


def over_jax(function, q, k, v, **options):
    import jax.numpy as jnp

    given = {
        name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()
    }
    inputs = [jnp.asarray(np.moveaxis(x, 1, 2)) for x in (q, k, v)]
    return np.moveaxis(np.asarray(function(*inputs, **given)), 2, 1)


def jax_nn(q, k, v, mask=None, bias=None, causal=False):
    import jax

    f = jax.nn.dot_product_attention
    return over_jax(f, q, k, v, mask=mask, bias=bias, is_causal=causal)


def jax_splash(q, k, v, mask=None):
    """One call, samples beside heads, of 128 queries and keys; all beyond the own are hidden."""
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    (B, H, T, D), S = q.shape, k.shape[2]
    mask = np.array(True) if mask is None else mask
    whole = np.pad(np.broadcast_to(mask, (B, H, T, S)), [(0, 0)] * 2 + [(0, 128 - T), (0, 128 - S)])
    heads = masks.MultiHeadMask([masks.NumpyMask(x) for own in whole for x in own])
    call = kernels.make_splash_mha(heads, head_shards=1, q_seq_shards=1, interpret=True)
    q, k, v = (np.concatenate([*x]) for x in (q / q.dtype.type(D**0.5), k, v))
    q, k, v = (jnp.pad(x, [(0, 0), (0, 128 - x.shape[1]), (0, 0)]) for x in (q, k, v))
    return np.stack(np.split(np.asarray(call(q, k, v)), B))[:, :, :T]


def nnx_function(q, k, v, mask=None, bias=None, causal=False):
    from flax import nnx

    f = nnx.dot_product_attention
    return over_jax(f, q, k, v, mask=mask, bias=bias, is_causal=causal)


def nnx_mha(q, k, v, mask=None, causal=False):
    import jax.numpy as jnp
    from flax import nnx

    H, E = q.shape[1], q.shape[1] * q.shape[3]
    settings = {"use_bias": False, "decode": False, "rngs": nnx.Rngs(0), "dtype": q.dtype}
    layer = nnx.MultiHeadAttention(H, E, **settings)
    for part in (layer.query, layer.key, layer.value, layer.out):
        part.kernel[...] = jnp.eye(E).reshape(part.kernel.shape)
    x = [jnp.asarray(joined(x)) for x in (q, k, v)]
    return apart(layer(*x, mask=None if mask is None else jnp.asarray(mask), is_causal=causal), q)


def linen_mha(q, k, v, mask=None):
    import jax.numpy as jnp
    from flax import linen

    H, D, E = q.shape[1], q.shape[3], q.shape[1] * q.shape[3]
    inner = {"kernel": jnp.eye(E).reshape(E, H, D)}
    params = dict.fromkeys(("query", "key", "value"), inner)
    params["out"] = {"kernel": jnp.eye(E).reshape(H, D, E)}
    layer = linen.MultiHeadDotProductAttention(H, use_bias=False, dtype=q.dtype)
    mask = None if mask is None else jnp.asarray(mask)
    return apart(layer.apply({"params": params}, *map(joined, (q, k, v)), mask=mask), q)


def equinox_mha(q, k, v, mask=None):
    import equinox
    import jax
    import jax.numpy as jnp

    H, E = q.shape[1], q.shape[1] * q.shape[3]
    layer = equinox.nn.MultiheadAttention(H, E, key=jax.random.key(0))
    names = ("query_proj", "key_proj", "value_proj", "output_proj")
    eyes = [jnp.eye(E, dtype=q.dtype)] * 4
    layer = equinox.tree_at(lambda m: [getattr(m, name).weight for name in names], layer, eyes)
    samples = [jnp.asarray(joined(x)) for x in (q, k, v)]
    masks = [None] * len(q) if mask is None else [*mask] * (len(q) // len(mask))
    found = [layer(*(x[b] for x in samples), mask=masks[b]) for b in range(len(q))]
    return apart(np.stack(found), q) if found else q
