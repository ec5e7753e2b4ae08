"""What is measured against what: one row a claim, with the floor that it should reach."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from .inputs import LONG, WIDE, allowed, arrays, mask, operations


@dataclass(frozen=True)
class Row:
    """`make` returns our call and theirs.

    `floor` is how many times faster ours should be at least, None where nothing is promised. A
    row with `at_most` is about what a call costs beside its work: so many microseconds more than
    theirs at most. `during` is what goes on while the row is measured.
    """

    name: str
    against: str
    floor: float | None
    make: Callable[[], tuple[Callable, Callable]]
    operations: float = 0.0
    at_most: float | None = None
    during: Callable[[], AbstractContextManager] = nullcontext


def rows() -> list[Row]:
    """Return every row, grouped by backend."""
    return [*numpy_rows(), *torch_rows(), *jax_rows()]


# NumPy


def numpy_attention(kind: str, function: str = "attention") -> Callable:
    import attn_numpy

    inputs, own = arrays(LONG), mask(attn_numpy, kind, LONG[2])
    call = partial(getattr(attn_numpy, function), *inputs, mask=own)
    return call if function == "attention" else lambda: call().output


def numpy_rows() -> list[Row]:
    cost = operations("causal", LONG)
    pair = lambda kind: (numpy_attention(kind), numpy_attention("causal"))  # noqa: E731
    textbook = lambda: (numpy_attention("causal"), numpy_attention("causal", "attention_steps"))  # noqa: E731
    fused = lambda: (numpy_attention("causal"), torch_fused("causal", LONG))  # noqa: E731
    return [
        Row("numpy causal", "textbook NumPy", 8, textbook, cost),
        Row("numpy causal", "torch fused", 1 / 1.5, fused, cost),
        Row(
            "numpy window", "its own causal", 3, partial(pair, "window"), operations("window", LONG)
        ),
        Row(
            "numpy packed", "its own causal", 3, partial(pair, "packed"), operations("packed", LONG)
        ),
    ]


# PyTorch


def torch_inputs(shape, backward: bool):
    import torch

    return [torch.from_numpy(x).requires_grad_(backward) for x in arrays(shape)]


def torch_call(attend: Callable, shape, backward: bool) -> Callable:
    """Return the call, forward or forward and backward."""
    import torch

    inputs = torch_inputs(shape, backward)
    if not backward:
        return torch.no_grad()(lambda: attend(*inputs))
    grad = torch.from_numpy(arrays(shape, 1, seed=1)[0])
    return lambda: torch.autograd.grad(attend(*inputs), inputs, grad)


def torch_fused(kind: str, shape, backward: bool = False) -> Callable:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as fused

    options = {"is_causal": True} if kind == "causal" else {}
    if kind not in ("causal", "none"):
        options = {"attn_mask": torch.from_numpy(allowed(kind, shape[2]))}
    return torch_call(partial(fused, **options), shape, backward)


def torch_attention(kind: str, shape, backward: bool = False) -> Callable:
    import attn_torch

    own = mask(attn_torch, kind, shape[2], shape[0])
    return torch_call(partial(attn_torch.attention, mask=own), shape, backward)


def torch_modules(training: bool, shape, heads: int, lengths) -> tuple[Callable, Callable]:
    import torch

    import attn_torch

    _, length, embed = shape
    ours = attn_torch.MultiHeadAttention(embed, heads).train(training)
    theirs = torch.nn.MultiheadAttention(embed, heads, batch_first=True).train(training)
    x = torch.from_numpy(arrays(shape, 1)[0])
    hidden = torch.from_numpy(np.arange(length) >= np.array(lengths)[:, None])
    future = torch.from_numpy(~allowed("causal", length))
    causal = attn_torch.causal()

    def own():
        return ours(x, attn_mask=causal, key_padding_mask=hidden, need_weights=False)[0]

    def other():
        masks = {"attn_mask": future, "key_padding_mask": hidden}
        return theirs(x, x, x, need_weights=False, **masks)[0]

    if not training:
        return torch.no_grad()(own), torch.no_grad()(other)
    return _training_step(ours, own), _training_step(theirs, other)


def _training_step(module, call: Callable) -> Callable:
    import torch

    return lambda: torch.autograd.grad(call().square().sum(), list(module.parameters()))


def torch_rows() -> list[Row]:
    found = []
    for kind in ("causal", "none"):
        for shape in (LONG, WIDE):
            for backward in (False, True):
                pair = lambda k=kind, s=shape, b=backward: (  # noqa: E731
                    torch_attention(k, s, b),
                    torch_fused(k, s, b),
                )
                name = f"torch {kind} {shape}{' + backward' if backward else ''}"
                found.append(
                    Row(name, "torch fused", 0.95, pair, operations(kind, shape, backward))
                )
    for kind, floor in (("window", 5), ("packed", 4), ("half", 1.5)):
        pair = lambda k=kind: (torch_attention(k, LONG), torch_fused(k, LONG))  # noqa: E731
        found.append(
            Row(f"torch {kind}", "torch fused, dense mask", floor, pair, operations(kind, LONG))
        )
    cost = operations("causal", WIDE) + 4 * 2.0 * 8 * 512 * 512 * 512
    for training, floor in ((False, 1.5), (True, 1.1)):
        name = f"torch module, causal & padding, {'training' if training else 'evaluating'}"
        lengths = np.linspace(512, 256, 8).astype(int)
        make = partial(torch_modules, training, (8, 512, 512), 8, lengths)
        found.append(
            Row(name, "torch.nn.MultiheadAttention", floor, make, 3 * cost if training else cost)
        )
    return found


# JAX


def jax_call(attend: Callable, shape, backward: bool, transposed: bool = False) -> Callable:
    """Return the jitted call, forward or forward and backward, on arrays in its own layout."""
    import jax
    import jax.numpy as jnp

    turn = (lambda x: x.swapaxes(1, 2)) if transposed else (lambda x: x)
    query, key, value, grad = (jnp.asarray(turn(x)) for x in arrays(shape, 4))
    if not backward:
        call = jax.jit(attend)
        return lambda: call(query, key, value)

    @jax.jit
    def both(query, key, value, grad):
        return jax.vjp(attend, query, key, value)[1](grad)

    return lambda: both(query, key, value, grad)


def jax_attention(kind: str, shape, backward: bool = False) -> Callable:
    import attn_jax

    own = mask(attn_jax, kind, shape[2], shape[0])
    return jax_call(partial(attn_jax.attention, mask=own), shape, backward)


def jax_peer(shape, backward: bool = False) -> Callable:
    import jax

    attend = partial(jax.nn.dot_product_attention, is_causal=True)
    return jax_call(attend, shape, backward, transposed=True)


def jax_modules() -> tuple[Callable, Callable]:
    import jax.numpy as jnp
    from flax import nnx

    import attn_jax

    ours = attn_jax.MultiHeadAttention(512, 8, rngs=nnx.Rngs(0))
    theirs = nnx.MultiHeadAttention(8, 512, decode=False, rngs=nnx.Rngs(0))
    x = jnp.asarray(arrays((8, 512, 512), 1)[0])
    own = nnx.jit(lambda attn, x: attn(x, attn_mask=attn_jax.causal(), need_weights=False)[0])
    other = nnx.jit(lambda attn, x: attn(x, is_causal=True))
    return lambda: own(ours, x), lambda: other(theirs, x)


def jax_rows() -> list[Row]:
    found = []
    for backward in (False, True):
        for shape in (LONG, WIDE):
            pair = lambda s=shape, b=backward: (jax_attention("causal", s, b), jax_peer(s, b))  # noqa: E731
            name = f"jax causal {shape}{' + backward' if backward else ''}"
            cost = operations("causal", shape, backward)
            found.append(Row(name, "jax.nn.dot_product_attention", None, pair, cost))
    for backward, floor in ((False, 1 / 1.15), (True, 1 / 1.25)):
        pair = lambda b=backward: (jax_attention("causal", LONG, b), torch_fused("causal", LONG, b))  # noqa: E731
        name = f"jax causal {LONG}{' + backward' if backward else ''}"
        found.append(Row(name, "torch fused", floor, pair, operations("causal", LONG, backward)))
    cost = operations("causal", WIDE) + 4 * 2.0 * 8 * 512 * 512 * 512
    found.append(Row("jax module, causal", "flax.nnx.MultiHeadAttention", 1.5, jax_modules, cost))
    for kind in ("window", "packed"):
        pair = lambda k=kind: (jax_attention(k, LONG), jax_attention("causal", LONG))  # noqa: E731
        found.append(Row(f"jax {kind}", "its own causal", 3, pair, operations(kind, LONG)))
    return found
