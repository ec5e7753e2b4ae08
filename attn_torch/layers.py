"""Linear maps, and what else the framework lacks."""

import weakref
from collections.abc import Callable
from typing import Any

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
    linear.reset_parameters = Start(linear, _start_linear)  # type: ignore[method-assign]
    linear.reset_parameters()
    return linear


class Start:
    """Sets the first parameters of one module, as its `reset_parameters`.

    It is an attribute, so that the module's class stays torch's own: tools replace exactly those.
    It does not keep the module alive.
    """

    def __init__(self, module: nn.Module, start: Callable[[Any], None]):
        self._module, self._start = weakref.ref(module), start

    def __call__(self) -> None:
        """Set them."""
        self._start(self._module())

    def __reduce__(self) -> tuple:  # so that a copy or a pickle speaks of its own module
        return Start, (self._module(), self._start)


def _start_linear(linear: nn.Linear) -> None:
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
