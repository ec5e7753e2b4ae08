"""transformers' attention functions of Llama, eager and sdpa.

Eager adds its mask to the scores and reads no bool mask. One peer gets 0 and -inf; the other gets
what the library's own `eager_mask` makes of booleans, with the dtype's smallest number for -inf.
What Llama's module tells a function, the number of query heads to a key head, is told it here.
"""
# mypy: disable-error-code="import-not-found"

from types import SimpleNamespace

import torch
from transformers.masking_utils import eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from ..protocol import NotOffered
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


class EagerOwn(Eager):
    """The same with the library's own mask, whose `mask_function` looks a cell up."""

    mask_polarity = "attend"

    def call(self, query, key, value, *, mask=None, **options):
        if mask is not None:
            mask = self.own(mask, query.dtype, (len(query), query.shape[2], key.shape[2]))
        return super().call(query, key, value, mask=mask, **options)

    def own(self, mask, dtype, sizes) -> torch.Tensor:
        if mask.dtype != torch.bool or mask.ndim != 4 or (mask != mask[:, :1]).any():
            raise NotOffered("its own mask is made of booleans, one for all heads: (B, 1, T, S)")
        cells = mask[:, 0].expand(sizes)
        self.tell("by its own eager_mask, whose mask_function looks the cell up")
        return eager_mask(*sizes, mask_function=lambda b, h, q, k: cells[b, q, k], dtype=dtype)


def module(query, key) -> SimpleNamespace:
    return SimpleNamespace(
        num_key_value_groups=query.shape[1] // max(key.shape[1], 1), training=True
    )
