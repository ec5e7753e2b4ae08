"""A function of a call that runs in another way where the compiler shares it out over devices.

Under automatic axes only the compiler knows which device has what. It shares out what is done for
all samples and heads at once; a loop over them it gives to every device, with all that they read.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jaxtyping import Array

from .devices import call_letters, place

AXES = {"B": "sample", "K": "key_head", "G": "query_head_of_key_head"}


class Lanes(NamedTuple):
    """What a function is told when it is mapped over samples and heads: the names of the axes.

    `every` are all of them; `key` and `bias` those along which keys and the bias are the same.
    `cells` is how many samples times heads there are.
    """

    every: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    cells: int = 1

    def everywhere(self, verdict: Array) -> Array:
        """Return where all agree, so that all take the same way."""
        return lax.pmin(verdict.astype(jnp.int32), self.every) > 0 if self.every else verdict


def split(function: Callable, like: Sequence[int], *inputs: Any) -> list[Array]:
    """Return function(lanes, query, key, value, call, *rows), a list of arrays.

    Of what it returns, each lies as one of the inputs does, which `like` counts. `rows` lie as
    query does.
    """
    arrays, structure = jax.tree.flatten(inputs)
    arrays = [jnp.asarray(x) for x in arrays]

    def together(*arrays: Array) -> list[Array]:
        return function(Lanes(), *jax.tree.unflatten(structure, arrays))

    def apart(*arrays: Array) -> list[Array]:
        return _map(function, like, *jax.tree.unflatten(structure, arrays))

    return together_or_apart(together, apart, *arrays)


def together_or_apart(together: Callable, apart: Callable, *arrays: Array) -> list[Array]:
    """Return together(*arrays), a list of arrays, or apart's where the compiler shares it out."""
    return split_p.bind(*arrays, program=jax.make_jaxpr(together)(*arrays), apart=apart)


def _map(function: Callable, like: Sequence[int], *inputs: Any) -> list[Array]:
    """Map a function over samples, key heads and the query heads of each."""
    query, key, _, call, *rows = inputs
    counts = {"B": query.shape[0], "K": key.shape[1], "G": query.shape[1] // key.shape[1]}
    letters = ("BHTD", "BKSD", "BKSD", call_letters(call), *("BHTD"[: x.ndim] for x in rows))
    arrays, structure = jax.tree.flatten(inputs)
    pairs = zip(jax.tree.leaves(letters), arrays, strict=True)
    dims = [_Dims.of(*pair, counts) for pair in pairs]
    placed = jax.tree.unflatten(structure, dims)
    key_dims, bias_dims = placed[1], placed[3].bias
    key_axes, bias_axes = (_others(of.mapped if of else "") for of in (key_dims, bias_dims))
    lanes = Lanes(_others(""), key_axes, bias_axes, query.shape[0] * query.shape[1])

    def one(*arrays: Array) -> list[Array]:
        parts = (x.reshape(of.local) for x, of in zip(arrays, dims, strict=True))
        *parts, call = (inputs := jax.tree.unflatten(structure, parts))[:4]
        batch, key_head, group = (lax.axis_index(name) for name in lanes.every)
        first = batch, key_head * counts["G"] + group
        mask = None if call.mask is None else place(call.mask, first)
        call = call._replace(sizes=(1, 1, *call.sizes[2:]), mask=mask)
        return [x.reshape(x.shape[2:]) for x in function(lanes, *parts, call, *inputs[4:])]

    fronts = [(bias_dims if i == 3 else placed[i]).mapped for i in like]
    for axis in reversed(AXES):
        into = tuple(0 if axis in of.mapped else None for of in dims)
        out = [0 if axis in front else None for front in fronts]
        one = jax.vmap(one, into, out, axis_name=AXES[axis], axis_size=counts[axis])
    outputs = one(*(x.reshape(of.front) for x, of in zip(arrays, dims, strict=True)))
    wholes = (call.bias if i == 3 else inputs[i] for i in like)
    return [
        x.reshape(*whole.shape[:2], *x.shape[len(front) :])
        for x, whole, front in zip(outputs, wholes, fronts, strict=True)
    ]


class _Dims(NamedTuple):
    """Which axes an array is mapped over, its shape with those in front, and each one's shape."""

    mapped: str
    front: tuple[int, ...]
    local: tuple[int, ...]

    @classmethod
    def of(cls, letters: str, array: Array, counts: dict[str, int]) -> "_Dims":
        sizes = dict(zip(letters, array.shape, strict=True))
        whole = counts | {"H": counts["K"] * counts["G"]}
        mapped = "".join(x for x in "BHK" if x in sizes and sizes[x] == whole[x])
        mapped = mapped.replace("H", "KG")
        others = [size for letter, size in sizes.items() if letter not in "BHK"]
        front = (*(counts[axis] for axis in mapped), *others)
        local = (1 if x in "BHK" else n for x, n in zip(letters, array.shape, strict=True))
        return cls(mapped, front, tuple(local))


def _others(axes: str) -> tuple[str, ...]:
    """Return the names of all axes but these."""
    return tuple(name for axis, name in AXES.items() if axis not in axes)


# `program` is what one device runs; `apart` does all samples and heads at once.
split_p = Primitive("split")
split_p.multiple_results = True


def _run(*arrays: Array, program: Any, apart: Callable) -> list[Array]:
    return jaxpr_as_fun(program)(*arrays)


def _abstract(*_: Any, program: Any, apart: Callable) -> list:
    return program.out_avals


def _batch(arrays: list, axes: list, *, program: Any, apart: Callable) -> tuple[list, list]:
    outputs = jax.vmap(jaxpr_as_fun(program), axes)(*arrays)
    return outputs, [0] * len(outputs)


def _lower(context: Any, *values: Any, program: Any, apart: Callable) -> Any:
    shared_out = _is_shared_out(context.module_context.axis_context)
    way = apart if shared_out else jaxpr_as_fun(program)
    return mlir.lower_fun(way, multiple_results=True)(context, *values)


def _is_shared_out(context: Any) -> bool:
    """Whether the compiler shares a program out: not inside of `jax.shard_map`.

    Should that leave axes to the compiler: `pmin` over lanes does not know those it has.
    """
    if hasattr(context, "manual_axes"):
        return bool(context.mesh.axis_names) and not context.manual_axes
    return getattr(context, "num_devices", 1) > 1


split_p.def_impl(_run)
split_p.def_abstract_eval(_abstract)
batching.primitive_batchers[split_p] = _batch
mlir.register_lowering(split_p, _lower, cacheable=False)
