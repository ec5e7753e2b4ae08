"""The textbook formulas of the layers in the precision under test: what makes their budget.

The wiring is the oracle's (`reference_layers.py`), the arithmetic that of `naive.py`: 16-bit
inputs are summed in float32 and every sublayer's answer is rounded once. `folded=True` is the same
formula associated the other way round, as flax and torch do it in places: the variance as the mean
of squares less the square of the mean, the norm's weight folded into its root, gelu by erfc.
"""

import math

import numpy as np

from . import naive


class Naive:
    """Vectorised, nothing done for accuracy."""

    def __init__(self, folded: bool = False):
        self.folded = folded

    def cast(self, x):
        return np.asarray(x)

    def linear(self, x, p: dict, name: str):
        return naive.linear(x, p, name)

    def norm(self, x, p: dict, name: str, eps: float):
        upcast, weight = naive.upcast(x), naive.upcast(p[f"{name}.weight"])
        mean = upcast.mean(-1, keepdims=True)
        centred = upcast - mean
        if self.folded:
            variance = (upcast * upcast).mean(-1, keepdims=True) - mean * mean
            y = centred * (weight * (1 / np.sqrt(variance + upcast.dtype.type(eps))))
        else:
            variance = (centred * centred).mean(-1, keepdims=True)
            y = centred / np.sqrt(variance + upcast.dtype.type(eps)) * weight
        bias = p.get(f"{name}.bias")
        return (y if bias is None else y + naive.upcast(bias)).astype(x.dtype)

    def activate(self, x, name: str):
        if name == "relu":
            return np.maximum(x, 0)
        upcast = naive.upcast(x)
        scaled = upcast * upcast.dtype.type(math.sqrt(0.5))
        if self.folded:
            share = _erfc(-scaled).astype(upcast.dtype) / 2
        else:
            share = (1 + _erf(scaled).astype(upcast.dtype)) / 2
        return (upcast * share).astype(x.dtype)

    def attend(self, p: dict, heads: int, query, key, **masks) -> dict:
        return naive.multihead(p, heads, heads, query, key, key, folded=self.folded, **masks)

    def embed(self, rows, positions):
        if positions is None:
            return rows
        scale = rows.dtype.type(math.sqrt(rows.shape[-1]))
        return rows * scale + positions.astype(rows.dtype)


_erf, _erfc = np.frompyfunc(math.erf, 1, 1), np.frompyfunc(math.erfc, 1, 1)
