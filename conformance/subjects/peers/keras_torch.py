"""Keras on the backend torch."""

from . import keras
from .torch import Torch


class Ops(keras.KerasOps, Torch):
    """keras.ops.dot_product_attention."""

    backend = "torch"
    packages = ("keras", *Torch.packages)
    capabilities = keras.KerasOps.capabilities | {"gradients"}


class MultiHead(keras.KerasMultiHead, Torch):
    """keras.layers.MultiHeadAttention."""

    backend = "torch"
    packages = Ops.packages
    capabilities = keras.KerasMultiHead.capabilities | {"gradients"}


class Scores(MultiHead):
    """The same with return_attention_scores, which takes another path."""

    scores = True
    capabilities = MultiHead.capabilities | {"weights"}
