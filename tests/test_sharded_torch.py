"""Sharded attention in torch: on every rank the oracle's rows and gradients, for every mask."""

import os
import queue
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import merged  # noqa: E402
from sharded_rows import CALLS, H, ShardedCall, T, masks  # noqa: E402
from torch_ranks import (  # noqa: E402
    EXCHANGES,
    LAYOUTS,
    WORLDS,
    attend,
    build,
    layout_of,
    played,
    whole,
)

from attn_torch import (  # noqa: E402
    Mask,
    Partial,
    attention,
    causal,
    contiguous,
    packed,
    padding,
    predicate,
    prefix,
    ring,
    rows,
    segments,
    sharded,
    sharded_attention,
    sliding_window,
    zigzag,
)
from attn_torch.call import check_call  # noqa: E402
from attn_torch.tiles import Cells, Tiles  # noqa: E402
from conformance.mask_spec import padding as padding_spec  # noqa: E402
from conformance.oracle.tolerance import MERGED, Differs, compare  # noqa: E402

HERE = Path(__file__).parent


def settings() -> dict[str, str]:
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_ranks(folder: Path, *told: str) -> None:
    """Run parts of `torch_ranks.py`; a rank that waits for ever is told so after 60 s."""
    command = [sys.executable, str(HERE / "torch_ranks.py"), str(folder), *told]
    child = subprocess.run(
        command, env=settings(), capture_output=True, text=True, check=False, timeout=600
    )
    assert not child.returncode, child.stderr[-6000:]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every rank got of every row."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(folder, "rows")
    return {
        world: [
            torch.load(folder / f"rows-{world}-{rank}.pt", weights_only=False)
            for rank in range(world)
        ]
        for world in WORLDS
    }


def check_against_oracle(call, found: list[dict], exchange: str, what: str) -> None:
    """Compare what ranks got of a call with the oracle."""
    got, (exact, naive, more) = whole(found), call.oracle()
    if exchange != "ring" and call.dtype in ("float16", "bfloat16"):
        rounded = call.rounded([each["rows"] for each in found])
        more = {name: one + rounded.get(name, 0.0) for name, one in more.items()}
    for name, array in exact.items():
        words = f"{what}: {name}"
        compare(got[name], array, naive[name], words, MERGED, more[name])


@pytest.mark.parametrize("name", CALLS)
def test_every_rank_gets_the_rows_of_the_oracle(found, name):
    count = 0
    for world, ranks in found.items():
        for key in [key for key in ranks[0] if key[0] == name]:
            got = [{k: v for k, v in rank[key].items() if k != "sent"} for rank in ranks]
            what = f"{world} ranks, {', '.join(key[1:])}"
            check_against_oracle(CALLS[name], got, key[2], what)
            count += 1
    assert count == (27 if name in masks() else 3 if name == "uniform rows" else 9)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_is_sent_is_what_is_needed(found, exchange, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 4)
    row = 2 * 2 * (5 + 3) * 4  # bytes of one position: B, H_kv, D + D_v, float32
    for world, ranks in found.items():
        for name in masks():
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


def moved_rows(needed) -> int:
    return sum(len(x) for i, asks in enumerate(needed) for j, x in enumerate(asks) if i != j)


# How much is sent, and how evenly work is shared: the mask's verdicts alone, nothing is computed

LONG, RANKS = 8192, (4, 8)


def documents(mean: int, first: int = 0) -> list[int]:
    """Return lengths of documents that fill a sequence, drawn at random around a mean."""
    some, lengths = torch.Generator().manual_seed(1), [first] if first else []
    while sum(lengths) < LONG:
        lengths.append(max(16, int(torch.empty(1).exponential_(1 / mean, generator=some))))
    lengths[-1] -= sum(lengths) - LONG
    return lengths


def long_masks() -> dict:
    window = causal() & sliding_window(511)
    return {
        "causal": causal(),
        "window 512": window,
        "sinks and window": window | causal() & padding([4]),
        "packed, mean 1024": packed([documents(1024)]) & causal(),
        "packed, one of T/2": packed([documents(512, LONG // 2)]) & causal(),
        "prefix": prefix([LONG // 4]),
        "causal, padded": causal() & padding([LONG // 2]),
    }


def work(mask, places) -> list[int]:
    """Return how many tiles of 128 x 32 each rank has to do, as blocks of its rows are walked."""
    every, found = torch.arange(LONG), []
    for mine in places:
        cells = Cells((1, 1, len(mine), LONG))
        allowed = mask.part(mine, every).evaluate(Tiles(cells, 128, 32)).any
        found.append(int(allowed.expand(1, 1, -1, LONG // 32).sum()))
    return found


@cache
def asked_by_block(name: str):
    """Return which keys any row of each block of 32 is allowed, exactly."""
    cells = long_masks()[name].allowed(LONG, LONG)
    return cells[0, 0].expand(LONG, LONG).unflatten(0, (-1, 32)).any(1)


@pytest.mark.parametrize("world", RANKS)
@pytest.mark.parametrize("name", long_masks())
def test_least_is_sent_and_work_is_shared(name, world):
    mask, sizes = long_masks()[name], (1, 1, LONG, LONG)
    allowed = asked_by_block(name)
    shares = {}
    for layout in LAYOUTS:
        places = layout_of(layout, mask, sizes, world)
        moved = moved_rows(rows.needed_rows(mask, sizes, places))
        asked = [allowed[mine[::32] // 32].any(0) for mine in places]  # whole blocks of rows
        pairs = [(i, j) for i in range(world) for j in range(world) if i != j]
        least = sum(int(asked[i][places[j]].sum()) for i, j in pairs)
        assert least <= moved <= 1.1 * least, f"{layout}: {moved} rows sent, {least} needed"
        shares[layout] = moved / ((world - 1) * LONG)
        if layout == "contiguous":
            loads = work(mask, places)
            balanced = max(loads) <= 1.05 * sum(loads) / world
        if layout == "planned":
            loads = work(mask, places)
            most = max(loads) * world / sum(loads)
            assert most <= 1.05, f"the fullest rank has {most:.3f} of the mean to do"
            same = all(map(torch.equal, places, contiguous(LONG, world)))
            assert same or not balanced, "what was balanced did not stay as it was"
    limits = {
        "causal": ("zigzag", 0.75),
        "window 512": ("planned", 0.07),
        "packed, mean 1024": ("planned", 0.2),
    }
    if name in limits:
        layout, limit = limits[name]
        assert shares[layout] <= limit, f"{layout}: {shares[layout]:.3f} of (P - 1) T is sent"


def test_the_cheapest_exchange_is_chosen(monkeypatch):
    def chosen(mask, length=96, **options):
        places = contiguous(length, 3)
        call = check_call(*torch.zeros(3, 1, 1, length, 4), mask, **options)
        key = torch.zeros(1, 1, 32, 4)
        return sharded._choose(sharded.Shards(places, None, 0, "auto"), call, key, key)[0]

    assert chosen(None) == "gathered"
    assert chosen(predicate(lambda b, h, i, j: i >= j)) == "gathered"
    assert chosen(causal()) == "exchanged"
    assert chosen(sliding_window(3), empty_rows="uniform") == "gathered"
    monkeypatch.setattr(sharded, "GATHERED", 80 * 8 * 4)  # bytes of 80 of 96 rows
    assert chosen(None) == "ring"
    assert chosen(causal()) == "ring"
    assert chosen(sliding_window(3)) == "exchanged"


def test_what_is_needed_is_asked_once_and_again_where_a_table_changes(monkeypatch):
    asked = []
    monkeypatch.setattr(rows, "_allowed", lambda *given: asked.append(1) or real(*given))
    ids = torch.arange(64)[None] // 16
    mask, places, sizes = segments(ids), contiguous(64, 2), (1, 1, 64, 64)
    first = rows.needed_rows(mask, sizes, places)
    assert moved_rows(first) == 0
    count = len(asked)
    assert rows.needed_rows(mask, sizes, contiguous(64, 2)) is first
    assert len(asked) == count
    mask.arrays[0].numpy()[...] = 0  # which no version counts, as a broadcast
    assert moved_rows(rows.needed_rows(mask, sizes, places)) == 64
    assert moved_rows(rows.needed_rows(mask, sizes, zigzag(64, 2))) == 64


real = rows._allowed


@pytest.mark.parametrize(("kv_heads", "whole"), [(4, True), (6, False)])
def test_heads_over_two_axes_of_a_mesh_are_whole_or_refused(kv_heads, whole):
    from torch import distributed as dist
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def spread(heads):
        shape = torch.Size((1, heads, 5, 8))
        told = {"run_check": False, "shape": shape, "stride": (heads * 40, 40, 8, 1)}
        part = torch.randn(1, -(-heads // 4), 5, 8)
        return DTensor.from_local(part, mesh, [Shard(1), Shard(1)], **told)

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2))
        query, key = spread(24 if kv_heads == 6 else 8), spread(kv_heads)
        if whole:
            output = attention(query, key, key).to_local()
            local = query.to_local(), key.to_local()
            torch.testing.assert_close(output, attention(*local, local[1]))
        else:
            with pytest.raises(ValueError, match="by sample or by whole heads"):
                attention(query, key, key)
    finally:
        dist.destroy_process_group()


# Rows that are nowhere near each other, and ranks without rows


@pytest.mark.parametrize("length", [0, 1, 2, 5])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_ranks_without_rows_take_part(exchange, length):
    def work(rank):
        inputs = [x[:, :, places[rank]].requires_grad_() for x in whole_call]
        output = sharded_attention(*inputs, mask=causal(), rows=places, exchange=exchange)
        return output, *torch.autograd.grad(output.square().sum(), inputs)

    whole_call = torch.randn(3, 2, 2, length, 4, dtype=torch.float64)
    places = contiguous(length, 3)
    with played(3) as engine:
        found = engine.run(work)
    inputs = [x.clone().requires_grad_() for x in whole_call]
    output = attention(*inputs, mask=causal())
    wanted = output, *torch.autograd.grad(output.square().sum(), inputs)
    for parts, array in zip(zip(*found, strict=True), wanted, strict=True):
        torch.testing.assert_close(torch.cat(parts, 2), array, rtol=0, atol=1e-12)


def test_any_order_of_rows_is_a_layout():
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    places = list(order.split([70, 1, 79]))
    q = torch.randn(1, 2, 150, 4, dtype=torch.float64)
    mask = causal() & sliding_window(20)
    for exchange in EXCHANGES:

        def work(rank, exchange=exchange):
            mine = q[:, :, places[rank]]
            return sharded_attention(mine, mine, mine, mask=mask, rows=places, exchange=exchange)

        with played(3) as engine:
            found = torch.cat(engine.run(work), 2)
        torch.testing.assert_close(found, attention(q, q, q, mask=mask)[:, :, order])


@pytest.mark.parametrize("exchange", ["gathered", "exchanged"])
def test_second_derivatives_of_one_exchange_are_right(exchange):
    """They need the gradients of other ranks, which come by the same lines."""
    q = torch.randn(1, 2, 7, 3, dtype=torch.float64)
    places = zigzag(7, 3)

    def twice(call, x):
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    def work(rank):
        options = {"mask": causal(), "rows": places, "exchange": exchange}
        return twice(lambda x: sharded_attention(x, x, x, **options), q[:, :, places[rank]])

    with played(3) as engine:
        found = torch.cat(engine.run(work), 2)
    wanted = twice(lambda x: attention(x, x, x, mask=causal()), q)
    torch.testing.assert_close(found, wanted[:, :, torch.cat(places)])


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(("dtype", "large"), [(torch.bfloat16, 2**8), (torch.float16, 2**11)])
def test_gradients_of_16_bits_are_summed_in_float32(exchange, dtype, large):
    """A sum in 16 bits would leave out the ones; a ring does not even round what it adds."""
    shares = [[1, 0], [large, 0], [1, 0]]
    if exchange == "ring":
        shares = [[large, 1], [large, 1], [large, 2]]
    places, one = contiguous(6, 3), torch.ones(1, 1, 2, 1, dtype=dtype)

    def work(rank):
        value = one.clone().requires_grad_()
        told = {"mask": padding([1]), "rows": places, "exchange": exchange}
        output = sharded_attention(one, one, value, **told)
        grad = torch.tensor(shares[rank], dtype=dtype)[None, None, :, None]
        return torch.autograd.grad(output, value, grad)[0]

    with played(3) as engine:
        found = engine.run(work)
    exact = float(sum(map(sum, shares)))  # all queries are allowed key 0, and no other
    assert exact == torch.tensor(exact).to(dtype)
    assert torch.cat(found, 2).flatten().tolist() == [exact] + [0.0] * 5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("exchange", ["gathered", "exchanged"])
def test_16_bit_shares_that_cancel_miss_by_their_own_roundings(exchange, dtype, monkeypatch):
    """Two ranks' shares all but cancel: their roundings are far more than those of the sum."""
    check_cancelled(exchange, dtype)
    with monkeypatch.context() as mistake:
        mistake.setattr(ShardedCall, "rounded", lambda *_: {})
        with pytest.raises(Differs, match="cancelled: key"):
            check_cancelled(exchange, dtype)
    exchanged = sharded.Routes.exchange

    def coarse(routes, array, back=False):
        array = array.to(torch.float8_e4m3fn).to(array.dtype) if back else array
        return exchanged(routes, array, back)

    monkeypatch.setattr(sharded.Routes, "exchange", coarse)
    with pytest.raises(Differs, match="cancelled: key"):
        check_cancelled(exchange, dtype)


def check_cancelled(exchange, dtype):
    """Compare a call of which the last rows take back what the first ones give."""

    class Cancelled(ShardedCall):
        def inputs(self, poisoned=True):
            query, key, value, grad = super().inputs(poisoned)
            half = T // 2
            query[:, :, -half:] = query[:, :, :half]
            grad[:, :, -half:] = grad[:, :, :half] * -0.984375
            query[:, :, half:-half] = grad[:, :, half:-half] = 0
            return [query, key, value, grad]

    call = Cancelled("cancelled", padding_spec([T - 11, T]), dtype)
    with played(2) as engine:
        found = engine.run(lambda rank: attend(call, "contiguous", exchange, rank, 2))
    check_against_oracle(call, found, exchange, "cancelled")


# Mistakes: each is made, and noticed


def check_played(name: str, exchange: str, layout: str = "zigzag") -> None:
    """Compare a call that three threads play with the oracle."""
    call = CALLS[name]
    with played(3) as engine:
        found = engine.run(lambda rank: attend(call, layout, exchange, rank, 3))
    check_against_oracle(call, found, exchange, f"{name}, {exchange}")


def keys_that_are_not_awaited(monkeypatch):
    hop = ring.RingCall.start_hop
    kept = lambda told, array, step, tag=0: (  # noqa: E731
        (lambda: torch.zeros_like(hop(told, array, step, tag)()))
        if step == 1 and not tag
        else hop(told, array, step, tag)
    )
    monkeypatch.setattr(ring.RingCall, "start_hop", kept)


def without_the_way_home(monkeypatch):
    hop = ring.RingCall.start_hop
    kept = lambda told, array, step, tag=0: (  # noqa: E731
        (lambda: torch.zeros_like(hop(told, array, step, tag)()))
        if tag and step == len(told.rows) - 1
        else hop(told, array, step, tag)
    )
    monkeypatch.setattr(ring.RingCall, "start_hop", kept)


def rows_as_if_contiguous(monkeypatch):
    part = Mask.part

    def neighbours(mask, of_rows, columns, query_offset=0):
        first = int(of_rows.min())
        return part(mask, first + torch.arange(len(of_rows)), columns, query_offset)

    monkeypatch.setattr(Mask, "part", neighbours)


def merged_by_log_sum_exp(monkeypatch):
    def merge(first, second):
        weights = torch.stack((first.lse, second.lse)).softmax(0).nan_to_num()[..., None]
        sums = weights[0] * first.output + weights[1] * second.output
        lse = torch.logaddexp(first.lse, second.lse)
        return Partial(sums, lse, (lse > -torch.inf).to(sums))

    monkeypatch.setattr(ring, "merge", merge)


def nan_of_two_empty_parts(monkeypatch):
    def merge(first, second):
        maximum = torch.maximum(first.maximum, second.maximum)
        shares = [torch.exp(part.maximum - maximum) for part in (first, second)]
        sums = shares[0][..., None] * first.sums + shares[1][..., None] * second.sums
        return Partial(sums, maximum, shares[0] * first.total + shares[1] * second.total)

    monkeypatch.setattr(ring, "merge", merge)


def keys_left_out(monkeypatch):
    def needed(*told):
        return [[places[: len(places) // 2] for places in asks] for asks in real(*told)]

    real = sharded.needed_rows
    monkeypatch.setattr(sharded, "needed_rows", needed)


def gradients_left_where_they_are(monkeypatch):
    def keep(ctx, array, lines, count):
        home = array.new_zeros((count, *array.shape[1:]))
        ctx.lines = lines
        return home

    monkeypatch.setattr(sharded._BringHome, "forward", staticmethod(keep))


def sinks_of_others(monkeypatch):
    real = sharded.finish
    monkeypatch.setattr(sharded, "finish", lambda part, *told: real(part, *told[:-1], told[-1] - 9))


MISTAKES = {
    keys_that_are_not_awaited: ("causal", "ring", "output"),
    without_the_way_home: ("causal", "ring", "key"),
    rows_as_if_contiguous: ("causal", "gathered", "output"),
    merged_by_log_sum_exp: ("far bias", "ring", "output"),
    nan_of_two_empty_parts: ("one empty", "ring", "output"),
    keys_left_out: ("band", "exchanged", "output"),
    gradients_left_where_they_are: ("causal", "gathered", "key"),
    sinks_of_others: ("learned sinks", "ring", "output"),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_noticed(mistake, monkeypatch):
    name, exchange, what = MISTAKES[mistake]
    check_played(name, exchange)
    mistake(monkeypatch)
    with pytest.raises(Differs, match=f"{name}, {exchange}: {what}"):
        check_played(name, exchange)


def test_a_rank_that_leaves_out_a_hop_keeps_the_others_waiting(monkeypatch):
    """As one would that takes part only where its queries are allowed a key."""
    hop = ring.RingCall.start_hop

    def sparing(told, array, step, tag=0):
        idle = not told.needed[told.owner(step)]
        return (lambda: array) if idle else hop(told, array, step, tag)

    monkeypatch.setattr(ring.RingCall, "start_hop", sparing)
    q = torch.randn(1, 2, 9, 3)
    places = contiguous(9, 3)

    def work(rank):
        mine = q[:, :, places[rank]]
        return sharded_attention(mine, mine, mine, mask=causal(), rows=places, exchange="ring")

    with played(3, patience=1) as engine, pytest.raises(queue.Empty):
        engine.run(work)


# The suite itself, and torch's own engines


def test_the_suite_is_played_through_a_ring_of_three():
    """All of it that `merged.py` does not leave out, by what PART-1 allows of what is merged."""
    assert merged.run("played_ranks", settings(), "torch") > 500


@pytest.mark.parametrize(
    ("world", "parts"),
    [(2, "tensor_parallel dtensors engines modules local_numbers"), (4, "groups heads_and_rows")],
)
def test_torchs_engines_are_right_or_refused(world, parts, tmp_path):
    run_ranks(tmp_path, parts, str(world))


def test_the_example_gets_the_losses_of_one_process():
    command = [sys.executable, "-m", "examples.sharded_torch", "7"]
    child = subprocess.run(
        command, env=settings(), cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    assert not child.returncode, child.stderr[-6000:]
    assert "two processes" in child.stdout


# A gloo thread that still lets go of a tensor while Python ends aborts the process.
ENDS = """
import sys
import weakref
from examples import sharded_torch
from examples.sharded_torch import dist

def destroy(destroyed=dist.destroy_process_group):
    group = weakref.ref(dist.group.WORLD)
    destroyed()
    assert group() is None, "something keeps the group alive, and gloo's threads with it"

dist.destroy_process_group = destroy
sharded_torch.WORLD = 1
sharded_torch.work(0, 1, sys.argv[1])
"""


def test_the_example_leaves_no_group_behind(tmp_path):
    command = [sys.executable, "-c", ENDS, str(tmp_path / "store")]
    child = subprocess.run(
        command, env=settings(), cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    assert not child.returncode, child.stderr[-6000:]
