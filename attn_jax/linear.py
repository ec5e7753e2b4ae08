"""A linear function whose transpose is computed in a way of its own.

JAX makes a gradient by transposing the derivative. `jax.custom_vjp` says how, and takes forward
mode and second derivatives away; `jax.custom_jvp` leaves no say in it. This primitive has both: its
transpose is what it is told, and every other derivative is that of the plain function.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def apply_linear(function: Callable, transpose: Callable, kept: Any, inputs: Any) -> Array:
    """Return function(kept, inputs), an array linear in inputs; its transpose runs `transpose`.

    `transpose(kept, array)` returns what is like inputs. `kept` is a pytree, and inputs are one.

    >>> double = apply_linear(lambda kept, x: kept * x[0], lambda kept, y: [kept * y], 2., [3.])
    >>> float(double)
    6.0
    """
    leaves, structure = jax.tree.flatten(kept)
    moves, moves_structure = jax.tree.flatten(inputs)
    moves = [jnp.asarray(x) for x in moves]
    shapes = [jax.typeof(x) for x in moves]
    count = len(leaves)

    def plain(*arrays: Array) -> list[Array]:
        kept = jax.tree.unflatten(structure, arrays[:count])
        return [function(kept, jax.tree.unflatten(moves_structure, arrays[count:]))]

    def plain_transpose(*arrays: Array) -> list[Array]:
        def of_moves(*moves: Array) -> list[Array]:
            return plain(*arrays[:count], *moves)

        return list(jax.linear_transpose(of_moves, *shapes)(list(arrays[count:])))

    def own_transpose(*arrays: Array) -> list[Array]:
        kept = jax.tree.unflatten(structure, arrays[:count])
        return jax.tree.leaves(transpose(kept, *arrays[count:]))

    ways = (plain, plain), (own_transpose, plain_transpose)
    return linear_p.bind(*leaves, *moves, ways=ways, count=count)[0]


# `ways` is a pair for the function and one for its transpose: what runs, and what is derived. The
# first `count` arrays are kept, the others are those it is linear in.
linear_p = Primitive("linear")
linear_p.multiple_results = True


def _run(*arrays: Array, ways: tuple, count: int) -> list[Array]:
    return ways[0][0](*arrays)


def _abstract(*avals: Any, **parameters: Any) -> list:
    return jax.make_jaxpr(lambda *arrays: _run(*arrays, **parameters))(*avals).out_avals


def _jvp(primals: tuple, tangents: tuple, *, ways: tuple, count: int) -> tuple[list, list]:
    output = linear_p.bind(*primals, ways=ways, count=count)
    kept, inputs = primals[:count], primals[count:]
    moved, moves = tangents[:count], tangents[count:]
    total = [ad.Zero(jax.typeof(x)) for x in output]
    if any(type(x) is not ad.Zero for x in moves):
        moves = tuple(map(ad.instantiate_zeros, moves))
        total = linear_p.bind(*kept, *moves, ways=ways, count=count)
    if any(type(x) is not ad.Zero for x in moved):
        moved = tuple(map(ad.instantiate_zeros, moved))
        parts = jax.jvp(lambda *kept: ways[0][1](*kept, *inputs), tuple(kept), moved)[1]
        total = list(map(ad.add_tangents, total, parts))
    return output, total


def _transpose(cotangents: list, *arrays: Any, ways: tuple, count: int) -> list:
    cotangents = list(map(ad.instantiate_zeros, cotangents))
    parts = linear_p.bind(*arrays[:count], *cotangents, ways=ways[::-1], count=count)
    pairs = zip(arrays[count:], parts, strict=True)
    return [None] * count + [part if ad.is_undefined_primal(x) else None for x, part in pairs]


def _batch(arrays: list, axes: list, *, ways: tuple, count: int) -> tuple[list, list]:
    """Map every way; an input that is the same for all would get one gradient, so it is copied."""
    (size,) = {x.shape[i] for x, i in zip(arrays, axes, strict=True) if i is not None}
    pairs = zip(arrays[count:], axes[count:], strict=True)
    inputs = [batching.bdim_at_front(x, i, size) for x, i in pairs]
    kept = [None if axis is None else int(axis) for axis in axes[:count]]

    def mapped(way: Callable) -> Callable:
        def run(*arrays: Array) -> list[Array]:
            return jax.vmap(way, (*kept, *[0] * (len(arrays) - count)))(*arrays)

        return run

    ways = tuple(tuple(map(mapped, pair)) for pair in ways)
    output = linear_p.bind(*arrays[:count], *inputs, ways=ways, count=count)
    return output, [0] * len(output)


linear_p.def_impl(_run)
linear_p.def_abstract_eval(_abstract)
ad.primitive_jvps[linear_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
mlir.register_lowering(linear_p, mlir.lower_fun(_run, multiple_results=True))
