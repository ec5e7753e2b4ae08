"""Where each rank's rows stand in a whole call, and which keys they need: planned on the host.

A layout is `rows`, one array of integers a rank: rows[r] are the positions, in the whole call, of
the queries, keys and values that rank r has, in its order. What a mask allows of blocks of rows
and columns says how much each rank is to do, and what it needs of the others.
"""

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Integer
from torch import Tensor

from . import checks, shard_checks
from .arrays import is_concrete
from .masks import Mask
from .tiles import Cells, Tiles

Sizes = tuple[int, int, int, int]
ENOUGH = 1.05  # the largest load over the mean one that a plan is content with
BLOCK = 32  # rows that are sent, or not sent, together
CELLS = 2**24  # blocks of rows and columns that are looked at at a time


def contiguous(length: int, world: int) -> list[Integer[Tensor, "T"]]:
    """Give each of `world` ranks neighbouring rows, in order; the first have one more.

    Under a window or for documents little is sent; under a causal mask the last rank has twice
    the mean to do. Raises ValueError for a negative length or no rank.

    >>> contiguous(5, 2)
    [tensor([0, 1, 2]), tensor([3, 4])]
    """
    checks.check_count("length", length, 0)
    checks.check_count("world", world, 1)
    return list(torch.arange(length).tensor_split(world))


def zigzag(length: int, world: int) -> list[Integer[Tensor, "T"]]:
    """Give each rank a chunk from the start and one from the end: causal masks are balanced.

    Raises ValueError for a negative length or no rank. Source: "Striped Attention", section 3,
    for the imbalance; the two chunks are those of "The Llama 3 Herd of Models", section 3.3.2.

    >>> zigzag(8, 2)
    [tensor([0, 1, 6, 7]), tensor([2, 3, 4, 5])]
    """
    checks.check_count("length", length, 0)
    checks.check_count("world", world, 1)
    chunks = torch.arange(length).tensor_split(2 * world)
    return [torch.cat((chunks[r], chunks[2 * world - 1 - r])) for r in range(world)]


def planned(mask: Mask, sizes: Sizes, world: int) -> list[Integer[Tensor, "T"]]:
    """Balance the ranks for any mask of a call of `sizes` (B, H, T, T), and send little.

    From contiguous rows on, blocks are swapped between the fullest and the emptiest rank until
    none has more than 1.05 of the mean to do; of the swaps that level them, the one after which
    least is sent. What is balanced already stays as it is. A predicate, and what has no values,
    counts as allowed. Raises ValueError where T is not S.

    >>> from attn_torch import causal
    >>> planned(causal(), (1, 1, 8, 8), 2)
    [tensor([2, 3, 4, 5]), tensor([0, 1, 6, 7])]
    """
    shard_checks.check_planned(mask, Mask, sizes)
    checks.check_count("world", world, 1)
    length = sizes[2]
    each = -(-length // world)
    block = max(min(128, each // 8), each // 64, 1)
    width = max(block // 4, 1)
    tiles = Tiles(Cells(sizes, device=mask.device), block, width)
    allowed = mask.evaluate(tiles).any if has_known_tables(mask) else torch.ones(1, 1, 1, 1)
    allowed = allowed.cpu().bool().expand(-1, -1, -(-length // block), -(-length // width))
    load = allowed.sum((0, 1, 3)).double()
    needs = torch.zeros(len(load), len(load), dtype=torch.bool)
    columns = torch.arange(allowed.shape[3]) * width // block
    needs = needs.int().index_add(1, columns, allowed.any(0).any(0).int()) > 0
    hands = [hand.tolist() for hand in torch.arange(len(load)).tensor_split(world)]
    while (swap := _best_swap(hands, load, needs)) is not None:
        (top, i), (low, j) = swap
        hands[top][i], hands[low][j] = hands[low][j], hands[top][i]
    blocks = torch.arange(length).split(block) if length else []
    empty = torch.arange(0)
    return [torch.cat([empty, *(blocks[i] for i in sorted(hand))]) for hand in hands]


def _best_swap(hands: list[list[int]], load: Tensor, needs: Tensor) -> tuple | None:
    """Return which block of the fullest and which of the emptiest rank to swap, if any."""
    loads = torch.stack([load[hand].sum() for hand in hands])
    top, low = int(loads.argmax()), int(loads.argmin())
    gap = loads[top] - loads[low]
    if not (loads[top] > ENOUGH * loads.mean() and hands[top] and hands[low]):
        return None
    gains = load[hands[top]][:, None] - load[hands[low]]
    sent = _sent(needs, hands[top], hands[low]) + _sent(needs, hands[low], hands[top]).T
    costs = sent + (gap - 2 * gains).abs() / load.mean()
    costs[(gains <= 0) | (gains >= gap)] = torch.inf
    i, j = divmod(int(costs.argmin()), costs.shape[1])
    return None if costs[i, j].isinf() else ((top, i), (low, j))


def _sent(needs: Tensor, hand: list[int], other: list[int]) -> Tensor:
    """Return how many blocks a rank needs of others, had it swapped each of its with each."""
    asked = needs[hand].int()
    needed = asked.sum(0) - asked[:, None] + needs[other] > 0  # (of hand, of other, all blocks)
    held = torch.zeros_like(needed)
    held[:, :, hand] = True
    held[torch.arange(len(hand)), :, hand] = False
    held[:, torch.arange(len(other)), other] = True
    return (needed & ~held).sum(2)


# What ranks need of each other

_NEEDED: WeakKeyDictionary[Mask, tuple] = WeakKeyDictionary()  # what was last told of a mask


def has_known_tables(mask: Mask) -> bool:
    """Whether the mask's tables can be looked at now."""
    return all(is_concrete(table) for _, _, _, table in mask.tables())


def needed_rows(mask: Mask | None, sizes: Sizes, rows: list[Tensor]) -> list[list[Tensor]]:
    """Return which of rank j's rows the queries of rank i may attend to, at [i][j].

    They are told by their places in rows[j], whole blocks of them. It is kept for the next layer.
    """
    if mask is None or not has_known_tables(mask):
        return everything(rows)
    told = [torch.cat(rows), *(table for _, _, _, table in mask.tables())]
    lengths, before = (sizes, list(map(len, rows))), _NEEDED.get(mask)
    if before is not None and before[0] == lengths and all(map(torch.equal, before[1], told)):
        return before[2]
    needed = list(_needed_rows(mask, sizes, rows))
    _NEEDED[mask] = lengths, [array.clone() for array in told], needed
    return needed


def everything(rows: list[Tensor]) -> list[list[Tensor]]:
    """Return what `needed_rows` does where every rank needs all."""
    return [[torch.arange(len(theirs)) for theirs in rows] for _ in rows]


def moved_share(needed: list[list[Tensor]], rows: list[Tensor]) -> float:
    """Return how much of all rows that ranks have not got they need."""
    others = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    moved = sum(len(needed[i][j]) for i, j in others)
    return moved / max(sum(len(rows[j]) for _, j in others), 1)


def _needed_rows(mask: Mask, sizes: Sizes, rows: list[Tensor]) -> Iterator[list[Tensor]]:
    owners = [_blocks_of(places) for places in rows]
    filled = [theirs[_fill_up(owner)] for theirs, owner in zip(rows, owners, strict=True)]
    positions = torch.cat(filled)
    heights = [len(places) // BLOCK for places in filled]
    step = max(CELLS // max(sum(heights), 1), 1)
    for mine in filled:
        allowed = torch.zeros(sum(heights), dtype=torch.bool)
        for some in mine.split(step * BLOCK):
            allowed |= _allowed(mask, sizes, some, positions)
        by_rank = zip(allowed.split(heights), owners, strict=True)
        yield [blocks[owner].nonzero()[:, 0] for blocks, owner in by_rank]


def _allowed(mask: Mask, sizes: Sizes, rows: Tensor, columns: Tensor) -> Tensor:
    """Return in which blocks of columns any row may be allowed a key, in any sample and head."""
    count = len(columns) // BLOCK
    if not len(rows) or not len(columns):
        return torch.zeros(count, dtype=torch.bool)
    part = mask.part(rows, columns)
    cells = Cells((*sizes[:2], len(rows), len(columns)), device=mask.device)
    some = part.evaluate(Tiles(cells, BLOCK, BLOCK)).any
    return some.any(0).any(0).any(0).cpu().expand(count)


def _blocks_of(positions: Tensor) -> Tensor:
    """Return in which block each row is: neighbours in the whole call, 32 at most.

    A block over a gap would be allowed all that is allowed in between. Where there are gaps
    everywhere, blocks are 32 rows all the same, or there would be too many.
    """
    places = torch.arange(len(positions))
    begins = torch.ones(len(positions), dtype=torch.bool)
    begins[1:] = positions[1:] != positions[:-1] + 1
    begins |= (places - torch.where(begins, places, 0).cummax(0).values) % BLOCK == 0
    if int(begins.sum()) > 4 * (len(positions) // BLOCK + 2):
        return places // BLOCK
    return begins.cumsum(0) - 1


def _fill_up(owner: Tensor) -> Tensor:
    """Return places by whole blocks: short ones are filled up with their own last place."""
    _, counts = owner.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    places = (ends - counts)[:, None] + torch.arange(BLOCK)
    return places.minimum(ends[:, None] - 1).flatten()


def columns_of(rows: list[Tensor], places: list[Tensor]) -> Tensor:
    """Return the positions of some rows of each rank, one rank after the other."""
    return torch.cat([theirs[index] for theirs, index in zip(rows, places, strict=True)])
