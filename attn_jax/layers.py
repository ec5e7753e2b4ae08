"""Linear maps, and what else the framework lacks."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .devices import out_sharding


class Linear(nnx.Linear):
    """x W + b, rounded once: nnx.Linear rounds 16-bit products before it adds the bias."""

    def __call__(  # type: ignore[override]
        self, inputs: Float[Array, "*batch in"]
    ) -> Float[Array, "*batch out"]:
        """Map the last axis; the sums are in float32 for 16-bit inputs."""
        sums = jnp.promote_types(inputs.dtype, jnp.float32)
        kernel = self.kernel[...]
        lies = out_sharding(inputs, kernel)
        y = jnp.matmul(inputs, kernel, preferred_element_type=sums, out_sharding=lies)
        if self.bias is not None:
            bias = self.bias[...].astype(sums)
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)  # strict ranks refuse less
        return y.astype(inputs.dtype)


def new_linear(
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> Linear:
    """Return a linear map, Xavier-uniform at first, b zero."""
    return Linear(
        in_features,
        out_features,
        use_bias=bias,
        param_dtype=dtype,
        kernel_init=nnx.initializers.xavier_uniform(),
        rngs=rngs,
    )
