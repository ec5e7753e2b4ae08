"""A step of decoding in a window: a ring of its size, against what else gives the same.

The ring goes on with the same token, so that its oldest slot is written again in every step; the
plain cache is put back to the context's length after it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from .rows import Row
from .steps import BATCH, EMBED, HEADS, jax_module, tokens

CONTEXT, RING = 8192, 1024


def rows() -> list[Row]:
    """Return the rows of this file."""
    cost = 2.0 * BATCH * EMBED * (4 * EMBED + 2 * RING)
    found = []
    for backend in ("numpy", "torch", "jax"):
        name = f"{backend} window step, a ring of {RING}"
        others = {f"a cache of {CONTEXT} under the mask": plain, "re-running the prefix": prefix}
        for against, other in others.items():
            make = partial(_pair, other, backend)
            found.append(Row(name, against, None, make, cost))
    return found


def _pair(other: Callable, backend: str) -> tuple[Callable, Callable]:
    return (
        Window(backend, BATCH, CONTEXT, RING).ring(),
        other(Window(backend, BATCH, CONTEXT, RING)),
    )


class Window:
    """One attention, the tokens of a context, and the window that each may see."""

    def __init__(self, backend: str, batch: int, context: int, slots: int):
        self.backend, self.batch, self.context = backend, batch, context
        self.before = slots - 1
        self.module = __import__(f"attn_{backend}")
        x = tokens(batch, context, EMBED)
        if backend == "numpy":
            self.attn = self.module.MultiHeadAttention(EMBED, HEADS, rng=np.random.default_rng(0))
        elif backend == "torch":
            import torch

            torch.manual_seed(0)
            self.attn = self.module.MultiHeadAttention(EMBED, HEADS)
            x = torch.from_numpy(x)
        else:
            import jax.numpy as jnp

            self.attn, x = jax_module(EMBED, HEADS), jnp.asarray(x)
        self.attn.eval()
        self.x = x
        self.mask = self.module.sliding_window(self.before)

    def ring(self) -> Callable:
        """Return the step in a ring."""
        cache = self.attn.new_cache(self.batch, window=self.before)
        return self._step(self.attn.decode(self.x[:, :-1], cache)[1], {}, lambda cache: cache)

    def _step(self, cache, options: dict, back: Callable) -> Callable:
        """Return the step of the last token; `back` is what becomes of the cache after it."""
        last = self.x[:, -1:]

        def decode(attn, last, cache):
            output, cache = attn.decode(last, cache, **options)
            return output, back(cache)

        run = self._compiled(decode, donate_argnums=2)

        def step():
            nonlocal cache
            output, cache = run(self.attn, last, cache)
            return output

        return step

    def _compiled(self, function: Callable, **options) -> Callable:
        """Return a function of the attention as its framework's users run it."""
        if self.backend == "numpy":
            return function
        if self.backend == "torch":
            import torch

            return torch.no_grad()(function)
        import jax
        from flax import nnx

        graph, state = nnx.split(self.attn)
        run = jax.jit(lambda state, *own: function(nnx.merge(graph, state), *own), **options)
        return lambda _, *own: run(state, *own)


def plain(window: Window) -> Callable:
    """Return the step in a cache of the whole context, under the window's mask."""
    cache = window.attn.new_cache(window.batch, window.context)
    before = window.x[:, :-1]
    _, cache = window.attn.decode(before, cache, attn_mask=window.mask)
    back = lambda cache: cache.truncate(window.context - 1)  # noqa: E731
    return window._step(cache, {"attn_mask": window.mask}, back)


def prefix(window: Window) -> Callable:
    """Return the call that runs the whole context for its last token's output."""

    def whole(attn, x):
        return attn(x, attn_mask=window.mask, need_weights=False)[0][:, -1:]

    run = window._compiled(whole)
    return lambda: run(window.attn, window.x)
