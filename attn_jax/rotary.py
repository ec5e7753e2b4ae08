"""What happens to heads between projection and attention: rotary embeddings and QK-norm.

Both are a `process_heads` of `MultiHeadAttention`: a function of query (B, H, T, D), key (B, H_kv,
T, D) and where their tokens stand, integers (B, T) or (1, T), that returns query and key.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from . import checks
from .numerics import upcast


@dataclass(frozen=True)
class Rotary:
    """Turns heads by the positions of their tokens; `rotary` makes one."""

    base: float
    dim: int | None
    interleaved: bool
    scale: float
    frequencies: tuple[float, ...] | None

    def __call__(
        self,
        query: Float[Array, "B H T D"],
        key: Float[Array, "B H_kv T D"],
        positions: Integer[Array | np.ndarray, "#B T"],
    ) -> tuple[Float[Array, "B H T D"], Float[Array, "B H_kv T D"]]:
        """Return query and key, each head turned by its token's position."""
        frequencies = self._frequencies(query.shape[3])
        width = upcast(query).dtype
        places = positions.astype(width)[:, None, :, None] / self.scale
        angles = places * jnp.array(frequencies, width).reshape(1, 1, 1, -1)  # strict ranks
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return _turn(query, cos, sin, self.interleaved), _turn(key, cos, sin, self.interleaved)

    def _frequencies(self, head_dim: int) -> list[float]:
        """Return by how many radians a step of one position turns each pair of features."""
        dim = self.dim if self.frequencies is None else 2 * len(self.frequencies)
        dim = checks.check_turned(dim, head_dim)
        return list(self.frequencies or (self.base ** (-i / dim) for i in range(0, dim, 2)))


def rotary(
    base: float = 10000.0,
    *,
    dim: int | None = None,
    interleaved: bool = False,
    scale: float = 1.0,
    frequencies: Sequence[float] | None = None,
) -> Rotary:
    """Return rotary embeddings: scores then depend on how far apart two tokens stand.

    Features are turned two by two: pair i of `dim` by position / scale * base^(-2i/dim) radians,
    or by a frequency of its own in `frequencies`, one for each pair, as YaRN and Llama 3 have
    them. Only the first `dim` features of a head are turned where it is given. Pair i is feature i
    and i + dim/2, as in Llama's weights, or 2i and 2i + 1 with `interleaved`, as in the paper.
    `scale` squeezes positions into a range that was trained. Angles are computed in float32, in
    float64 for float64 heads, whatever 16-bit dtype heads have. A factor on cosine and sine, as
    YaRN has it, goes into the attention's `scale` squared. Raises ValueError for an odd or too
    large `dim` and numbers that are not above 0, TypeError for kinds.

    Source: "RoFormer", section 3.4.2 and equation 34; `scale`: Chen et al., "Extending Context
    Window of Large Language Models via Positional Interpolation", section 2.3.

    >>> query = jnp.array([[[[1.0, 0.0]] * 3]])  # three tokens
    >>> turned, _ = rotary()(query, query, jnp.arange(3)[None])
    >>> np.asarray(turned[0, 0], float).round(4)
    array([[ 1.    ,  0.    ],
           [ 0.5403,  0.8415],
           [-0.4161,  0.9093]])
    """
    checks.check_rotary(base, dim, scale, frequencies)
    checks.check_switches(interleaved=interleaved)
    numbers = None if frequencies is None else tuple(map(float, frequencies))
    return Rotary(float(base), dim, interleaved, float(scale), numbers)


class QKNorm(nnx.Module):
    """Divides each head of query and key by its root mean square, then does what `then` does.

    Query and key have a weight of `head_dim` each, 1 at first. `then` is another `process_heads`,
    such as `rotary`. Raises ValueError where `eps` is not above 0, TypeError for kinds.

    Source: "Query-Key Normalization for Transformers", with the norm of "Root Mean Square Layer
    Normalization", as Qwen 3 and Gemma 3 have it.

    >>> query = jnp.full((1, 1, 1, 4), 3.0)
    >>> normed, _ = QKNorm(4, rngs=nnx.Rngs(0))(query, query, jnp.zeros((1, 1), int))
    >>> normed[0, 0].round(4)
    Array([[1., 1., 1., 1.]], dtype=float32)
    """

    def __init__(
        self,
        head_dim: int,
        then: Callable | None = None,
        *,
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        checks.check_norm(head_dim, eps, then)
        self.head_dim, self.eps, self.then = head_dim, float(eps), then
        self.q_norm = nnx.RMSNorm(head_dim, epsilon=float(eps), param_dtype=dtype, rngs=rngs)
        self.k_norm = nnx.RMSNorm(head_dim, epsilon=float(eps), param_dtype=dtype, rngs=rngs)

    def __call__(
        self,
        query: Float[Array, "B H T D"],
        key: Float[Array, "B H_kv T D"],
        positions: Integer[Array | np.ndarray, "#B T"],
    ) -> tuple[Float[Array, "B H T D"], Float[Array, "B H_kv T D"]]:
        """Return query and key, normed and then processed further."""
        checks.check_normed(query, self.head_dim)
        dtype = query.dtype
        query, key = self.q_norm(query).astype(dtype), self.k_norm(key).astype(dtype)
        return (query, key) if self.then is None else self.then(query, key, positions)


def _turn(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Turn the first features of (B, H, T, D), two by two."""
    half = cos.shape[-1]
    turned, rest = upcast(x[..., : 2 * half]), x[..., 2 * half :]
    if interleaved:
        first, second = turned[..., ::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    pairs = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        turned = jnp.stack(pairs, -1).reshape(*first.shape[:-1], 2 * half)
    else:
        turned = jnp.concatenate(pairs, -1)
    return jnp.concatenate((turned.astype(x.dtype), rest), -1)
