"""python -m tools.mutate: change the backends' source, and see who notices.

A mutant is caught by `conformance`, which everybody has who plugs in or copies a folder; else by
`tests`, the project's own; else by nobody. Exit status 1: nobody catches a patch that is not marked
`equivalent`.
"""

import argparse
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from conformance.runs.run import cores

from .mutant import BACKENDS, Mutant, patches
from .reach import Reach
from .verdicts import Verdicts
from .workers import BrokenError, Workers

WHERE = ("conformance", "tests")


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 2 where it cannot run."""
    parser = argparse.ArgumentParser("tools.mutate", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="patches, as NAME or BACKEND/NAME")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable")
    parser.add_argument("--file", action="append", help="such as attn_torch/cache.py, repeatable")
    parser.add_argument("--minutes", type=float, default=10, help="when to stop")
    parser.add_argument("--all", action="store_true", help="do not stop before the last")
    parser.add_argument("--suite", action="store_true", help="ask the suite only, not the tests")
    parser.add_argument("--unmapped", action="store_true", help="run every case, and keep nothing")
    parser.add_argument("--folder", type=Path, default=Path(".conformance/mutate"))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the workers are ended, too
    try:
        return run(options, chosen(options))
    except (BrokenError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def chosen(options: argparse.Namespace) -> list[Mutant]:
    """Return the mutants that are asked for."""
    every = [m for m in patches() if not m.equivalent]
    unknown = set(options.names) - {n for m in every for n in (m.name, m.id)}
    if unknown:
        raise ValueError(f"no patch has this name: got {', '.join(sorted(unknown))}")
    return [
        m
        for m in every
        if (not options.names or {m.name, m.id} & set(options.names))
        and m.backend in (options.backend or BACKENDS)
        and m.file in (options.file or [m.file])
    ]


def run(options: argparse.Namespace, mutants: list[Mutant]) -> int:
    """Judge mutants until time is up; print what was found."""
    folder = options.folder.absolute()
    reach, verdicts = Reach(folder), Verdicts(folder, fresh=options.unmapped or options.names)
    end = float("inf") if options.all or options.names else time.monotonic() + 60 * options.minutes
    with Workers(folder, cores()) as workers, Progress(console=Console(stderr=True)) as bars:
        for where in WHERE[: 1 if options.suite else 2]:
            left = [m for m in mutants if verdicts.lacks(m, where)]
            for backend in dict.fromkeys(m.backend for m in left):
                record(workers, bars, reach, where, backend)
            bar = bars.add_task(where, total=len(left))
            ask = partial(judge, workers, reach, where, options.unmapped)
            for mutant, answer in workers.map(ask, (m for m in left if time.monotonic() < end)):
                verdicts.keep(mutant, where, answer, write=not options.unmapped)
                bars.console.print(told(mutant, where, answer), markup=False, soft_wrap=True)
                if options.names:
                    bars.console.print(answer.get("message", ""), markup=False)
                bars.advance(bar)
    return report(mutants, verdicts, options.suite)


def judge(workers: Workers, reach: Reach, where: str, every: bool, mutant: Mutant) -> dict:
    """Return what a worker says of a mutant."""
    return workers.ask(reach.task(mutant, where, every))


def record(workers: Workers, bars: Progress, reach: Reach, where: str, backend: str) -> None:
    """Record which cases reach which lines, where that is not known."""
    tasks = list(reach.lacking(where, backend))
    bar = bars.add_task(f"map of {where}, {backend}", total=len(tasks))
    for task, answer in workers.map(workers.ask, tasks):
        if "cases" not in answer:
            raise BrokenError(f"{task['files'][0]} could not be recorded: {answer}")
        reach.keep(task, answer)
        bars.advance(bar)


def told(mutant: Mutant, where: str, answer: dict[str, Any]) -> str:
    """Return a line on a mutant."""
    how = answer["case"] if "case" in answer else f"NOT CAUGHT by {where}"
    return f"{mutant.id}: {how} ({answer['seconds']:.1f} s)"


def report(mutants: list[Mutant], verdicts: Verdicts, suite: bool) -> int:
    """Print how many were caught by whom, and which by nobody."""
    judged = [(m, v) for m in mutants if (v := verdicts.get(m, suite))]
    caught = Counter(v["where"] for _, v in judged if "case" in v)
    missed = [m for m, v in judged if "case" not in v]
    for m in missed:
        print(f"\nNOBODY CATCHES {m.id}\n  {m.file}:{m.first}  {m.sentence}")
    print(
        f"\n{len(mutants)} mutants, {len(judged)} judged: {caught['conformance']} caught by "
        f"conformance, {caught['tests']} by tests only, {len(missed)} not caught"
    )
    return int(bool(missed))
