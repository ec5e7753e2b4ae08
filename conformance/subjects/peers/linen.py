"""flax.linen.MultiHeadDotProductAttention; it has no causal flag and no grouped heads.

Dropout is the same for all samples and heads unless told otherwise, which it is not here.
"""

import jax
from flax import linen

from .base import ModulePeer
from .jax import Jax

NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


class LinenMultiHead(Jax, ModulePeer):
    """Weights are sown where they are asked for."""

    packages = ("flax", *Jax.packages)
    capabilities = frozenset(
        {"attention", "weights", "multihead", "widths", "dropout", "gradients"}
    )

    def call(
        self, config, parameters, query, key, value, *, mask=None, need_weights=False,
        training=False, seed=None,
    ):  # fmt: skip
        heads = config["num_heads"]
        attn = linen.MultiHeadDotProductAttention(
            heads, use_bias=config.get("bias", True), dropout_rate=config.get("dropout", 0.0),
            param_dtype=query.dtype,
        )  # fmt: skip
        options = {"mask": mask, "deterministic": not training, "sow_weights": need_weights}
        options["rngs"] = None if seed is None else {"dropout": jax.random.key(seed)}
        own = {} if config["embed_dim"] % heads else by_name(parameters, heads)  # it refuses that
        inputs = (query, key, value)
        output, kept = attn.apply({"params": own}, *inputs, **options, mutable=["intermediates"])
        if not need_weights:
            return output, None
        return output, kept["intermediates"]["attention_weights"][0]


def by_name(parameters: dict, heads: int) -> dict:
    """Return parameters by linen's names: kernels (in, heads, dim), the last (heads, dim, out)."""
    found = {}
    for own, name in NAMES.items():
        kernel = parameters[f"{name}.weight"].T
        sizes = (heads, -1, kernel.shape[1]) if own == "out" else (kernel.shape[0], heads, -1)
        found[own] = {"kernel": kernel.reshape(sizes)}
        if f"{name}.bias" in parameters:
            bias = parameters[f"{name}.bias"]
            found[own]["bias"] = bias if own == "out" else bias.reshape(heads, -1)
    return found
