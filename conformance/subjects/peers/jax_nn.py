"""jax.nn.dot_product_attention, by XLA; its values are as wide as its keys."""

import jax

from .base import FunctionPeer
from .jax import Jax, swapped


class DotProduct(Jax, FunctionPeer):
    """Layout (B, T, H, D); an additive mask is its `bias`."""

    one_width = True
    capabilities = frozenset({"attention", "bias", "scale", "grouped", "causal", "gradients"})

    def call(self, query, key, value, *, mask=None, bias=None, scale=None, causal=False):
        options = {"mask": mask, "bias": bias, "scale": scale, "is_causal": causal}
        output = jax.nn.dot_product_attention(*swapped(query, key, value), **options)
        return swapped(output)[0], None
