"""Attention asked of a module: heads as its features, and projections that are the identity.

What cannot be said like this is not offered: heads that share keys, and NaN or inf in some heads
of a token only, which a projection spreads to all of them (0 * NaN). For the same reason a NaN
that comes out of one head comes out of all heads of its token.
"""

import ml_dtypes
import numpy as np

from ..protocol import NotOffered
from .widths import Fitted


class Asked:
    """One call of attention as a call of a module: config, parameters, query, key, value."""

    def __init__(self, query: np.ndarray, key: np.ndarray, value: np.ndarray):
        if query.shape[1] != key.shape[1]:
            raise NotOffered("a module's heads do not share keys through projections of identity")
        for x in (query, key, value):
            dirty = ~np.isfinite(x).all(-1)
            if (dirty.any(1) != dirty.all(1)).any():
                raise NotOffered("a projection spreads NaN or inf of one head to all heads")
        self.fitted, self.heads = Fitted(query, key, value), query.shape[1]
        self.project(self.fitted.inputs["query"].shape[3], query.dtype)

    def project(self, width: int, dtype, **matrices: np.ndarray) -> None:
        """Set config and parameters for heads of a width; what is not given is the identity."""
        E = self.heads * width
        self.config, self.parameters = {"embed_dim": E, "num_heads": self.heads}, {}
        for name in ("q", "k", "v", "out"):
            matrix = np.kron(np.eye(self.heads), matrices.get(name, np.eye(width)))
            self.parameters[f"{name}_proj.weight"] = matrix.astype(dtype)
            self.parameters[f"{name}_proj.bias"] = np.zeros(E, dtype)

    @property
    def call(self) -> tuple[dict, dict, np.ndarray, np.ndarray, np.ndarray]:
        query, key, value = map(self.join, self.fitted.inputs.values())
        return self.config, self.parameters, query, key, value

    def join(self, x: np.ndarray) -> np.ndarray:
        """Return (B, T, H * D) for (B, H, T, D)."""
        B, H, T, D = x.shape
        return x.swapaxes(1, 2).reshape(B, T, H * D)

    def split(self, x: np.ndarray) -> np.ndarray:
        B, T, E = x.shape
        return x.reshape(B, T, self.heads, E // self.heads).swapaxes(1, 2)

    def output(self, output: np.ndarray) -> np.ndarray:
        return self.fitted.output(self.split(output))

    def grad(self, grad: np.ndarray) -> np.ndarray:
        return self.join(self.fitted.fill(grad))

    def gradients(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the gradients by query, key and value, the parameters' left out."""
        return self.fitted.gradients({name: self.split(found[name]) for name in self.fitted.inputs})


class Packed(Asked):
    """The same as self-attention: in each head of a token its query, key and value side by side.

    The head is wider than a key, and a factor on the query makes up for it, to the bit, as in
    `widths`; each projection takes its part. Keys and values may hold NaN and inf though every
    token is finite: they arise in the projection, where four times the largest number is inf.
    """

    def __init__(self, query: np.ndarray, key: np.ndarray, value: np.ndarray):
        super().__init__(query, key, value)
        slots = [("q", query, 2), ("k", key, 1), ("v", value, 1)]
        if not (np.isfinite(key).all() and np.isfinite(value).all()):
            split = [
                (name, half, 4) for name, x in (("k", key), ("v", value)) for half in halves(x)
            ]
            slots = [("q", query, 4), *split]
        width, at = slots[0][2] ** 2 * query.shape[3], 0
        sums = {name: np.zeros((width, width)) for name in "qkv"}
        for name, x, factor in slots:
            sums[name][range(x.shape[3]), range(at, at + x.shape[3])] = factor
            at += x.shape[3]
        self.project(width, query.dtype, **sums)
        x = np.concatenate([x for _, x, _ in slots], -1)
        self.x = self.join(np.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - at))))

    @staticmethod
    def possible(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> bool:
        fits = query.shape == key.shape and value.shape[3] <= 2 * query.shape[3]
        return fits and bool(np.isfinite(query).all())

    @property
    def call(self):
        return self.config, self.parameters, self.x, self.x, self.x


def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two finite arrays; four times their sum is x, inf by overflow and NaN by inf - inf."""
    most = float(ml_dtypes.finfo(x.dtype).max)
    one = np.nan_to_num(x * x.dtype.type(0.25), nan=most, posinf=most, neginf=-most)
    return one, np.where(np.isnan(x), -most, 0).astype(x.dtype)
