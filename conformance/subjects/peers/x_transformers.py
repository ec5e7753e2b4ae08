"""x-transformers' Attend: its own formula, and its path through PyTorch's fused attention.

A mask of two axes hides keys, (B, S). Scale, softcap, dropout and the causal mask are settings of
the module.
"""
# mypy: disable-error-code="import-not-found"

from typing import ClassVar

import torch
from x_transformers.attend import Attend
from x_transformers.x_transformers import RotaryEmbedding, apply_rotary_pos_emb

from ..protocol import NotOffered
from .base import FunctionPeer
from .torch import Torch, seeded


class Unfused(Torch, FunctionPeer):
    """Its own formula, with its weights."""

    packages = ("x-transformers", *Torch.packages)
    flash = False
    paths: ClassVar = {"torch.nn.functional.scaled_dot_product_attention": "by PyTorch's function"}
    otherwise = "its own formula"
    capabilities = frozenset(
        {"attention", "weights", "bias", "scale", "softcap", "grouped", "causal", "dropout"}
        | {"gradients", "sinks", "rotary"}
    )

    def rotary(
        self, query, key, positions, *, base=1e4, dim=None, interleaved=False, scale=1.0, **own
    ):
        if interleaved is False or own:  # None is as the library has it
            raise NotOffered("it turns the features two by two, by the paper's frequencies")
        embedding = RotaryEmbedding(dim or query.shape[3], base=base, interpolation_factor=scale)
        freqs, factor = embedding(torch.tensor(positions))
        turned = (apply_rotary_pos_emb(self.array(x), freqs, factor) for x in (query, key))
        return [self.numpy(x) for x in turned]

    def call(
        self, query, key, value, *, mask=None, bias=None, scale=None, softcap=None, causal=False,
        dropout=0.0, seed=None, need_weights=False, sinks=None,
    ):  # fmt: skip
        seeded(seed)
        settings = {"dropout": dropout, "causal": causal, "scale": scale, "flash": self.flash}
        if softcap is not None:
            settings |= {"softclamp_logits": True, "logit_softclamp_value": softcap}
        if sinks is not None:
            settings["head_learned_sink"] = True
        attend = Attend(heads=query.shape[1], **settings).train()
        own = {} if sinks is None else {"head_attn_sink": sinks}
        given = (query, key, value), {"mask": mask, "attn_bias": bias}
        output, kept = torch.func.functional_call(attend, own, *given)
        weights = kept.post_softmax_attn if need_weights else None
        return output, weights if weights is None or sinks is None else weights[..., 1:]


class Flash(Unfused):
    """PyTorch's fused attention; no weights and no softcap."""

    flash = True
    one_width = True
    capabilities = Unfused.capabilities - {"weights", "softcap", "sinks", "rotary"}
