"""One step of cached decoding: a token a sample, against a context that was projected before.

Every call takes the same step again: the cache is put back to the context's length after it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from .inputs import arrays
from .rows import Row

BATCH, CONTEXT, EMBED, HEADS = 4, 2048, 512, 8
SHORT, LONG = 1024, 4096
BACKENDS = ("numpy", "torch", "jax")


def rows() -> list[Row]:
    """Return the rows of decoding."""
    found = []
    for backend in BACKENDS:
        name = f"{backend} cached step"
        again = partial(_pair, _step, _prefix, backend)
        found.append(Row(name, "re-running the prefix", 45, again, _operations(CONTEXT)))
    by_hand = lambda: (_step("torch"), _by_hand())  # noqa: E731
    decoding = lambda: (_step("jax"), _nnx_step())  # noqa: E731
    found.append(Row("torch cached step", "the same by hand", 1 / 1.2, by_hand, _operations()))
    found.append(Row("jax cached step", "flax.nnx decode=True", 1, decoding, _operations()))
    for backend in BACKENDS:
        grown = partial(_grown, backend)
        name = f"{backend} cached step, context {LONG}"
        found.append(Row(name, f"its own at {SHORT}", SHORT / LONG, grown, _operations(LONG)))
    return found


def _pair(ours: Callable, theirs: Callable, backend: str) -> tuple[Callable, Callable]:
    return ours(backend), theirs(backend)


def _grown(backend: str) -> tuple[Callable, Callable]:
    return _step(backend, LONG), _step(backend, SHORT)


def _operations(context: int = CONTEXT) -> float:
    """Return the multiplications and additions of a step: four linear maps, and the attention."""
    return 2.0 * BATCH * EMBED * (4 * EMBED + 2 * context)


def _tokens(context: int) -> np.ndarray:
    return arrays((BATCH, context, EMBED), 1)[0]


def _step(backend: str, context: int = CONTEXT) -> Callable:
    """Return the call that decodes the last token of a context."""
    tokens = _tokens(context)
    if backend == "jax":
        return _jax_step(tokens)
    attn, before, last = _module(backend, tokens)
    cache = attn.decode(before, attn.new_cache(BATCH, context))[1]

    def step():
        nonlocal cache
        output, written = attn.decode(last, cache)
        cache = written.truncate(context - 1)
        return output

    return step


def _module(backend: str, tokens: np.ndarray):
    """Return an attention in evaluation, all tokens but the last, and the last one."""
    if backend == "numpy":
        import attn_numpy

        attn = attn_numpy.MultiHeadAttention(EMBED, HEADS, rng=np.random.default_rng(0))
        return attn.eval(), tokens[:, :-1], tokens[:, -1:]
    import torch

    import attn_torch

    inputs = torch.from_numpy(tokens)
    return attn_torch.MultiHeadAttention(EMBED, HEADS).eval(), inputs[:, :-1], inputs[:, -1:]


def _jax_step(tokens: np.ndarray) -> Callable:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import attn_jax

    graph, state = nnx.split(attn_jax.MultiHeadAttention(EMBED, HEADS, rngs=nnx.Rngs(0)))
    context, last = tokens.shape[1], jnp.asarray(tokens[:, -1:])

    @partial(jax.jit, donate_argnums=2)
    def decode(state, x, cache):
        output, cache = nnx.merge(graph, state).decode(x, cache)
        return output, cache.truncate(context - 1)

    new = nnx.merge(graph, state).new_cache(BATCH, context)
    _, cache = nnx.merge(graph, state).decode(jnp.asarray(tokens[:, :-1]), new)

    def step():
        nonlocal cache
        output, cache = decode(state, last, cache)
        return output

    return step


def _prefix(backend: str) -> Callable:
    """Return the call that runs the whole context for its last token's output."""
    tokens = _tokens(CONTEXT)
    if backend == "jax":
        import jax.numpy as jnp
        from flax import nnx

        import attn_jax

        attn = attn_jax.MultiHeadAttention(EMBED, HEADS, rngs=nnx.Rngs(0))
        mask, x = attn_jax.causal(), jnp.asarray(tokens)
        run = nnx.jit(lambda attn, x: attn(x, attn_mask=mask, need_weights=False)[0][:, -1])
        return lambda: run(attn, x)
    module = __import__(f"attn_{backend}")
    attn, before, last = _module(backend, tokens)
    join = np.concatenate if backend == "numpy" else __import__("torch").cat
    x, mask = join([before, last], 1), module.causal()
    run = lambda: attn(x, attn_mask=mask, need_weights=False)[0][:, -1]  # noqa: E731
    return run if backend == "numpy" else __import__("torch").no_grad()(run)


def _by_hand() -> Callable:
    """Return the step as one would write it in torch, with torch's kernel and its own buffer."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q_proj, k_proj, v_proj, out_proj = (torch.nn.Linear(EMBED, EMBED) for _ in range(4))
    tokens = torch.from_numpy(_tokens(CONTEXT))
    split = lambda x: x.view(BATCH, -1, HEADS, EMBED // HEADS).transpose(1, 2)  # noqa: E731

    @torch.no_grad()
    def step(x=tokens[:, -1:], at=CONTEXT - 1):
        query, key[:, :, at : at + 1] = split(q_proj(x)), split(k_proj(x))
        value[:, :, at : at + 1] = split(v_proj(x))
        seen = (key[:, :, : at + 1], value[:, :, : at + 1])
        output = scaled_dot_product_attention(query, *seen)
        return out_proj(output.transpose(1, 2).reshape(BATCH, -1, EMBED))

    with torch.no_grad():
        key, value = (split(proj(tokens)).contiguous() for proj in (k_proj, v_proj))
    return step


def _nnx_step() -> Callable:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    attn = nnx.MultiHeadAttention(HEADS, EMBED, decode=True, rngs=nnx.Rngs(0))
    attn.init_cache((BATCH, CONTEXT, EMBED))
    graph, parameters, cache = nnx.split(attn, nnx.Param, ...)
    x = jnp.asarray(_tokens(CONTEXT)[:, -1:])

    @partial(jax.jit, donate_argnums=2)
    def decode(parameters, x, cache):
        attn = nnx.merge(graph, parameters, cache)
        attn.cache_index[...] = jnp.array(CONTEXT - 1, attn.cache_index[...].dtype)
        output = attn(x)
        return output, nnx.split(attn, nnx.Param, ...)[2]

    def step():
        nonlocal cache
        output, cache = decode(parameters, x, cache)
        return output

    return step
