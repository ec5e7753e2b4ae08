"""Calls as they come every day: short, padded, tiny, and on a machine that does other work too."""

from collections.abc import Callable
from functools import partial

import numpy as np

from .inputs import LONG, allowed, arrays, lengths, operations
from .measure import busy_cores
from .rows import Row, torch_attention, torch_call, torch_fused, torch_modules

TINY = ((1, 2, 5, 8), (1, 8, 16, 64))  # B, H, T, D
KINDS = ("causal & padding", "padding")
PADDED = {  # the shape, and the floors forward, and forward and backward
    (32, 12, 128, 64): (1.0, 1.0),
    (8, 8, 128, 64): (1.0, 1.0),
    (16, 8, 256, 64): (1.3, 1.0),
    (4, 8, 64, 64): (0.8, None),
    (2, 4, 12, 32): (0.35, None),
}
MODULES = {(32, 128, 768): 12, (16, 96, 384): 6}  # (B, T, E), and the heads
NUMPY_PADDED = {(12, 8, 144, 64): 1.5, (6, 8, 48, 64): 1.0}


def rows() -> list[Row]:
    """Return every row of this file."""
    return [*_torch_rows(), *_module_rows(), *_busy_rows(), *_numpy_rows(), *_tiny_rows()]


def padded(kind: str, shape) -> np.ndarray:
    """Return bool (B, 1, T or 1, S): what padding of ragged lengths allows, causal or not."""
    batch, _, length, _ = shape
    keys = (np.arange(length) < np.array(lengths(batch, length))[:, None])[:, None, None]
    return keys & allowed("causal", length) if kind == KINDS[0] else keys


def padded_mask(module, kind: str, shape):
    """Return the same as a `Mask` of a backend."""
    padding = module.padding(lengths(shape[0], shape[2]))
    return module.causal() & padding if kind == KINDS[0] else padding


def _padded_operations(kind: str, shape, backward: bool = False) -> float:
    batch, heads, length, dim = shape
    cells = int(np.broadcast_to(padded(kind, shape), (batch, 1, length, length)).sum())
    return 4.0 * heads * cells * dim * (3 if backward else 1)


# PyTorch


def _torch_pair(kind: str, shape, backward: bool) -> tuple[Callable, Callable]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as fused

    import attn_torch

    ours = partial(attn_torch.attention, mask=padded_mask(attn_torch, kind, shape))
    theirs = partial(fused, attn_mask=torch.from_numpy(padded(kind, shape)))
    return torch_call(ours, shape, backward), torch_call(theirs, shape, backward)


def _torch_rows() -> list[Row]:
    found = []
    for shape, floors in PADDED.items():
        for backward, floor in zip((False, True), floors, strict=True):
            for kind in KINDS if floor else ():
                name = f"torch {kind} {shape}{' + backward' if backward else ''}"
                make = partial(_torch_pair, kind, shape, backward)
                cost = _padded_operations(kind, shape, backward)
                found.append(Row(name, "torch fused, dense mask", floor, make, cost))
    return found


def _module_rows() -> list[Row]:
    found = []
    for shape, heads in MODULES.items():
        batch, length, embed = shape
        split = (batch, heads, length, embed // heads)
        cost = _padded_operations(KINDS[0], split) + 8.0 * batch * length * embed**2
        for training, floor in ((False, 1.3), (True, 1.1)):
            does = "training" if training else "evaluating"
            name = f"torch module, causal & padding, {does} {shape}"
            make = partial(torch_modules, training, shape, heads, lengths(batch, length))
            cost = 3 * cost if training else cost
            found.append(Row(name, "torch.nn.MultiheadAttention", floor, make, cost))
    return found


def _busy_rows() -> list[Row]:
    found = []
    for kind in ("window", "packed"):
        pair = lambda k=kind: (torch_attention(k, LONG), torch_fused(k, LONG))  # noqa: E731
        name, cost = f"torch {kind}, other work on every core", operations(kind, LONG)
        found.append(Row(name, "torch fused, dense mask", 3, pair, cost, during=busy_cores))
    return found


# NumPy


def textbook(query, key, value, allowed=True) -> np.ndarray:
    """Return attention as one writes it by hand, the mask being ready."""
    scores = query @ key.swapaxes(-2, -1) * np.float32(query.shape[-1] ** -0.5)
    scores = np.where(allowed, scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def _numpy_pair(ours, allowed: np.ndarray, shape) -> tuple[Callable, Callable]:
    import attn_numpy

    inputs = arrays(shape)
    own = partial(attn_numpy.attention, *inputs, mask=ours(attn_numpy))
    return own, partial(textbook, *inputs, allowed)


def _numpy_rows() -> list[Row]:
    found = []
    for shape, floor in NUMPY_PADDED.items():
        ours = partial(padded_mask, kind=KINDS[0], shape=shape)
        make = partial(_numpy_pair, ours, padded(KINDS[0], shape), shape)
        cost = _padded_operations(KINDS[0], shape)
        found.append(Row(f"numpy {KINDS[0]} {shape}", "textbook by hand", floor, make, cost))
    return found


# What a call costs before it computes anything


def _torch_tiny(shape) -> tuple[Callable, Callable]:
    return torch_attention("causal", shape), torch_fused("causal", shape)


def _numpy_tiny(shape) -> tuple[Callable, Callable]:
    return _numpy_pair(lambda module: module.causal(), allowed("causal", shape[2]), shape)


def _jax_tiny(compiled: bool, shape) -> tuple[Callable, Callable]:
    import jax
    import jax.numpy as jnp

    import attn_jax

    ours = partial(attn_jax.attention, mask=attn_jax.causal())
    theirs = partial(jax.nn.dot_product_attention, is_causal=True)
    inputs = [jnp.asarray(x) for x in arrays(shape)]
    swapped = [x.swapaxes(1, 2) for x in inputs]
    ours, theirs = (jax.jit(call) if compiled else call for call in (ours, theirs))
    return partial(ours, *inputs), partial(theirs, *swapped)


def _tiny_rows() -> list[Row]:
    by = {
        "torch": ("torch fused", 20, _torch_tiny),
        "numpy": ("textbook by hand", 50, _numpy_tiny),
        "jax jitted": ("jax.nn.dot_product_attention", 30, partial(_jax_tiny, True)),
        "jax eager": ("jax.nn.dot_product_attention", 30, partial(_jax_tiny, False)),
    }
    return [
        Row(f"{name} tiny causal {shape}", against, None, partial(make, shape), at_most=limit)
        for name, (against, limit, make) in by.items()
        for shape in TINY
    ]
