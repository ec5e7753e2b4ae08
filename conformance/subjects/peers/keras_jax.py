"""Keras on the backend jax."""

from . import keras
from .jax import Jax


class Ops(keras.KerasOps, Jax):
    """keras.ops.dot_product_attention."""

    backend = "jax"
    packages = ("keras", *Jax.packages)
    capabilities = keras.KerasOps.capabilities | {"gradients"}


class MultiHead(keras.KerasMultiHead, Jax):
    """keras.layers.MultiHeadAttention."""

    backend = "jax"
    packages = Ops.packages
    capabilities = keras.KerasMultiHead.capabilities | {"gradients"}


class Scores(MultiHead):
    """The same with return_attention_scores, which takes another path."""

    scores = True
    capabilities = MultiHead.capabilities | {"weights"}
