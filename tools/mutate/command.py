"""python -m tools.mutate: change the backends' source, and see who notices.

A mutant is caught by `conformance`, which everybody has who plugs in or copies a folder; else by
`tests`, the project's own; else by nobody. First come the patches, then, as long as time is left,
a sample of the changes by rule; what was judged before is not judged again while it stays true.
Exit status 1: nobody catches a patch that is not marked `equivalent`; 2: nothing was judged.
"""

import argparse
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from conformance.runs.run import cores

from .mutant import BACKENDS, SourceMutant, patches
from .operators import operators
from .page import said, summary, write
from .reach import Reach
from .verdicts import WHERE, Verdict, Verdicts
from .workers import BrokenError, Workers


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 2 where it cannot run."""
    parser = argparse.ArgumentParser("tools.mutate", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="patches: NAME or BACKEND/NAME")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable")
    parser.add_argument("--file", action="append", help="such as attn_torch/cache.py, repeatable")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--patches", action="store_true", help="no changes by rule")
    kind.add_argument("--operators", action="store_true", help="no patches")
    parser.add_argument("--minutes", type=float, default=10, help="when to stop, the map left out")
    parser.add_argument("--all", action="store_true", help="do not stop before the last")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--suite", action="store_true", help="ask the suite, and not the tests")
    parser.add_argument("--unmapped", action="store_true", help="run every case, and keep nothing")
    parser.add_argument(
        "--page",
        type=Path,
        help="what is known of all mutants, written beside it as .jsonl, too; not with NAME",
    )
    parser.add_argument("--folder", type=Path, default=".conformance/mutate", help="what is kept")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the workers are ended, too
    try:
        mutants = chosen(options)
        verdicts = run(options, [mutant for mutant in mutants if not mutant.equivalent])
    except (BrokenError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.page and not options.names:
        every = patches() + changes(BACKENDS)
        write(options.page, every, verdicts)
        verdicts.write(every)
    print(summary(mutants, verdicts, options.suite))
    asked = [mutant for mutant in mutants if not mutant.equivalent]
    found = {mutant.id: verdicts.get(mutant, options.suite) for mutant in asked}
    if asked and not any(found.values()):
        print("something must be judged in time: got nothing, so raise --minutes", file=sys.stderr)
        return 2
    return int(any(m.kind == "patch" and found[m.id].get("survived") for m in asked))


def chosen(options: argparse.Namespace) -> list[SourceMutant]:
    """Return the mutants that are asked for: the patches, then the others as the seed has it."""
    found = [] if options.operators else patches()
    names = {name for mutant in found for name in (mutant.name, mutant.id)}
    if unknown := set(options.names) - names:
        raise ValueError(f"no patch has this name: got {', '.join(sorted(unknown))}")
    wanted = options.backend or BACKENDS
    if options.names:
        return [m for m in found if {m.name, m.id} & set(options.names) and m.backend in wanted]
    if not options.patches:
        found += sampled(changes(wanted), options.seed)
    return [m for m in found if m.backend in wanted and m.file in (options.file or [m.file])]


def changes(backends: Iterable[str]) -> list[SourceMutant]:
    """Return every change by rule of these backends."""
    return [mutant for backend in backends for mutant in operators(backend)]


def sampled(mutants: list[SourceMutant], seed: int) -> list[SourceMutant]:
    """Return mutants in a random order in which every file has its turn."""
    by_file: dict[str, list[SourceMutant]] = defaultdict(list)
    for mutant in random.Random(seed).sample(mutants, len(mutants)):
        by_file[mutant.file].append(mutant)
    turns = [(i, m) for own in by_file.values() for i, m in enumerate(own)]
    return [mutant for _, mutant in sorted(turns, key=lambda turn: turn[0])]


def run(options: argparse.Namespace, mutants: list[SourceMutant]) -> Verdicts:
    """Judge mutants until time is up; return what is known then."""
    folder = options.folder.absolute()
    reach = Reach(folder)
    verdicts = Verdicts(folder, options.page and options.page.with_suffix(".jsonl"))
    with Workers(folder, cores()) as workers, Progress(console=Console(stderr=True)) as bars:
        todo = [m for m in mutants if anew(options) or not verdicts.get(m, options.suite)]
        if not anew(options):
            ask_again(workers, bars, verdicts, todo)
            todo = [m for m in todo if not verdicts.get(m, options.suite)]
        for where in asked_of(options):
            for backend in dict.fromkeys(mutant.backend for mutant in todo):
                record(workers, bars, reach, where, backend)
        end = time.monotonic() + 60 * options.minutes
        late = not (options.all or options.names)
        bar = bars.add_task("mutants", total=len(todo))
        ask = partial(judge, workers, reach, verdicts, options)
        in_time = (m for m in todo if not late or time.monotonic() < end)
        for mutant, answers in workers.map(ask, in_time):
            for where, answer in answers.items():
                verdicts.keep(mutant, where, answer, write=not options.unmapped)
                bars.console.print(said(mutant, where, answer), markup=False, soft_wrap=True)
                if options.names and "message" in answer:
                    bars.console.print(answer["message"], markup=False)
            bars.advance(bar)
    return verdicts


def asked_of(options: argparse.Namespace) -> tuple[str, ...]:
    return WHERE[:1] if options.suite else WHERE


def anew(options: argparse.Namespace) -> bool:
    """Return whether a mutant is judged although it was judged before."""
    return bool(options.unmapped or options.names)


def ask_again(
    workers: Workers, bars: Progress, verdicts: Verdicts, mutants: list[SourceMutant]
) -> None:
    """Ask of each mutant the case that caught it before something changed: that needs no map."""
    caught = [mutant for mutant in mutants if mutant.id in verdicts.catches]
    bar = bars.add_task("caught before", total=len(caught), visible=bool(caught))
    for mutant, answer in workers.map(lambda m: workers.ask(verdicts.again(m)), caught):
        if answer.get("case") == verdicts.catches[mutant.id]["case"]:
            verdicts.keep(mutant, "conformance", answer)
        bars.advance(bar)


def judge(
    workers: Workers,
    reach: Reach,
    verdicts: Verdicts,
    options: argparse.Namespace,
    mutant: SourceMutant,
) -> dict[str, Verdict]:
    """Ask the suite, then the tests; return what is new."""
    answers: dict[str, Verdict] = {}
    for where in asked_of(options):
        known = {} if anew(options) else verdicts.earlier(mutant, where)
        task = reach.task(mutant, where, options.unmapped, verdicts.catchers(mutant))
        answers[where] = known or workers.ask(task)
        if "case" in answers[where]:
            break
    return {where: answer for where, answer in answers.items() if "mutant" not in answer}


def record(workers: Workers, bars: Progress, reach: Reach, where: str, backend: str) -> None:
    """Record which cases reach which lines, where that is not known."""
    tasks = list(reach.lacking(where, backend))
    bar = bars.add_task(f"map of {where}, {backend}", total=len(tasks), visible=bool(tasks))
    for task, answer in workers.map(workers.ask, tasks):
        if "cases" not in answer and where == "conformance":
            raise BrokenError(f"{task['files'][0]} could not be recorded: {answer}")
        if "cases" not in answer:  # it ends its process, say
            bars.console.print(f"left out, for it cannot be recorded: {task['files'][0]}")
            answer = {"cases": {}, "bad": []}
        reach.keep(task, answer)
        bars.advance(bar)
