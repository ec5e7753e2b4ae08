"""Mistakes in what is made of a call: graphs, exported and mapped programs, second derivatives."""

from contextlib import nullcontext

import numpy as np

from .mutant import breaks


def same_options(calls: list[dict]) -> list[dict]:
    """Return the calls with the first one's options, where these fit."""
    return [call | {"options": calls[0]["options"]} for call in calls]


@breaks("transformed", "TRF-1", base="torch")
def values_baked_in(right, how, calls, **given):
    """A graph keeps the masks and offsets of the call that it was made of."""
    return right(how, same_options(calls) if how == "graph" else calls, **given)


@breaks("transformed", "TRF-1", base="torch")
def compiled_anew(right, how, calls, **given):
    """Other values in a mask compile the graph anew."""
    found, programs = right(how, calls, **given)
    return found, programs + len(calls) - 1 if how == "graph" else programs


@breaks("transformed", "TRF-2", base="torch")
def exported_without_masks(right, how, calls, **given):
    """An exported program attends to padding."""
    if how == "exported":
        calls = [call | {"options": {}} for call in calls]
    return right(how, calls, **given)


@breaks("transformed", "TRF-3", base="torch")
def first_mask_for_all(right, how, calls, **given):
    """A mapped call takes the first mask for all."""
    return right(how, same_options(calls) if how == "mapped" else calls, **given)


@breaks("transformed", "TRF-3", base="torch")
def mapped_gradients_summed(right, how, calls, **given):
    """Mapped gradients are summed over what is mapped."""
    found, programs = right(how, calls, **given)
    if how == "mapped" and "grad" in calls[0]:
        found = [{name: sum(own[name] for own in found) for name in found[0]}] * len(calls)
    return found, programs


@breaks("derivatives", "TRF-4", base="torch")
def second_order_missing(right, route, *call, **given):
    """The gradient of a gradient is 0, without an error."""
    found = right(route, *call, **given)
    return {name: x if name == "tangent" else 0 * x for name, x in found.items()}


@breaks("derivatives", "TRF-4", base="torch")
def tangents_of_values_alone(right, route, call, directions, **given):
    """Forward mode moves the values and not the weights."""
    if route == "forward":
        still = {n: x if n == "value" else np.zeros_like(x) for n, x in directions.items()}
        directions = still
    return right(route, call, directions, **given)


@breaks("autocast", "TRF-5", base="torch")
def half_of_another_kind(right, dtype):
    """Mixed precision is bfloat16, whichever 16 bits are asked for."""
    return right("bfloat16")


@breaks("altered", "TRF-6", base="torch")
def hooks_not_called(right, how):
    """A fast path goes round the hooks of a projection."""
    return nullcontext() if how == "hooked" else right(how)


@breaks("gradients", "TRF-6", base="torch")
def mask_lost_on_the_way_back(right, *call, through="attention", **options):
    """What is recomputed on the way back is recomputed without its mask."""
    if through == "remat":
        options = {n: x for n, x in options.items() if n not in ("mask", "query_offset")}
    return right(*call, through=through, **options)


@breaks("transformed", "TRF-7", base="torch")
def overflow_taken_for_empty(right, how, calls, **given):
    """Where nobody can look, a row that overflows is taken for a fully masked one."""
    found, programs = right(how, calls, **given)
    return [x if isinstance(x, dict) else np.nan_to_num(x) for x in found], programs


@breaks("altered", "MHA-11")
def any_width_taken(right, how):
    """Projections of any width are taken, for the heads of the configuration."""
    return nullcontext() if how.startswith(("narrower", "wider")) else right(how)
