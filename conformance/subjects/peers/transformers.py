"""transformers' attention functions of Llama, eager and sdpa.

Eager adds its mask to the scores and reads no bool mask: it gets 0 and -inf, where the library's
own masks have the dtype's smallest number for -inf. What Llama's module tells a function, the
number of query heads to a key head, is told it here.
"""
# mypy: disable-error-code="import-not-found"

from types import SimpleNamespace

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from .base import FunctionPeer
from .torch import Torch, seeded


class Sdpa(Torch, FunctionPeer):
    """ALL_ATTENTION_FUNCTIONS["sdpa"]: a mask, or the causal flag."""

    packages = ("transformers", *Torch.packages)
    one_width = True
    capabilities = frozenset({"attention", "scale", "grouped", "causal", "dropout", "gradients"})

    def call(
        self, query, key, value, *, mask=None, scale=None, causal=False, dropout=0.0, seed=None
    ):
        seeded(seed)
        options = {"dropout": dropout, "scaling": scale, "is_causal": causal}
        forward = ALL_ATTENTION_FUNCTIONS["sdpa"]
        output, _ = forward(module(query, key), query, key, value, mask, **options)
        return output.transpose(1, 2), None


class Eager(Torch, FunctionPeer):
    """Llama's eager_attention_forward, with its weights."""

    mask_polarity = "add"
    packages = Sdpa.packages
    capabilities = frozenset({"attention", "weights", "scale", "grouped", "dropout", "gradients"})

    def call(
        self, query, key, value, *, mask=None, scale=None, dropout=0.0, seed=None,
        need_weights=False,
    ):  # fmt: skip
        seeded(seed)
        scale = query.shape[3] ** -0.5 if scale is None else scale  # as LlamaAttention has it
        options = {"scaling": scale, "dropout": dropout}
        output, weights = eager_attention_forward(
            module(query, key), query, key, value, mask, **options
        )
        return output.transpose(1, 2), weights if need_weights else None


def module(query, key) -> SimpleNamespace:
    return SimpleNamespace(
        num_key_value_groups=query.shape[1] // max(key.shape[1], 1), training=True
    )
