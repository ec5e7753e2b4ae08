"""transformers' attention functions of Llama, eager and sdpa, and gpt-oss' with its sinks.

Eager adds its mask to the scores and reads no bool mask. One peer gets 0 and -inf; the other gets
what the library's own `eager_mask` makes of booleans, with the dtype's smallest number for -inf.
What Llama's module tells a function, the number of query heads to a key head, is told it here.
"""
# mypy: disable-error-code="import-not-found"

from types import SimpleNamespace

import torch
from transformers.masking_utils import (
    chunked_causal_mask_function,
    eager_mask,
    sliding_window_causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

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
    """Llama's eager_attention_forward, with its weights, and its rotary embeddings."""

    mask_polarity = "add"
    packages = Sdpa.packages
    capabilities = frozenset(
        {"attention", "weights", "scale", "grouped", "dropout", "gradients", "rotary"}
    )

    def rotary(self, query, key, positions, *, base=1e4, interleaved=False, scale=1.0, **others):
        if interleaved or others:
            raise NotOffered("Llama's turns the two halves of a head, all of it")
        H, D = query.shape[1], query.shape[3]
        told = {"rope_type": "linear", "factor": scale, "rope_theta": base}
        config = LlamaConfig(hidden_size=H * D, num_attention_heads=H, rope_parameters=told)
        return self.turned(LlamaRotaryEmbedding(config), query, key, positions)

    def turned(self, embedding, query, key, positions):
        query, key = self.array(query), self.array(key)
        places = torch.tensor(positions).expand(len(query), -1)
        turned = apply_rotary_pos_emb(query, key, *embedding(query, places))
        return [self.numpy(x) for x in turned]

    def call(
        self, query, key, value, *, mask=None, scale=None, dropout=0.0, seed=None,
        need_weights=False, **own,
    ):  # fmt: skip
        seeded(seed)
        scale = query.shape[3] ** -0.5 if scale is None else scale  # as LlamaAttention has it
        options = {"scaling": scale, "dropout": dropout} | own
        output, weights = self.forward(query, key, value, mask, **options)
        return output.transpose(1, 2), weights if need_weights else None

    def forward(self, query, key, value, mask, **options):
        return eager_attention_forward(module(query, key), query, key, value, mask, **options)


class EagerOwn(Eager):
    """The same with the library's own mask, whose `mask_function` looks a cell up."""

    mask_polarity = "attend"
    further = frozenset({"window", "chunk"})

    def call(self, query, key, value, *, mask=None, window=None, chunk=None, **options):
        sizes = (len(query), query.shape[2], key.shape[2])
        if mask is not None and chunk is None:
            mask = self.own(mask, query.dtype, sizes)
        elif window is not None:
            self.tell("by its own sliding_window_causal_mask_function")
            own = sliding_window_causal_mask_function(window)
            mask = eager_mask(*sizes, mask_function=own, dtype=query.dtype)
        elif chunk is not None:
            mask = self.chunks(mask, chunk, sizes)
        return super().call(query, key, value, mask=mask, **options)

    def chunks(self, mask, chunk: int, sizes) -> torch.Tensor:
        """Return the mask of chunks for samples whose padding is on the left."""
        self.tell("by its own chunked_causal_mask_function, told the padding and how long it is")
        seen = mask[:, 0, -1]  # the last query's keys are those that are not padding
        own = chunked_causal_mask_function(chunk, left_padding=(~seen).sum(-1))
        return eager_mask(*sizes, mask_function=own, attention_mask=seen)

    def own(self, mask, dtype, sizes) -> torch.Tensor:
        if mask.dtype != torch.bool or mask.ndim != 4 or (mask != mask[:, :1]).any():
            raise NotOffered("its own mask is made of booleans, one for all heads: (B, 1, T, S)")
        cells = mask[:, 0].expand(sizes)
        self.tell("by its own eager_mask, whose mask_function looks the cell up")
        return eager_mask(*sizes, mask_function=lambda b, h, q, k: cells[b, q, k], dtype=dtype)


class GptOss(EagerOwn):
    """gpt-oss' eager_attention_forward: a sink is the last column, which is dropped again."""

    capabilities = EagerOwn.capabilities - {"rotary"} | {"sinks"}

    def forward(self, query, key, value, mask, *, sinks=None, **options):
        if sinks is None:
            self.tell("a sink of -inf: its layers always have one")
            sinks = query.new_full((query.shape[1],), -torch.inf)
        own = module(query, key)
        own.sinks = sinks
        return gpt_oss.eager_attention_forward(own, query, key, value, mask, **options)


def module(query, key) -> SimpleNamespace:
    return SimpleNamespace(
        num_key_value_groups=query.shape[1] // max(key.shape[1], 1), training=True
    )
