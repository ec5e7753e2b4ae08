"""Splash attention, JAX's Pallas kernel for TPUs, interpreted on the CPU.

It takes blocks of 128 queries and keys, and one mask a head that is known beforehand. So samples
lie beside heads, and queries and keys are filled up to 128 with such as nobody sees. It scales
nothing: its callers scale the query.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    MultiHeadMask,
    NumpyMask,
    make_splash_mha,
)

from ..protocol import NotOffered
from .base import FunctionPeer
from .jax import Jax

BLOCK = 128


class Splash(Jax, FunctionPeer):
    """make_splash_mha, with its sinks."""

    dtypes = ("float32", "bfloat16")
    capabilities = frozenset({"attention", "scale", "softcap", "sinks", "grouped", "gradients"})
    further = frozenset({"lse"})

    def call(self, query, key, value, *, sinks=None, **options):
        sinks = None if sinks is None else jnp.tile(sinks, len(query))
        kernel, folded = self.kernel(query, key, value, **options)
        return unfolded(kernel(*folded, sinks=sinks), query), None

    def lse(self, query, key, value, *, mask=None):
        """Return the log-sum-exp of each row's scores."""
        arrays = map(self.array, (query, key, value))
        kernel, folded = self.kernel(*arrays, mask=mask, save_residuals=True)
        return self.numpy(unfolded(kernel(*folded)[1][0], query))

    def kernel(self, query, key, value, *, mask=None, scale=None, softcap=None, **own):
        """Return a kernel and its inputs, samples beside heads."""
        B, H, T, D = query.shape
        S = key.shape[2]
        mask = np.ones((1, 1, 1, 1), bool) if mask is None else np.asarray(mask)
        if mask.ndim != 4:
            raise NotOffered("it takes a mask for each head: other axes would be the suite's")
        cells = np.zeros((B, H, filled(T), filled(S)), mask.dtype)
        cells[:, :, :T, :S] = mask
        self.tell(f"a NumpyMask for each head of a sample, of {cells.shape[2]} x {cells.shape[3]}")
        masks = MultiHeadMask([NumpyMask(cells[b, h]) for b in range(B) for h in range(H)])
        own |= {"attn_logits_soft_cap": softcap, "interpret": True}
        kernel = make_splash_mha(masks, head_shards=1, q_seq_shards=1, **own)
        query = query * jnp.asarray(D**-0.5 if scale is None else scale, query.dtype)
        return kernel, [folded(x) for x in (query, key, value)]


def filled(size: int) -> int:
    """Return the size filled up to whole blocks, at least one."""
    return max(1, -(-size // BLOCK)) * BLOCK


def folded(x: jax.Array) -> jax.Array:
    """Return (B * H, T, D), filled up, for (B, H, T, D)."""
    B, H, T, D = x.shape
    return jnp.pad(x, ((0, 0), (0, 0), (0, filled(T) - T), (0, 0))).reshape(B * H, filled(T), D)


def unfolded(x: jax.Array, like) -> jax.Array:
    """Return (B, H, T, ...) for (B * H, T, ...), without what was filled up."""
    B, H, T, _ = like.shape
    return x.reshape(B, H, *x.shape[1:])[:, :, :T]
