"""attn_torch compiled as one graph, exported, mapped, differentiated twice, under autocast."""

from typing import Any

import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call

from .flat import symbols
from .transforming import Transforming, mapped_axes


class Program(nn.Module):
    """A function of arrays beside the model that it calls, as `torch.export` wants it."""

    def __init__(self, function, model):
        super().__init__()
        self.function, self.model = function, model

    def forward(self, *arrays):
        return self.function(*arrays)


class TorchTransforms(Transforming):
    """What torch can make of a call."""

    need_compiler: Any
    device: str

    def function_of(self, function, model):
        return Program(function, model)

    def run_model(self, model):
        return lambda own, inputs, options: functional_call(model, own, tuple(inputs), options)

    def _run_graph(self, function, arrays, count, calls, backend="aot_eager"):
        torch.compiler.reset()
        counting = CompileCounterWithBackend(backend)
        compiled = torch.compile(function, fullgraph=True, backend=counting)
        return [_differentiated(compiled, own, count) for own in arrays], counting.frame_count

    def _run_kernels(self, function, arrays, count, calls):
        self.need_compiler()
        return self._run_graph(function, arrays, count, calls, "inductor")

    def _run_parameters(self, function, arrays, count, calls):
        found = []
        for own in arrays:
            own = [nn.Parameter(x) if x.is_floating_point() else x for x in own]
            found.append(_differentiated(function, own, count))
        return found, 1

    def _run_exported(self, function, arrays, count, calls):
        dynamic = torch.export.Dim.DYNAMIC
        shapes = [
            {i: dynamic for i, size in enumerate(shape) if isinstance(size, str)}
            for shape in symbols(calls)
        ]
        program = torch.export.export(function, tuple(arrays[0]), dynamic_shapes=(tuple(shapes),))
        return [program.module()(*own) for own in arrays], 1

    def _run_mapped(self, function, arrays, count, calls):
        arrays = arrays * 2 if len(arrays) == 1 else arrays
        axes = mapped_axes(calls)
        columns = zip(axes, zip(*arrays, strict=True), strict=True)
        given = [own[0] if axis is None else torch.stack(own) for axis, own in columns]
        if count:
            found = torch.vmap(_gradient(function, count), axes)(*given)
            return list(zip(*found, strict=True)), 1
        return list(torch.vmap(function, axes)(*given)), 1

    def differentiate(self, route, output, grad, leaves, along):
        grad = grad.requires_grad_(route == "reverse_reverse")
        return super().differentiate(route, output, grad, leaves, along)

    def _forward(self, output, grad, leaves, along):
        return (torch.func.jvp(output, leaves, along)[1],)

    def _reverse_reverse(self, output, grad, leaves, along):
        leaves = [x.clone().requires_grad_() for x in leaves]
        first = torch.autograd.grad((output(*leaves) * grad).sum(), leaves, create_graph=True)
        total = _dot(first, along)
        return torch.autograd.grad(
            total, [*leaves, grad], allow_unused=True, materialize_grads=True
        )

    def _backward_twice(self, output, grad, leaves, along):
        leaves = [x.clone().requires_grad_() for x in leaves]
        (output(*leaves) * grad).sum().backward(create_graph=True)
        total = _dot([x.grad for x in leaves], along)
        for x in leaves:
            x.grad = torch.zeros_like(x)
        if total.requires_grad:
            total.backward()
        return [x.grad for x in leaves]

    def _batched(self, output, grad, leaves, along):
        leaves = [x.clone().requires_grad_() for x in leaves]
        first = torch.autograd.grad((output(*leaves) * grad).sum(), leaves, create_graph=True)
        twice = [torch.stack([x, -2 * x]) for x in along]
        options = {"allow_unused": True, "materialize_grads": True, "is_grads_batched": True}
        return [x[1] / -2 for x in torch.autograd.grad(first, leaves, twice, **options)]

    def _functional(self, output, grad, leaves, along):
        loss = _loss(output, grad)
        return torch.autograd.functional.hvp(loss, leaves, along)[1]

    def _forward_reverse(self, output, grad, leaves, along):
        slope = torch.func.grad(_loss(output, grad), tuple(range(len(leaves))))
        return torch.func.jvp(slope, leaves, along)[1]

    def _reverse_forward(self, output, grad, leaves, along):
        def tangent(*leaves):
            return torch.func.jvp(_loss(output, grad), leaves, along)[1]

        return torch.func.grad(tangent, tuple(range(len(leaves))))(*leaves)

    def autocast(self, dtype):
        return torch.autocast(self.device, getattr(torch, dtype))

    def compiled_decode(self, model, options, name="decode"):
        torch.compiler.reset()
        counting = CompileCounterWithBackend("aot_eager")
        decode = torch.compile(getattr(model, name), fullgraph=True, backend=counting)
        return decode, lambda: counting.frame_count

    def blank(self, *shape):
        return torch.empty(shape, device="meta")

    def wrap(self, projection, weight=None):
        return AroundTorch(projection, None if weight is None else self.array(weight))

    def alter_blank(self, model):
        return model.to("meta")

    def alter_hooked(self, model):
        """Double what the query's projection gives, by a hook."""
        model.q_proj.register_forward_hook(lambda module, given, found: 2 * found)
        return model

    def alter_pruned(self, model):
        from torch.nn.utils import prune

        prune.random_unstructured(model.layers[0].self_attn.q_proj, "weight", 0.5)
        return model

    def alter_mixed(self, model):
        model.layers[0].norm1.double()
        return model

    def alter_compiled(self, model):
        return torch.compile(model, backend="eager")


class AroundTorch(nn.Module):
    """A module that calls another, as an adapter of low rank does."""

    def __init__(self, inner, weight):
        super().__init__()
        self.inner = inner
        if weight is not None:
            self.register_buffer("weight", weight)

    def forward(self, x):
        return self.inner(x)


def _loss(output, grad):
    return lambda *leaves: (output(*leaves) * grad).sum()


def _dot(arrays, others):
    return sum((x * y).sum() for x, y in zip(arrays, others, strict=True))


def _differentiated(function, arrays, count):
    """Return a function's output or, where inputs are counted, its gradients by them."""
    if not count:
        return function(*arrays).detach()
    leaves = [x.detach().clone().requires_grad_() for x in arrays[:count]]
    output = function(*leaves, *arrays[count:])
    return torch.autograd.grad(output, leaves, arrays[-1].detach())


def _gradient(function, count):
    """Return the gradients of sum(grad * output) by the first arrays; the last one is grad."""

    def loss(*arrays):
        return (function(*arrays) * arrays[-1]).sum()

    return torch.func.grad(loss, tuple(range(count)))
