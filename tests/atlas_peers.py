"""Small libraries with habits, for the atlas to find out: plain NumPy, nothing of the suite's."""

import os
import time

import numpy as np


class Toy:
    """Attention with settings: what a mask says, what an empty row becomes, where causal starts."""

    masks = "attend"
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
        seen = np.ones((B, H, T, S), bool)
        if mask is not None:
            seen, scores = self.read(mask, seen, scores)
        if causal and not (mask is not None and self.together == "only the mask"):
            start = 0 if self.align == "top-left" else S - T
            flag = np.arange(S) <= np.arange(T)[:, None] + start
            seen = flag & (True if self.together == "only the flag" else seen)
        weights = self.softmax(np.where(seen, scores, -np.inf), scores)
        if self.clean:
            key_seen = weights.swapaxes(2, 3).any(-1, keepdims=True)
            value = np.where(key_seen, value, 0)
        return (weights @ value).astype(dtype), weights.astype(dtype)

    def read(self, mask, seen, scores):
        """Return what a mask lets be seen, and the scores with what it adds."""
        habit = {"b": "cast", "f": self.floats, "i": self.integers}[mask.dtype.kind]
        if habit == "refused":
            raise TypeError(f"a mask must be bool\ngot {mask.dtype}")
        if mask.ndim == 2 and self.two_axes == "key padding":
            mask = mask[:, None, None]
        if mask.ndim == 3 and self.three_axes == "samples":
            mask = mask[:, None]
        if habit == "added":
            return seen, scores + mask
        return np.broadcast_to((mask != 0) ^ (self.masks == "hide"), seen.shape), scores

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

    masks, floats, integers = "hide", "refused", "cast"
    two_axes, three_axes = "key padding", "samples"
    empty, align, together, clean = "mean", "bottom-right", "only the mask", True


class Caster(Toy):
    """Casts floats to booleans, gives NaN, lets a flag win."""

    floats, integers, empty, together = "cast", "added", "nan", "only the flag"


class Dies(Toy):
    """Ends its process at the first mask of integers."""

    def read(self, mask, seen, scores):
        if mask.dtype.kind == "i":
            os._exit(7)
        return super().read(mask, seen, scores)


class Hangs(Toy):
    """Never answers."""

    def attention(self, query, key, value, **options):
        time.sleep(3600)
