"""JAX's arrays and gradients, on the CPU; float64 with x64 enabled."""

import jax

from ..native_jax import JaxArrays
from .base import Peer


class Jax(JaxArrays, Peer):
    """Called eagerly, as a user would try a call."""

    packages: tuple[str, ...] = ("jax", "jaxlib")


def swapped(*arrays: jax.Array) -> list[jax.Array]:
    """Return (B, T, H, D) for (B, H, T, D), and back."""
    return [x.swapaxes(1, 2) for x in arrays]
