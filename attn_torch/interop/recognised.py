"""The mask functions of transformers, which are closures, as Masks.

A function that is not known is not guessed at: `Unrecognised` is raised, and an array made of it.
"""

from collections.abc import Callable
from functools import reduce
from operator import and_, or_
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils as theirs

from ..masks import Mask, causal, padding, segments
from ..masks import sliding_window as window  # the name of an argument of theirs
from .carried import CarriedMask

FAR = 2**31 - 1  # beyond every position


class Unrecognised(Exception):
    """A mask function that has no name here."""


class Positions(NamedTuple):
    """Where queries (B, T) and keys (B, S) stand, and which documents are packed, (B, T)."""

    query: Tensor
    key: Tensor
    documents: Tensor | None = None


def recognise(function: Callable, at: Positions) -> Mask | None:
    """Return the Mask that a mask function is, None where it allows everything.

    >>> at = Positions(torch.arange(3)[None], torch.arange(3)[None])
    >>> recognise(theirs.sliding_window_causal_mask_function(2), at)
    (sliding_window(before=1, after=2147483647) & causal())
    """
    if function is theirs.causal_mask_function:
        return causal()
    if function is theirs.bidirectional_mask_function:
        return None
    maker, arguments = made_by(function)
    if maker not in CLOSURES:
        raise Unrecognised(maker)
    return CLOSURES[maker](at, **arguments)


def carry(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = theirs.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> CarriedMask:
    """Return the mask that transformers' `sdpa_mask` returns for these arguments, unfilled."""
    q_offset = int(q_offset)
    query = torch.arange(q_offset, q_offset + q_length, device=device)
    key = torch.arange(kv_offset, kv_offset + kv_length, device=device)
    mask = recognise(mask_function, Positions(query[None], key[None]))
    real = theirs.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if real is not None:
        shown = padding(hidden=~real[:, kv_offset : kv_offset + kv_length].bool())
        mask = shown if mask is None else mask & shown
    sizes = batch_size, 1, q_length, kv_length
    return CarriedMask(mask, sizes, q_offset - kv_offset, device)


def check_known() -> None:
    """Raise RuntimeError where a mask function of theirs is not what its name says here."""
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]])
    documents = theirs.packed_sequence_mask_function(theirs.find_packed_sequence_indices(positions))
    near = theirs.sliding_window_causal_mask_function(2)
    functions = (
        near,
        theirs.sliding_window_bidirectional_mask_function(2),
        theirs.chunked_causal_mask_function(2, torch.tensor([0, 1])),
        theirs.or_masks(near, theirs.blockwise_overlay(positions - 1)),
        theirs.and_masks(theirs.remap_positions_for_packed_sequence(near, positions), documents),
    )
    real = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    for function in functions:
        call = (2, 5, 5, 0, 0, function, real)
        if not torch.equal(carry(*call).filled(), theirs.sdpa_mask(*call)):
            rule = "the mask functions of transformers must be those that are known here"
            raise RuntimeError(f"{rule}: got another {made_by(function)[0]}")


def made_by(function: Callable) -> tuple[str, dict[str, Any]]:
    """Return which function of theirs made a closure, and what it closes over."""
    if not isinstance(function, FunctionType) or function.__module__ != theirs.__name__:
        return "", {}
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    names = function.__code__.co_freevars
    return function.__qualname__.partition(".")[0], dict(zip(names, cells, strict=True))


def _both(at: Positions, mask_functions: tuple) -> Mask | None:
    arguments = [made_by(function)[1] for function in mask_functions]
    packed = [each["packed_sequence_mask"] for each in arguments if "packed_sequence_mask" in each]
    at = at._replace(documents=packed[0] if packed else None)
    masks = [recognise(function, at) for function in mask_functions]
    masks = [mask for mask in masks if mask is not None]
    return reduce(and_, masks) if masks else None


def _either(at: Positions, mask_functions: tuple) -> Mask | None:
    masks = [recognise(function, at) for function in mask_functions]
    return None if None in masks else reduce(or_, masks)


def _window(at: Positions, sliding_window: int) -> Mask:
    return window(sliding_window - 1, FAR)  # theirs counts the query; the future is causal's


def _window_both_ways(at: Positions, sliding_window: int) -> Mask:
    return window(sliding_window, sliding_window)


def _chunks(at: Positions, chunk_size: int, left_padding: Tensor) -> Mask:
    start = left_padding[:, None].to(at.query.device)
    return segments((at.query - start) // chunk_size, (at.key - start) // chunk_size)


def _blocks(at: Positions, block_sequence_ids: Tensor) -> Mask:
    query, key = (_look_up(block_sequence_ids, places) for places in (at.query, at.key))
    return segments(torch.where(query < 0, -2, query), torch.where(key < 0, -1, key))


def _documents(at: Positions, packed_sequence_mask: Tensor) -> Mask:
    ids = (_look_up(packed_sequence_mask, places) for places in (at.query, at.key))
    return segments(*ids)


def _within_documents(at: Positions, mask_function: Callable, position_ids: Tensor) -> Mask | None:
    """Positions count from each document's start: inside of one, what is causal stays so."""
    packed = theirs.find_packed_sequence_indices(position_ids)
    if packed is None or at.documents is None or not torch.equal(packed, at.documents):
        raise Unrecognised("position_ids of other documents")
    query, key = (_look_up(position_ids, places) for places in (at.query, at.key))
    return recognise(mask_function, Positions(query, key))


def _look_up(table: Tensor, places: Tensor) -> Tensor:
    table = table.to(places.device)
    return table.gather(1, places.expand(len(table), -1))


CLOSURES: dict[str, Callable[..., Mask | None]] = {
    "and_masks": _both,
    "or_masks": _either,
    "sliding_window_overlay": _window,
    "sliding_window_bidirectional_overlay": _window_both_ways,
    "chunked_overlay": _chunks,
    "blockwise_overlay": _blocks,
    "packed_sequence_mask_function": _documents,
    "remap_positions_for_packed_sequence": _within_documents,
}
