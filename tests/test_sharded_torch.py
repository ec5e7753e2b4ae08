"""Sharded attention in torch: on every rank the oracle's rows and gradients, for every mask."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sharded_rows import CALLS, H, T  # noqa: E402
from torch_ranks import EXCHANGES, LAYOUTS, WORLDS, build, layout_of, whole  # noqa: E402

from attn_torch import rows  # noqa: E402
from conformance.oracle.tolerance import MERGED, compare  # noqa: E402

HERE = Path(__file__).parent


def run_ranks(part: str, folder: Path) -> None:
    """Run a part of `torch_ranks.py`; a rank that waits for ever is told so after 60 s."""
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "torch_ranks.py"), part, str(folder)]
    child = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert not child.returncode, child.stderr[-6000:]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every rank got of every row."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks("rows", folder)
    return {
        world: [
            torch.load(folder / f"rows-{world}-{rank}.pt", weights_only=False)
            for rank in range(world)
        ]
        for world in WORLDS
    }


def check_call(call, got: dict, what: str) -> None:
    """Compare a whole call with the oracle."""
    exact, naive, more = call.oracle()
    for name, array in exact.items():
        words = f"{what}: {name}"
        compare(got[name], array, naive[name], words, MERGED, more[name])


@pytest.mark.parametrize("name", CALLS)
def test_every_rank_gets_the_rows_of_the_oracle(found, name):
    count = 0
    for world, ranks in found.items():
        for key in [key for key in ranks[0] if key[0] == name]:
            got = [{k: v for k, v in rank[key].items() if k != "sent"} for rank in ranks]
            check_call(CALLS[name], whole(got), f"{world} ranks, {', '.join(key[1:])}")
            count += 1
    assert count == (9 if name == "uniform rows" else 27)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_is_sent_is_what_is_needed(found, exchange, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 4)
    row = 2 * 2 * (5 + 3) * 4  # bytes of one position: B, H_kv, D + D_v, float32
    for world, ranks in found.items():
        for name in torch_ranks_masks():
            mask = build(CALLS[name].mask)
            for layout in LAYOUTS:
                places = layout_of(layout, mask, (2, H, T, T), world)
                sent = [rank[name, layout, exchange]["sent"] for rank in ranks]
                needed = rows.needed_rows(mask, (2, H, T, T), places)
                moved = moved_rows(needed) if exchange == "exchanged" else (world - 1) * T
                way_back = 1 if exchange != "ring" else 2 + T / ((world - 1) * T)
                what = f"{world} ranks, {name}, {layout}"
                assert sum(x["bytes"] for x in sent) == moved * row * (1 + way_back), what
                assert len({x.get("hops", 0) for x in sent}) == 1, what
                if exchange == "ring":  # keys forward; keys and gradients back, and home
                    assert sent[0]["hops"] == (world - 1) + (world - 1) + world, what
                else:
                    assert sent[0]["exchanges"] == 2, what


def torch_ranks_masks() -> list[str]:
    return [name for name, call in CALLS.items() if call.dtype == "float32" and not call.options][
        :16
    ]


def moved_rows(needed) -> int:
    return sum(len(x) for i, asks in enumerate(needed) for j, x in enumerate(asks) if i != j)


@pytest.mark.parametrize("part", ["tensor_parallel", "dtensors", "engines", "modules"])
def test_torchs_engines_are_right_or_refused(part, tmp_path):
    run_ranks(part, tmp_path)
