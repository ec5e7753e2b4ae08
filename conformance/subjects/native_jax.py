"""JAX's arrays, on any of its platforms; float64 calls run with x64 enabled."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from ..oracle.tolerance import Differs
from .native import NativeArrays


class JaxArrays(NativeArrays):
    """Gradients come from `jax.vjp`."""

    has_autograd = True

    def array(self, array: np.ndarray) -> jax.Array:
        return array if isinstance(array, jax.Array) else jnp.asarray(np.asarray(array))

    @contextmanager
    def scope(self, dtype: str) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(jax.default_device(jax.devices(self.device)[0]))
            if dtype == "float64":
                stack.enter_context(jax.enable_x64(True))
            yield

    def check(self, found) -> None:
        if not isinstance(found, jax.Array):
            raise Differs(f"an answer must be an array of jax: got {type(found).__name__}")
        if isinstance(found, jax.core.Tracer):
            return
        wanted = jax.devices(self.device)[0].platform
        if {device.platform for device in found.devices()} != {wanted}:
            raise Differs(f"an answer must be on {wanted}: got one on {found.devices()}")

    def vjp(self, function, leaves, grad):
        def call(leaves):
            output = function(leaves)
            self.check_output(output, grad)
            return output

        return jax.vjp(call, leaves)[1](grad)[0]
