"""Keras on the backend torch."""

from . import keras
from .torch import Torch


class Ops(keras.Ops, Torch):
    """keras.ops.dot_product_attention."""

    backend = "torch"
    packages = ("keras", *Torch.packages)
    capabilities = keras.Ops.capabilities | {"gradients"}


class MultiHead(keras.MultiHead, Torch):
    """keras.layers.MultiHeadAttention."""

    backend = "torch"
    packages = Ops.packages
    capabilities = keras.MultiHead.capabilities | {"gradients"}


class Scores(MultiHead):
    """The same with return_attention_scores, which takes another path."""

    scores = True
    capabilities = MultiHead.capabilities | {"weights"}
