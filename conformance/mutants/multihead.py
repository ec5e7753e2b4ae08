"""Mistakes in multi-head attention: its projections, its heads, its masks, its weights."""

import numpy as np

from ..mask_spec import Spec
from .mutant import breaks

PROJECTIONS = ("q_proj", "k_proj", "v_proj")

# Projections


@breaks("multihead", "MHA-3", "MHA-4", "MHA-8", "DOC-B4")
def out_forgotten(right, config, parameters, *inputs, **options):
    """The last map W^o is left out, its bias is not."""
    eye = np.eye(config["embed_dim"], dtype=parameters["out_proj.weight"].dtype)
    return right(config, parameters | {"out_proj.weight": eye}, *inputs, **options)


@breaks("multihead", "MHA-4", "MHA-8", "DOC-B4")
def out_transposed(right, config, parameters, *inputs, **options):
    """W^o is applied transposed."""
    turned = parameters["out_proj.weight"].T
    return right(config, parameters | {"out_proj.weight": turned}, *inputs, **options)


@breaks("multihead", "MHA-4", "MHA-7", "MHA-8")
def out_bias_forgotten(right, config, parameters, *inputs, **options):
    """The bias of the last map is not added."""
    return right(config, without(parameters, "out_proj"), *inputs, **options)


@breaks("multihead", "MHA-4", "MHA-6", "MHA-8")
def biases_dropped(right, config, parameters, *inputs, **options):
    """The biases of the projections to query, key and value are not added."""
    return right(config, without(parameters, *PROJECTIONS), *inputs, **options)


def without(parameters: dict, *projections: str) -> dict:
    """Return parameters with these biases at 0."""
    zeros = {f"{name}.bias" for name in projections} & parameters.keys()
    return parameters | {name: np.zeros_like(parameters[name]) for name in zeros}


@breaks("multihead", "MHA-4", "MHA-8")
def key_and_value_swapped(right, config, parameters, *inputs, **options):
    """Keys are projected by the values' map, and values by the keys'."""
    return right(config, exchanged(parameters), *inputs, **options)


def exchanged(parameters: dict) -> dict:
    """Return parameters in which keys and values have changed places, where their shapes let it."""
    pairs = {n: n.replace("k_proj", "v_proj") for n in parameters if "k_proj" in n}
    pairs = {a: b for a, b in pairs.items() if parameters[a].shape == parameters[b].shape}
    pairs |= {b: a for a, b in pairs.items()}
    return parameters | {a: parameters[b] for a, b in pairs.items()}


@breaks("multihead", "MHA-6")
def value_is_query(right, config, parameters, query, key=None, value=None, **options):
    """A value that is left out is taken to be the query, not the key."""
    if key is not None and value is None and key.shape == query.shape:
        value = query
    return right(config, parameters, query, key, value, **options)


# Heads


def order(features: int, heads: int) -> np.ndarray:
    """Return which feature stands where if head h takes every `heads`-th one, from h on."""
    return np.arange(features).reshape(-1, heads).T.ravel()


@breaks("multihead", "MHA-1", "MHA-4", "MHA-8")
def heads_interleaved(right, config, parameters, *inputs, **options):
    """Features are split as (D, H) instead of (H, D): neighbours come to different heads."""
    heads = config["num_heads"]
    counts = dict.fromkeys(PROJECTIONS, config.get("num_kv_heads", heads)) | {"q_proj": heads}
    moved = {
        name: array[order(len(array), counts[name.split(".")[0]])]
        for name, array in parameters.items()
        if not name.startswith("out_proj")
    }
    out = parameters["out_proj.weight"]
    moved["out_proj.weight"] = out[:, order(out.shape[1], heads)]
    return right(config, parameters | moved, *inputs, **options)


@breaks("multihead", "MHA-1", "MHA-4", "MHA-8", "DOC-B2")
def heads_joined_across(right, config, parameters, *inputs, **options):
    """Heads are joined as (D, H) instead of (H, D), which they were not split as."""
    out = parameters["out_proj.weight"]
    mixed = out[:, np.argsort(order(out.shape[1], config["num_heads"]))]
    return right(config, parameters | {"out_proj.weight": mixed}, *inputs, **options)


@breaks("multihead", "MHA-1", "DOC-B1")
def one_head_returned(right, config, *call, **options):
    """Only the features of the first head come out."""
    output, weights = right(config, *call, **options)
    return output[..., : config["embed_dim"] // config["num_heads"]], weights


# Masks


@breaks("multihead", "MHA-4", "DOC-A5", "DOC-A11")
def key_padding_inverted(right, *call, key_padding_mask=None, **options):
    """In `key_padding_mask` True shows, as it does in Keras, instead of hiding."""
    hidden = None if key_padding_mask is None else ~key_padding_mask
    return right(*call, key_padding_mask=hidden, **options)


@breaks("multihead", "MHA-4")
def rank_three_heads_first(right, config, *call, attn_mask=None, **options):
    """An `attn_mask` of rank 3 is read as (H*B, T, S), heads first."""
    if np.ndim(attn_mask) == 3:
        heads, (_, T, S) = config["num_heads"], attn_mask.shape
        attn_mask = attn_mask.reshape(heads, -1, T, S).swapaxes(0, 1)
    return right(config, *call, attn_mask=attn_mask, **options)


@breaks("multihead", "MHA-4", "DOC-A9")
def float_mask_hides(right, *call, attn_mask=None, **options):
    """A float `attn_mask` is not added: it hides where it is not 0."""
    if isinstance(attn_mask, np.ndarray) and attn_mask.dtype != bool:
        attn_mask = attn_mask != 0
    return right(*call, attn_mask=attn_mask, **options)


@breaks("multihead", "MHA-7", "DOC-A7")
def padded_queries_zeroed(right, config, *call, key_padding_mask=None, **options):
    """The outputs of padded queries are put to 0."""
    output, weights = right(config, *call, key_padding_mask=key_padding_mask, **options)
    if isinstance(key_padding_mask, np.ndarray):
        rows = key_padding_mask if config.get("batch_first", True) else key_padding_mask.T
        if rows.shape == output.shape[:2]:
            output = np.where(rows[..., None], 0, output).astype(output.dtype)
    return output, weights


@breaks("multihead", "EMPTY-4")
def training_empties_otherwise(right, config, *call, training=False, **options):
    """In training another path runs, on which a fully masked row is 0 whatever was asked for."""
    config = config | {"empty_rows": "zero"} if training else config
    return right(config, *call, training=training, **options)


# Weights that are handed out


@breaks("multihead", "MHA-5", "DOC-A6")
def weights_over_queries(right, *call, average_weights=True, **options):
    """Weights are averaged over the queries instead of the heads."""
    output, weights = right(*call, average_weights=False, **options)
    if weights is None or not average_weights:
        return output, weights
    return output, np.broadcast_to(weights.mean((1, 2))[:, None], weights[:, 0].shape)


@breaks("multihead", "MHA-5", "DOC-A5", "DOC-A6")
def weights_of_the_first_head(right, *call, average_weights=True, **options):
    """Where the mean over the heads is asked for, the first head's weights come."""
    output, weights = right(*call, average_weights=False, **options)
    return output, weights[:, 0] if average_weights and weights is not None else weights


@breaks("multihead", "MHA-5", "DOC-A5")
def weights_turned(right, config, *call, **options):
    """Weights follow `batch_first`, though they have the batch first either way."""
    output, weights = right(config, *call, **options)
    if weights is not None and not config.get("batch_first", True):
        weights = weights.swapaxes(0, 1)
    return output, weights


@breaks("multihead", "MHA-5", "MHA-4")
def weights_change_the_output(right, *call, need_weights=True, **options):
    """Asking for weights takes another path, whose output is off by a thousandth."""
    output, weights = right(*call, need_weights=need_weights, **options)
    return output * output.dtype.type(1.001 if need_weights else 1), weights


@breaks("multihead", "MHA-5")
def weights_unasked(right, *call, need_weights=True, **options):
    """Weights come whether they are asked for or not."""
    return right(*call, **options)


@breaks("multihead", "ATT-12", "DOC-A14")
def dropout_in_evaluation(right, *call, training=False, seed=None, **options):
    """Dropout goes on in evaluation."""
    return right(*call, training=True, seed=seed or 7, **options)


# Parameters that a new module starts with


@breaks("parameters", "MHA-2", "DOC-B3")
def parameters_for_each_head(right, config):
    """Every head has a W^o of its own: the number of parameters grows with the heads."""
    found = right(config)
    return found | {"out_proj.weight": np.tile(found["out_proj.weight"], config["num_heads"])}


@breaks("parameters", "MHA-2", "DOC-B3")
def biases_not_registered(right, config):
    """The biases are no parameters: no optimiser sees them and no file keeps them."""
    return {name: x for name, x in right(config).items() if "bias" not in name}


@breaks("parameters", "MHA-2")
def biases_start_random(right, config):
    """Biases start at random numbers instead of 0."""
    rng = np.random.default_rng(0)
    found = right(config)
    drawn = {n: rng.normal(size=x.shape).astype(x.dtype) for n, x in found.items() if "bias" in n}
    return found | drawn


@breaks("parameters", "MHA-2")
def weights_start_small(right, config):
    """Matrices start at half of Xavier's bound."""
    return {name: x / 2 for name, x in right(config).items()}


@breaks("parameters", "MHA-6")
def sizes_divided_down(right, config):
    """Heads that do not divide the features are taken: some features belong to no head."""
    try:
        return right(config)
    except ValueError:
        return right(config | {"num_heads": 1})


@breaks("multihead", "MHA-12")
def one_of_two_masks(right, *call, key_padding_mask=None, attn_mask=None, **options):
    """Of two Masks the one of the keys is dropped."""
    if isinstance(key_padding_mask, Spec) and attn_mask is not None:
        key_padding_mask = None
    return right(*call, key_padding_mask=key_padding_mask, attn_mask=attn_mask, **options)


@breaks("multihead", "MHA-12")
def averaged_over_key_heads(right, config, *call, **options):
    """Averaged weights of grouped heads are divided by the number of key heads."""
    output, weights = right(config, *call, **options)
    heads = config["num_heads"]
    share = heads / config.get("num_kv_heads", heads)
    if weights is None or not options.get("average_weights", True):
        return output, weights
    return output, weights * weights.dtype.type(share)
