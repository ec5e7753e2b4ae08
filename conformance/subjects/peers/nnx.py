"""flax.nnx: dot_product_attention, and MultiHeadAttention with its cache.

The function goes by jax.nn's where nothing is dropped and no weights are sown, and then its values
are as wide as its keys. Dropout is the same for all samples and heads unless told otherwise, which
it is not here.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from .base import FunctionPeer, ModulePeer
from .jax import Jax, swapped


def sown(module: nnx.Module):
    """Return the weights that a call has left in a module."""
    return nnx.pop(module, nnx.Intermediate)["attention_weights"][0]


PATHS = {"jax.nn.dot_product_attention": "by jax.nn"}
OWN = "its own formula"


class NnxDotProduct(Jax, FunctionPeer):
    """Layout (B, T, H, D); the weights are sown into a module."""

    packages = ("flax", *Jax.packages)
    one_width = True
    paths, otherwise = PATHS, OWN
    capabilities = frozenset(
        {"attention", "weights", "bias", "grouped", "causal", "dropout", "gradients"}
    )

    def call(
        self, query, key, value, *, mask=None, bias=None, causal=False, dropout=0.0, seed=None,
        need_weights=False,
    ):  # fmt: skip
        options: dict[str, Any] = {"mask": mask, "bias": bias, "is_causal": causal}
        options["dropout_rate"] = dropout
        options["dropout_rng"] = None if seed is None else jax.random.key(seed)
        holder = nnx.Module() if need_weights else None
        query, key, value = swapped(query, key, value)
        output = nnx.dot_product_attention(query, key, value, **options, module=holder)
        return swapped(output)[0], None if holder is None else sown(holder)


class NnxMultiHead(Jax, ModulePeer):
    """Weights are sown where they are asked for; the cache takes one token a call."""

    packages = NnxDotProduct.packages
    paths, otherwise = PATHS, OWN
    capabilities = frozenset(
        {"attention", "weights", "causal", "multihead", "grouped", "dropout", "gradients", "cache"}
    )

    def module(self, config, parameters, **settings) -> nnx.MultiHeadAttention:
        E, heads = config["embed_dim"], config["num_heads"]
        settings |= {
            "use_bias": config.get("bias", True),
            "num_kv_heads": config.get("num_kv_heads"),
        }
        settings |= {"dropout_rate": config.get("dropout", 0.0), "rngs": nnx.Rngs(0)}
        dtype = parameters["q_proj.weight"].dtype
        attn = nnx.MultiHeadAttention(heads, E, param_dtype=dtype, **settings)
        for own, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
            layer = getattr(attn, own)
            layer.kernel[...] = parameters[f"{name}_proj.weight"].T.reshape(layer.kernel.shape)
            if layer.bias is not None:
                layer.bias[...] = parameters[f"{name}_proj.bias"].reshape(layer.bias.shape)
        return attn

    def call(
        self, config, parameters, query, key, value, *, mask=None, causal=False, need_weights=False,
        training=False, seed=None,
    ):  # fmt: skip
        attn = self.module(config, parameters, decode=False)
        options = {"mask": mask, "is_causal": causal, "deterministic": not training}
        options |= {"rngs": None if seed is None else nnx.Rngs(seed), "sow_weights": need_weights}
        output = attn(query, key, value, **options)
        return output, sown(attn) if need_weights else None

    def decoding(self, config, parameters, batch_size, capacity) -> "NnxDecoding":
        return NnxDecoding(self, config, parameters, batch_size, capacity)


class NnxDecoding:
    """What stands in the cache is in the module."""

    def __init__(self, peer: NnxMultiHead, config, parameters, batch_size, capacity):
        self.peer, self.batch_size = peer, batch_size
        self.dtype = parameters["q_proj.weight"].dtype
        with peer.scope(self.dtype.name):
            self.attn = peer.module(config, peer.converted(parameters), decode=True)
            self.attn.init_cache((batch_size, capacity, config["embed_dim"]), self.dtype)

    def feed(self, x: np.ndarray) -> np.ndarray:
        with self.peer.scope(self.dtype.name):
            return self.peer.numpy(self.attn(self.peer.array(x)))

    @property
    def lengths(self) -> np.ndarray:
        index: Any = self.attn.cache_index
        return np.full(self.batch_size, np.asarray(index[...]))
