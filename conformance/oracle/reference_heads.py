"""The oracle for what happens to heads before attention: rotary embeddings and QK-norm.

Plain loops in float64. A process is plain data: {"class": "rotary", ...} with the settings of
`rotary`, or {"class": "QKNorm", "eps": ..., "then": another process}. `places` says where tokens
stand, (B, T) or (1, T), and `role`, "q" or "k", whose weights are taken.
"""

import math

import numpy as np


def process(p: dict, spec: dict | None, role: str, x: np.ndarray, places) -> np.ndarray:
    """Return heads (B, H, T, D) as they attend."""
    if spec is None:
        return x
    if spec["class"] == "rotary":
        return rotate(spec, x, places)
    weight, y = p[f"process_heads.{role}_norm.weight"].tolist(), np.zeros(x.shape)
    for index in np.ndindex(x.shape[:3]):
        row = x[index].tolist()
        root = math.sqrt(math.fsum(a * a for a in row) / len(row) + spec["eps"])
        y[index] = [a / root * w for a, w in zip(row, weight, strict=True)]
    return process(p, spec.get("then"), role, y, places)


def process_gradients(
    p: dict, spec: dict | None, role: str, x: np.ndarray, places, grad: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the gradients of sum(grad * process(x)) by x and by the role's weights."""
    if spec is None:
        return grad, {}
    if spec["class"] == "rotary":
        return rotate(spec, grad, -np.asarray(places)), {}  # the transpose turns back
    name = f"process_heads.{role}_norm.weight"
    weight, D = p[name], x.shape[3]
    normed = process({name: np.ones(D)}, spec | {"then": None}, role, x, places)
    inner = normed * weight
    grad, found = process_gradients(p, spec.get("then"), role, inner, places, grad)
    found[name] = np.array([math.fsum((grad * normed)[..., d].ravel()) for d in range(D)])
    back = np.zeros(x.shape)
    for index in np.ndindex(x.shape[:3]):
        row, own, sent = x[index], normed[index], grad[index] * weight
        root = math.sqrt(math.fsum((row * row).tolist()) / D + spec["eps"])
        back[index] = (sent - own * math.fsum((sent * own).tolist()) / D) / root
    return back, found


def pairs(spec: dict, head_dim: int) -> list[tuple[int, int, float]]:
    """Return which two features are turned together, and by how much a position."""
    own = spec.get("frequencies")
    dim = 2 * len(own) if own else spec.get("dim") or head_dim
    found = []
    for i in range(dim // 2):
        places = (2 * i, 2 * i + 1) if spec.get("interleaved") else (i, i + dim // 2)
        step = own[i] if own else spec.get("base", 10000.0) ** (-2 * i / dim)
        found.append((*places, step / spec.get("scale", 1.0)))
    return found


def rotate(spec: dict, x: np.ndarray, places) -> np.ndarray:
    """Turn each pair of features of (B, H, T, D) by its token's place."""
    y = x.copy()
    places = np.broadcast_to(places, (x.shape[0], x.shape[2]))
    for b, h, t in np.ndindex(x.shape[:3]):
        for i, j, step in pairs(spec, x.shape[3]):
            number = complex(x[b, h, t, i], x[b, h, t, j])
            angle = float(places[b, t]) * step
            turned = number * complex(math.cos(angle), math.sin(angle))
            y[b, h, t, i], y[b, h, t, j] = turned.real, turned.imag
    return y
