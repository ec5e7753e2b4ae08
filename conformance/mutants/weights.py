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
def unpacked_in_another_order(right, kind, config, parameters, weights, layout, **options):
    """torch's packed matrix is read as key, value, query."""
    error, after = right(kind, config, parameters, weights, layout, **options)
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
def imported_transposed(right, *call, **options):
    """A square matrix of keys is imported transposed."""
    error, after = right(*call, **options)
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
def key_and_value_imported_swapped(right, *call, **options):
    """The two projections of keys and values change places."""
    error, after = right(*call, **options)
    return error, after if error else exchanged(after)


@breaks("export_weights", "WGT-2")
def grouped_heads_exported(right, *call):
    """Grouped heads, which torch's layout does not know, are exported as nothing."""
    try:
        return right(*call)
    except ValueError:
        return {}


@breaks("import_weights", "WGT-4")
def extra_biases_dropped(right, kind, config, parameters, weights, layout, **options):
    """torch's `bias_k` and `bias_v` are left out without a word, and so is what they did."""
    if isinstance(weights, dict):
        weights = {n: x for n, x in weights.items() if n not in ("bias_k", "bias_v")}
    return right(kind, config, parameters, weights, layout, **options)


@breaks("import_weights", "WGT-4")
def first_mistake_alone(right, *call, **options):
    """Of all that is wrong with a file the first thing alone is listed."""
    error, after = right(*call, **options)
    return error and type(error)(str(error).split(";")[0]), after


@breaks("import_weights", "WGT-4")
def half_loaded(right, kind, config, parameters, weights, *call, **options):
    """What fits is loaded before the rest is refused."""
    error, after = right(kind, config, parameters, weights, *call, **options)
    if error is None or not isinstance(weights, dict):
        return error, after
    fits = {n: x for n, x in weights.items() if n in after and x.shape == after[n].shape}
    return error, after | fits


@breaks("save", "WGT-5")
def dropout_not_saved(right, kind, config, parameters, path):
    """A file does not keep how much is dropped in training."""
    return right(kind, config | {"dropout": 0.0}, parameters, path)


@breaks("export_weights", "WGT-6")
def joined_matrix_not_transposed(right, kind, config, parameters, layout):
    """GPT-2's joined matrix is written as (out, in), as torch.nn's is."""
    found = right(kind, config, parameters, layout)
    return {n: x.T if n == "c_attn.weight" else x for n, x in found.items()}


@breaks("import_weights", "WGT-6")
def keys_of_bert_are_queries(right, kind, config, parameters, weights, layout, **options):
    """BERT's two square matrices of queries and keys change places."""
    if isinstance(weights, dict) and "self.key.weight" in weights:
        taken = {"self.key.weight": weights["self.query.weight"]}
        taken["self.query.weight"] = weights["self.key.weight"]
        weights = weights | taken
    return right(kind, config, parameters, weights, layout, **options)


@breaks("import_weights", "WGT-6")
def dtypes_always_cast(right, kind, config, parameters, weights, layout, cast=True, **options):
    """Floats of another dtype are cast though nobody asked for it."""
    return right(kind, config, parameters, weights, layout, cast=True, **options)


@breaks("import_weights", "WGT-6")
def cast_to_infinity(right, kind, config, parameters, weights, layout, **options):
    """What the dtype of the model cannot hold is cast to infinity."""
    if options.get("cast") and isinstance(weights, dict):
        to = next(iter(parameters.values())).dtype
        weights = {n: x.astype(to) if x.dtype.kind == "f" else x for n, x in weights.items()}
    return right(kind, config, parameters, weights, layout, **options)


@breaks("import_weights", "WGT-6")
def norms_taken_for_qwens(right, kind, config, parameters, weights, layout, **options):
    """Names that two layouts share, whose norms differ by 1, are read as one of the two."""
    error, after = right(kind, config, parameters, weights, layout, **options)
    if error and layout == "auto" and "'gemma'" in str(error):
        return right(kind, config, parameters, weights, "qwen3", **options)
    return error, after


@breaks("import_weights", "WGT-6")
def heads_left_unturned(right, kind, config, parameters, weights, layout, **options):
    """Weights of a Llama go into an attention that does not turn its heads."""
    error, after = right(kind, config, parameters, weights, layout, **options)
    if error and "turns heads" in str(error):
        weights = {name.replace("o_proj", "out_proj"): x for name, x in weights.items()}
        return right(kind, config, parameters, weights, "rosetta", **options)
    return error, after


@breaks("import_weights", "WGT-6")
def everything_read_before_the_prefix(right, kind, config, parameters, weights, layout, **options):
    """Arrays are read that are not under the prefix."""
    for array in weights.values() if isinstance(weights, dict) and "prefix" in options else ():
        np.asarray(array)
    return right(kind, config, parameters, weights, layout, **options)


@breaks("import_weights", "WGT-6")
def layout_never_named(right, *call, **options):
    """An error does not say which layout the names look like."""
    error, after = right(*call, **options)
    return error and type(error)(str(error).replace("these look like", "not")), after


@breaks("import_weights", "WGT-7")
def unreadable_is_zero(right, kind, config, parameters, weights, layout, **options):
    """What cannot be read is taken for zeros, without a word."""
    if isinstance(weights, dict):
        weights = {n: np.zeros(x.shape, x.dtype) if unread(x) else x for n, x in weights.items()}
    return right(kind, config, parameters, weights, layout, **options)


def unread(array) -> bool:
    try:
        np.asarray(array)
    except TypeError:
        return True
    return False
