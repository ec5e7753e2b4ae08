"""equinox.nn.MultiheadAttention, one sample at a time: the samples, and a mask's, are vmapped.

It offers no weights, no causal flag and no grouped heads.
"""
# mypy: disable-error-code="import-not-found"

from functools import partial
from typing import Any

import equinox
import jax
import jax.numpy as jnp

from ..protocol import NotOffered
from .base import ModulePeer
from .jax import Jax

LAYERS = {"query": "q", "key": "k", "value": "v", "output": "out"}


class EquinoxMultiHead(Jax, ModulePeer):
    """A mask's first axis is the samples'. Rotary embeddings are those of a whole sequence."""

    packages = ("equinox", *Jax.packages)
    capabilities = frozenset({"attention", "multihead", "widths", "dropout", "gradients", "rotary"})

    def rotary(self, query, key, positions, *, base=1e4, interleaved=False, **others):
        if interleaved or others:
            raise NotOffered("equinox turns the two halves of a head, all of it")
        self.tell("in a sequence of zeros that is long enough, and taken out of it again")
        with self.scope(query.dtype.name):
            return [self.numpy(self.turned(self.array(x), positions, base)) for x in (query, key)]

    def turned(self, x, positions, base):
        embedding = equinox.nn.RotaryPositionalEmbedding(x.shape[3], base, x.dtype)

        def head(x, places):
            whole = jnp.zeros((int(positions.max()) + 1, x.shape[1]), x.dtype)
            return embedding(whole.at[places].set(x))[places]

        places = jnp.broadcast_to(positions, (len(x), positions.shape[1]))
        return jax.vmap(jax.vmap(head, (0, None)))(x, places)

    def module(self, config, parameters) -> equinox.nn.MultiheadAttention:
        if config["embed_dim"] % config["num_heads"]:
            raise NotOffered("equinox gives every head what fits into it, and no more")
        kinds = ("weight", "bias") if config.get("bias", True) else ("weight",)
        options: dict[str, Any] = {f"use_{name}_bias": len(kinds) > 1 for name in LAYERS}
        options |= {"key_size": config.get("kdim"), "value_size": config.get("vdim")}
        options |= {"dropout_p": config.get("dropout", 0.0), "key": jax.random.key(0)}
        new = partial(equinox.nn.MultiheadAttention, config["num_heads"], config["embed_dim"])
        attn = equinox.filter_eval_shape(new, **options)  # shapes alone: all is replaced
        own = [parameters[f"{n}_proj.{kind}"] for n in LAYERS.values() for kind in kinds]

        def leaves(attn):
            return [getattr(getattr(attn, f"{n}_proj"), kind) for n in LAYERS for kind in kinds]

        return equinox.tree_at(leaves, attn, own)

    def call(
        self, config, parameters, query, key, value, *, mask=None, need_weights=False,
        training=False, seed=None,
    ):  # fmt: skip
        attn = self.module(config, parameters)
        if mask is not None:
            if mask.ndim != 4:
                raise NotOffered("a call takes one sample's mask: the axis of samples is vmap's")
            self.tell(f"vmap: a call for each sample, with its {tuple(mask.shape[1:])} of the mask")
        mask = mask.repeat(len(query), 0) if mask is not None and len(mask) == 1 else mask
        seeds = None if seed is None else jax.random.split(jax.random.key(seed), len(query))
        one = partial(attn, inference=not training)

        def call(query, key, value, mask, seed):
            return one(query, key, value, mask, key=seed)

        return jax.vmap(call)(query, key, value, mask, seeds), None
