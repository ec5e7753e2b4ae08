"""A Mask that travels as a tensor through code that hands on nothing else."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..masks import Mask


class CarriedMask(Tensor):
    """A mask as a bool tensor (B, 1, T, S), True where allowed, that is filled when it is used.

    Until then nothing of size (T, S) is held, and `mask` and `query_offset` say what it is. Any
    operation fills and takes the array, and may write to it: from then on the array counts.
    `mask` is None where everything is allowed.

    >>> from attn_torch import causal
    >>> carried = CarriedMask(causal(), (1, 1, 2, 3), 1)
    >>> carried.mask, carried.shape
    (causal(), torch.Size([1, 1, 2, 3]))
    >>> carried.any(-2)
    tensor([[[True, True, True]]])
    """

    mask: Mask | None
    query_offset: int
    array: Tensor | None

    # Results are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls: type["CarriedMask"],
        mask: Mask | None,
        sizes: tuple[int, int, int, int],
        query_offset: int,
        device: torch.device | str = "cpu",
    ) -> "CarriedMask":
        """Make a tensor of these sizes that holds no numbers."""
        device = torch.device(device)
        carried = Tensor._make_wrapper_subclass(cls, sizes, dtype=torch.bool, device=device)
        carried.mask, carried.query_offset, carried.array = mask, query_offset, None
        return carried

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"CarriedMask({self.mask!r}, {tuple(self.shape)}, {self.query_offset})"

    def filled(self) -> Tensor:
        """Return the array, the same one every time."""
        if self.array is None:
            B, _, T, S = self.shape
            self.array = torch.ones(self.shape, dtype=torch.bool, device=self.device)
            if self.mask is not None:
                allowed = self.mask.allowed(T, S, query_offset=self.query_offset, batch=B)
                self.array &= allowed.to(self.device)
        return self.array

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation on the array."""

        def array(value: Any) -> Any:
            return value.filled() if isinstance(value, CarriedMask) else value

        return func(*tree_map(array, args), **tree_map(array, kwargs or {}))
