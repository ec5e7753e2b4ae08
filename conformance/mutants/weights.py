"""Mistakes in files of weights, and in the layouts of other libraries."""

import numpy as np

from .multihead import exchanged
from .mutant import breaks


@breaks("save", "WGT-1")
def saved_transposed(right, kind, config, parameters, path):
    """Matrices are saved as (in, out); square ones betray it by their numbers alone."""
    turned = {
        name: np.array(x.T) if x.ndim == 2 and x.shape == x.T.shape else x
        for name, x in parameters.items()
    }
    return right(kind, config, turned, path)


@breaks("save", "WGT-1")
def settings_not_saved(right, kind, config, parameters, path):
    """A file does not keep on which side the norms are."""
    return right(kind, {n: x for n, x in config.items() if n != "norm_first"}, parameters, path)


@breaks("load", "WGT-1")
def rounded_on_the_way(right, *call):
    """Loaded parameters have gone through float16."""
    parameters, run = right(*call)
    return {n: x.astype(np.float16).astype(x.dtype) for n, x in parameters.items()}, run


@breaks("load", "WGT-4")
def anything_is_a_model(right, *call):
    """A file that is none of ours loads as a model without parameters."""
    try:
        return right(*call)
    except ValueError:
        return {}, None


@breaks("export_weights", "WGT-2")
def packed_in_another_order(right, kind, config, parameters, layout):
    """torch's packed matrix is written as value, query, key."""
    found = right(kind, config, parameters, layout)
    return {n: np.roll(x, len(x) // 3, 0) if "in_proj" in n else x for n, x in found.items()}


@breaks("import_weights", "WGT-2")
def unpacked_in_another_order(right, kind, config, parameters, weights, layout):
    """torch's packed matrix is read as key, value, query."""
    error, after = right(kind, config, parameters, weights, layout)
    if error or layout != "torch":
        return error, after
    turned = {"q_proj": "k_proj", "k_proj": "v_proj", "v_proj": "q_proj"}
    moved = {}
    for name, array in after.items():
        own = next((p for p in turned if p in name), "")
        other = after[name.replace(own, turned[own])] if own else array
        moved[name] = other if other.shape == array.shape else array
    return error, moved


@breaks("import_weights", "WGT-2", "WGT-3")
def imported_transposed(right, *call):
    """A square matrix of keys is imported transposed."""
    error, after = right(*call)
    keys = {} if error else {n: x for n, x in after.items() if n.endswith("k_proj.weight")}
    return error, after | {n: x.T for n, x in keys.items() if x.shape == x.T.shape}


@breaks("export_weights", "WGT-3")
def kernels_not_transposed(right, kind, config, parameters, layout):
    """flax's query kernel is written as (out, in)."""
    found = right(kind, config, parameters, layout)
    if layout != "nnx":
        return found
    kernel = found["query.kernel"]
    return found | {"query.kernel": kernel.reshape(len(kernel), -1).T.reshape(kernel.shape)}


@breaks("import_weights", "WGT-2", "WGT-3")
def key_and_value_imported_swapped(right, *call):
    """The two projections of keys and values change places."""
    error, after = right(*call)
    return error, after if error else exchanged(after)


@breaks("export_weights", "WGT-2")
def grouped_heads_exported(right, *call):
    """Grouped heads, which torch's layout does not know, are exported as nothing."""
    try:
        return right(*call)
    except ValueError:
        return {}


@breaks("import_weights", "WGT-4")
def extra_biases_dropped(right, kind, config, parameters, weights, layout):
    """torch's `bias_k` and `bias_v` are left out without a word, and so is what they did."""
    if isinstance(weights, dict):
        weights = {n: x for n, x in weights.items() if n not in ("bias_k", "bias_v")}
    return right(kind, config, parameters, weights, layout)


@breaks("import_weights", "WGT-4")
def first_mistake_alone(right, *call):
    """Of all that is wrong with a file the first thing alone is listed."""
    error, after = right(*call)
    return error and type(error)(str(error).split(";")[0]), after


@breaks("import_weights", "WGT-4")
def half_loaded(right, kind, config, parameters, weights, *call):
    """What fits is loaded before the rest is refused."""
    error, after = right(kind, config, parameters, weights, *call)
    if error is None or not isinstance(weights, dict):
        return error, after
    fits = {n: x for n, x in weights.items() if n in after and x.shape == after[n].shape}
    return error, after | fits


@breaks("save", "WGT-5")
def dropout_not_saved(right, kind, config, parameters, path):
    """A file does not keep how much is dropped in training."""
    return right(kind, config | {"dropout": 0.0}, parameters, path)


@breaks("import_weights", "WGT-7")
def unreadable_is_zero(right, kind, config, parameters, weights, layout):
    """What cannot be read is taken for zeros, without a word."""
    if isinstance(weights, dict):
        weights = {n: np.zeros(x.shape, x.dtype) if unread(x) else x for n, x in weights.items()}
    return right(kind, config, parameters, weights, layout)


def unread(array) -> bool:
    try:
        np.asarray(array)
    except TypeError:
        return True
    return False
