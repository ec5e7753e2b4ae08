"""How long JAX takes to trace and compile a call, which must not grow with T.

Measured from nothing: no compiled program is taken from this process, none from a folder.
"""

import time
from functools import partial

from .inputs import LONG, arrays, mask

AT_MOST = 10.0  # seconds, at any length
CASES = [(kind, length) for kind in ("causal", "packed") for length in (1024, 4096, 32768)]


def name(case: tuple[str, int]) -> str:
    kind, length = case
    return f"jax {kind} T={length} + backward, first call (compile)"


def seconds(kind: str, length: int) -> float:
    """Return how long the forward and backward pass of one shape takes to trace and compile."""
    import jax
    import jax.numpy as jnp

    import attn_jax

    attend = partial(attn_jax.attention, mask=mask(attn_jax, kind, length))
    inputs = [jnp.asarray(x) for x in arrays((*LONG[:2], length, LONG[3]), 4)]
    both = jax.jit(lambda q, k, v, grad: jax.vjp(attend, q, k, v)[1](grad))
    used = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    jax.clear_caches()
    try:
        start = time.perf_counter()
        both.lower(*inputs).compile()
        return time.perf_counter() - start
    finally:
        jax.config.update("jax_enable_compilation_cache", used)
