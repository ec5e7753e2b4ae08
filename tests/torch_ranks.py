"""Ranks of torch: processes that gloo joins, or threads that play them. What they are asked to do.

As a script it runs every row of `sharded_rows.py` on two, three and four processes, and writes
what each rank got; or one of the parts at the end.
"""

import datetime
import os
import queue
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import attn_torch
from attn_torch import contiguous, planned, ring, rows, sharded, sharded_attention, zigzag
from conformance.oracle.tolerance import dtype as numpy_dtype

WORLDS = (2, 3, 4)
EXCHANGES = ("gathered", "exchanged", "ring")
LAYOUTS = ("contiguous", "zigzag", "planned")


def tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == numpy_dtype("bfloat16"):
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(array))


def array_of(found: torch.Tensor) -> np.ndarray:
    found = found.detach()
    if found.dtype == torch.bfloat16:
        return found.float().numpy().astype(numpy_dtype("bfloat16"))
    return found.numpy()


def build(spec):
    """Return torch's mask of a mask as plain data."""
    if spec is None:
        return None
    parts = [build(part) for part in spec.parts]
    if spec.kind in ("and", "or"):
        return parts[0] & parts[1] if spec.kind == "and" else parts[0] | parts[1]
    if spec.kind == "not":
        return ~parts[0]
    arguments = {
        name: tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in spec.arguments.items()
    }
    return getattr(attn_torch, spec.kind)(**arguments)


def layout_of(name: str, mask, sizes: tuple, world: int) -> list[torch.Tensor]:
    if name == "planned" and mask is not None:
        return planned(mask, sizes, world)
    return (zigzag if name == "zigzag" else contiguous)(sizes[2], world)


def attend(call, layout: str, exchange: str, rank: int, world: int) -> dict[str, np.ndarray]:
    """Return what a rank gets of a call: its rows, its gradients, and where they stand."""
    mask, arrays = build(call.mask), [tensor(x) for x in call.inputs()]
    places = layout_of(layout, mask, (*arrays[0].shape[:3], arrays[0].shape[2]), world)
    mine = places[rank]
    *inputs, grad = (x[:, :, mine].clone() for x in arrays)
    options = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in call.options.items()}
    named = dict(zip(("query", "key", "value"), inputs, strict=True))
    named |= {name: x for name, x in options.items() if isinstance(x, torch.Tensor)}
    for x in named.values():
        x.requires_grad_()
    output = sharded_attention(*inputs, mask=mask, rows=places, exchange=exchange, **options)
    found = {"output": array_of(output), "rows": mine.numpy()}
    if options.get("empty_rows", "zero") == "zero" and not call.visible:
        grads = torch.autograd.grad(output, list(named.values()), grad)
        found |= {name: array_of(x) for name, x in zip(named, grads, strict=True)}
    return found


def whole(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Put together what ranks got: rows where they stand, and the sum of shares."""
    order = np.argsort(np.concatenate([each["rows"] for each in found]))
    joined = {}
    for name in found[0].keys() - {"rows"}:
        parts = [each[name] for each in found]
        if name in ("bias", "sinks"):
            total = np.sum([part.astype(np.float64) for part in parts], axis=0)
            joined[name] = total.astype(parts[0].dtype)
        else:
            joined[name] = np.take(np.concatenate(parts, 2), order, 2)
    return joined


# What goes over the wires, counted from the arguments of the collectives


SENT: Counter[str] = Counter()


def count_bytes() -> None:
    """Count from now on what this rank sends to others, and how many hops it makes."""
    exchange, hop = dist.all_to_all_single, dist.batch_isend_irecv

    def counted_exchange(output, array, come, out, group=None):
        rank, row = dist.get_rank(group), array[:1].nbytes
        SENT["bytes"] += sum(n for r, n in enumerate(out) if r != rank) * row
        SENT["exchanges"] += 1
        return exchange(output, array, come, out, group)

    def counted_hop(ends):
        SENT["bytes"] += sum(end.tensor.nbytes for end in ends if end.op is dist.isend)
        SENT["hops"] += 1
        return hop(ends)

    dist.all_to_all_single, dist.batch_isend_irecv = counted_exchange, counted_hop


# Processes


def run_processes(world: int, work, folder: Path) -> None:
    """Run `work(rank, world, folder)` in processes that are forked from this one."""
    store = folder / f"store{world}{work.__name__}"
    mp.start_processes(_process, (world, work, folder, store), world, start_method="fork")


def _process(rank: int, world: int, work, folder: Path, store: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    watchdog = datetime.timedelta(seconds=60)
    given = {"rank": rank, "world_size": world, "timeout": watchdog}
    dist.init_process_group("gloo", init_method=f"file://{store}", **given)
    try:
        work(rank, world, folder)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def every_row(rank: int, world: int, folder: Path) -> None:
    """Write what a rank gets of every call, layout and exchange, and what it sent."""
    from sharded_rows import CALLS, masks

    rows.BLOCK = 4  # so that a shard has several
    count_bytes()
    found = {}
    for name, call in CALLS.items():
        for layout in LAYOUTS if name in masks() else ("zigzag",):
            for exchange in EXCHANGES:
                if call.options.get("empty_rows") == "uniform" and exchange != "gathered":
                    continue
                SENT.clear()
                found[name, layout, exchange] = attend(call, layout, exchange, rank, world)
                found[name, layout, exchange]["sent"] = dict(SENT)
    torch.save(found, folder / f"rows-{world}-{rank}.pt")


# Threads


class Played:
    """As much of torch.distributed as the exchanges need, between threads of one process."""

    isend, irecv, P2POp = "isend", "irecv", SimpleNamespace
    group = SimpleNamespace(WORLD=None)

    def __init__(self, world: int, patience: float):
        self.world, self.local, self.patience = world, threading.local(), patience
        self.lines = {(i, j): queue.Queue() for i in range(world) for j in range(world)}

        def end(op, tensor, peer, group=None, tag=0):
            return SimpleNamespace(op=op, tensor=tensor, peer=peer)

        self.P2POp = end

    def is_available(self):
        return True

    is_initialized = is_available

    def get_rank(self, group=None):
        return self.local.rank

    def get_world_size(self, group=None):
        return self.world

    def get_global_rank(self, group, rank):
        return rank

    def batch_isend_irecv(self, ends):
        two = sorted(end.op for end in ends) == ["irecv", "isend"]
        assert two and all(end.tensor.numel() for end in ends), (
            "NCCL may wait for who sends nothing"
        )
        waits = []
        for end in ends:
            if end.op == "isend":
                self.lines[self.local.rank, end.peer].put(end.tensor.clone())
            else:
                waits.append(SimpleNamespace(wait=lambda end=end: self._receive(end)))
        return waits

    def _receive(self, end):
        end.tensor.copy_(self.lines[end.peer, self.local.rank].get(timeout=self.patience))

    def all_to_all_single(self, output, array, come, out, group=None):
        rank = self.local.rank
        for peer, part in enumerate(array.split(out)):
            self.lines[rank, peer].put(part.clone())
        parts = [self.lines[peer, rank].get(timeout=self.patience) for peer in range(self.world)]
        assert [len(part) for part in parts] == come, "what is sent is not what is awaited"
        output.copy_(torch.cat(parts))

    def run(self, work) -> list:
        """Return what `work(rank)` gives in each of the threads; raise what the first raised."""
        found, raised = [None] * self.world, []

        def play(rank):
            self.local.rank = rank
            try:
                found[rank] = work(rank)
            except Exception as error:  # of another thread, which has to tell it
                raised.append(error)

        threads = [threading.Thread(target=play, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in raised:
            if not isinstance(error, queue.Empty):
                raise error
        if raised:
            raise raised[0]
        return found


@contextmanager
def played(world: int, patience: float = 60):
    """Let the exchanges run between threads; give what runs them."""
    engine = Played(world, patience)
    before = ring.dist, sharded.dist
    ring.dist = sharded.dist = engine
    try:
        yield engine
    finally:
        ring.dist, sharded.dist = before


if __name__ == "__main__":
    folder, parts = Path(sys.argv[1]), sys.argv[2].split()
    torch.set_num_threads(1)
    if parts == ["rows"]:
        for world in WORLDS:
            run_processes(world, every_row, folder)
    else:
        import torch_engines

        torch.set_default_dtype(torch.float64)  # in which an error of another kind stands out
        for part in parts:
            run_processes(int(sys.argv[3]), getattr(torch_engines, part), folder)
