"""The textbook formulas of rotary embeddings and QK-norm in the precision under test.

16-bit heads are turned and normed in float32 and rounded once each. `folded=True` is the same
formula associated the other way round: the position is divided last, the root taken of the inverse.
"""

import numpy as np

from . import naive
from .reference_heads import pairs


def process(p: dict, spec: dict | None, role: str, x, places, folded: bool = False):
    """Return heads (B, H, T, D) as they attend."""
    if spec is None:
        return x
    if spec["class"] == "rotary":
        return rotate(spec, x, places, folded)
    weight = naive.upcast(p[f"process_heads.{role}_norm.weight"])
    y = (_normed(naive.upcast(x), spec["eps"], folded)[0] * weight).astype(x.dtype)
    return process(p, spec.get("then"), role, y, places, folded)


def process_gradients(p: dict, spec: dict | None, role: str, x, places, grad, folded=False):
    """Return the gradients of sum(grad * process(x)) by x and by the role's weights."""
    if spec is None:
        return grad, {}
    if spec["class"] == "rotary":
        return rotate(spec, grad, -np.asarray(places), folded), {}
    name = f"process_heads.{role}_norm.weight"
    weight = naive.upcast(p[name])
    normed, root = _normed(naive.upcast(x), spec["eps"], folded)
    inner = (normed * weight).astype(x.dtype)
    grad, found = process_gradients(p, spec.get("then"), role, inner, places, grad, folded)
    found[name] = (naive.upcast(grad) * normed).sum((0, 1, 2)).astype(x.dtype)
    sent = naive.upcast(grad) * weight
    mean = (sent * normed).mean(-1, keepdims=True)
    return ((sent - normed * mean) / root).astype(x.dtype), found


def _normed(x, eps: float, folded: bool):
    root = np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    return x * (1 / root) if folded else x / root, root


def rotate(spec: dict, x, places, folded: bool = False):
    """Turn each pair of features of (B, H, T, D) by its token's place."""
    wide = naive.upcast(x)
    y, width = wide.copy(), wide.dtype.type
    scale = width(spec.get("scale", 1.0))
    for i, j, step in pairs(spec | {"scale": 1.0}, x.shape[3]):
        place = np.asarray(places).astype(width)[:, None]
        angle = place * (width(step) / scale) if folded else place / scale * width(step)
        cos, sin = np.cos(angle), np.sin(angle)
        y[..., i] = wide[..., i] * cos - wide[..., j] * sin
        y[..., j] = wide[..., j] * cos + wide[..., i] * sin
    return y.astype(x.dtype)
