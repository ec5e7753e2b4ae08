"""A sink in each row, and keys that come in parts: against one's own hand, and one call."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from .inputs import LONG, WIDE, allowed, arrays, operations
from .rows import Row, jax_attention, jax_call, torch_attention, torch_call

PARTS = (2, 4)


def rows() -> list[Row]:
    """Return every row of this file."""
    return [*sink_rows(), *part_rows()]


def _named(name: str, shape, backward: bool) -> str:
    return f"{name} {shape}{' + backward' if backward else ''}"


# A sink in each row


def sink_rows() -> list[Row]:
    """Return the rows of sinks, against what one writes by hand."""
    column, key = "textbook by hand, one more column", "torch fused, one more key"
    asked = [("numpy", column, numpy_sinks, False)]
    for backward in (False, True):
        asked += [("torch", column, torch_sinks, backward), ("torch", key, torch_sinks, backward)]
        asked += [("jax", column, jax_sinks, backward)]
    found = []
    for backend, against, pair, backward in asked:
        for shape in (LONG, WIDE):
            make = partial(pair, shape, *([] if backend == "numpy" else [backward]))
            make = partial(make, by_hand=one_more_key) if against == key else make
            name = _named(f"{backend} sinks, causal", shape, backward)
            cost = operations("causal", shape, backward)
            found.append(Row(name, against, None, make, cost))
    return found


def sinks_of(shape) -> np.ndarray:
    return np.linspace(-1, 2, shape[1], dtype=np.float32)


def numpy_sinks(shape) -> tuple[Callable, Callable]:
    import attn_numpy

    inputs, sinks, seen = arrays(shape), sinks_of(shape), allowed("causal", shape[2])

    def by_hand():
        query, key, value = inputs
        scores = query @ key.swapaxes(2, 3) * np.float32(shape[3] ** -0.5)
        scores = np.where(seen, scores, np.float32(-np.inf))
        column = np.broadcast_to(sinks[:, None, None], (*shape[:3], 1))
        scores = np.concatenate([scores, column], -1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return weights[..., :-1] @ value

    own = partial(attn_numpy.attention, *inputs, mask=attn_numpy.causal(), sinks=sinks)
    return own, by_hand


def torch_sinks(shape, backward: bool, by_hand: Callable | None = None) -> tuple:
    """Return attention with sinks, and the same by hand, of query, key, value and sinks."""
    import torch

    import attn_torch

    inputs = [torch.from_numpy(x).requires_grad_(backward) for x in arrays(shape)]
    inputs.append(torch.from_numpy(sinks_of(shape)).requires_grad_(backward))
    grad = torch.from_numpy(arrays(shape, 1, seed=1)[0])

    def own(query, key, value, sinks):
        return attn_torch.attention(query, key, value, mask=attn_torch.causal(), sinks=sinks)

    def call(attend: Callable) -> Callable:
        if not backward:
            return torch.no_grad()(lambda: attend(*inputs))
        return lambda: torch.autograd.grad(attend(*inputs), inputs, grad)

    return call(own), call((by_hand or one_more_column)(shape))


def one_more_column(shape) -> Callable:
    """Return the formula as one writes it in torch: the sink is a column, dropped again."""
    import torch

    hidden = torch.from_numpy(~allowed("causal", shape[2]))

    def attend(query, key, value, sinks):
        scores = (query @ key.mT * shape[3] ** -0.5).masked_fill(hidden, -torch.inf)
        column = sinks[:, None, None].expand(*shape[:3], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ value

    return attend


def one_more_key(shape) -> Callable:
    """Return torch's kernel with the sink as a key: one more feature makes it the score."""
    import torch
    from torch.nn.functional import pad
    from torch.nn.functional import scaled_dot_product_attention as fused

    B, H, T, D = shape
    seen = torch.from_numpy(np.pad(allowed("causal", T), ((0, 0), (1, 0)), constant_values=True))
    scale = D**-0.5

    def attend(query, key, value, sinks):
        query = pad(query, (0, 1), value=1.0)
        sink = pad((sinks / scale)[:, None], (D, 0)).expand(B, H, D + 1)[:, :, None]
        key = torch.cat([sink, pad(key, (0, 1))], 2)
        value = pad(value, (0, 1, 1, 0))
        return fused(query, key, value, attn_mask=seen, scale=scale)[..., :D]

    return attend


def jax_sinks(shape, backward: bool) -> tuple[Callable, Callable]:
    import jax
    import jax.numpy as jnp

    import attn_jax

    *inputs, grad = map(jnp.asarray, arrays(shape, 4))
    inputs.append(jnp.asarray(sinks_of(shape)))
    seen = jnp.asarray(allowed("causal", shape[2]))

    def own(query, key, value, sinks):
        return attn_jax.attention(query, key, value, mask=attn_jax.causal(), sinks=sinks)

    def by_hand(query, key, value, sinks):
        scores = jnp.where(seen, query @ key.swapaxes(2, 3) * shape[3] ** -0.5, -jnp.inf)
        column = jnp.broadcast_to(sinks[:, None, None], (*shape[:3], 1))
        weights = jax.nn.softmax(jnp.concatenate([scores, column], -1))
        return weights[..., :-1] @ value

    def call(attend: Callable) -> Callable:
        back = lambda grad, *inputs: jax.vjp(attend, *inputs)[1](grad)  # noqa: E731
        run = jax.jit(back if backward else lambda _, *inputs: attend(*inputs))
        return lambda: run(grad, *inputs)

    return call(own), call(by_hand)


# Keys in parts


def part_rows() -> list[Row]:
    """Return the rows of attention to parts of the keys, merged, against one call."""
    found = []
    for backend in ("numpy", "torch", "jax"):
        for backward in (False, True)[: 1 if backend == "numpy" else 2]:
            for count in PARTS:
                name = _named(f"{backend} causal in {count} parts", LONG, backward)
                make = partial(PAIRS[backend], LONG, count, backward)
                cost = operations("causal", LONG, backward)
                found.append(Row(name, "its own in one call", None, make, cost))
    return found


def in_parts(module, count: int) -> Callable:
    """Return attention to that many parts of the keys, merged; shapes are (B, H, T, D)."""
    mask = module.causal()

    def attend(query, key, value):
        length = key.shape[2]
        cuts = [length * i // count for i in range(count + 1)]
        parts = []
        for first, last in pairwise(cuts):
            own = mask.part(np.arange(length), np.arange(first, last))
            piece = key[:, :, first:last], value[:, :, first:last]
            parts.append(module.attention_part(query, *piece, mask=own))
        return module.finish(module.merge(*parts))

    return attend


def numpy_parts(shape, count: int, backward: bool) -> tuple[Callable, Callable]:
    import attn_numpy

    inputs = arrays(shape)
    whole = partial(attn_numpy.attention, mask=attn_numpy.causal())
    return partial(in_parts(attn_numpy, count), *inputs), partial(whole, *inputs)


def torch_parts(shape, count: int, backward: bool) -> tuple[Callable, Callable]:
    import attn_torch

    whole = torch_attention("causal", shape, backward)
    return torch_call(in_parts(attn_torch, count), shape, backward), whole


def jax_parts(shape, count: int, backward: bool) -> tuple[Callable, Callable]:
    import attn_jax

    whole = jax_attention("causal", shape, backward)
    return jax_call(in_parts(attn_jax, count), shape, backward), whole


PAIRS = {"numpy": numpy_parts, "torch": torch_parts, "jax": jax_parts}
