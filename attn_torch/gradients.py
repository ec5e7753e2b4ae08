"""Gradients of gradients: the fast ways know their own first derivative and no further one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks
from .arrays import is_concrete
from .call import Call
from .traced import tables


def differentiable_again(
    output: Tensor, call: Call, textbook: Callable, *inputs: Tensor | None
) -> Tensor:
    """Return the output with derivatives of every order by the inputs that it was made from.

    Its gradient is its own, but where that is to be differentiated in turn (`create_graph=True`)
    or comes in batches: then it is the gradient of `textbook(*inputs)`, made of array operations.
    Either asks the call's mask once more, which must be what it was.
    """
    return _Again.apply(output, call, textbook, *inputs)


def versions(call: Call) -> list[int]:
    """Return how often each table was written to; PyTorch does not count in inference mode."""
    return [0 if table.is_inference() else table._version for table in tables(call)]


class _Again(torch.autograd.Function):
    """The identity; its backward pass chooses whose gradient is taken."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, call: Call, textbook: Callable, *inputs: Tensor | None
    ) -> Tensor:
        ctx.call, ctx.versions, ctx.textbook = call, versions(call), textbook
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return output.detach()  # a view could not be written to

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None) -> tuple:
        checks.check_unchanged(ctx.versions, versions(ctx.call))
        if d_output is None or (not torch.is_grad_enabled() and is_concrete(d_output)):
            return (d_output, *[None] * (len(ctx.needs_input_grad) - 1))
        with torch.enable_grad():  # a tensor may be given twice: each time by its own name
            inputs: list[Any] = [x if x is None else x.view_as(x) for x in ctx.saved_tensors]
            output = ctx.textbook(*inputs)
        grads: list[Tensor | None] = [None for _ in inputs]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        if output.requires_grad:  # the total of a part does not depend on its values
            again = {"create_graph": torch.is_grad_enabled(), "allow_unused": True}
            made = torch.autograd.grad(output, [inputs[i] for i in wanted], d_output, **again)
            for i, grad in zip(wanted, made, strict=True):
                grads[i] = grad
        return None, None, None, *grads
