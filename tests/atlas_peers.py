"""Small libraries with habits, for the atlas to find out."""

import os
import time

import numpy as np

from conformance.oracle import naive


class Toy:
    """Attention with settings: masks, fully masked rows, where causal starts."""

    name = "toy-zero"
    mask_polarity = "attend"
    capabilities = frozenset({"attention", "causal", "bias", "weights", "grouped"})
    dtypes = ("float32", "float16")
    floats, integers = "added", "refused"
    two_axes, three_axes = "queries by keys", "heads"
    empty, align, together, clean = "zero", "top-left", "both", False

    def versions(self):
        return {"toy": "1.0"}

    def attention(self, query, key, value, **options):
        return self.weights(query, key, value, **options)[0]

    def weights(self, query, key, value, *, mask=None, causal=False, bias=None):
        dtype, (B, H, T, D), S = query.dtype, query.shape, key.shape[2]
        group = H // key.shape[1]
        query, key, value = (x.astype(np.float32) for x in (query, key, value))
        key, value = key.repeat(group, 1), value.repeat(group, 1)
        scores = query @ key.swapaxes(2, 3) / np.float32(np.sqrt(D))
        scores = scores + (0 if bias is None else bias.astype(np.float32))
        allowed = np.ones((B, H, T, S), bool)
        if mask is not None:
            allowed, scores = self.read(mask, allowed, scores)
        if causal and not (mask is not None and self.together == "only the mask"):
            start = 0 if self.align == "top-left" else S - T
            flag = np.arange(S) <= np.arange(T)[:, None] + start
            allowed = flag & (True if self.together == "only the flag" else allowed)
        weights = self.softmax(np.where(allowed, scores, -np.inf), scores)
        if self.clean:
            has_weight = weights.swapaxes(2, 3).any(-1, keepdims=True)
            value = np.where(has_weight, value, 0)
        return (weights @ value).astype(dtype), weights.astype(dtype)

    def read(self, mask, allowed, scores):
        """Return what a mask lets be seen, and the scores with what it adds."""
        habit = {"b": "cast", "f": self.floats, "i": self.integers}[mask.dtype.kind]
        if habit == "refused":
            raise TypeError(f"a mask must be bool\ngot {mask.dtype}")
        if mask.ndim == 2 and self.two_axes == "key padding":
            mask = mask[:, None, None]
        if mask.ndim == 3 and self.three_axes == "samples":
            mask = mask[:, None]
        if habit == "added":
            return allowed, scores + mask
        return np.broadcast_to((mask != 0) ^ (self.mask_polarity == "hide"), allowed.shape), scores

    def softmax(self, masked, scores):
        none = np.isneginf(masked).all(-1, keepdims=True)
        if self.empty == "unmasked-row":
            masked = np.where(none, scores, masked)
        with np.errstate(all="ignore"):
            exp = np.exp(masked - masked.max(-1, keepdims=True, initial=-1e30))
            weights = exp / exp.sum(-1, keepdims=True)
        fill = {"zero": 0.0, "mean": 1 / max(masked.shape[-1], 1), "nan": np.nan}.get(self.empty)
        return weights if fill is None else np.where(none, fill, weights)


class Hider(Toy):
    """Hides where True, refuses floats, gives the mean, looks from the bottom right."""

    mask_polarity, floats, integers = "hide", "refused", "cast"
    two_axes, three_axes = "key padding", "samples"
    empty, align, together, clean = "mean", "bottom-right", "only the mask", True


class Caster(Toy):
    """Casts floats to booleans, gives NaN, lets a flag win."""

    floats, integers, empty, together = "cast", "added", "nan", "only the flag"


class Mean(Toy):
    """Gives the mean to a fully masked row."""

    name, empty = "toy-mean", "mean"


class Dies(Toy):
    """Ends its process at the first mask of integers."""

    def read(self, mask, allowed, scores):
        if mask.dtype.kind == "i":
            os._exit(7)
        return super().read(mask, allowed, scores)


class Hangs(Toy):
    """Never answers."""

    def attention(self, query, key, value, **options):
        time.sleep(3600)


class Layer:
    """A multi-head attention that gives the mean to fully masked rows."""

    policy, mask_polarity = "uniform", "attend"
    capabilities = frozenset({"multihead", "weights", "gradients", "bias"})

    def allowed(self, query, key, heads, mask=None):
        sizes = (len(query), heads, query.shape[1], key.shape[1])
        return np.broadcast_to(True if mask is None else mask, sizes)

    def multihead(self, config, parameters, query, key, value, *, mask=None, bias=None, **options):
        heads = config["num_heads"]
        given = {"allowed": self.allowed(query, key, heads, mask), "bias": bias}
        call = (parameters, heads, heads, query, key, value)
        found = naive.multihead(*call, **given, empty_rows=self.policy)
        return found["output"], found["weights"].mean(1)

    def multihead_gradients(self, config, parameters, query, key, value, grad, *, mask=None):
        heads = config["num_heads"]
        call = (parameters, heads, heads, query, key, value, grad)
        allowed = self.allowed(query, key, heads, mask)
        return naive.multihead_gradients(*call, allowed=allowed, empty_rows=self.policy)

    def gradients(self, query, key, value, grad, *, mask, bias=None):
        return naive.gradients(
            query, key, value, grad, allowed=mask, bias=bias, empty_rows=self.policy
        )


class TwoMasks(Layer):
    """The same with torch's two masks, True where hidden."""

    mask_polarity = "hide"
    capabilities = Layer.capabilities | {"attn_mask"}

    def joined(self, padding, mask, query, key, heads):
        allowed = np.array(self.allowed(query, key, heads))
        if padding is not None:
            allowed &= ~padding[:, None, None]
        if mask is not None and mask.dtype == bool:
            return allowed & ~mask.reshape(mask.shape if mask.ndim != 3 else allowed.shape), None
        return allowed, mask

    def multihead(self, config, parameters, *inputs, key_padding_mask=None, attn_mask=None, **_):
        heads = config["num_heads"]
        allowed, bias = self.joined(key_padding_mask, attn_mask, *inputs[:2], heads)
        return super().multihead(config, parameters, *inputs, mask=allowed, bias=bias)

    def multihead_gradients(
        self, config, parameters, *inputs, key_padding_mask=None, attn_mask=None
    ):
        allowed, _ = self.joined(key_padding_mask, attn_mask, *inputs[:2], config["num_heads"])
        return super().multihead_gradients(config, parameters, *inputs, mask=allowed)
