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
PREFIX_FLOORS = {"numpy": 60, "torch": 45, "jax": 45}


def rows() -> list[Row]:
    """Return the rows of decoding."""
    found = []
    for backend, floor in PREFIX_FLOORS.items():
        name = f"{backend} cached step"
        again = partial(_pair, _step, _prefix, backend)
        found.append(Row(name, "re-running the prefix", floor, again, _operations(CONTEXT)))
    by_hand = lambda: (_step("torch"), _by_hand())  # noqa: E731
    decoding = lambda: (_step("jax"), _nnx_step())  # noqa: E731
    found.append(Row("torch cached step", "the same by hand", 1 / 1.2, by_hand, _operations()))
    found.append(Row("jax cached step", "flax.nnx decode=True", 1, decoding, _operations()))
    for backend, make in (("torch", _half_torch), ("jax", _half_jax)):
        name = f"{backend} cached step, bfloat16"
        found.append(Row(name, "the same by hand", 0.9, make, _operations()))
    for backend in PREFIX_FLOORS:
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


def tokens(batch: int, context: int, embed: int) -> np.ndarray:
    """Return normal float32 tokens (B, T, E)."""
    return arrays((batch, context, embed), 1)[0]


def _tokens(context: int) -> np.ndarray:
    return tokens(BATCH, context, EMBED)


def _step(backend: str, context: int = CONTEXT) -> Callable:
    """Return the call that decodes the last token of a context."""
    if backend == "jax":
        import jax.numpy as jnp

        return jax_step(jax_module(EMBED, HEADS), jnp.asarray(_tokens(context)))
    return torch_step(*_module(backend, _tokens(context)))


def torch_step(attn, before, last) -> Callable:
    """Return the step of `last` behind the tokens `before`, in torch or NumPy."""
    batch, context = before.shape[0], before.shape[1] + 1
    cache = attn.decode(before, attn.new_cache(batch, context))[1]

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


def jax_module(embed: int, heads: int, dtype: str = "float32"):
    """Return an attention in JAX."""
    from flax import nnx

    import attn_jax

    return attn_jax.MultiHeadAttention(embed, heads, dtype=dtype, rngs=nnx.Rngs(0))


def jax_step(attn, x) -> Callable:
    """Return the step of the last token of x (B, T, E), in JAX."""
    import jax
    from flax import nnx

    graph, state = nnx.split(attn)
    batch, context = x.shape[:2]
    last = x[:, -1:]

    @partial(jax.jit, donate_argnums=2)
    def decode(state, x, cache):
        output, cache = nnx.merge(graph, state).decode(x, cache)
        return output, cache.truncate(context - 1)

    _, cache = attn.decode(x[:, :-1], attn.new_cache(batch, context))

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
    return by_hand(*_module("torch", _tokens(CONTEXT)))


def by_hand(attn, before, last) -> Callable:
    """Return the step as one would write it in torch, with torch's kernel and its own buffer."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    batch, at = before.shape[:2]
    split = lambda x: x.view(batch, -1, attn.num_heads, attn.head_dim).transpose(1, 2)  # noqa: E731

    @torch.no_grad()
    def step():
        query, key[:, :, at : at + 1] = split(attn.q_proj(last)), split(attn.k_proj(last))
        value[:, :, at : at + 1] = split(attn.v_proj(last))
        written = (key[:, :, : at + 1], value[:, :, : at + 1])
        output = scaled_dot_product_attention(query, *written)
        return attn.out_proj(output.transpose(1, 2).reshape(batch, -1, attn.embed_dim))

    with torch.no_grad():
        tokens = torch.cat([before, last], 1)
        projections = (attn.k_proj, attn.v_proj)
        key, value = (split(proj(tokens)).contiguous() for proj in projections)
    return step


def _half_torch() -> tuple[Callable, Callable]:
    import torch

    attn, *tokens = _module("torch", _tokens(CONTEXT))
    given = (attn.to(torch.bfloat16), *(x.to(torch.bfloat16) for x in tokens))
    return torch_step(*given), by_hand(*given)


def _half_jax() -> tuple[Callable, Callable]:
    import jax.numpy as jnp

    attn, x = jax_module(EMBED, HEADS, "bfloat16"), jnp.asarray(_tokens(CONTEXT), "bfloat16")
    return jax_step(attn, x), jax_by_hand(attn, x)


def jax_by_hand(attn, x) -> Callable:
    """Return the step as one would write it in JAX, with its kernel and buffers of one length."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    graph, state = nnx.split(attn)
    batch, context = x.shape[:2]
    split = lambda x: x.reshape(batch, -1, attn.num_heads, attn.head_dim)  # noqa: E731
    write = partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    last, at = x[:, -1:], jnp.array(context - 1)

    @partial(jax.jit, donate_argnums=2)
    def decode(state, x, buffers, at):
        own = nnx.merge(graph, state)
        key, value = buffers
        key = write(key, split(own.k_proj(x)), at)
        value = write(value, split(own.v_proj(x)), at)
        seen = (jnp.arange(context) <= at)[None, None, None]
        output = jax.nn.dot_product_attention(split(own.q_proj(x)), key, value, mask=seen)
        return own.out_proj(output.reshape(batch, 1, -1)), (key, value)

    buffers = split(attn.k_proj(x)), split(attn.v_proj(x))

    def step():
        nonlocal buffers
        output, buffers = decode(state, last, buffers, at)
        return output

    return step


def _nnx_step() -> Callable:
    import jax.numpy as jnp

    return nnx_step(jax_module(EMBED, HEADS), jnp.asarray(_tokens(CONTEXT)))


def nnx_step(ours, x) -> Callable:
    """Return the same step of flax.nnx, with our weights and the same tokens in its cache."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import attn_jax

    dtype, (batch, context, embed) = x.dtype, x.shape
    options = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    attn = nnx.MultiHeadAttention(ours.num_heads, embed, decode=True, **options)
    for name, weight in attn_jax.export_weights(ours, "nnx").items():
        layer, _, kind = name.partition(".")
        getattr(getattr(attn, layer), kind)[...] = weight
    attn.init_cache((batch, context, embed), dtype=dtype)
    attn.cached_key[...], attn.cached_value[...] = attn.key(x), attn.value(x)
    graph, parameters, cache = nnx.split(attn, nnx.Param, ...)
    last = x[:, -1:]

    @partial(jax.jit, donate_argnums=2)
    def decode(parameters, x, cache):
        attn = nnx.merge(graph, parameters, cache)
        attn.cache_index[...] = jnp.array(context - 1, attn.cache_index[...].dtype)
        output = attn(x)
        return output, nnx.split(attn, nnx.Param, ...)[2]

    def step():
        nonlocal cache
        output, cache = decode(parameters, last, cache)
        return output

    return step
