"""Where each device's rows stand in a whole call, and which keys they need: planned on the host.

A layout is `rows`, integers (world, length / world): rows[r] are the positions, in the whole call,
of the queries, keys and values that device r has, in its order. What a mask allows of blocks of
rows and columns says how much each of them is to do, and what it needs of the others.
"""

import numpy as np
from jaxtyping import Integer

from . import shard_checks
from .masks import Mask
from .tiles import Cells, Tiles

Sizes = tuple[int, int, int, int]
Piece = tuple[int, tuple[tuple[int, int], ...]]  # how many rows, and from whom to whom
ENOUGH = 1.05  # the largest load over the mean one that a plan is content with
PIECES = 4  # of what one device sends another: each is an operation of its own


def contiguous(length: int, world: int) -> Integer[np.ndarray, "world length/world"]:
    """Give each of `world` devices neighbouring rows, in order.

    Under a window or for documents little is sent; under a causal mask the last device has twice
    the mean to do. Raises ValueError where the length does not divide.

    >>> contiguous(8, 2)
    array([[0, 1, 2, 3],
           [4, 5, 6, 7]])
    """
    shard_checks.check_shares("length", length, world)
    return np.arange(length).reshape(world, -1)


def zigzag(length: int, world: int) -> Integer[np.ndarray, "world length/world"]:
    """Give each device a chunk from the start and one from the end: causal masks are balanced.

    Raises ValueError where the length does not divide into two chunks a device. Source: "Striped
    Attention", section 3, for the imbalance; the two chunks are those of
    "The Llama 3 Herd of Models", section 3.3.2.

    >>> zigzag(8, 2)
    array([[0, 1, 6, 7],
           [2, 3, 4, 5]])
    """
    shard_checks.check_shares("length", length, 2 * world)
    chunks = np.arange(length).reshape(2 * world, -1)
    return np.concatenate((chunks[:world], chunks[: world - 1 : -1]), 1)


def planned(mask: Mask, sizes: Sizes, world: int) -> Integer[np.ndarray, "world length/world"]:
    """Balance the devices for any mask of a call of `sizes` (B, H, T, T), and send little.

    From contiguous rows on, blocks of the fullest device are swapped with those of others until
    none has more than 1.05 of the mean to do: of all swaps the one that sends least for what it
    levels. What is balanced already stays as it is. A predicate, and what is traced, counts as
    allowed. Raises ValueError where T is not S, or does not divide.

    >>> from attn_jax import causal
    >>> planned(causal(), (1, 1, 8, 8), 2)
    array([[2, 3, 4, 5],
           [0, 1, 6, 7]])
    """
    shard_checks.check_planned(mask, Mask, sizes)
    shard_checks.check_shares("T", sizes[2], world)
    each = sizes[2] // world
    block = largest_divisor(each, max(min(128, each // 8), each // 16, 1))
    width = largest_divisor(block, max(block // 4, 1))
    allowed = allowed_blocks(mask, sizes, block, width)
    load = _counts(allowed, sizes)
    allowed = np.any(allowed, (0, 1)).reshape(len(load), len(load), -1).any(2)
    hands = np.arange(len(load)).reshape(world, -1)
    while (swap := _best_swap(hands, load, allowed)) is not None:
        (top, i), (low, j) = swap
        hands[top, i], hands[low, j] = hands[low, j], hands[top, i]
    blocks = np.arange(sizes[2]).reshape(-1, block)
    return blocks[np.sort(hands, 1)].reshape(world, -1)


def _counts(allowed: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Return how many tiles a block of rows has to do, in all samples and heads."""
    repeats = [size // n for size, n in zip(sizes[:2], allowed.shape[:2], strict=True)]
    return allowed.sum((0, 1, 3), dtype=float) * max(repeats[0] * repeats[1], 1)


def _best_swap(hands: np.ndarray, load: np.ndarray, allowed: np.ndarray) -> tuple | None:
    """Return which block of the fullest device to swap with which of another one, if any."""
    loads = load[hands].sum(1)
    top = int(loads.argmax())
    if loads[top] <= ENOUGH * loads.mean():
        return None
    swaps: list[tuple] = []
    for low in np.flatnonzero(loads < loads.mean()):
        gains = load[hands[top]][:, None] - load[hands[low]]
        levelled = np.minimum(gains, loads[top] - loads[low] - gains)
        one, two = hands[top], hands[low]
        more = _sent(allowed, one, two) + _sent(allowed, two, one).T
        more -= _sent(allowed, one, one)[0, 0] + _sent(allowed, two, two)[0, 0]  # as it is
        costs = np.where(levelled > 0, (more + 1) / levelled.clip(1), np.inf)
        i, j = divmod(int(costs.argmin()), costs.shape[1])
        swaps.append((costs[i, j], (top, i), (int(low), j)))
    cost, *swap = min(swaps)
    return None if np.isinf(cost) else tuple(swap)


def _sent(allowed: np.ndarray, hand: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how many blocks a device needs of others, had it swapped each of its with each."""
    needs = allowed[hand].sum(0) - allowed[hand][:, None].astype(int) + allowed[other] > 0
    held = np.zeros_like(needs)  # (blocks of hand, blocks of other, all blocks)
    held[:, :, hand] = True
    held[np.arange(len(hand)), :, hand] = False
    held[:, np.arange(len(other)), other] = True
    return (needs & ~held).sum(2)


def allowed_blocks(mask: Mask, sizes: Sizes, height: int, width: int) -> np.ndarray:
    """Return which blocks of rows and columns may have an allowed cell, (B, H, T', S') or 1s."""
    some = np.asarray(mask.evaluate(Tiles(Cells(sizes), height, width)).any)
    shape = (*some.shape[:2], -(-sizes[2] // height), -(-sizes[3] // width))
    return np.broadcast_to(some, shape)


def largest_divisor(length: int, most: int) -> int:
    """Return the largest number up to `most` that divides a length."""
    return next(n for n in range(min(most, max(length, 1)), 0, -1) if length % n == 0)


def needed_blocks(mask: Mask | None, sizes: Sizes, world: int) -> np.ndarray:
    """Return whether a device may attend to blocks of another's keys, (asks, has, blocks).

    Rows and columns are laid out by device. Blocks are 32 rows, or at most 256 of a share.
    """
    shares = [size // world for size in sizes[2:]]
    height, width = (largest_divisor(each, max(32, each // 256)) for each in shares)
    if mask is None:
        return np.ones((world, world, shares[1] // width), bool)
    allowed = np.any(allowed_blocks(mask, sizes, height, width), (0, 1))
    return np.any(allowed.reshape(world, -1, world, shares[1] // width), 1)


def moved_share(needed: np.ndarray) -> float:
    """Return how much of all keys that devices have not got they need."""
    return float(needed[~np.eye(len(needed), dtype=bool)].mean()) if len(needed) > 1 else 0.0


def last_hop(needed: np.ndarray) -> int:
    """Return after how many hops of a ring no device needs what comes."""
    steps = [step for step in range(len(needed)) if at_distance(needed, step).any()]
    return max(steps, default=0)


def at_distance(needed: np.ndarray, step: int) -> np.ndarray:
    """Return what each device needs of the one that many places before it, (asks, blocks)."""
    ranks = np.arange(len(needed))
    return needed[ranks, (ranks - step) % len(ranks)]


def plan_pieces(needed: np.ndarray, each: int) -> tuple[tuple[Piece, ...], tuple]:
    """Return what goes from device to device, of `each` rows, and two tables (devices, rows moved).

    One says which of its rows a device sends, the other which columns it gets, -1 for none.
    Shapes are the same on all devices: so what is sent from each to the one at a distance goes in
    up to four pieces, and who has less to send leaves the last ones out.
    """
    world, width = len(needed), each // needed.shape[2]
    pieces, sent, columns = [], [], []
    for step in range(1, world):
        rows = [np.flatnonzero(np.repeat(x, width)) for x in at_distance(needed, step)]
        counts = np.array([len(x) for x in rows])
        start = 0
        for end in _ends(counts):
            pairs = [((i - step) % world, i) for i in range(world) if counts[i] > start]
            parts = [np.pad(x[start:end], (0, max(0, end - max(len(x), start)))) for x in rows]
            known = np.arange(start, end) < counts[:, None]
            has = (np.arange(world) - step) % world * each
            pieces.append((end - start, tuple(pairs)))
            sent.append(np.roll(parts, -step, 0))
            columns.append(np.where(known, np.array(parts) + has[:, None], -1))
            start = end
    nothing = np.zeros((world, 0), int)
    return tuple(pieces), tuple(np.concatenate([nothing, *x], 1) for x in (sent, columns))


def _ends(counts: np.ndarray) -> list[int]:
    """Return where to cut what devices send into pieces: few, of which little is padding."""
    ends = sorted({*counts.tolist()} - {0})
    while len(ends) > PIECES:
        padding = [
            ((counts > start) & (counts <= end)).sum() * (after - end)
            for start, end, after in zip([0, *ends], ends, ends[1:], strict=False)
        ]
        del ends[int(np.argmin(padding))]
    return ends
