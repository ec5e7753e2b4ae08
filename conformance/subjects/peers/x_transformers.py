"""x-transformers' Attend: its own formula, and its path through PyTorch's fused attention.

A mask of two axes hides keys, (B, S). Scale, softcap, dropout and the causal mask are settings of
the module.
"""
# mypy: disable-error-code="import-not-found"

from typing import ClassVar

from x_transformers.attend import Attend

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
        | {"gradients"}
    )

    def call(
        self, query, key, value, *, mask=None, bias=None, scale=None, softcap=None, causal=False,
        dropout=0.0, seed=None, need_weights=False,
    ):  # fmt: skip
        seeded(seed)
        settings = {"dropout": dropout, "causal": causal, "scale": scale, "flash": self.flash}
        if softcap is not None:
            settings |= {"softclamp_logits": True, "logit_softclamp_value": softcap}
        attend = Attend(heads=query.shape[1], **settings).train()
        output, kept = attend(query, key, value, mask=mask, attn_bias=bias)
        return output, kept.post_softmax_attn if need_weights else None


class Flash(Unfused):
    """PyTorch's fused attention; no weights and no softcap."""

    flash = True
    one_width = True
    capabilities = Unfused.capabilities - {"weights", "softcap"}
