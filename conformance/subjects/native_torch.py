"""PyTorch's tensors, on any of its devices; bfloat16 too, which NumPy has from ml_dtypes."""

import ml_dtypes
import numpy as np
import torch

from ..oracle.tolerance import Differs
from .native import NativeArrays


class TorchArrays(NativeArrays):
    """Tensors are copies that lie as the array does; gradients come from `torch.autograd`."""

    has_autograd = True

    def array(self, array: np.ndarray) -> torch.Tensor:
        array = np.array(array)
        if array.dtype == ml_dtypes.bfloat16:
            bits = torch.from_numpy(array.view(np.int16))
            return bits.view(torch.bfloat16).to(self.device)
        return torch.from_numpy(array).to(self.device)

    def numpy(self, array: torch.Tensor) -> np.ndarray:
        array = array.detach().cpu()
        if array.dtype == torch.bfloat16:
            return array.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return array.numpy()

    def check(self, found) -> None:
        if not isinstance(found, torch.Tensor):
            raise Differs(f"an answer must be a tensor of torch: got {type(found).__name__}")
        if found.device.type != torch.device(self.device).type:
            raise Differs(f"an answer must be on {self.device}: got one on {found.device}")

    def vjp(self, function, leaves, grad):
        with torch.enable_grad():
            own = {name: x.clone().requires_grad_() for name, x in leaves.items()}
            output = function(own)
            self.check_output(output, grad)
            if not output.requires_grad:
                rule = "an output to differentiate must come from autograd (else write `gradients`)"
                raise Differs(f"{rule}: got a tensor without a grad_fn")
            found = torch.autograd.grad(
                output, tuple(own.values()), grad, allow_unused=True, materialize_grads=True
            )
        return dict(zip(own, found, strict=True))
