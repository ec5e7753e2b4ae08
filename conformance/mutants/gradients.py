"""Mistakes in gradients: of attention, and of the parameters of multi-head attention."""

import numpy as np

from .arithmetic import allowed_by, nan_where
from .mutant import breaks


@breaks("gradients", "GRAD-1", base="torch")
def gradient_unscaled(right, *call, **options):
    """The scale is forgotten on the way back to the queries."""
    found = right(*call, **options)
    return found | {"query": found["query"] * found["query"].dtype.type(call[0].shape[3] ** 0.5)}


@breaks("gradients", "GRAD-1", base="torch")
def groups_averaged(right, query, key, *call, **options):
    """Query heads that share a key head average what they send back, instead of adding it up."""
    found = right(query, key, *call, **options)
    share = found["key"].dtype.type(key.shape[1] / query.shape[1])
    return found | {"key": found["key"] * share}


@breaks("gradients", "GRAD-1", base="torch")
def bias_left_out(right, *call, **options):
    """The bias gets no gradient."""
    return {name: x for name, x in right(*call, **options).items() if name != "bias"}


@breaks("gradients", "GRAD-1", base="torch")
def bias_not_summed(right, query, key, *call, **options):
    """The gradient of a broadcast bias has the shape that it was broadcast to."""
    found = right(query, key, *call, **options)
    if "bias" not in found:
        return found
    return found | {"bias": np.broadcast_to(found["bias"], (*query.shape[:3], key.shape[2]))}


@breaks("gradients", "GRAD-1", "GRAD-3", base="torch")
def softcap_slope_forgotten(right, *call, softcap=None, **options):
    """The fast path's gradients are those of a call without the softcap."""
    found = right(*call, softcap=softcap, **options)
    if softcap is None or options.get("through") == "steps":
        return found
    return right(*call, **options)


@breaks("gradients", "GRAD-3", "GRAD-1", base="torch")
def fast_gradients_apart(right, *call, through="attention", **options):
    """The fast path's gradients are off by a hundredth."""
    found = right(*call, through=through, **options)
    factor = found["key"].dtype.type(1 if through == "steps" else 1.01)
    return found | {"key": found["key"] * factor}


@breaks("gradients", "EMPTY-6", "EMPTY-7", base="torch")
def empty_row_gradient_nan(right, *call, **options):
    """The gradient of a fully masked row is NaN, as where NaN is cleaned after the softmax."""
    found = right(*call, **options)
    rows = ~allowed_by(options.get("mask"), call, options.get("query_offset")).any(
        -1, keepdims=True
    )
    return found | {"query": nan_where(rows, found["query"])}


@breaks("gradients", "EMPTY-6", base="torch")
def empty_row_gradient_leaks(right, query, key, value, grad, **options):
    """A fully masked row sends its gradient on to all values, as if it had seen them alike."""
    found = right(query, key, value, grad, **options)
    allowed = allowed_by(options.get("mask"), (query, key), options.get("query_offset"))
    rows = ~allowed.any(-1, keepdims=True)
    if options.get("empty_rows", "zero") != "zero" or not rows.any():
        return found
    sent = (grad * rows).astype(np.float64).sum(2, keepdims=True) / key.shape[2]
    sent = sent.reshape(*sent.shape[:1], key.shape[1], -1, 1, sent.shape[3]).sum(2)
    return found | {"value": (found["value"] + sent).astype(value.dtype)}


@breaks("gradients", "EMPTY-5", base="torch")
def gradients_mixed(right, *call, **options):
    """A millionth of the batch's mean is added to every sample's gradients."""
    found = right(*call, **options)
    for name in ("query", "key", "value"):
        own = found[name].astype(np.float64)
        found[name] = (own + 1e-6 * own.mean(0, keepdims=True)).astype(found[name].dtype)
    return found


@breaks("gradients", "CLEAN-3", base="torch")
def nan_reaches_keys(right, query, key, *call, **options):
    """NaN in a hidden key comes back as its gradient."""
    found = right(query, key, *call, **options)
    return found | {"key": nan_where(np.isnan(key), found["key"])}


@breaks("gradients", "CAUSE-4", base="torch")
def future_gradient(right, *call, **options):
    """A billionth of gradient reaches values that no query sees."""
    found = right(*call, **options)
    return found | {"value": found["value"] + found["value"].dtype.type(1e-9)}


# Parameters of multi-head attention


@breaks("multihead_gradients", "GRAD-2", base="torch")
def gradient_transposed(right, *call, **options):
    """The gradient of a projection's matrix is transposed."""
    found = right(*call, **options)
    return found | {"q_proj.weight": found["q_proj.weight"].T}


@breaks("multihead_gradients", "GRAD-2", "EMPTY-5", base="torch")
def averaged_over_samples(right, *call, **options):
    """Gradients of parameters are averaged over the batch, where its samples should add up."""
    found = right(*call, **options)
    samples = np.float32(len(call[2]))
    return {name: x / samples if "proj" in name else x for name, x in found.items()}


@breaks("multihead_gradients", "GRAD-2", "EMPTY-5", base="torch")
def empty_sample_counts(right, config, parameters, query, key, value, grad, **options):
    """A sample that sees nothing is trained on as if it saw all of its tokens."""
    hidden = options.get("key_padding_mask")
    if isinstance(hidden, np.ndarray):
        options["key_padding_mask"] = hidden & ~hidden.all(1, keepdims=True)
    return right(config, parameters, query, key, value, grad, **options)


@breaks("multihead_gradients", "CLEAN-3", base="torch")
def nan_reaches_parameters(right, config, parameters, query, key, *call, **options):
    """NaN in a padded token reaches the gradient of the matrix that projects it: 0 times NaN."""
    found = right(config, parameters, query, key, *call, **options)
    leak = np.float32(0) * key.sum((0, 1))
    return found | {"k_proj.weight": found["k_proj.weight"] + leak}


@breaks("gradients", "ATT-15", base="torch")
def sink_gradient_of_wrong_sign(right, *call, **options):
    """What a sink takes from the keys is added to its gradient, and not taken off."""
    found = right(*call, **options)
    return found | ({"sinks": -found["sinks"]} if "sinks" in found else {})


@breaks("gradients", "ATT-15", base="torch")
def gradients_without_the_sink(right, *call, sinks=None, **options):
    """Query, key and value get the gradients of weights that sum to 1."""
    found = right(*call, sinks=sinks, **options)
    if sinks is None:
        return found
    return right(*call, **options) | {"sinks": found["sinks"]}
