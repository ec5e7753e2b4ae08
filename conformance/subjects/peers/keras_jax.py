"""Keras on the backend jax."""

from . import keras
from .jax import Jax


class Ops(keras.Ops, Jax):
    """keras.ops.dot_product_attention."""

    backend = "jax"
    packages = ("keras", *Jax.packages)
    capabilities = keras.Ops.capabilities | {"gradients"}


class MultiHead(keras.MultiHead, Jax):
    """keras.layers.MultiHeadAttention."""

    backend = "jax"
    packages = Ops.packages
    capabilities = keras.MultiHead.capabilities | {"gradients"}


class Scores(MultiHead):
    """The same with return_attention_scores, which takes another path."""

    scores = True
    capabilities = MultiHead.capabilities | {"weights"}
