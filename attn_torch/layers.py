"""Linear maps, and what else the framework lacks."""

from torch import nn


def new_linear(in_features: int, out_features: int, **options) -> nn.Linear:
    """Return a linear map, Xavier-uniform at first, b zero."""
    linear = nn.Linear(in_features, out_features, **options)
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
