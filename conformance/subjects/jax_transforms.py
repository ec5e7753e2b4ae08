"""attn_jax compiled, exported, mapped, scanned and differentiated twice."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from .flat import arrays_of, change, symbols
from .models import CLASSES
from .protocol import NotOffered


class JaxTransforms:
    """What JAX can make of a call."""

    array: Any
    numpy: Any
    builder: Any
    module: Any
    model: Any
    scope: Any
    put: Any
    options: Any

    def transformed(self, how, calls, *, kind="", config=None, parameters=None):
        if not hasattr(self, f"_run_{how}"):
            raise NotOffered(f"JAX has no {how} programs")
        with self.scope(next(iter(calls[0]["inputs"].values())).dtype.name):
            model = self.model(kind, config, parameters or {}) if kind else None
            run, make = self._runner(model), self.builder(calls[0])
            names = list(calls[0]["inputs"]) if "grad" in calls[0] else []

            def function(*arrays):
                return run(make(arrays))

            function = _gradient(function, len(names)) if names else function
            arrays = [[self.array(x) for x in arrays_of(call)] for call in calls]
            found, programs = getattr(self, f"_run_{how}")(function, arrays, calls)
            if names:
                dicts = [dict(zip(names, map(self.numpy, own), strict=True)) for own in found]
                return dicts, programs
            return [self.numpy(own) for own in found], programs

    def _runner(self, model):
        """Return what a call gives, as a function of the call."""
        if model is None:
            return lambda call: self.module.attention(*call["inputs"].values(), **call["options"])
        more = {"need_weights": False} if type(model).__name__ == CLASSES["attention"] else {}
        graph, state = nnx.split(model)

        def run(call):
            own = nnx.merge(graph, state, copy=True)
            self.put(own, call.get("parameters", {}))
            found = own(*call["inputs"].values(), **call["options"], **more)
            return found[0] if more else found

        return run

    def _run_graph(self, function, arrays, calls):
        traces = []

        @jax.jit
        def traced(*arrays):
            traces.append(1)
            return function(*arrays)

        return [traced(*own) for own in arrays], len(traces)

    def _run_exported(self, function, arrays, calls):
        scope, letters = export.SymbolicScope(), dict[str, Any]()

        def size(given):
            if isinstance(given, int):
                return given
            if given not in letters:
                letters[given] = export.symbolic_shape(given, scope=scope)[0]
            return letters[given]

        shapes = [tuple(map(size, shape)) for shape in symbols(calls)]
        pairs = zip(shapes, arrays[0], strict=True)
        given = [jax.ShapeDtypeStruct(shape, x.dtype) for shape, x in pairs]
        program = export.export(jax.jit(function))(*given)
        return [program.call(*own) for own in arrays], 1

    def _run_mapped(self, function, arrays, calls):
        arrays = arrays * 2 if len(arrays) == 1 else arrays
        columns = list(zip(*arrays, strict=True))
        alike = [
            len(calls) > 1 and all(jnp.array_equal(column[0], x) for x in column)
            for column in columns
        ]
        axes = tuple(None if same else 0 for same in alike)
        given = [c[0] if s else jnp.stack(c) for c, s in zip(columns, alike, strict=True)]
        found = jax.vmap(function, axes)(*given)
        return list(zip(*found, strict=True)) if isinstance(found, tuple) else list(found), 1

    def _run_scanned(self, function, arrays, calls):
        """Run the calls one after the other, each on the output of the one before."""
        stacked = [jnp.stack(column) for column in zip(*arrays, strict=True)][1:]
        last, _ = jax.lax.scan(lambda x, own: (function(x, *own), None), arrays[0][0], stacked)
        return [last], 1

    def derivatives(self, route, call, directions, *, kind="", config=None):
        if not hasattr(self, f"_{route}"):
            raise NotOffered(f"JAX differentiates by other routes than {route}")
        with self.scope(call["grad"].dtype.name):
            model = self.model(kind, config, call["parameters"]) if kind else None
            run, arrays, names = self._runner(model), change(call, self.array), list(directions)
            options = self.options(arrays["options"])

            def output(*leaves):
                given = dict(zip(names, leaves, strict=True))
                own = {n: given.get(n, x) for n, x in arrays["inputs"].items()}
                more = {n: given.get(n, x) for n, x in options.items()}
                own = {"inputs": own, "options": more}
                return run(own | ({"parameters": given} if kind else {}))

            leaves = arrays.get("parameters", arrays["inputs"] | {"bias": options.get("bias")})
            leaves = tuple(leaves[name] for name in names)
            along = tuple(self.array(x) for x in directions.values())
            compiled = jax.jit(partial(getattr(self, f"_{route}"), output))
            found = compiled(arrays["grad"], leaves, along)
            named = dict(zip([*names, "tangent"], found, strict=False))
            if route == "forward":
                named = {"tangent": found[0]}
            return {name: self.numpy(x) for name, x in named.items()}

    def _forward(self, output, grad, leaves, along):
        return (jax.jvp(output, leaves, along)[1],)

    def _reverse_reverse(self, output, grad, leaves, along):
        def first(grad, *leaves):
            return _dot(_slope(output, grad)(*leaves), along)

        by_grad, *found = jax.grad(first, tuple(range(len(leaves) + 1)))(grad, *leaves)
        return [*found, by_grad]

    def _forward_reverse(self, output, grad, leaves, along):
        return jax.jvp(_slope(output, grad), leaves, along)[1]

    def _reverse_forward(self, output, grad, leaves, along):
        def tangent(*leaves):
            return (jax.jvp(output, leaves, along)[1] * grad).sum()

        return jax.grad(tangent, tuple(range(len(leaves))))(*leaves)

    def blank(self, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def wrap(self, projection, weight=None):
        return Around(projection, None if weight is None else self.array(weight))

    def alter_blank(self, model):
        graph, state = nnx.split(model)
        blank = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        return nnx.merge(graph, blank)

    def alter_mixed(self, model):
        norm = model.layers[0].norm1
        norm.scale = nnx.Param(norm.scale[...].astype(jnp.bfloat16))
        return model


class Around(nnx.Module):
    """A module that calls another, as an adapter of low rank does."""

    def __init__(self, inner, weight):
        self.inner = inner
        if weight is not None:
            self.kernel = nnx.Param(weight)

    def __call__(self, x):
        return self.inner(x)


def _slope(output, grad):
    """Return the gradients of sum(grad * output) as a function."""

    def slope(*leaves):
        return jax.grad(lambda own: (output(*own) * grad).sum())(leaves)

    return slope


def _dot(arrays, others):
    return sum((x * y).sum() for x, y in zip(arrays, others, strict=True))


def _gradient(function, count: int):
    """Return the gradients of sum(grad * output) by the first arrays; the last one is grad."""

    def gradients(*arrays):
        inputs, rest = arrays[:count], arrays[count:]
        return jax.vjp(lambda *own: function(*own, *rest), *inputs)[1](arrays[-1])

    return gradients
