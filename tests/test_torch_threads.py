"""Torch's blocks on threads of ours: where, right answers from all, and nothing left behind."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from attn_torch import (
    attention,
    attention_steps,
    blocked,
    padding,
    plan,
    predicate,
    prefix,
    segments,
    sliding_window,
    threads,
)
from conformance.oracle.tolerance import compare

ROOT = Path(__file__).parents[1]
SIZES = (3, 4, 300, 8)  # B, H, T, D: three blocks of rows
MASKS = {
    "window": sliding_window(30, 10),
    "ragged": prefix([9, 0, 150]) & padding([300, 171, 20]),
    "packed": segments([[0] * 100 + [1] * 200, [0] * 299 + [1], [2] * 300]),
    "empty_rows": sliding_window(30) & padding([300, 171, 0]),
}


@pytest.fixture(autouse=True)
def _three_cores(monkeypatch):
    """Three threads at most, for however little work, and small blocks: several a thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(blocked, "THREAD_CELLS", 1)
    monkeypatch.setattr(plan, "CPU_SCORES", 2**16)
    yield
    assert torch.get_num_threads() == 3
    assert ThreadPoolExecutor(1).submit(torch.get_num_threads).result() == 3  # a new thread's
    assert not threads.LOCK.locked()
    torch.set_num_threads(before)


@pytest.fixture
def names(monkeypatch) -> list[tuple[str, int]]:
    """On which thread each block was attended to or given back, and how many torch may use."""
    seen, real = [], blocked.BlockPart

    def note(*args):
        seen.append((threading.current_thread().name.split("_")[0], torch.get_num_threads()))
        return real(*args)

    monkeypatch.setattr(blocked, "BlockPart", note)
    return seen


NAMES = ["output", "query", "key", "value"]
OURS, OWN = ("attn", 1), ("MainThread", 3)


def inputs(seed: int = 0, kv_heads: int = 2, count: int = 3) -> list[torch.Tensor]:
    B, H, T, D = SIZES
    rng = torch.Generator().manual_seed(seed)
    heads = (H, kv_heads, kv_heads, H)[:count]
    return [torch.randn((B, h, T, D), generator=rng) for h in heads]


def both_ways(mask, kv_heads=2, attend=attention, dtype=torch.float32, **options) -> list:
    *arrays, grad = (x.to(dtype) for x in inputs(kv_heads=kv_heads, count=4))
    arrays = [x.requires_grad_() for x in arrays]
    output = attend(*arrays, mask=mask, **options)
    return [output.detach(), *torch.autograd.grad(output, arrays, grad)]


def steps(*arrays, **options) -> torch.Tensor:
    return attention_steps(*arrays, **options).output


@pytest.mark.parametrize("empty_rows", ["zero", "uniform"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])  # fewer than threads, and more
@pytest.mark.parametrize("name", MASKS)
def test_threads_give_the_textbooks_numbers_each_time(names, name, kv_heads, empty_rows):
    run = partial(both_ways, MASKS[name], kv_heads, empty_rows=empty_rows)
    together = run()
    assert set(names) == {OURS}
    assert all(map(torch.equal, run(), together)), "it depends on which thread was faster"
    exact, naive = run(attend=steps, dtype=torch.float64), run(attend=steps)
    for what, *three in zip(NAMES, together, exact, naive, strict=True):
        compare(*(x.numpy() for x in three), what)


def _in_a_mode(run):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = run()
    assert counter.get_total_flops() > 0
    return output


def _while_they_are_taken(run):
    with threads.LOCK:
        return run()


def _with_one_core(run):
    torch.set_num_threads(1)
    try:
        return run()
    finally:
        torch.set_num_threads(3)


ALONE = {
    "counted": (_in_a_mode, OWN),
    "taken": (_while_they_are_taken, OWN),
    "one_core": (_with_one_core, ("MainThread", 1)),
}


@pytest.mark.parametrize("name", ALONE)
def test_blocks_stay_on_the_callers_thread(names, name):
    how, thread = ALONE[name]
    run = partial(both_ways, MASKS["window"])
    alone = how(run)
    assert set(names) == {thread}
    rounding = 300 * torch.finfo(torch.float32).eps * 10
    for one, other in zip(alone, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=rounding)


def test_a_bias_is_given_back_on_one_thread(names):
    bias = torch.zeros(300, 300, requires_grad=True)  # every head adds to its gradient
    output = attention(*inputs(), mask=MASKS["window"], bias=bias)
    assert set(names) == {OURS}
    names.clear()
    output.sum().backward()
    assert set(names) == {OWN}


def test_small_calls_share_nothing_out(names, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(blocked, "BlockPart", partial(_note_alone, names, blocked.BlockPart))
    attention(*(x[:1, :2] for x in inputs()), mask=sliding_window(3))
    assert names == [OWN] * len(names) != []


def _note_alone(names, real, *args):
    names.append((threading.current_thread().name, torch.get_num_threads()))
    return real(*args)


def test_a_predicate_is_asked_on_the_callers_thread(names):
    """It may look at what the thread has for itself, and attend."""
    asked = set()

    def function(batch, head, query, key):
        asked.add(threading.current_thread())
        assert attention(*inputs(1), mask=MASKS["window"]).isfinite().all()
        return key <= query

    attention(*inputs(), mask=predicate(function) & sliding_window(30))
    assert asked == {threading.current_thread()}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_go_with_the_work(names, mode):
    query, key, value = inputs()
    with mode():
        output = attention(query.clone().requires_grad_(), key, value, mask=MASKS["window"])
    assert set(names) == {OURS}
    asked = output.requires_grad, output.is_inference()
    assert asked == (mode is torch.enable_grad, mode is torch.inference_mode)


def test_autocast_does_not_round(names):
    alone = attention(*inputs(), mask=MASKS["window"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(*inputs(), mask=MASKS["window"]), alone)
    assert set(names) == {OURS}


def test_autocast_does_not_round_gradients(names):
    grads = []
    for autocast in (False, True):
        for taken in (False, True):
            arrays = [array.requires_grad_() for array in inputs()]
            output = attention(*arrays, mask=MASKS["window"])
            lock = threads.LOCK if taken else nullcontext()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast), lock:
                grads.append(torch.autograd.grad(output.square().sum(), arrays))
    bound = 300 * torch.finfo(torch.float32).eps * 10
    for found in grads[1:]:
        for one, other in zip(found, grads[0], strict=True):
            torch.testing.assert_close(one, other, rtol=bound, atol=bound)
    assert set(names) == {OURS, OWN}


def test_a_system_without_threads_is_served_by_the_caller(names, monkeypatch):
    class Full(ThreadPoolExecutor):
        def submit(self, work, *given):
            if self._thread_name_prefix == threads.NAME:
                raise RuntimeError("can't start new thread")
            return super().submit(work, *given)

    wanted = attention(*inputs(), mask=MASKS["window"])
    names.clear()
    monkeypatch.setattr(threads, "ThreadPoolExecutor", Full)
    threads._pool.cache_clear()
    try:
        rounding = 300 * torch.finfo(torch.float32).eps * 4
        found = attention(*inputs(), mask=MASKS["window"])
        torch.testing.assert_close(found, wanted, rtol=0, atol=rounding)
        assert set(names) == {OWN} and threads._pool(3) is None
    finally:
        threads._pool.cache_clear()


def test_callers_at_once_get_their_own_answers():
    calls = [inputs(seed) for seed in range(6)]
    alone = [attention_steps(*call, mask=MASKS["ragged"]).output for call in calls]
    start = threading.Barrier(len(calls))

    def call(arrays):
        start.wait()
        return attention(*arrays, mask=MASKS["ragged"])

    with ThreadPoolExecutor(len(calls)) as pool:
        together = list(pool.map(call, calls))
    rounding = 300 * torch.finfo(torch.float32).eps * 4
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=rounding)


def test_what_a_thread_raises_reaches_the_caller_and_stops_the_others():
    done, raised = [], threading.Event()

    def work(units):
        for unit in units:
            if unit == 9:  # the last one is handed out first
                raised.set()
                raise LookupError("not for sale")
            raised.wait(20)
            threading.Event().wait(0.05)  # until the error is where it stops them
            done.append(unit)

    with pytest.raises(LookupError, match="not for sale"):
        threads.work_together(work, list(range(10)), 3)
    assert len(done) <= 2, "the others went on after the unit that they were at"
    assert attention(*inputs(), mask=MASKS["window"]).isfinite().all()  # the next call is served


FORKED = """
import os, signal, torch
from attn_torch import attention, blocked, sliding_window, threads
torch.set_num_threads(2)
blocked.THREAD_CELLS = 1
x = torch.ones(1, 2, 300, 8)
run = lambda: (attention(x, x, x, mask=sliding_window(9)) - 1).abs().max() < 1e-6
assert run() and threads._pool.cache_info().currsize == 1
threads.LOCK.acquire()  # as if another thread were at work
child = os.fork()
if not child:
    signal.alarm(30)  # kills a child that waits for ever
    torch.set_num_threads(2)
    right = run() and threads._pool.cache_info().currsize == 1
    os._exit(0 if right else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_starts_threads_of_its_own():
    call = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"the child was killed or wrong: {done.returncode} {done.stderr}"


ENDING = """
import atexit, threading, torch
from attn_torch import attention, blocked, sliding_window, threads
torch.set_num_threads(2)
blocked.THREAD_CELLS = 1
x = torch.ones(1, 2, 300, 8)
def run():
    if threading.current_thread() is not threading.main_thread():
        threading.main_thread().join()
    print(float(attention(x, x, x, mask=sliding_window(9)).sum().round()))
if {used}:
    assert attention(x, x, x, mask=sliding_window(9)).isfinite().all()
threading.Thread(target=run).start()
atexit.register(run)
"""


@pytest.mark.parametrize("used", [True, False])
def test_calls_are_served_while_python_ends(used):
    call = [sys.executable, "-W", "ignore", "-c", ENDING.format(used=used)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout.split() == ["4800.0"] * 2, done.stderr
