"""Processes: Python run in one of its own, and such jobs two at a time."""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

AT_ONCE = 2
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONIOENCODING": "utf-8",
}

Jobs = dict[Callable[[], dict], tuple[str, str]]  # the kind and the name of each


def run(words: list[str], environment: dict[str, str], seconds: int) -> tuple[str, str]:
    """Run Python with these words; return what it printed, and why it did not end well, or ""."""
    try:
        done = subprocess.run(
            [sys.executable, *words], env=os.environ | SETTINGS | environment, timeout=seconds,
            capture_output=True, text=True, encoding="utf-8", check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"no answer within {seconds} seconds"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return done.stdout, f"the process ended with {done.returncode}: {last[0]}"
    return done.stdout, ""


def in_pairs(jobs: Jobs) -> dict[str, dict]:
    """Return what jobs give, by kind and name; run them two at a time under a progress bar.

    A failure is said at once, in one line.
    """
    found: dict[str, dict] = defaultdict(dict)
    columns = [TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=len(jobs))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = {pool.submit(job): about for job, about in jobs.items()}
            for done in as_completed(waiting):
                kind, name = waiting[done]
                found[kind][name] = done.result()
                progress.update(task, advance=1, description=f"{kind}: {name}")
                for failed in _failures(name, done.result()):
                    progress.console.print(failed, highlight=False)
    return found


def _failures(name: str, result: dict) -> list[str]:
    if "failed" in result:
        return [f"{name}: {result['failed']}"] if result["failed"] else []
    return [line for peer, part in result.items() for line in _failures(peer, part)]
