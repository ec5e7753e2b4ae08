"""Masks and weights as text, so that they can be looked at in a terminal, a test or an issue."""

import math

from jaxtyping import Bool, Float

from . import checks
from .arrays import Array

SHADES = "·░▒▓█"


def draw_cells(allowed: Bool[Array, "T S"]) -> str:
    """Draw which key (across) each query (down) sees: ■ allowed, · hidden.

    >>> from .masks import causal
    >>> print(draw_cells(causal().allowed(2, 3, query_offset=0)[0, 0]))
    ■ · ·
    ■ ■ ·
    """
    return "\n".join(" ".join("■" if cell else "·" for cell in row) for row in allowed.tolist())


def draw_weights(weights: Float[Array, "T S"]) -> str:
    """Draw attention weights, keys across and queries down, from · (0) by quarters to █ (1).

    A weight is rounded up, so only an exact 0 is drawn as ·; NaN is drawn as ?.

    >>> from .masks import causal
    >>> print(draw_weights(0.3 * causal().allowed(2, 2)[0, 0]))
    ▒ ·
    ▒ ▒
    """
    checks.check_array("weights", weights, ("T", "S"))
    return "\n".join(" ".join(_shade(weight) for weight in row) for row in weights.tolist())


def _shade(weight: float) -> str:
    if not 0 <= weight <= 1.001:
        return "?"
    return SHADES[min(math.ceil(weight * 4), 4)]
