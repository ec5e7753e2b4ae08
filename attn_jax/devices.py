"""Attention whose arrays lie on several devices: each attends for its own samples and heads.

Where the axes of a mesh are explicit the arrays' types say how they lie, and `by_device` cuts a
call up while it is traced. Where they are automatic only the compiler knows; `split.py` asks it.
Inside of `jax.shard_map` a call is what the device has, and a predicate counts from its first.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, wraps
from math import gcd, prod
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from .call import Call
from .masks import Mask, PartRule

Axes = tuple[str, ...]
Sizes = tuple[int, int, int, int]


class Layout(NamedTuple):
    """Which axes of a mesh a call's samples, heads and rows are spread over."""

    mesh: Any
    batch: Axes
    heads: Axes
    length: Axes = ()

    def count(self, axes: Axes) -> int:
        """Return over how many devices axes of the mesh go."""
        return prod(self.mesh.shape[axis] for axis in axes)

    def spec(self, letters: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Say how an array lies; `letters` name its dims, and one of size 1 is everybody's."""
        pairs = zip(letters, shape, strict=True)
        return PartitionSpec(*(self._along(letter, size) or None for letter, size in pairs))

    def _along(self, letter: str, size: int) -> Axes:
        places = {"B": self.batch, "H": self.heads, "K": self.heads, "T": self.length}
        axes = places.get(letter, ())
        if letter == "K" and size % self.count(axes):
            return ()  # every device takes what its heads read
        return axes if size > 1 else ()

    def local_sizes(self, sizes: Sizes) -> Sizes:
        """Return (B, H, T, S) of one device's share."""
        batch, heads, rows = (
            size // self.count(axes) for size, axes in zip(sizes, self[1:], strict=False)
        )
        return batch, heads, rows, sizes[3]

    def local_call(self, call: Call) -> Call:
        """Turn what is left of a call on one device into a call of its own.

        Predicates go on being asked about the samples and heads of the whole call.
        """
        sizes, mask = self.local_sizes(call.sizes), call.mask
        if mask is not None:
            first = self.first(self.batch, sizes[0]), self.first(self.heads, sizes[1])
            mask = place(mask, first)
        return call._replace(sizes=sizes, mask=mask)

    def first(self, axes: Axes, size: int) -> Array:
        """Return the first sample or head of this device, which has `size` of them."""
        return lax.axis_index(axes) * size if axes else jnp.int32(0)

    def local_heads(self, arrays: tuple, heads: int, kv_heads: int) -> tuple:
        """Take the key heads that this device's query heads read, where it has got all of them."""
        devices = self.count(self.heads)
        if kv_heads == 1 or not kv_heads % devices:
            return arrays
        heads, group = heads // devices, heads // kv_heads
        step = gcd(heads, group)  # how many neighbours surely read the same
        wanted = (self.first(self.heads, heads) + step * jnp.arange(heads // step)) // group
        return tuple(jnp.take(array, wanted, axis=1) for array in arrays)


@dataclass(frozen=True)
class Placed:
    """The rule of a predicate, asked about samples and heads that begin with others than 0."""

    rule: Any

    def __call__(self, at: Any, batch: Array, head: Array, *arrays: Array) -> Any:
        """Ask the rule about cells whose sample and head are counted from these on."""
        return self.rule(_Moved(at, batch, head), *arrays)


class _Moved(NamedTuple):
    at: Any
    batch: Array
    head: Array

    def call(self, function: Callable) -> Any:
        def moved(batch: Array, head: Array, query: Array, key: Array) -> Array:
            return function(batch + self.batch, head + self.head, query, key)

        return self.at.call(moved)


def place(mask: Mask, first: tuple[Array, Array]) -> Mask:
    """Tell a mask's predicates which sample and head are the first that they are asked about."""
    if mask.parts:
        return replace(mask, parts=tuple(place(part, first) for part in mask.parts))
    if mask.name != "predicate":
        return mask
    axes = mask.axes and ("", "", *mask.axes)
    return replace(mask, rule=wrap(mask.rule, Placed), arrays=(*first, *mask.arrays), axes=axes)


def wrap(rule: Any, function: Callable) -> Any:
    """Wrap the rule of a predicate, or what a part's rule asks."""
    if isinstance(rule, PartRule):
        return replace(rule, rule=function(rule.rule))
    return function(rule)


def call_letters(call: Call) -> Any:
    """Name the dims of every array of a call, as `Layout.spec` reads them."""
    bias = None if call.bias is None else "BHTS"[-call.bias.ndim :]
    mask = None if call.mask is None else _mask_letters(call.mask)
    softcap = None if call.softcap is None else ""
    sinks = None if call.sinks is None else "H"
    offset = "B" * jnp.ndim(call.query_offset)
    letters: Any = {"mask": mask, "bias": bias, "softcap": softcap, "sinks": sinks}
    return call._replace(scale=cast(Any, ""), query_offset=cast(Any, offset), **letters)


def _mask_letters(mask: Mask) -> Mask:
    letters = mask.axes or ("." * jnp.ndim(array) for array in mask.arrays)
    return replace(mask, arrays=tuple(letters), parts=tuple(map(_mask_letters, mask.parts)))


def for_columns(call: Call, count: int, take: Callable) -> Call:
    """Return a call for `count` of its keys: `take(array, axis)` takes them along an axis."""

    def cut(letters: str, array: Array) -> Array:
        axis = letters.find("S")
        return array if axis < 0 or array.shape[axis] == 1 < call.sizes[3] else take(array, axis)

    call = jax.tree.map(cut, call_letters(call), call)
    return call._replace(sizes=(*call.sizes[:3], count))


def by_device(function: Callable) -> Callable:
    """Let `function(query, key, value, call, *others)` run for what each device has of a call.

    That is where the types of arrays say how they lie: samples and heads over explicit axes. All
    else is the compiler's. `others`, and what is returned, begin with samples and heads, as query.
    """

    @wraps(function)
    def run(query: Array, key: Array, value: Array, call: Call, *others: Array) -> Any:
        def local(layout: Layout, query: Array, *inputs: Any) -> Any:
            heads = layout.local_heads(inputs[:2], call.sizes[1], key.shape[1])
            return function(query, *heads, layout.local_call(inputs[2]), *inputs[3:])

        layout, simple = find_layout(query, key, value)
        if layout is None:
            return function(query, key, value, call, *others)
        letters = ("BHTD", "BKSD", "BKSD", call_letters(call), *["BHTS"] * len(others))
        inputs = (query, key, value, call, *others)
        return (
            share_out(layout, partial(local, layout), letters, inputs)
            if simple
            else (_leave_to_compiler(layout, function, inputs))
        )

    return run


def by_sample(function: Callable) -> Callable:
    """Let `function(slots, new, *counts)` run for what each device has of the slots of a cache."""

    @wraps(function)
    def run(*inputs: Array) -> Array:
        layout, simple = find_layout(*inputs[:2])
        if layout is None:
            return function(*inputs)
        letters = ("BKSD", "BKSD", *"B" * len(inputs[2:]))
        return (
            share_out(layout, function, letters, inputs)
            if simple
            else (_leave_to_compiler(layout, function, inputs))
        )

    return run


def take_samples(array: Array | np.ndarray, index: Array | np.ndarray) -> Array:
    """Return the samples of an index, spread over devices as they were."""
    array, sharding = jnp.asarray(array), jax.typeof(array).sharding
    if not any(sharding.spec):
        return array[index]
    return array.at[index].get(out_sharding=sharding)


def out_sharding(array: Array, kernel: Array) -> NamedSharding | None:
    """Say how a product lies that is summed over devices: JAX asks, where axes are explicit."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return None
    left, right = jax.typeof(array).sharding, jax.typeof(kernel).sharding
    if not left.spec[-1] or not right.spec[0]:
        return None
    return NamedSharding(left.mesh, PartitionSpec(*left.spec[:-1], right.spec[1]))


def share_out(layout: Layout, function: Callable, letters: tuple, inputs: tuple) -> Any:
    """Run a function on each device, with its share of inputs whose dims `letters` name.

    What it returns begins with samples, heads and rows.
    """
    specs = jax.tree.map(lambda dims, x: layout.spec(dims, jnp.shape(x)), letters, inputs)
    local = jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=specs,
        out_specs=PartitionSpec(*(axes or None for axes in layout[1:])),
        axis_names={*layout.batch, *layout.heads, *layout.length},
    )
    if AxisType.Explicit in layout.mesh.axis_types:
        inputs = jax.tree.map(partial(_reshard, layout.mesh), inputs, specs)
    return local(*inputs)


def _leave_to_compiler(layout: Layout, function: Callable, inputs: tuple) -> Any:
    spec = PartitionSpec(*jax.typeof(inputs[0]).sharding.spec[:3])
    automatic = jax.sharding.auto_axes(function, out_sharding=NamedSharding(layout.mesh, spec))
    return automatic(*inputs)


def with_automatic_axes(function: Callable, *inputs: Any) -> Array:
    """Return function(*inputs), whose samples lie as those of the inputs, by the compiler alone."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return function(*inputs)
    samples = next((x for x in map(_sharding, jax.tree.leaves(inputs[1:])) if any(x.spec)), None)
    if samples is None:
        return function(*inputs)
    out_sharding = NamedSharding(samples.mesh, PartitionSpec(samples.spec[0]))
    return jax.sharding.auto_axes(function, out_sharding=out_sharding)(*inputs)


def _sharding(array: Array) -> Any:
    return jax.typeof(array).sharding


def local_sizes(query: Array, key: Array, value: Array, call: Call) -> Sizes:
    """Return the sizes of what a device has of a call, as `by_device` cuts it up."""
    layout, simple = find_layout(query, key, value)
    return layout.local_sizes(call.sizes) if layout and simple else call.sizes


def _reshard(mesh: Any, array: Array, spec: PartitionSpec) -> Array:
    if not any(spec) and not any(jax.typeof(array).sharding.spec):
        return array
    return jax.reshard(array, NamedSharding(mesh, spec))


def find_layout(*arrays: Array) -> tuple[Layout | None, bool]:
    """Return how the types of arrays say that samples and heads lie, and whether that is all.

    An array that lies nowhere in particular is cut as the others are.
    """
    shardings = [jax.typeof(array).sharding for array in arrays]
    used = [sharding for sharding in shardings if any(sharding.spec)]
    if not used:
        return None, True
    dims = [{_axes(sharding.spec[dim]) for sharding in used} - {()} for dim in range(4)]
    (batch, *_), (heads, *_) = ((*names, ()) for names in dims[:2])
    simple = len(dims[0]) < 2 > len(dims[1]) and not (dims[2] | dims[3] | {*batch} & {*heads})
    return Layout(used[0].mesh, batch, heads), simple


def _axes(entry: Any) -> Axes:
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def vary_alike(arrays: Any) -> Any:
    """Mark arrays as varying over every mesh axis that one of them varies over.

    `jax.shard_map` asks for it where a loop or a condition hands arrays on.
    """
    axes = frozenset().union(*map(_varying, jax.tree.leaves(arrays)))

    def mark(x: Any) -> Any:
        missing = tuple(sorted(axes - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, arrays)


def _varying(x: Any) -> frozenset:
    return jax.typeof(x).manual_axis_type.varying


def anywhere() -> AbstractContextManager:
    """Trace a program as one that may run on any device: it holds no explicit axes."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def evaluate(jaxpr: Any, consts: Sequence, *arrays: Array) -> list:
    """Run a program on arrays that may lie on a mesh, where it was not traced on that mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return jax.core.eval_jaxpr(jaxpr, consts, *arrays)
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arrays), strict=True))

    def read(variable: Any) -> Array:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        inputs = vary_alike([*map(read, equation.invars)])
        if equation.primitive.name == "jit":
            program = equation.params["jaxpr"]
            outputs = evaluate(program.jaxpr, program.consts, *inputs)
        else:
            parameters = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **parameters)
        outputs = outputs if equation.primitive.multiple_results else [outputs]
        known |= zip(equation.outvars, outputs, strict=True)
    return [*map(read, jaxpr.outvars)]
