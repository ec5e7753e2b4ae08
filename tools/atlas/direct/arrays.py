"""Heads side by side in the features, as the layers take them."""

import numpy as np


def joined(x):
    """Return (B, T, H * D) for (B, H, T, D)."""
    return np.concatenate([x[:, h] for h in range(x.shape[1])], -1)


def apart(x, like):
    """Return (B, H, T, D) for (B, T, H * D)."""
    return np.stack(np.split(np.asarray(x), like.shape[1], -1), 1)
