"""JAX's arrays and gradients, on the CPU; float64 with x64 enabled."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np

from .base import Peer


class Jax(Peer):
    """Called eagerly, as a user would try a call."""

    packages: tuple[str, ...] = ("jax", "jaxlib")

    def array(self, array: np.ndarray) -> jax.Array:
        return jnp.asarray(np.asarray(array))

    def numpy(self, array: jax.Array) -> np.ndarray:
        return np.asarray(array)

    def scope(self, dtype: str):
        return jax.enable_x64(True) if dtype == "float64" else nullcontext()

    def differentiate(self, function, leaves, grad):
        found = jax.vjp(function, self.arrays(leaves))[1](self.array(grad))[0]
        return {name: self.numpy(x) for name, x in found.items()}


def swapped(*arrays: jax.Array) -> list[jax.Array]:
    """Return (B, T, H, D) for (B, H, T, D), and back."""
    return [x.swapaxes(1, 2) for x in arrays]
