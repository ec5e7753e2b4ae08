"""Mistakes before heads attend: their width, their biases, rotary embeddings and QK-norm."""

import numpy as np

from .multihead import PROJECTIONS, without
from .mutant import breaks

# Settings


@breaks("multihead", "MHA-9")
def scale_of_the_width(right, config, *call, **options):
    """Scores are divided by the root of embed_dim / num_heads, though heads have another width."""
    if config.get("head_dim") and config.get("scale") is None:
        width = config["embed_dim"] / config["num_heads"]
        config = config | {"scale": width**-0.5}
    return right(config, *call, **options)


@breaks("multihead", "MHA-9")
def biases_of_queries_forgotten(right, config, parameters, *inputs, **options):
    """With a `qkv_bias` apart from `bias`, none is added to query, key and value."""
    if config.get("qkv_bias"):
        parameters = without(parameters, *PROJECTIONS)
    return right(config, parameters, *inputs, **options)


@breaks("multihead", "MHA-9")
def scale_of_a_module_ignored(right, config, *call, **options):
    """A module attends with 1/sqrt(head_dim), whatever `scale` it was given."""
    return right(config | {"scale": None}, *call, **options)


@breaks("multihead", "MHA-9")
def softcap_of_a_module_ignored(right, config, *call, **options):
    """A module caps no scores."""
    return right(config | {"softcap": None}, *call, **options)


@breaks("decoding", "MHA-9")
def steps_forget_the_softcap(right, kind, config, *call, **options):
    """A step of decoding caps no scores."""
    config = {n: x for n, x in config.items() if n != "softcap"}
    return right(kind, config, *call, **options)


@breaks("decoding", "MHA-9")
def steps_forget_the_scale(right, kind, config, *call, **options):
    """A step of decoding attends with 1/sqrt(head_dim)."""
    config = {n: x for n, x in config.items() if n != "scale"}
    return right(kind, config, *call, **options)


@breaks("decoding", "MHA-9")
def steps_forget_the_sinks(right, kind, config, parameters, **options):
    """A step of decoding has no sink."""
    lost = {n: np.full_like(x, -1e30) for n, x in parameters.items() if n == "sinks"}
    return right(kind, config, parameters | lost, **options)


# Rotary embeddings


@breaks("module.rotary", "MHA-10")
def rotated_backwards(right, *settings, **options):
    """Heads are turned by minus their position: one sign of the sine is wrong."""
    own = right(*settings, **options)
    return lambda query, key, places: own(query, key, -places)


@breaks("module.rotary", "MHA-10")
def halves_for_neighbours(right, *settings, interleaved=False, **options):
    """Neighbours are turned together instead of halves, and halves instead of neighbours."""
    return right(*settings, interleaved=not interleaved, **options)


@breaks("module.rotary", "MHA-10")
def positions_from_zero_at_each_step(right, *settings, **options):
    """Each call counts its tokens from 0, and forgets how many are in the cache."""
    own = right(*settings, **options)
    return lambda query, key, places: own(query, key, places - places[:, :1])


@breaks("module.rotary", "MHA-10")
def positions_of_sample_zero(right, *settings, **options):
    """Every sample's tokens stand where those of sample 0 do."""
    own = right(*settings, **options)
    return lambda query, key, places: own(query, key, places[:1])


@breaks("module.rotary", "MHA-10")
def keys_rotated_twice(right, *settings, **options):
    """Keys are turned before they enter the cache, and again."""
    own = right(*settings, **options)

    def wrong(query, key, places):
        query, key = own(query, key, places)
        return query, own(key, key, places)[1]

    return wrong


@breaks("module.rotary", "MHA-10")
def keys_cached_before_rotation(right, *settings, **options):
    """Keys enter the cache as they were projected: queries alone are turned."""
    own = right(*settings, **options)
    return lambda query, key, places: (own(query, key, places)[0], key)


@breaks("module.rotary", "MHA-10")
def first_key_head_rotated(right, *settings, **options):
    """Of the key heads that queries share only the first is turned."""
    own = right(*settings, **options)

    def wrong(query, key, places):
        query, turned = own(query, key, places)
        return query, np.concatenate([turned[:, :1], key[:, 1:]], 1)

    return wrong


@breaks("module.rotary", "MHA-10")
def whole_head_rotated(right, *settings, dim=None, **options):
    """The whole head is turned, though `dim` says how much of it."""
    return right(*settings, **options)


@breaks("module.rotary", "MHA-10")
def positions_multiplied(right, *settings, scale=1.0, **options):
    """Positions are multiplied by `scale`, not divided."""
    return right(*settings, scale=1 / scale, **options)


@breaks("module.rotary", "MHA-10")
def angles_in_sixteen_bits(right, *settings, **options):
    """Positions are rounded to the heads' own dtype: from 2048 or 256 on some become one."""
    own = right(*settings, **options)

    def wrong(query, key, places):
        return own(query, key, places.astype(query.dtype).astype(np.int64))

    return wrong


# QK-norm


@breaks("multihead", "MHA-10")
def norms_without_weights(right, config, parameters, *inputs, **options):
    """Heads are normed, and not multiplied by the norms' weights."""
    ones = {n: np.ones_like(x) for n, x in parameters.items() if "_norm." in n}
    return right(config, parameters | ones, *inputs, **options)


@breaks("multihead", "MHA-10")
def norms_exchanged(right, config, parameters, *inputs, **options):
    """Queries are multiplied by the keys' weights, and keys by the queries'."""
    names = {"q_norm": "k_norm", "k_norm": "q_norm"}
    swapped = {
        n.replace(old, new): x for old, new in names.items() for n, x in parameters.items()
        if old in n
    }  # fmt: skip
    return right(config, parameters | swapped, *inputs, **options)


@breaks("module.QKNorm", "MHA-10")
def norm_without_eps(right, *settings, eps=1e-6, **options):
    """Nothing is added to the mean square."""
    return right(*settings, eps=1e-30, **options)


@breaks("module.QKNorm", "MHA-10")
def nothing_after_the_norm(right, *settings, then=None, **options):
    """Heads are normed, and what should follow is left out."""
    return right(*settings, **options)
