"""Keras, on the backend that the process has."""
# mypy: disable-error-code="import-not-found"

import numpy as np

from .arrays import apart, joined


def keras_ops(q, k, v, mask=None, bias=None, causal=False):
    import keras

    inputs = [keras.ops.convert_to_tensor(np.moveaxis(x, 1, 2)) for x in (q, k, v)]
    given = {"mask": mask, "bias": bias}
    given = {n: None if x is None else keras.ops.convert_to_tensor(x) for n, x in given.items()}
    found = keras.ops.dot_product_attention(*inputs, **given, is_causal=causal)
    return np.moveaxis(numbers(found), 2, 1)


def keras_mha(q, k, v, mask=None, causal=False, scores=False):
    import keras

    H, D, E = q.shape[1], q.shape[3], q.shape[1] * q.shape[3]
    layer = keras.layers.MultiHeadAttention(H, D, use_bias=False, dtype=q.dtype.name)
    query, key, value = map(joined, (q, k, v))
    layer.build(query.shape, value.shape, key.shape)
    layer.set_weights([np.eye(E).reshape(E, H, D)] * 3 + [np.eye(E).reshape(H, D, E)])
    options = {"attention_mask": mask, "use_causal_mask": causal}
    options = {n: keras.ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x
               for n, x in options.items()}  # fmt: skip
    found = layer(query, value, key, return_attention_scores=scores, **options)
    return apart(numbers(found[0] if scores else found), q)


def numbers(x):
    import keras

    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")))
