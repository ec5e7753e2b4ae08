"""attn_torch compiled as one graph, exported, mapped, differentiated twice, under autocast."""

import warnings
from typing import Any

import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call

from .flat import arrays_of, change, symbols
from .models import CLASSES
from .protocol import NotOffered


class Program(nn.Module):
    """A function of arrays beside the model that it calls, as `torch.export` wants it."""

    def __init__(self, function, model):
        super().__init__()
        self.function, self.model = function, model

    def forward(self, *arrays):
        return self.function(*arrays)


class TorchTransforms:
    """What torch can make of a call."""

    array: Any
    numpy: Any
    builder: Any
    module: Any
    model: Any
    need_compiler: Any
    options: Any
    device: str

    def transformed(self, how, calls, *, kind="", config=None, parameters=None):
        if not hasattr(self, f"_run_{how}"):
            raise NotOffered(f"torch has no {how} programs")
        model = self.model(kind, config, parameters or {}) if kind else None
        run, make = self._runner(model), self.builder(calls[0])
        function = Program(lambda *arrays: run(make(arrays)), model)
        arrays = [[self.array(x) for x in arrays_of(call)] for call in calls]
        names = list(calls[0]["inputs"]) if "grad" in calls[0] else []
        found, programs = getattr(self, f"_run_{how}")(function, arrays, names, calls)
        if names:
            dicts = [dict(zip(names, map(self.numpy, own), strict=True)) for own in found]
            return dicts, programs
        return [self.numpy(own) for own in found], programs

    def _runner(self, model):
        """Return what a call gives, as a function of the call."""
        if model is None:
            return lambda call: self.module.attention(*call["inputs"].values(), **call["options"])
        more = {"need_weights": False} if type(model).__name__ == CLASSES["attention"] else {}

        def run(call):
            inputs, options = tuple(call["inputs"].values()), call["options"] | more
            if "parameters" in call:
                found = functional_call(model, call["parameters"], inputs, options)
            else:
                found = model(*inputs, **options)
            return found[0] if more else found

        return run

    def _run_graph(self, function, arrays, names, calls, backend="aot_eager"):
        torch.compiler.reset()
        counting = CompileCounterWithBackend(backend)
        compiled = torch.compile(function, fullgraph=True, backend=counting)
        return [_differentiated(compiled, own, names) for own in arrays], counting.frame_count

    def _run_kernels(self, function, arrays, names, calls):
        self.need_compiler()
        return self._run_graph(function, arrays, names, calls, "inductor")

    def _run_parameters(self, function, arrays, names, calls):
        found = []
        for own in arrays:
            own = [nn.Parameter(x) if x.is_floating_point() else x for x in own]
            found.append(_differentiated(function, own, names))
        return found, 1

    def _run_exported(self, function, arrays, names, calls):
        dynamic = torch.export.Dim.DYNAMIC
        shapes = [
            {i: dynamic for i, size in enumerate(shape) if isinstance(size, str)}
            for shape in symbols(calls)
        ]
        program = torch.export.export(function, tuple(arrays[0]), dynamic_shapes=(tuple(shapes),))
        return [program.module()(*own) for own in arrays], 1

    def _run_mapped(self, function, arrays, names, calls):
        arrays = arrays * 2 if len(arrays) == 1 else arrays
        columns = list(zip(*arrays, strict=True))
        alike = [
            len(calls) > 1 and all(torch.equal(column[0], x) for x in column) for column in columns
        ]
        axes = tuple(None if same else 0 for same in alike)
        given = [c[0] if s else torch.stack(c) for c, s in zip(columns, alike, strict=True)]
        if names:
            found = torch.vmap(_gradient(function, len(names)), axes)(*given)
            return list(zip(*found, strict=True)), 1
        return list(torch.vmap(function, axes)(*given)), 1

    def derivatives(self, route, call, directions, *, kind="", config=None):
        if not hasattr(self, f"_{route}"):
            raise NotOffered(f"torch differentiates by other routes than {route}")
        model = self.model(kind, config, call["parameters"]) if kind else None
        run, arrays, names = self._runner(model), change(call, self.array), list(directions)
        options = self.options(arrays["options"])
        grad = arrays["grad"].requires_grad_(route == "reverse_reverse")

        def output(*leaves):
            given = dict(zip(names, leaves, strict=True))
            own = {n: given.get(n, x) for n, x in arrays["inputs"].items()}
            more = {n: given.get(n, x) for n, x in options.items()}
            return run({"inputs": own, "options": more} | ({"parameters": given} if kind else {}))

        leaves = arrays.get("parameters", arrays["inputs"] | {"bias": options.get("bias")})
        leaves = tuple(leaves[name] for name in names)
        along = tuple(self.array(x) for x in directions.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of reference cycles
            found = getattr(self, f"_{route}")(output, grad, leaves, along)
        named = dict(zip([*names, "tangent"], found, strict=False))
        if route == "forward":
            named = {"tangent": found[0]}
        return {name: self.numpy(x) for name, x in named.items()}

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

    def compiled_decode(self, model, options):
        torch.compiler.reset()
        counting = CompileCounterWithBackend("aot_eager")
        decode = torch.compile(model.decode, fullgraph=True, backend=counting)
        return lambda x, *caches: decode(x, *caches, **options), lambda: counting.frame_count

    def blank(self, *shape):
        return torch.empty(shape, device="meta")

    def wrap(self, projection, weight=None):
        return Around(projection, None if weight is None else self.array(weight))

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


class Around(nn.Module):
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


def _differentiated(function, arrays, names):
    """Return a function's output or, where inputs are named, its gradients by them."""
    if not names:
        return function(*arrays).detach()
    leaves = [x.detach().clone().requires_grad_() for x in arrays[: len(names)]]
    output = function(*leaves, *arrays[len(names) :])
    return torch.autograd.grad(output, leaves, arrays[-1].detach())


def _gradient(function, count):
    """Return the gradients of sum(grad * output) by the first arrays; the last one is grad."""

    def loss(*arrays):
        return (function(*arrays) * arrays[-1]).sum()

    return torch.func.grad(loss, tuple(range(count)))
