import numpy as np


class Subject:
    name = "mine"
    mask_polarity = "attend"  # True: this key is allowed
    capabilities = {"attention"}

    def attention(self, query, key, value, *, mask=None):
        scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[3], dtype=query.dtype)
        allowed = np.ones(scores.shape, bool) if mask is None else mask
        scores = np.where(allowed, scores, -1e9)
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
        weights = weights / weights.sum(-1, keepdims=True)
        value = np.where(weights[..., None] == 0, 0, value[:, :, None])
        return (weights[..., None] * value).sum(3)
