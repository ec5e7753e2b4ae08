"""torch.nn.attention.flex_attention, not compiled: the forward only, on the CPU.

A mask array becomes a `mask_mod` that looks the cell up, a bias a `score_mod` that adds it; both
need all four axes. What else a `score_mod` could be made to do is its user's own. A sink comes
after the call, by the log-sum-exp that is asked for beside the output, as torchtitan has it.
"""

from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from ..protocol import NotOffered
from .base import FunctionPeer
from .torch import Torch

# Traced once a shape, and for as many shapes as there are.
TRACING = {
    "automatic_dynamic_shapes": False,
    "recompile_limit": 1 << 20,
    "accumulated_recompile_limit": 1 << 20,
}


class Flex(Torch, FunctionPeer):
    """Its own eager mode, which traces and does not compile."""

    capabilities = frozenset({"attention", "bias", "scale", "grouped", "sinks"})
    further = frozenset({"lse"})

    def call(self, query, key, value, *, sinks=None, **options):
        if sinks is None:
            return self.attend(query, key, value, **options), None
        self.tell("output * sigmoid(lse - sink): the library takes no sink")
        output, aux = self.attend(query, key, value, return_aux=AuxRequest(lse=True), **options)
        share = torch.sigmoid(aux.lse - sinks[:, None])[..., None]
        return (output * share).to(output.dtype), None

    def lse(self, query, key, value, **options):
        """Return the log-sum-exp of each row's scores."""
        arrays = self.converted({"query": query, "key": key, "value": value, **options})
        return self.numpy(self.attend(**arrays, return_aux=AuxRequest(lse=True))[1].lse)

    def attend(self, query, key, value, *, mask=None, bias=None, scale=None, **aux):
        sizes = (*query.shape[:3], key.shape[2])
        options: dict[str, Any] = {
            "scale": scale,
            "enable_gqa": query.shape[1] != key.shape[1],
        } | aux
        if mask is not None:
            if mask.ndim != 4:
                raise NotOffered(
                    "it takes no array: the lookup, and its axes, would be the suite's"
                )
            cells = mask.expand(sizes)
            self.tell("a mask_mod that looks the cell up: the library takes no array")
            B, H, T, S = sizes
            options["block_mask"] = create_block_mask(
                lambda b, h, q, k: cells[b, h, q, k], B, H, T, S, device="cpu"
            )
        if bias is not None:
            added = bias.expand(sizes)
            self.tell("a score_mod that adds the number it looks up: the library takes no array")
            options["score_mod"] = lambda score, b, h, q, k: score + added[b, h, q, k]
        with torch._dynamo.config.patch(TRACING):
            return flex_attention(query, key, value, **options)
