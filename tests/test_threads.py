"""NumPy's threads: as many as allowed, right answers from all of them, and nothing left behind."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from attn_numpy import attention, blocked, causal, predicate, threads

ROOT = Path(__file__).parents[1]
SIZES = (2, 3, 397, 11)  # B, H, T, D: enough for three threads
WORTH = 2 * 3 * 397 * 397 // blocked.THREAD_CELLS
BLAS = ThreadpoolController().select(user_api="blas")


def limits() -> list[int]:
    return [library.num_threads for library in BLAS.lib_controllers]


def inputs(seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(3, *SIZES)))


@pytest.fixture
def workers(monkeypatch) -> list[tuple[int, list[int]]]:
    """How many threads each call was shared out to, and BLAS's limits while they ran."""
    seen, real = [], threads.work_together

    def note(work, units, count):
        seen.append((count, limits()))
        return real(work, units, count)

    monkeypatch.setattr(blocked, "work_together", note)
    return seen


class Impatient:
    """The lock itself, but who would wait for ever is told so."""

    def __init__(self, lock):
        self._lock = lock

    def __enter__(self):
        if not self._lock.acquire(timeout=20):
            raise AssertionError("a thread waits for what another one of its call holds")

    def __exit__(self, *error):
        self._lock.release()


@pytest.fixture(autouse=True)
def _no_deadlock(monkeypatch):
    monkeypatch.setattr(threads, "LOCK", Impatient(threads.LOCK))


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    before = limits(), np.geterr(), threading.active_count()
    yield
    assert (limits(), np.geterr(), threading.active_count()) == before


@pytest.fixture
def _blas_of_four():
    """BLAS as on a machine of four cores."""
    with threadpool_limits(4, user_api="blas"):
        yield


def test_the_call_is_worth_three_threads():
    assert WORTH == 3
    assert limits(), "threadpoolctl finds no BLAS to limit"


@pytest.mark.parametrize(("allowed", "used"), [(1, 1), (2, 2), (3, 3), (9, 3), (None, 3)])
@pytest.mark.usefixtures("_blas_of_four")
def test_threads_are_as_many_as_allowed_and_worth_it(monkeypatch, workers, allowed, used):
    monkeypatch.setattr(blocked, "THREADS", allowed)
    attention(*inputs())
    assert workers == [(used, [1] * len(limits()))]


@pytest.mark.parametrize("allowed", [2, 9, None])
@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.usefixtures("_blas_of_four")
def test_threads_are_never_more_than_blas_was_limited_to(monkeypatch, workers, allowed, most):
    monkeypatch.setattr(blocked, "THREADS", allowed)
    with threadpool_limits(most, user_api="blas"):
        attention(*inputs())
        assert limits() == [most] * len(limits())
    assert workers == [(most, [1] * len(limits()))]


@pytest.mark.parametrize("there", [True, False], ids=["affinity", "no_affinity"])
def test_cores_are_those_that_the_process_may_use(monkeypatch, there):
    """Where no BLAS is found that says how many threads it uses."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 7}, raising=False)
    if not there:  # as on macOS and Windows
        monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(threads, "_blas", lambda: ThreadpoolController().select(prefix="none"))
    with threads.blas_held(None) as count:
        assert count == (3 if there else 64)


@pytest.mark.usefixtures("_blas_of_four")
def test_small_calls_share_nothing_out(workers):
    attention(*(x[:1, :1] for x in inputs()))
    assert workers == []


@pytest.mark.parametrize("allowed", [1, 2, None])
@pytest.mark.usefixtures("_blas_of_four")
def test_the_number_of_threads_changes_no_bit(monkeypatch, allowed):
    alone = attention(*inputs(), mask=causal())
    monkeypatch.setattr(blocked, "THREADS", allowed)
    assert np.array_equal(attention(*inputs(), mask=causal()), alone)


@pytest.mark.usefixtures("_blas_of_four")
def test_callers_at_once_get_their_own_answers():
    calls = [inputs(seed) for seed in range(6)]
    alone = [attention(*call, mask=causal()) for call in calls]
    start = threading.Barrier(len(calls))

    def call(arrays):
        start.wait()
        return attention(*arrays, mask=causal())

    with ThreadPoolExecutor(len(calls)) as pool:
        together = list(pool.map(call, calls))
    assert [np.array_equal(*pair) for pair in zip(together, alone, strict=True)] == [True] * 6


@pytest.mark.usefixtures("_blas_of_four")
def test_a_caller_waits_until_blas_is_free_again(monkeypatch, workers):
    monkeypatch.setattr(blocked, "THREADS", 3)
    inside, called = threading.Event(), threading.Event()

    def function(batch, head, query, key):
        inside.set()
        called.wait(20)
        time.sleep(0.05)  # until the other has come as far as it can
        return key <= query

    def other():
        inside.wait(20)
        called.set()
        return attention(*inputs())

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(other)
        attention(*inputs(), mask=predicate(function))
        second.result()
    assert [count for count, _ in workers] == [3, 3]  # not 1, which BLAS was held to


def refuse_row(row: int):
    """Return a mask that raises where a row comes up, having let others pass."""

    def function(batch, head, query, key):
        if query.max() >= row:
            raise LookupError(f"row {row} is not for sale")
        return key <= query

    return predicate(function)


@pytest.mark.parametrize("allowed", [1, 3])
@pytest.mark.parametrize("row", [0, 300])
@pytest.mark.usefixtures("_blas_of_four")
def test_what_a_predicate_raises_reaches_the_caller(monkeypatch, workers, allowed, row):
    monkeypatch.setattr(blocked, "THREADS", allowed)
    with pytest.raises(LookupError, match="not for sale"):
        attention(*inputs(), mask=refuse_row(row))
    assert [count for count, _ in workers] == [allowed]
    assert np.isfinite(attention(*inputs(), mask=causal())).all()  # the next call is served


@pytest.mark.usefixtures("_blas_of_four")
def test_the_others_stop_after_one_has_raised(monkeypatch):
    asked, raised = [], threading.Event()

    def function(batch, head, query, key):
        asked.append(0)
        if len(asked) == 1:
            raised.set()
            raise LookupError
        raised.wait(20)
        time.sleep(0.05)  # until the error is where it stops them
        return key <= query

    monkeypatch.setattr(blocked, "THREADS", 2)
    with pytest.raises(LookupError):
        attention(*inputs(), mask=predicate(function))
    assert len(asked) <= 1 + 4, "a block of rows has four tiles: the other one went on"


@pytest.mark.parametrize("allowed", [1, 3])
@pytest.mark.usefixtures("_blas_of_four")
def test_a_predicate_may_attend(monkeypatch, workers, allowed):
    monkeypatch.setattr(blocked, "THREADS", allowed)
    names = set()

    def function(batch, head, query, key):
        names.add(threading.current_thread().name)
        assert np.isfinite(attention(*inputs(1))).all()
        return key <= query

    got = attention(*inputs(), mask=predicate(function))
    query, _, value = inputs()
    rounding = query.shape[2] * np.finfo(query.dtype).eps * abs(value).max()  # of a sum of T terms
    np.testing.assert_allclose(got, attention(*inputs(), mask=causal()), rtol=0, atol=rounding)
    assert bool(names - {threading.current_thread().name}) == (allowed > 1)


FORKED = """
import os, signal, threading
import numpy as np
from attn_numpy import attention, threads
inside, done = threading.Event(), threading.Event()
def hold():
    with threads.LOCK:
        inside.set()
        done.wait()
holder = threading.Thread(target=hold, daemon=True)
holder.start()
inside.wait()
child = os.fork()
if not child:
    signal.alarm(30)  # kills a child that waits for ever
    x = np.ones((2, 3, 397, 11), np.float32)
    os._exit(0 if (attention(x, x, x) == 1).all() else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
done.set()
raise SystemExit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent():
    call = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"the child was killed or wrong: {done.returncode} {done.stderr}"
