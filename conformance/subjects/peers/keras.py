"""keras.ops.dot_product_attention and keras.layers.MultiHeadAttention, whatever the backend.

Keras has one backend a process, named by KERAS_BACKEND before Keras is imported.
"""
# mypy: disable-error-code="import-not-found"

import os
from typing import ClassVar

from ..protocol import NotOffered
from .base import FunctionPeer, ModulePeer, Peer


class Keras(Peer):
    """Refuses a process of another backend. Keras has no float64: its sums are float32."""

    backend = ""
    dtypes = ("float32", "float16", "bfloat16")

    def __init__(self):
        named = os.environ.get("KERAS_BACKEND")
        if named == self.backend:
            import keras

            named = keras.backend.backend()
        if named != self.backend:
            rule = f"KERAS_BACKEND must be {self.backend} in this peer's process"
            raise RuntimeError(f"{rule}: got {named}")
        self.keras = keras


class KerasOps(Keras, FunctionPeer):
    """Layout (B, T, H, D), and values as wide as keys."""

    one_width = True
    capabilities = frozenset({"attention", "bias", "scale", "grouped", "causal"})

    def call(self, query, key, value, *, mask=None, bias=None, scale=None, causal=False):
        options = {"mask": mask, "bias": bias, "scale": scale, "is_causal": causal}
        inputs = [x.swapaxes(1, 2) for x in (query, key, value)]
        return self.keras.ops.dot_product_attention(*inputs, **options).swapaxes(1, 2), None


class KerasMultiHead(Keras, ModulePeer):
    """A layer, its scores not asked for unless `scores`; it is told a head's width, not E."""

    scores = False
    paths: ClassVar = {"keras.src.ops.dot_product_attention": "by keras.ops"}
    otherwise = "its own softmax"
    capabilities = frozenset({"attention", "causal", "multihead", "widths", "dropout"})

    def call(
        self, config, parameters, query, key, value, *, mask=None, causal=False,
        need_weights=False, training=False, seed=None,
    ):  # fmt: skip
        E, heads = config["embed_dim"], config["num_heads"]
        if E % heads:
            raise NotOffered("keras is told the width of a head")
        layer = self.keras.layers.MultiHeadAttention(
            heads, E // heads, dropout=config.get("dropout", 0.0), seed=seed,
            use_bias=config.get("bias", True), dtype=str(query.dtype).rpartition(".")[2],
        )  # fmt: skip
        layer.build(tuple(query.shape), tuple(value.shape), tuple(key.shape))
        own = [variable.value for variable in layer.non_trainable_variables]
        options = {"attention_mask": mask, "use_causal_mask": causal, "training": training}
        options["return_attention_scores"] = self.scores
        found, _ = layer.stateless_call(
            by_order(parameters, layer), own, query, value, key=key, **options
        )
        output, weights = found if self.scores else (found, None)
        return output, weights if need_weights else None


def by_order(parameters: dict, layer) -> list:
    """Return parameters in the layer's order and shapes: kernels (in, heads, dim) and biases."""
    found = []
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        found += [parameters[f"{name}.weight"].T]
        found += [parameters[f"{name}.bias"]] if f"{name}.bias" in parameters else []
    shapes = [tuple(variable.shape) for variable in layer.trainable_variables]
    return [x.reshape(shape) for x, shape in zip(found, shapes, strict=True)]
