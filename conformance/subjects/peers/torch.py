"""PyTorch's tensors and gradients, on the CPU."""

import torch

from ..native_torch import TorchArrays
from .base import Peer


class Torch(TorchArrays, Peer):
    """Nothing is recorded for gradients unless gradients are asked for."""

    packages: tuple[str, ...] = ("torch",)

    def scope(self, dtype: str):
        return torch.no_grad()


def seeded(seed: int | None) -> None:
    """Seed what PyTorch drops by, where a seed is given."""
    if seed is not None:
        torch.manual_seed(seed)
