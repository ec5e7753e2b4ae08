"""Keras on the backend numpy."""

from . import keras
from .numpy import NumPy


class Ops(keras.KerasOps, NumPy):
    """keras.ops.dot_product_attention."""

    backend = "numpy"
    packages = ("keras", *NumPy.packages)


class MultiHead(keras.KerasMultiHead, NumPy):
    """keras.layers.MultiHeadAttention."""

    backend = "numpy"
    packages = Ops.packages


class Scores(MultiHead):
    """The same with return_attention_scores, which takes another path."""

    scores = True
    capabilities = MultiHead.capabilities | {"weights"}
