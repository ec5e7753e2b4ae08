"""torch.nn.functional.scaled_dot_product_attention: the kernel it chooses, and MATH.

An additive mask goes into the argument of the bool mask, so there is no bias beside a mask.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .base import FunctionPeer
from .torch import Torch, seeded


class Default(Torch, FunctionPeer):
    """The kernel that PyTorch chooses."""

    capabilities = frozenset({"attention", "scale", "causal", "grouped", "dropout", "gradients"})
    kernel: Callable[[], AbstractContextManager] = staticmethod(nullcontext)
    one_width = True  # the fused kernel takes no other

    def call(
        self, query, key, value, *, mask=None, causal=False, scale=None, dropout=0.0, seed=None
    ):
        seeded(seed)
        options = {"dropout_p": dropout, "is_causal": causal, "scale": scale}
        options["enable_gqa"] = query.shape[1] != key.shape[1]
        self.otherwise = ""
        with self.kernel():
            chosen = SDPBackend(torch._fused_sdp_choice(query, key, value, mask, **options))
            self.otherwise = f"{chosen.name} kernel"
            output = scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
        return output, None


class Math(Default):
    """The textbook formula, which MATH names."""

    kernel = staticmethod(lambda: sdpa_kernel(SDPBackend.MATH))
    one_width = False
