"""Masks and weights as text, so that they can be looked at in a terminal, a test or an issue."""

import numpy as np
from jaxtyping import Array, Bool, Float

from . import checks

SHADES = "·░▒▓█"


def draw_cells(allowed: Bool[Array, "T S"]) -> str:
    """Draw which key (across) each query (down) may see: ■ seen, · hidden.

    >>> import jax.numpy as jnp
    >>> print(draw_cells(jnp.tri(2, 3, dtype=bool)))
    ■ · ·
    ■ ■ ·
    """
    return "\n".join(" ".join("■" if seen else "·" for seen in row) for row in np.asarray(allowed))


def draw_weights(weights: Float[Array, "T S"]) -> str:
    """Draw attention weights, keys across and queries down, from · (0) by quarters to █ (1).

    A weight is rounded up, so only an exact 0 is drawn as ·; NaN is drawn as ?.

    >>> import jax.numpy as jnp
    >>> print(draw_weights(jnp.array([[1.0, 0.0, 0.0], [0.3, 0.7, 0.0]])))
    █ · ·
    ▒ ▓ ·
    """
    checks.check_array("weights", weights, ("T", "S"))
    return "\n".join(" ".join(_shade(weight) for weight in row) for row in np.asarray(weights))


def _shade(weight: float) -> str:
    if not 0 <= weight <= 1.001:
        return "?"
    return SHADES[min(int(np.ceil(weight * 4)), 4)]
