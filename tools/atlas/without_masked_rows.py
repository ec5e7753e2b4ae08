"""A peer without fully masked rows: what else differs from the contract?

    python -m conformance run --subject tools.atlas.without_masked_rows:torch-sdpa

Before a call fully masked rows are unmasked, so that the library never meets one; after it they are
set to the contract's answer. A case that fails on a library and passes here fails by EMPTY-1 alone,
and not by its own clause. A module's row that is fully masked in some heads only stays as it is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.subjects import find
from conformance.subjects.adapter import mask_polarity
from conformance.subjects.peers import PEERS

from .ask import load

OPEN = {"attend": True, "hide": False}


def hidden_by(mask: np.ndarray, masks: str) -> np.ndarray:
    """Return where an array hides something, in the sense that a library gives its masks."""
    if mask.dtype != bool:
        return np.isneginf(mask)
    return mask if masks == "hide" else ~mask


def unmasked(array: np.ndarray, empty: np.ndarray, sizes: tuple, masks: str) -> np.ndarray:
    """Return a mask or a bias that hides nothing from the fully masked rows."""
    array = np.array(np.broadcast_to(array, sizes))
    array[empty] = OPEN[masks] if array.dtype == bool else 0.0
    return array


class WithoutMaskedRows:
    """The adapter of a peer, without fully masked rows."""

    def __init__(self, own: Any, name: str = ""):
        self.own, self.name = own, getattr(own, "name", name)
        self.polarity = mask_polarity(own)

    def __getattr__(self, name: str):
        return getattr(self.own, name)

    def attention(self, query, key, value, **options):
        options, empty = self.unmask(query, key, options)
        return zeroed(self.own.attention(query, key, value, **options), empty)

    def weights(self, query, key, value, **options):
        options, empty = self.unmask(query, key, options)
        output, weights = self.own.weights(query, key, value, **options)
        return zeroed(output, empty), zeroed(weights, empty)

    def gradients(self, query, key, value, grad, **options):
        options, empty = self.unmask(query, key, options)
        return self.own.gradients(query, key, value, zeroed(grad, empty), **options)

    def unmask(self, query, key, options: dict, sizes: tuple | None = None) -> tuple[dict, Any]:
        """Return the options without fully masked rows, and which rows these were: (B, H, T)."""
        sizes = sizes or (*query.shape[:3], key.shape[2])
        given = {name: options[name] for name in ("mask", "bias") if options.get(name) is not None}
        allowed = np.ones(sizes, bool)
        for array in given.values():
            allowed = allowed & ~hidden_by(array, self.polarity)
        if options.get("causal") and sizes[2] == sizes[3]:
            allowed = allowed & np.tri(sizes[2], dtype=bool)
        empty = ~np.any(allowed, -1) if sizes[3] else np.zeros(sizes[:3], bool)
        hiding = {n: x for n, x in given.items() if hidden_by(x, self.polarity).any()}
        if empty.any():
            given |= {n: unmasked(x, empty, sizes, self.polarity) for n, x in hiding.items()}
        return options | given, empty

    def multihead(self, config, parameters, query, key, value, **options):
        options, empty, first = self.unmask_module(config, query, key, options)
        output, weights = self.own.multihead(config, parameters, query, key, value, **options)
        output = np.array(np.asarray(output) if first else np.swapaxes(output, 0, 1))
        output[np.all(empty, 1)] = parameters.get("out_proj.bias", 0)
        if weights is not None:
            rows = np.all(empty, 1) if np.ndim(weights) == 3 else empty
            weights = zeroed(weights, rows)
        return output if first else output.swapaxes(0, 1), weights

    def multihead_gradients(self, config, parameters, query, key, value, grad, **options):
        options, empty, first = self.unmask_module(config, query, key, options)
        rows = np.all(empty, 1)
        rows = rows if first else rows.swapaxes(0, 1)
        inputs = (query, key, value, zeroed(grad, rows))
        found = dict(self.own.multihead_gradients(config, parameters, *inputs, **options))
        if (
            "out_proj.bias" in found
        ):  # the last map's bias is all that a fully masked row's output is
            found["out_proj.bias"] = found["out_proj.bias"] + grad[rows].sum(0)
        return found

    def unmask_module(self, config, query, key, options: dict) -> tuple[dict, np.ndarray, bool]:
        """Return a module's options without masked rows, the rows, and whether batch comes first.

        Where there are such rows, torch's two masks become one, (B, H, T, S).
        """
        first = config.get("batch_first", True)
        (B, T), S = query.shape[:2] if first else query.shape[1::-1], key.shape[1 if first else 0]
        sizes = (B, config["num_heads"], T, S)
        if "attn_mask" not in self.own.capabilities:
            options, empty = self.unmask(query, key, options, sizes)
            return options, empty, first
        nowhere = np.zeros(sizes[:3], bool)
        mask = merged(options.get("key_padding_mask"), options.get("attn_mask"), sizes)
        if mask is None or not S:
            return options, nowhere, first
        rows = np.all(hidden_by(mask, "hide"), -1)
        if not rows.any():
            return options, nowhere, first
        own = {n: x for n, x in options.items() if n not in ("key_padding_mask", "attn_mask")}
        return own | {"attn_mask": unmasked(mask, rows, sizes, "hide")}, rows, first


def merged(padding, mask, sizes: tuple) -> np.ndarray | None:
    """Return torch's two masks as one, (B, H, T, S): bool, or additive if the mask is."""
    if mask is not None and mask.ndim == 3:
        mask = mask.reshape(sizes)
    if padding is None:
        return None if mask is None else np.broadcast_to(mask, sizes)
    padding = padding[:, None, None]
    if mask is None or mask.dtype == bool:
        return np.broadcast_to(padding | (False if mask is None else mask), sizes)
    return np.broadcast_to(np.where(padding, -np.inf, mask).astype(mask.dtype), sizes)


def zeroed(array, rows: np.ndarray) -> np.ndarray:
    """Return an array with 0 in some of its rows."""
    array = np.array(array)
    array[rows] = 0
    return array


def __getattr__(name: str) -> Callable:
    """Return what makes a peer by its name, or an adapter by its path, without masked rows."""
    if name not in PEERS and ":" not in name:
        raise AttributeError(name)
    find(name)  # what is not there is said here, and imported under the caller's settings
    return lambda: WithoutMaskedRows(load(name), name)
