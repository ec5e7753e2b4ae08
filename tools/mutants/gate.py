"""python -m tools.mutants: run the suite on every mutant, and see that each one is caught.

The gate fails where a clause that a mutant names does not catch it, where a MUST clause catches no
mutant, and where a right subject does not conform, because then nothing is proved.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from conformance import subjects
from conformance.contract import clauses
from conformance.mutants import MUTANTS, Mutant, named

from .page import write
from .verdict import GateVerdict, Result, decide, results

# Two halves that take about as long as each other, each a process; torch is in the first alone.
SHARDS = {
    "attention": ("masks", "attention", "partial", "empty", "half", "gradients"),
    "models": (
        "questions",
        "multihead",
        "heads",
        "layers",
        "cache",
        "weights",
        "transforms",
        "errors",
    ),
}
# The child sees what its parent sees, wherever the package was found.
CHILD = "import sys; sys.path[:] = {path!r}; from {package}.shard import main; sys.exit(main())"
REPORTS = ("right.jsonl", "wrong.jsonl", "both.jsonl")  # those that a shard may write


class SuiteBrokenError(Exception):
    """The suite broke down, so that there is nothing to judge."""


def main(arguments: list[str] | None = None) -> int:
    """Run the gate. Returns 0 where it passes, 1 where it fails, 2 where it cannot run."""
    parser = argparse.ArgumentParser("tools.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants; all if none is named")
    parser.add_argument(
        "--quick", action="store_true", help="run each mutant on the clauses that it names only"
    )
    parser.add_argument(
        "--page", type=Path, help="where the kill matrix goes, in Markdown, if the gate passes"
    )
    parser.add_argument("--list", action="store_true", help="list the mutants, and run nothing")
    parser.add_argument(
        "--folder", type=Path, default=".conformance/mutants", help="where the reports go"
    )
    options = parser.parse_args(arguments)
    if sys.flags.optimize > 1:
        parser.error("a mutant's sentence is its docstring: got Python's option -OO")
    if options.page and (options.names or options.quick):
        parser.error("--page is of every mutant on every clause: got --quick or names")
    try:
        mutants = [named(name) for name in dict.fromkeys(options.names)] or [*MUTANTS.values()]
        if options.list:
            print("\n".join(f"{m.name:32} {m.sentence}" for m in mutants))
            return 0
        started = time.monotonic()
        found = run(mutants, options.folder, options.quick)
    except (SuiteBrokenError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    verdict = decide(mutants, found, all_clauses=not options.names)
    seconds = time.monotonic() - started
    depth = "some" if options.names else "quick" if options.quick else "whole"
    print(summary(mutants, verdict, seconds, depth))
    if verdict.complaints:
        return 1
    if options.page:
        write(options.page, mutants, verdict)
    return 0


def run(mutants: list[Mutant], folder: Path, quick: bool = False) -> list[Result]:
    """Run the suite on mutants and on what they are made of; return every result."""
    bases = dict.fromkeys(mutant.base for mutant in mutants)
    lacking = {base: subjects.missing(base) for base in bases}
    if wanted := [f"{base} lacks {', '.join(names)}" for base, names in lacking.items() if names]:
        raise SuiteBrokenError(
            f"what a mutant is made of must be installed: got {'; '.join(wanted)}"
        )
    shards: dict[str, list[str]] = {}
    for shard, chapters in SHARDS.items():
        if names := [mutant.name for mutant in mutants if mutant.chapter in chapters]:
            shards[shard] = names
    folders = {shard: folder / shard for shard in shards}
    running = {s: start(folders[s], names, quick) for s, names in shards.items()}
    try:
        follow(running, folders)
    finally:
        for process in running.values():
            process.kill()  # of those that are still there: another broke down, or Ctrl-C
    names = ["both.jsonl"] if quick else ["right.jsonl", "wrong.jsonl"]
    return [r for own in folders.values() for name in names for r in results(own / name)]


def start(folder: Path, names: list[str], quick: bool) -> subprocess.Popen:
    """Start a shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("progress", *REPORTS):  # an earlier run's
        (folder / old).unlink(missing_ok=True)
    code = CHILD.format(path=sys.path, package=__package__)
    call = [sys.executable, "-c", code, str(folder), *["--quick"] * quick, *names]
    one_thread = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            call, env=os.environ | one_thread, stdout=log, stderr=subprocess.STDOUT
        )


PHASES = {"Rights": "right subjects", "Wrongs": "mutants", "Quick": "mutants"}


def follow(running: dict[str, subprocess.Popen], folders: dict[str, Path]) -> None:
    """Show how far the shards are until all have ended.

    Raises `SuiteBrokenError` where one breaks down.
    """
    bars = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(*bars, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        tasks = {shard: progress.add_task(f"{shard}: starting", total=None) for shard in running}
        while running.keys() - (ended := ended_well(running, folders)):
            for shard, task in tasks.items():
                if said := progress_of(folders[shard]):
                    phase, done, total = said
                    text = f"{shard}: {PHASES[phase]}"
                    progress.update(task, description=text, completed=done, total=total)
            time.sleep(0.2)
        for shard in ended:
            progress.update(tasks[shard], description=f"{shard}: done")


def ended_well(running: dict[str, subprocess.Popen], folders: dict[str, Path]) -> set[str]:
    """Return the shards that have ended. Raises `SuiteBrokenError` where one ended badly."""
    for shard, process in running.items():
        if process.poll():
            log = (folders[shard] / "log.txt").read_text("utf-8", "replace")
            raise SuiteBrokenError(f"the suite broke down ({process.returncode}):\n{log[-3000:]}")
    return {shard for shard, process in running.items() if process.returncode == 0}


def progress_of(folder: Path) -> tuple[str, int, int] | None:
    """Return what a shard has left word of last: phase, cases done, cases in all."""
    try:
        phase, done, total = (folder / "progress").read_text("utf-8").split()
    except (OSError, ValueError):  # none yet, or half written
        return None
    return phase, int(done), int(total)


def summary(mutants: list[Mutant], verdict: GateVerdict, seconds: float, depth: str) -> str:
    """Return the complaints, if any, and how it went; `depth` is "whole", "quick" or "some"."""
    lines = [f"{complaint}\n" for complaint in verdict.complaints]
    if depth == "some":
        kills = verdict.kills.items()
        lines += [f"{name} is caught by {', '.join(caught) or 'nothing'}" for name, caught in kills]
    if depth == "whole":  # to be known, and no failure: a new test may come before its mutant
        lines += [f"{test} of {clause} catches no mutant" for clause, test in sorted(verdict.idle)]
        busy = len(verdict.tests) - len(verdict.idle)
        lines.append(f"{busy} of {len(verdict.tests)} tests of the suite catch a mutant")
    if depth != "some":
        must = [clause.id for clause in clauses().values() if clause.level == "MUST"]
        busy = sum(id in verdict.catches() for id in must)
        lines.append(f"{busy} of {len(must)} MUST clauses catch a mutant")
    caught = sum(set(m.clauses) <= verdict.kills[m.name].keys() for m in mutants)
    counted = f"{caught} of {len(mutants)} mutants are caught by every clause that they name"
    return "\n".join([*lines, f"{counted}; {verdict.cases} cases, {seconds:.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
