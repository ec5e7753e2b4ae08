"""What torch's own engines shard: DTensors, tensor-parallel projections, context parallelism.

A call on DTensors is one call on each device's samples and heads, and nothing is exchanged. A
mask, a bias and sinks speak of the whole call: a device takes what belongs to it. Where that is
not right it is refused.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import shard_checks
from .arrays import is_array, is_distributed
from .call import Call
from .masks import Mask


def are_shards(query: Any, key: Any, value: Any, mask: Mask | None) -> bool:
    """Whether any of a call's arrays is a DTensor; refuse what torch shards behind our back."""
    check_context_parallel()
    shards = is_distributed(query) or is_distributed(key) or is_distributed(value)
    if not shards and mask is not None and any(leaf.name == "predicate" for leaf in mask.leaves()):
        shard_checks.check_predicate(_is_in_local_map())
    return shards


def _is_in_local_map() -> bool:
    """Whether torch's `local_map` calls: nothing but the stack says so."""
    distributed = torch.distributed
    if torch.compiler.is_compiling() or not distributed.is_available():
        return False
    frame = sys._getframe() if distributed.is_initialized() else None
    while frame is not None and frame.f_code.co_name != "_local_map_wrapped":
        frame = frame.f_back
    return frame is not None


def check_context_parallel() -> None:
    """Refuse torch's `context_parallel`: it changes its own function, and not the calls here."""
    if not torch.compiler.is_compiling():
        shard_checks.check_engine(torch.nn.functional.scaled_dot_product_attention)


def attend_shards(
    function: Callable, query: Any, key: Any, value: Any, call: Call
) -> tuple[Tensor, ...]:
    """Return what `function(query, key, value, call)`, a tuple of arrays, gives on DTensors."""
    from torch.distributed.tensor import DTensor

    placements = _check_placements(query, key, value, call)
    mesh = query.device_mesh
    local = [x.to_local(grad_placements=x.placements) for x in (query, key, value)]
    (batch, heads, *_), first = _bounds(query)
    part = _cut_call(call, (first[0], batch), (first[1], heads), (mesh, placements))
    arrays = function(*local, part._replace(sizes=(batch, heads, *call.sizes[2:])))
    outputs = []
    for array in arrays:
        shape = torch.Size((*call.sizes[:2], *array.shape[2:]))
        strides = torch.empty(shape, device="meta").stride()
        told: Any = {"run_check": False, "shape": shape, "stride": strides}
        outputs.append(DTensor.from_local(array.contiguous(), mesh, placements, **told))
    return tuple(outputs)


def _check_placements(query: Any, key: Any, value: Any, call: Call) -> tuple:
    """Return how the output is placed: as query, key and value are, by sample and by head."""
    from torch.distributed.tensor import Replicate, Shard

    arrays = {"query": query, "key": key, "value": value}
    shard_checks.check_all_distributed({name: is_distributed(x) for name, x in arrays.items()})
    shard_checks.check_no_dropout(call.dropout)
    right = query.device_mesh == key.device_mesh == value.device_mesh
    right &= query.placements == key.placements == value.placements
    head_devices = 1
    for size, place in zip(query.device_mesh.shape, query.placements, strict=True):
        right &= type(place) is Replicate or (type(place) is Shard and place.dim in (0, 1))
        head_devices *= size if place.is_shard(1) else 1
    # An uneven cut of the heads would not be that of the key heads.
    right &= key.shape[1] % head_devices == 0
    shard_checks.check_shards(right, [str(x.placements) for x in arrays.values()])
    return query.placements


def _bounds(array: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of this device's part of a DTensor, and where it begins."""
    from torch.distributed.tensor import Shard

    sizes, first = list(array.shape), [0] * array.ndim
    coordinate = array.device_mesh.get_coordinate()
    for at, (count, place) in enumerate(
        zip(array.device_mesh.shape, array.placements, strict=True)
    ):
        if isinstance(place, Shard):
            size = -(-sizes[place.dim] // count)  # as `torch.chunk` cuts
            start = min(coordinate[at] * size, sizes[place.dim])
            sizes[place.dim] = min(size, sizes[place.dim] - start)
            first[place.dim] += start
    return tuple(sizes), tuple(first)


def _cut_call(
    call: Call, batch: tuple[int, int], heads: tuple[int, int], layout: tuple[Any, tuple]
) -> Call:
    """Return what a call tells some samples and heads, each given by the first and a count."""
    bounds = {"B": batch, "H": heads}
    mask = None if call.mask is None else _cut_mask(call.mask, bounds)
    bias, offset, sinks = call.bias, call.query_offset, call.sinks
    if bias is not None:
        bias = _local(bias, layout, "bias")
        bias = _cut(bias, "BHTS", bounds) if bias.ndim == 4 else bias
    if sinks is not None:
        sinks = _cut(_local(sinks, layout, "sinks"), "H", bounds)
    if is_array(offset) and offset.ndim:
        offset = _cut(offset, "B", bounds)
    return call._replace(mask=mask, bias=bias, sinks=sinks, query_offset=offset)


def _local(array: Any, layout: tuple[Any, tuple], name: str) -> Tensor:
    """Return a replicated array on this device; its gradient is the sum of every device's."""
    from torch.distributed.tensor import Partial, Replicate

    mesh, placements = layout
    if not is_distributed(array):
        shard_checks.check_no_gradient(name, torch.is_grad_enabled() and array.requires_grad)
        return array
    everywhere = array.redistribute(mesh, [Replicate()] * mesh.ndim)
    shares = [Replicate() if place.is_replicate() else Partial() for place in placements]
    return everywhere.to_local(grad_placements=shares)


def _cut_mask(mask: Mask, bounds: dict[str, tuple[int, int]]) -> Mask:
    """Return the mask of some samples and heads; a predicate is told their numbers in the call."""
    if mask.parts:
        return replace(mask, parts=tuple([_cut_mask(part, bounds) for part in mask.parts]))
    tables = zip(mask.arrays, mask.axes, strict=True)
    cut = replace(mask, arrays=tuple([_cut(*table, bounds) for table in tables]))
    if mask.name != "predicate":
        return cut
    function, (batch, head) = mask.settings[0], (bounds["B"][0], bounds["H"][0])

    def placed(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return function(b + batch, h + head, query, key)

    return replace(cut, settings=(placed,))


def _cut(array: Tensor, axes: str, bounds: dict[str, tuple[int, int]]) -> Tensor:
    for dim, letter in enumerate(axes):
        if letter in bounds and array.shape[dim] > 1:
            array = array.narrow(dim, *bounds[letter])
    return array


# Tensor parallelism: `parallelize_module` gives a projection some of its features


def _weight(linear: Any) -> Any:
    """Return a module's weight if it is a parameter; a module's own attributes are slow to ask."""
    return getattr(linear, "_parameters", {}).get("weight")


def is_tensor_parallel(linear: Any) -> bool:
    """Whether `parallelize_module` shares out a projection; FSDP, too, has DTensors as weights."""
    if not is_distributed(_weight(linear)):
        return False
    return getattr(linear, "_distribute_module_applied", False)


def count_heads(linear: Any, num_heads: int) -> int:
    """Return how many heads of a projection this device has."""
    if not is_tensor_parallel(linear) or not linear.weight.placements[-1].is_shard(0):
        return num_heads
    devices = linear.weight.device_mesh.size(-1)  # FSDP's axes stand before
    shard_checks.check_whole_heads(num_heads, devices)
    return num_heads // devices


def cut_heads(call: Call, linear: Any, heads: int) -> Call:
    """Return what a call tells this device's heads of a tensor-parallel projection."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh = linear.weight.device_mesh
    coordinate = mesh.get_coordinate()[-1]
    bounds = (coordinate * heads, heads)
    sinks: Any = call.sinks
    call = call._replace(sinks=None)
    call = _cut_call(call, (0, call.sizes[0]), bounds, (mesh, (Shard(0),)))
    if sinks is not None:
        mesh = mesh[mesh.mesh_dim_names[-1]] if mesh.ndim > 1 else mesh
        if not is_distributed(sinks):
            sinks = DTensor.from_local(sinks, mesh, [Replicate()], run_check=False)
        sinks = sinks.redistribute(mesh, [Shard(0)]).to_local()
    return call._replace(sinks=sinks, sizes=(call.sizes[0], heads, *call.sizes[2:]))


# Fully sharded parameters: `fully_shard` gathers them for `forward`, and for what it is told of


def check_gathered(**modules: nn.Module) -> None:
    """Refuse to use parameters that `fully_shard` has not gathered."""
    for name, module in modules.items():
        if is_distributed(_weight(module)) and not is_tensor_parallel(module):
            from torch.distributed.fsdp import FSDPModule

            shard_checks.check_gathered(name, not isinstance(module, FSDPModule))
