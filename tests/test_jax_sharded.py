"""JAX on eight devices: attention sharded by rows, samples and heads gives the oracle's answer.

`jax_sharded.py` says what is compared and `jax_moved.py` what is counted; their parts run in
processes that have the devices.
"""

import os
import re
import subprocess
import sys

import merged
import numpy as np
import pytest
from test_jax_devices import QUICKLY, ROOT, on_devices, run_parts

from attn_jax import (
    causal,
    contiguous,
    packed,
    padding,
    planned,
    prefix,
    rows,
    sliding_window,
    zigzag,
)

ANSWERS = [
    "masks tiles halves hygiene",
    "options worlds traced meshes heads refusals mutants",
]
MOVED = "exchanged gathered_and_ring samples_and_heads chosen tables"


@pytest.mark.parametrize("parts", ANSWERS)
def test_devices_answer_as_the_oracle(parts):
    run_parts("jax_sharded.py", parts, 8)


def test_devices_move_what_is_needed():
    run_parts("jax_moved.py", MOVED, 8)


# How much is sent, and how evenly work is shared: the mask's verdicts alone, nothing is computed

T, BLOCK = 8192, 32
MANY = [112, 399, 1433, 2252, 351, 264, 444, 105, 1024, 67, 462, 1279]  # documents
ONE = [T // 2, 112, 399, 1433, 351, 264, 444, 105, 67, 462, 459]
WINDOW = causal() & sliding_window(511)
LONG = {  # masks, and whether contiguous rows are balanced
    "causal": (causal(), False),
    "window 512": (WINDOW, True),
    "sinks and window": (WINDOW | causal() & padding([4]), True),
    "packed": (packed([MANY]) & causal(), False),
    "packed, one of T/2": (packed([ONE]) & causal(), False),
    "prefix": (prefix([T // 4]), False),
    "causal, padded": (causal() & padding([T // 2]), False),
}


@pytest.mark.parametrize("name", LONG)
def test_least_is_sent_and_work_is_shared(name):
    mask, balanced = LONG[name]
    cells = np.broadcast_to(np.asarray(mask.allowed(T, T))[0, 0], (T, T))
    asked = cells.reshape(T // BLOCK, BLOCK, T).any(1)  # by blocks of rows, exactly
    tiles = asked.reshape(T // 128, 4, T // BLOCK, BLOCK).any((1, 3)).sum(1)  # of 128 x 32
    for world in (4, 8):
        layouts = {"contiguous": contiguous(T, world), "zigzag": zigzag(T, world)}
        layouts["planned"] = planned(mask, (1, 1, T, T), world)
        for layout, places in layouts.items():
            order = places.reshape(-1)
            needed = rows.needed_blocks(mask.part(order, order), (1, 1, T, T), world)
            pieces, _ = rows.plan_pieces(needed, T // world)
            moved = sum(count * len(pairs) for count, pairs in pieces)
            wanted = [asked[mine[::BLOCK] // BLOCK].any(0) for mine in places]
            pairs = [(i, j) for i in range(world) for j in range(world) if i != j]
            least = sum(int(wanted[i][places[j]].sum()) for i, j in pairs)
            what = f"{layout} on {world}: {moved} rows sent, {least} needed"
            assert least <= moved <= 1.1 * least, what
        loads = [tiles[mine[::128] // 128].sum() for mine in layouts["planned"]]
        most = max(loads) * world / sum(loads)
        assert most <= 1.05, f"the fullest of {world} has {most:.3f} of the mean to do"
        same = np.array_equal(layouts["planned"], layouts["contiguous"])
        assert same == balanced, "what was balanced stays as it was, and nothing else"


def test_example_learns_on_four_devices_as_on_one():
    command = [sys.executable, "-m", "examples.sharded_jax", "3"]
    told = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
    shown = subprocess.run(command, env=os.environ | QUICKLY, **told).stdout
    losses = re.findall(r"loss ([\d.]+) on one device, ([\d.]+) on 4", shown)
    assert len(losses) == len({*losses}) == 3, shown
    assert all(one == four for one, four in losses), shown


def test_the_suite_goes_through_three_devices():
    """All of it that `merged.py` does not leave out, by what PART-1 allows of what is merged."""
    environment = on_devices(3, ROOT / "tests", ROOT)
    assert merged.run("played_devices", environment, "jax") > 300
