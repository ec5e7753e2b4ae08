"""PyTorch's arrays and gradients, on the CPU."""

import ml_dtypes
import numpy as np
import torch

from .base import Peer


class Torch(Peer):
    """Nothing is recorded for gradients unless gradients are asked for."""

    packages: tuple[str, ...] = ("torch",)

    def array(self, array: np.ndarray) -> torch.Tensor:
        array = np.array(array)
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def numpy(self, array: torch.Tensor) -> np.ndarray:
        array = array.detach()
        if array.dtype == torch.bfloat16:
            return array.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return array.numpy()

    def scope(self, dtype: str):
        return torch.no_grad()

    def differentiate(self, function, leaves, grad):
        with torch.enable_grad():
            own = {name: x.clone().requires_grad_() for name, x in self.arrays(leaves).items()}
            function(own).backward(self.array(grad))
        return {name: self.numpy(x.grad) for name, x in own.items()}


def seeded(seed: int | None) -> None:
    """Seed what PyTorch drops by, where a seed is given."""
    if seed is not None:
        torch.manual_seed(seed)
