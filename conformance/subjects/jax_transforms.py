"""attn_jax compiled, exported, mapped, scanned and differentiated twice."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from .flat import symbols
from .transforming import Transforming, mapped_axes


class JaxTransforms(Transforming):
    """What JAX can make of a call."""

    put: Any

    def run_model(self, model):
        graph, state = nnx.split(model)

        def run(parameters, inputs, options):
            own = nnx.merge(graph, state, copy=True)
            self.put(own, parameters)
            return own(*inputs, **options)

        return run

    def _run_graph(self, function, arrays, count, calls):
        traces = []

        @jax.jit
        def traced(*arrays):
            traces.append(1)
            return _differentiated(function, count)(*arrays)

        return [traced(*own) for own in arrays], len(traces)

    def _run_exported(self, function, arrays, count, calls):
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

    def _run_mapped(self, function, arrays, count, calls):
        function = _differentiated(function, count)
        arrays = arrays * 2 if len(arrays) == 1 else arrays
        axes = mapped_axes(calls)
        columns = zip(axes, zip(*arrays, strict=True), strict=True)
        given = [own[0] if axis is None else jnp.stack(own) for axis, own in columns]
        found = jax.vmap(function, axes)(*given)
        return list(zip(*found, strict=True)) if count else list(found), 1

    def _run_scanned(self, function, arrays, count, calls):
        """Run the calls one after the other, each on the output of the one before."""
        stacked = [jnp.stack(column) for column in zip(*arrays, strict=True)][1:]
        last, _ = jax.lax.scan(lambda x, own: (function(x, *own), None), arrays[0][0], stacked)
        return [last], 1

    def differentiate(self, route, output, grad, leaves, along):
        return jax.jit(partial(super().differentiate, route, output))(grad, leaves, along)

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
        return AroundJax(projection, None if weight is None else self.array(weight))

    def alter_blank(self, model):
        graph, state = nnx.split(model)
        blank = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        return nnx.merge(graph, blank)

    def alter_mixed(self, model):
        norm = model.layers[0].norm1
        norm.scale = nnx.Param(norm.scale[...].astype(jnp.bfloat16))
        return model


class AroundJax(nnx.Module):
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


def _differentiated(function, count: int):
    """Return a function's output or, where inputs are counted, its gradients by them."""
    if not count:
        return function

    def gradients(*arrays):
        inputs, rest = arrays[:count], arrays[count:]
        return jax.vjp(lambda *own: function(*own, *rest), *inputs)[1](arrays[-1])

    return gradients
