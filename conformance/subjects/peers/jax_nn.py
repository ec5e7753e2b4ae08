"""jax.nn.dot_product_attention, by XLA; its values are as wide as its keys."""

import jax

from .base import FunctionPeer
from .jax import Jax, swapped


class DotProduct(Jax, FunctionPeer):
    """Layout (B, T, H, D); an additive mask is its `bias`."""

    one_width = True
    capabilities = frozenset({"attention", "bias", "scale", "grouped", "causal", "gradients"})
    further = frozenset({"window", "lse"})

    def call(
        self, query, key, value, *, mask=None, bias=None, scale=None, causal=False, window=None
    ):
        options = {"mask": mask, "bias": bias, "scale": scale, "is_causal": causal}
        options |= {} if window is None else {"local_window_size": window}
        output = jax.nn.dot_product_attention(*swapped(query, key, value), **options)
        return swapped(output)[0], None

    def lse(self, query, key, value, *, mask=None):
        """Return the log-sum-exp of each row's scores."""
        inputs = swapped(*map(self.array, (query, key, value)))
        own = {"mask": mask, "return_residual": True}
        residual = jax.nn.dot_product_attention(*inputs, **own)[1]
        return self.numpy(residual).swapaxes(1, 2)
