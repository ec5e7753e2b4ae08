"""Linear maps, and what else the framework lacks."""

import torch
from torch import nn


def new_linear(
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    """Return a linear map, Xavier-uniform at first, b zero."""
    linear = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
