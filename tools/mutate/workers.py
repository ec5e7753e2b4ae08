"""Two workers, or as many as there are cores, and the tasks that they are given."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .mutant import ROOT

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class BrokenError(Exception):
    """A worker broke down, so that there is nothing to judge."""


class Workers:
    """Processes that import the frameworks once and answer a task at a time."""

    def __init__(self, folder: Path, count: int):
        env = os.environ | ONE_THREAD | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.idle: SimpleQueue[subprocess.Popen] = SimpleQueue()
        self.all: list[subprocess.Popen] = []
        self.folder = folder / f"workers-{os.getpid()}"
        for i in range(count):
            call = [sys.executable, "-m", "tools.mutate.worker", str(self.folder / str(i))]
            pipe = subprocess.PIPE
            worker = subprocess.Popen(
                call, env=env, cwd=ROOT, stdin=pipe, stdout=pipe, encoding="utf-8"
            )
            self.all.append(worker)
            self.idle.put(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.all:
            worker.terminate()  # it ends the process that it has forked, too
        for worker in self.all:
            worker.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Give a task to an idle worker; return its answer."""
        worker = self.idle.get()
        try:
            print(json.dumps(task), file=worker.stdin, flush=True)
            line = next(iter(worker.stdout or ()), "")
        except OSError:
            line = ""
        finally:
            self.idle.put(worker)
        answer = json.loads(line) if line else {"broken": "the worker has ended"}
        if "broken" in answer and not task.get("record"):
            raise BrokenError(
                f"pytest broke down on {task.get('file') or task['files']}:\n{answer['broken']}"
            )
        return answer

    def map(self, do: Callable, things: Iterable) -> Iterator[tuple[Any, Any]]:
        """Give each thing with what `do` returns for it, as they end; things are taken late."""
        source = iter(things)
        running: dict[Future, Any] = {}
        with ThreadPoolExecutor(len(self.all)) as pool:
            while True:
                while len(running) < len(self.all) and (thing := next(source, None)) is not None:
                    running[pool.submit(do, thing)] = thing
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
