"""Greedy decoding: one token at a time, the likeliest, until each sample has ended."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Integer

from . import checks
from .arrays import signed_copy
from .devices import with_automatic_axes
from .seq2seq import Seq2SeqTransformer

Step = Callable[[Array, Any], tuple[Array, Any]]  # from new tokens and a memory to both


def greedy_decode(
    model: Seq2SeqTransformer,
    src: Integer[Array, "B S"],
    prompt: Integer[Array, "B P"],
    *,
    eos_idx: int,
    max_new_tokens: int,
    capacity: int | None = None,
    cached: bool = True,
) -> Integer[Array, "B N"]:
    """Return the tokens that follow each prompt, `eos_idx` included and padding behind it.

    A prompt holds at least one token (such as `<bos>`) and may be padded on either side. A sample
    that has ended takes no more slots. `cached=False` runs the whole prefix again for each token:
    the same tokens, slower. `capacity`, where given, is checked before anything runs. The model is
    run in evaluation mode, under jax.jit or not: it is one compiled loop either way. Raises
    ValueError for an empty prompt or too small a capacity.

    >>> model = Seq2SeqTransformer(11, 13, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, dim_feedforward=32, rngs=nnx.Rngs(0))
    >>> src, prompt = jnp.array([[5, 3, 4], [7, 0, 0]]), jnp.array([[1], [1]])
    >>> greedy_decode(model, src, prompt, eos_idx=2, max_new_tokens=4).shape
    (2, 4)
    """
    checks.check_greedy(model, src, prompt, eos_idx, max_new_tokens, capacity)
    max_new_tokens = int(max_new_tokens)
    graph, state = nnx.split(model)
    prompt = jnp.asarray(signed_copy(prompt))
    prompt = prompt.astype(jnp.promote_types(prompt.dtype, jnp.int32))  # so that every token fits
    decode = partial(_decode, graph=graph, settings=(max_new_tokens, capacity, cached))
    return with_automatic_axes(decode, state, jnp.asarray(src), prompt, jnp.asarray(eos_idx))


@partial(jax.jit, static_argnames=("graph", "settings"))
def _decode(
    state: nnx.State,
    src: Array,
    prompt: Array,
    eos_idx: Array,
    graph: nnx.GraphDef,
    settings: tuple[int, int | None, bool],
) -> Array:
    """Take the prompt, then one token after the other, in one loop."""
    model, (max_new_tokens, capacity, cached) = nnx.merge(graph, state), settings
    model.eval()  # this copy: nothing can be drawn inside the loop
    start = _cached_step if cached else _uncached_step
    step, memory = start(model, src, prompt, max_new_tokens, capacity)
    chosen = jnp.full((len(src), max_new_tokens), model.padding_idx, prompt.dtype)

    def take(at: tuple) -> tuple:
        i, new, ended, chosen, memory = at
        logits, memory = step(new, memory)
        likeliest = _last(logits, new, model.padding_idx).argmax(-1).astype(chosen.dtype)
        new = jnp.where(ended, model.padding_idx, likeliest)[:, None]
        chosen = lax.dynamic_update_slice(chosen, new, (0, i))
        return i + 1, new, ended | (new[:, 0] == eos_idx), chosen, memory

    def more(at: tuple) -> Array:
        return (at[0] < max_new_tokens) & ~at[2].all()

    at = take((0, prompt, jnp.zeros(len(src), bool), chosen, memory))
    return lax.while_loop(more, take, at)[3]


def _cached_step(
    model: Seq2SeqTransformer,
    src: Array,
    prompt: Array,
    max_new_tokens: int,
    capacity: int | None,
) -> tuple[Step, Any]:
    """Return a function from new tokens to their logits that remembers those before."""
    cache = model.start(src, capacity or prompt.shape[1] + max_new_tokens - 1)

    def step(new: Array, layers: tuple) -> tuple[Array, tuple]:
        logits, written = model.decode(new, cache.with_layers(layers))
        return logits, written.layers

    return step, cache.layers


def _uncached_step(
    model: Seq2SeqTransformer,
    src: Array,
    prompt: Array,
    max_new_tokens: int,
    capacity: int | None,
) -> tuple[Step, Any]:
    """Return the same, but everything before is computed again."""
    tokens = jnp.full((len(src), prompt.shape[1] + max_new_tokens - 1), model.padding_idx)

    def step(new: Array, memory: tuple) -> tuple[Array, tuple]:
        tokens, count = memory
        tokens = lax.dynamic_update_slice(tokens, new.astype(tokens.dtype), (0, count))
        logits = lax.dynamic_slice_in_dim(model(src, tokens), count, new.shape[1], 1)
        return logits, (tokens, count + new.shape[1])

    return step, (tokens, 0)


def _last(logits: Array, tokens: Array, padding_idx: int) -> Array:
    """Return the logits behind the last token of each sample, without the choice of padding."""
    columns = jnp.arange(tokens.shape[1])
    last = jnp.where(tokens != padding_idx, columns, 0).max(1)
    logits = jnp.take_along_axis(logits, last[:, None, None], 1)[:, 0]
    return jnp.where(jnp.arange(logits.shape[1]) == padding_idx, -jnp.inf, logits)
